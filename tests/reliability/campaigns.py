"""Kills of `flywheel run` itself: Prefect, its server, MLflow and the real stages, on the recipe `smoke`.

    registry with 0 and 1 --run, killed--> --run, killed--> ... --run--> 2 and 3, as in the calm twin

A chain of lives shares one registry: each goes on where the one before it was killed, cut into another number of
shards. After each death the registry is looked at, and at the end compared with the twin's.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import checks
from tests.reliability.databases import database
from tests.reliability.injection import TOP, Fault, Outcome, copy, environment, wait_until_free

SAYS = "`flywheel run` makes two generations of the recipe `smoke`, by Prefect, with the real stages and MLflow"
KIND = "SIGKILL to `flywheel run`"
UNLIKE = ("ledger/", "params.yaml")
"""Says seconds; says how many shards there were."""
_FIRST, _LAST = 1, 3
"""Generations that the base has, and that the twin comes to."""
_SECONDS = 240
_ORPHANING = ("sh", "-c", 'kill -9 $PPID; exec "$@"', "sh")
_STEPS = ("start git add 1", "start git commit 1", "start git tag 1", "dvc commit")


@dataclass(frozen=True, slots=True)
class Moment:
    """When a life ends: `seconds` after the campaign says that it is at `stage` ("": after its start), or at a step."""

    stage: str
    seconds: float
    process: str = ""
    step: int = 0

    @property
    def where(self) -> str:
        return self.process or (f"stage {self.stage}" if self.stage else "a random moment")


@dataclass(frozen=True, slots=True)
class Chain:
    """Lives that share a registry; `overrides` are theirs and their twin's."""

    number: int
    moments: tuple[Moment, ...]
    overrides: tuple[str, ...] = ()


def chains(seed: int, lives: int) -> list[Chain]:
    """At least `lives` moments to die at, in chains of four."""
    draw = random.Random(seed)
    found: list[Chain] = []
    while sum(len(chain.moments) for chain in found) < lives:
        number = len(found)
        supervised = number % 4 == 3
        stages = ("generate", "train", "supervise" if supervised else "evaluate", "publish")
        kinds = (
            [Moment(stage, draw.uniform(0, 0.4)) for stage in stages],
            [Moment("", draw.uniform(1.0, 14.0)) for _ in range(4)],
            [Moment("publish", 0.0, process, draw.randint(1, 30)) for process in draw.sample(_STEPS, 3)]
            + [Moment("publish", draw.uniform(0, 1.5))],
        )
        moments = kinds[0] if supervised else kinds[number % 4]
        found.append(Chain(number, tuple(moments), ("supervise.enabled=true",) if supervised else ()))
    return found


def make_base(folder: Path) -> None:
    """A registry of the recipe `smoke` with generations 0 and 1."""
    folder.mkdir(parents=True)
    _finish(folder / "registry", _FIRST, "--preset", "smoke")


def facts_of(base: Path) -> checks.Facts:
    """What a base holds."""
    return checks.facts(base / "registry", UNLIKE)


def make_twin(base: Path, folder: Path, overrides: tuple[str, ...]) -> checks.Facts:
    """What the base comes to when nothing disturbs it."""
    copy(base, folder)
    root = folder / "registry"
    _finish(root, _LAST - _FIRST, *_set(overrides))
    after = checks.facts(root, UNLIKE)
    wrong = [*checks.difference(root, after, UNLIKE), *_mlflow(root)]
    assert not wrong, f"undisturbed: {wrong}"
    return after


def live(chain: Chain, base: Path, before: checks.Facts, after: checks.Facts, folder: Path) -> Iterator[Outcome]:
    """Run a chain in `folder`; an outcome a life, the last of which also answers for what the chain came to."""
    copy(base, folder)
    root = folder / "registry"
    for index, moment in enumerate(chain.moments):
        started = time.monotonic()
        standing = checks.standing(root)
        left = _LAST - int(standing[0][4:])
        last = index == len(chain.moments) - 1
        wrong: list[str] = []
        hit = False
        if left:
            hit, wrong = _life(root, left, index + 1, moment, chain.overrides)
        wait_until_free(root)
        wrong += checks.damage(root, before, after, UNLIKE)
        survived = "new" if checks.standing(root)[0] > standing[0] else "old"
        lost = checks.Lost(0, 0)
        if last and not wrong:
            wrong, lost = _end(root, after, chain.overrides)
        fault = Fault(KIND, moment.where, chain.number, "kill")
        yield Outcome("campaign", fault, hit, survived, lost, time.monotonic() - started, wrong)
        if wrong:
            return
    shutil.rmtree(folder)


def _life(root: Path, left: int, shards: int, moment: Moment, overrides: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Start `flywheel run` and kill it; whether it was killed before its end."""
    log = root.parent / "log"
    spec = {
        "root": str(root), "log": "", "hit": str(root.parent / "hit"), "process": moment.process, "step": moment.step,
        "action": _ORPHANING if moment.process.startswith("start ") else "kill both",
    }  # fmt: skip
    extra = {"FLYWHEEL_FAULT": json.dumps(spec)} if moment.process else {}
    command = _command(root, left, *_set((f"execution.shards={shards}", *overrides)))
    number = int(checks.standing(root)[0][4:]) + 1
    with log.open("w", encoding="utf-8") as output:
        run = subprocess.Popen(
            command, cwd=TOP, env=environment(**extra), stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    end = time.monotonic() + _SECONDS
    try:
        if moment.stage and not moment.process:
            _wait(lambda: run.poll() is not None or _progress(root) == (number, moment.stage), end)
        if moment.process:
            _wait(lambda: run.poll() is not None, end)
        else:
            _wait(lambda: run.poll() is not None, min(end, time.monotonic() + moment.seconds))
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    if run.returncode in {0, -signal.SIGKILL}:
        return run.returncode != 0, []
    return True, [f"ended with {run.returncode}: {log.read_text(encoding='utf-8')[-2000:]}"]


def _end(root: Path, after: checks.Facts, overrides: tuple[str, ...]) -> tuple[list[str], checks.Lost]:
    """Let the campaign come to its end, and compare."""
    left = _LAST - int(checks.standing(root)[0][4:])
    if left:
        _finish(root, left, *_set(overrides))
    else:
        command = [sys.executable, "-m", "flows.cli", "recover", "--registry", str(root)]
        subprocess.run(command, cwd=TOP, env=environment(), check=True, capture_output=True)
    wrong = checks.difference(root, after, UNLIKE)
    return [*wrong, *(_mlflow(root) if left else [])], checks.labels_lost(root, after)


def _finish(root: Path, generations: int, *arguments: str) -> None:
    done = subprocess.run(
        _command(root, generations, *arguments), cwd=TOP, env=environment(), capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _command(root: Path, generations: int, *arguments: str) -> list[str]:
    run = ["run", "--json", "--registry", str(root), "--generations", str(generations)]
    return [sys.executable, "-m", "flows.cli", *run, *arguments]


def _set(overrides: tuple[str, ...]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _progress(root: Path) -> tuple[int, str]:
    try:
        step = json.loads((root / ".flywheel" / "progress.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (-1, "")
    return (step["generation"], step["stage"])


def _wait(condition: Callable[[], bool], end: float) -> None:
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def _mlflow(root: Path) -> list[str]:
    """MLflow has a finished run for each generation, once, and nothing waits to be sent."""
    with closing(sqlite3.connect(database(root))) as connection:
        rows = connection.execute("SELECT name, status FROM runs").fetchall()
    expected = Counter((f"gen/{number:04d}", "FINISHED") for number in range(_LAST + 1))
    found = [] if Counter(rows) == expected else [f"MLflow has the runs {sorted(rows)}"]
    waiting = list((root / ".flywheel" / "queue").glob("*"))
    return [*found, f"records still wait: {waiting}"] if waiting else found
