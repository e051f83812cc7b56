"""MLflow's database broken in every way that a file can be: a generation is published all the same.

Its record waits in `.flywheel/queue`, `flywheel status` says so, and it is sent, once, when there is a database again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.reliability.injection import TOP, environment
from tests.reliability.situations import DONE, Situation, Told, Trouble, can_protect, unwritable

BROKEN = "MLflow's database is broken"


def situations(folder: Path) -> list[Situation]:
    """All that can be brought about here; see `tests.reliability.situations`."""
    broken: list[tuple[str, Trouble]] = [
        ("cut to half", _changed(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))),
        ("other bytes", _changed(lambda path: path.write_bytes(b"not a database, " * 4096))),
        ("table `runs` dropped", _changed(lambda path: _execute(path, "DROP TABLE runs"))),
        ("table `alembic_version` dropped", _changed(lambda path: _execute(path, "DROP TABLE alembic_version"))),
        ("a folder in its place", _changed(_replace_by_folder)),
        ("locked by another process", _locked),
    ]
    if can_protect(folder):
        broken.append(("may not be written", unwritable(".flywheel/mlflow")))
    found = [Situation(BROKEN, where, "recorded", DONE, trouble, _waits, _sent) for where, trouble in broken]
    # MLflow makes a new one where there is none, or nothing in it.
    return [
        *found,
        Situation(BROKEN, "removed", "recorded", DONE, _removed, _waits_not, _sent),
        Situation(BROKEN, "empty", "recorded", DONE, _emptied, _waits_not, _sent),
    ]


def database(root: Path) -> Path:
    return root / ".flywheel" / "mlflow" / "mlflow.db"


def recorded_runs(root: Path) -> list[str]:
    """Flywheel-Run of every run that MLflow's database has."""
    with contextlib.closing(sqlite3.connect(database(root))) as connection:
        rows = connection.execute("SELECT value FROM tags WHERE key = 'Flywheel-Run' ORDER BY value").fetchall()
    return [row[0] for row in rows]


def _changed(change: Callable[[Path], object]) -> Trouble:
    """The database after `change(path)`; afterwards moved away, as the messages advise."""

    @contextmanager
    def trouble(root: Path) -> Iterator[Told]:
        change(database(root))
        yield Told()
        shutil.rmtree(database(root).parent)

    return trouble


@contextmanager
def _removed(root: Path) -> Iterator[Told]:
    shutil.rmtree(database(root).parent)
    yield Told()


@contextmanager
def _emptied(root: Path) -> Iterator[Told]:
    database(root).write_bytes(b"")
    yield Told()


@contextmanager
def _locked(root: Path) -> Iterator[Told]:
    """Another process writes and does not end."""
    program = (
        "import sqlite3, sys, time; connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(database(root))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield Told()
    finally:
        process.kill()
        process.communicate()


def _execute(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _waiting(root: Path) -> int:
    command = [sys.executable, "-m", "flows.cli", "status", "--json", "--registry", str(root)]
    done = subprocess.run(command, cwd=TOP, env=environment(), capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout)["waiting_for_mlflow"])


def _waits(root: Path) -> list[str]:
    queued = sorted(path.name for path in (root / ".flywheel" / "queue").glob("*"))
    found = [] if queued == ["0001.json"] else [f"the queue holds {queued}"]
    waiting = _waiting(root)
    return found if waiting == 1 else [*found, f"status says that {waiting} records wait"]


def _waits_not(root: Path) -> list[str]:
    waiting = _waiting(root)
    return [f"status says that {waiting} records wait, though a new database could be made"] if waiting else []


def _sent(root: Path) -> list[str]:
    """Nothing waits any more; MLflow knows generation 1's run once."""
    message = subprocess.run(
        ["git", "-C", str(root), "log", "-1", "--format=%(trailers:key=Flywheel-Run,valueonly)", "gen/0001"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    runs, run = recorded_runs(root), message.stdout.strip()
    found = [] if runs.count(run) == 1 else [f"MLflow has run {run} {runs.count(run)} times"]
    waiting = _waiting(root)
    return [*found, f"{waiting} records still wait"] if waiting else found
