"""The command line as a user meets it: a process of its own, its output and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def environment(**extra: str) -> dict[str, str]:
    """The tests' environment with an identity for git and no server of the user's."""
    held = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FLYWHEEL_"))}
    name, mail = "Flywheel Tests", "tests@flywheel.invalid"
    return {
        **held, "GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": mail, "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": mail, **extra,
    }  # fmt: skip


def flywheel(*arguments: str | Path, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `flywheel <arguments>`; the test fails unless it exits with `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        capture_output=True, text=True, env=environment(), cwd=cwd, stdin=subprocess.DEVNULL, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
    return done


def flywheel_json(*arguments: str | Path) -> Any:
    """The one document that `--json` puts on stdout."""
    return json.loads(flywheel(*arguments, "--json").stdout)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `flywheel <arguments>` and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for a condition; the test fails if it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def progress(registry: Path) -> tuple[int, str, int]:
    """(generation, stage, done) that the campaign says it is at; (-1, "", 0) while it says nothing."""
    try:
        step = json.loads((registry / ".flywheel" / "progress.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (-1, "", 0)
    return (step["generation"], step["stage"], step["done"])


def made(registry: Path) -> dict[str, Any]:
    """What the generations of a registry are made of, by digest: everything that the same recipe must give again."""
    found = {}
    for path in sorted((registry / "lineage").glob("[0-9]*.json")):
        lineage = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = {
            name: lineage[name] for name in ("tables", "outputs", "student", "champion", "teacher", "flops", "labels")
        }
    return found


def made_again_by_hand(registry: Path, clone: Path) -> tuple[str, str, str]:
    """A registry's newest generation made again in a clone, by DVC alone: what dvc.lock recorded, what it says then,
    and what `dvc repro` said."""
    subprocess.run(["git", "clone", "-q", registry, clone], check=True)

    def dvc(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dvc", *arguments],
            cwd=clone, capture_output=True, text=True, check=False,
            env=environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    dvc("cache", "dir", "--local", str(registry / ".dvc" / "cache"))
    dvc("checkout", "-q", "parent.dvc")
    recorded = (clone / "dvc.lock").read_text(encoding="utf-8")
    log = dvc("repro", "--force", "--no-run-cache")
    return recorded, (clone / "dvc.lock").read_text(encoding="utf-8"), log
