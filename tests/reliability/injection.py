"""One case: an operation on a copy of a registry, a fault at one of its steps, then what must be true all the same.

    base --copy--> registry --operation, disturbed--> whole? old or new? --operation again--> as the calm twin?

The disturbed process and its children carry the shim (`shim/sitecustomize.py`); the second one runs as ever.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from storage import lock
from storage.history import history
from storage.recovery import recover
from storage.registry import Registry
from tests.reliability import checks
from tests.reliability.operations import ORIGIN, REGISTRY, STORE
from tests.reliability.scenarios import Scenario

if TYPE_CHECKING:
    from tests.reliability.situations import Situation

TOP = Path(__file__).resolve().parents[2]
SHIM = Path(__file__).resolve().parent / "shim"
CALLS = ",".join(
    f"?{name}"
    for name in (
        "write", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "rmdir", "fsync",
        "fdatasync", "ftruncate", "chmod",
    )
)  # fmt: skip
"""System calls that change files, as strace is told of them."""
_SECONDS = 240


@dataclass(frozen=True, slots=True)
class Fault:
    """`action` of the shim just before step `step` of `process`; `kind` says it in words."""

    kind: str
    process: str
    step: int
    action: str | tuple[str, ...]
    again: int = 0
    """Step at which the process that mends is killed, too; 0: it is left alone."""
    spare: int = 0
    """Bytes that are left on a file system that is filled, or in a file that may not grow further."""
    mounted: bool = False
    """In a small file system of its own."""


@dataclass(frozen=True, slots=True)
class Twin:
    """The calm run of a scenario: what it began with, came to, and did on the way."""

    before: checks.Facts | None
    after: checks.Facts
    steps: dict[str, list[str]]
    """By process: what it did, step by step; by `start <child>`: the system calls of each, in words."""
    failures: frozenset[str] = frozenset()
    """What `verify` finds in it: bases are made of samples, and some have lost part of their cache."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case came to."""

    scenario: str
    fault: Fault
    hit: bool
    """False where the operation ended before the step."""
    survived: str
    """`old` or `new`: the newest tag after the fault."""
    lost: checks.Lost
    seconds: float
    violations: list[str] = field(default_factory=list)


def environment(**extra: str) -> dict[str, str]:
    """For children: an identity for git, nobody's own git settings, and the shim, which sleeps unless told."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FLYWHEEL_", "GIT_"))}
    name, mail = "Flywheel Tests", "tests@flywheel.invalid"
    return {
        **kept, "GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": mail, "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": mail, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
        "PYTHONPATH": os.pathsep.join([str(SHIM), str(TOP)]), **extra,
    }  # fmt: skip


def calm(scenario: Scenario, base: Path, folder: Path, traced: bool) -> Twin:
    """Run a scenario undisturbed, once, and note its steps; `traced` also notes system calls of each git, by strace."""
    copy(base, folder)
    root = folder / REGISTRY
    before = checks.facts(root, scenario.ignored) if (root / "flywheel.json").exists() else None
    log = folder / "steps"
    spec = _spec(folder, Fault("none", "", 0, "kill"), "steps")
    done = operate(scenario, root, FLYWHEEL_FAULT=json.dumps({**spec, "trace": traced, "calls": CALLS}))
    assert done.returncode == 0, done.stderr
    steps: dict[str, list[str]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        process, event, path = line.split("\t")
        steps.setdefault(process, []).append(f"{event} {path}")
    for trace in sorted(folder.glob("steps.*")):
        # A git that starts another one is counted by its longest part; each part counts for itself.
        lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
        parts: dict[str, list[str]] = {}
        for line in lines:
            words = line.split(maxsplit=1)
            if len(words) == 2 and "(" in words[1] and not words[1].startswith(("+++", "---", "<...")):
                parts.setdefault(words[0], []).append(words[1].partition("(")[0])
        steps[trace.name.removeprefix("steps.")] = max(parts.values(), key=len, default=[])
    after = checks.facts(root, scenario.ignored)
    twin = Twin(before, after, steps, frozenset(_verified(root)))
    wrong = checks.difference(root, after, scenario.ignored)
    assert not wrong, f"{scenario.name}, undisturbed: {wrong}"
    return twin


def copy(base: Path, folder: Path) -> None:
    """Copy a base with its hard links."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", f"{base}/.", str(folder)], check=True)


def operate(scenario: Scenario, root: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a scenario's operation in a process of its own."""
    command = [sys.executable, "-m", "tests.reliability.operations", scenario.operation, str(root), *scenario.arguments]
    return subprocess.run(
        command, cwd=TOP, env=environment(**extra), capture_output=True, text=True, check=False, timeout=_SECONDS
    )


def inject(scenario: Scenario, fault: Fault, twin: Twin, base: Path, folder: Path) -> Outcome:
    """Run one case in `folder`, which is removed again unless something is wrong."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    if fault.mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m,mode=700", "tmpfs", str(folder)], check=True)
    try:
        copy(base, folder)
        hit, survived, lost, wrong = _lives(scenario, fault, twin, folder)
    finally:
        if fault.mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    if not wrong:
        shutil.rmtree(folder)
    return Outcome(scenario.name, fault, hit, survived, lost, time.monotonic() - started, wrong)


def endure(scenario: Scenario, situation: Situation, twin: Twin, base: Path, folder: Path) -> Outcome:
    """Run one operation in a situation, then without it."""
    started = time.monotonic()
    copy(base, folder)
    root = folder / REGISTRY
    with situation.trouble(root) as told:
        done = operate(scenario, root)
        wrong = _exit(done)
        if done.returncode not in situation.expected:
            wrong.append(f"ended with {done.returncode}, expected {situation.expected}: {done.stderr.strip()}")
        elif told.words not in done.stderr:
            wrong.append(f"expected words with {told.words!r}, got {done.stderr.strip()!r}")
        wrong += [f"{path} was taken away" for path in told.untouched if not path.exists()]
        wrong += situation.during(root) if situation.during and not wrong else []
    wrong += _whole(scenario, twin, root)
    survived = _survived(scenario, twin, root)
    lost, later = _finish(scenario, twin, folder) if not wrong else (checks.Lost(0, 0), [])
    wrong += later
    wrong += situation.afterwards(root) if situation.afterwards and not wrong else []
    if not wrong:
        shutil.rmtree(folder)
    fault = Fault(situation.kind, situation.where, 0, "")
    return Outcome(scenario.name, fault, True, survived, lost, time.monotonic() - started, wrong)


def _lives(scenario: Scenario, fault: Fault, twin: Twin, folder: Path) -> tuple[bool, str, checks.Lost, list[str]]:
    root = folder / REGISTRY
    done = operate(scenario, root, FLYWHEEL_FAULT=json.dumps(_spec(folder, fault, "")))
    hit = _struck(folder / "hit")
    wrong = _exit(done)
    _heal(folder)
    wait_until_free(root)
    wrong += _whole(scenario, twin, root)
    survived = _survived(scenario, twin, root)
    if fault.again and not wrong:
        again = Fault(fault.kind, "product", fault.again, "kill")
        done = operate(scenario, root, FLYWHEEL_FAULT=json.dumps(_spec(folder, again, "")))
        wrong += [f"mending: {sentence}" for sentence in [*_exit(done), *_whole(scenario, twin, root)]]
    if wrong:
        return hit, survived, checks.Lost(0, 0), wrong
    return hit, survived, *_finish(scenario, twin, folder)


def _finish(scenario: Scenario, twin: Twin, folder: Path) -> tuple[checks.Lost, list[str]]:
    """Ask for the operation again, undisturbed: it must succeed and leave what the calm twin has, tidy."""
    root = folder / REGISTRY
    done = operate(scenario, root)
    if done.returncode != 0:
        return checks.Lost(0, 0), [f"asked for again, it ended with {done.returncode}: {done.stderr.strip()}"]
    wrong = checks.difference(root, twin.after, scenario.ignored)
    registry = Registry.open(root)
    with lock.hold(registry, "look whether anything is left to mend"):
        mended = recover(registry)
    if mended:
        wrong.append(f"there was still something to mend: {mended}")
    if _survived(scenario, twin, root) != "new":
        wrong.append("asked for again, it succeeded without effect")
    wrong += [] if wrong else sorted(set(_verified(root)) - twin.failures)
    left = [path.name for path in folder.iterdir() if path.name not in {REGISTRY, STORE, ORIGIN, "hit"}]
    if left:
        wrong.append(f"left beside the registry: {left}")
    return checks.labels_lost(root, twin.after), wrong


def _verified(root: Path) -> list[str]:
    """What the product itself finds to be wrong."""
    from storage.verification.verify import verify

    return [f"verify: {failure}" for failure in verify(root, jobs=1).failures]


def _struck(hit: Path) -> bool:
    """Whether the fault came about: the file is there, and if it is strace's, it says so."""
    if not hit.exists():
        return False
    text = hit.read_text(encoding="utf-8", errors="replace")
    return not text or "killed by SIGKILL" in text or "(INJECTED)" in text


def _spec(folder: Path, fault: Fault, log: str) -> dict[str, object]:
    return {
        "root": str(folder / REGISTRY),
        "also": [str(folder / STORE)],
        "log": str(folder / log) if log else "",
        "hit": str(folder / "hit"),
        "process": fault.process,
        "step": fault.step,
        "action": fault.action
        if isinstance(fault.action, str)
        else [word.replace("{hit}", str(folder / "hit")) for word in fault.action],
        "filler": str(folder / "filler"),
        "aside": str(folder / "aside"),
        "spare": fault.spare,
    }


def _exit(done: subprocess.CompletedProcess[str]) -> list[str]:
    """A killed process says nothing; any other says in words what went wrong, or succeeds in spite of it."""
    if done.returncode == -signal.SIGKILL or done.returncode == 0:
        return []
    last = done.stderr.strip().splitlines()[-1:] or [""]
    told = "flywheel: " in done.stderr and "Traceback" not in done.stderr
    # What the system refuses names the file and the reason, too.
    refused = last[0].startswith(("OSError: [Errno", "PermissionError: [Errno"))
    return [] if told or refused else [f"ended with {done.returncode} and {last[0]!r}"]


def _heal(folder: Path) -> None:
    """The disk has room again, the remote is back."""
    (folder / "filler").unlink(missing_ok=True)
    if (folder / "aside").exists():
        (folder / STORE).unlink()
        (folder / "aside").rename(folder / STORE)


def wait_until_free(root: Path) -> None:
    """Until no orphan of a killed process holds the registry any more."""
    path = root / ".flywheel" / "lock"
    if path.exists():
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)


def _whole(scenario: Scenario, twin: Twin, root: Path) -> list[str]:
    """Violations of what holds at any moment; and readers can read."""
    if twin.before is None:  # a registry that is made is there or is not
        return checks.damage(root, twin.after, twin.after, scenario.ignored) if root.exists() else []
    wrong = scenario.also(root) if scenario.also else []
    wrong += checks.damage(root, twin.before, twin.after, scenario.ignored)
    if not wrong:
        rows = [row["tag"] for row in history(Registry.open(root))]
        tags = Counter(name for name in checks.facts(root).trees if name != "HEAD")
        if Counter(rows) != tags:
            wrong.append(f"history shows {rows}, git has {sorted(tags)}")
    return wrong


def _survived(scenario: Scenario, twin: Twin, root: Path) -> str:
    if scenario.arrived is not None:
        return "new" if scenario.arrived(root) else "old"
    if twin.before is None:
        return "new" if root.exists() else "old"
    found = checks.standing(root)
    return "new" if found == (max(set(twin.after.trees) - {"HEAD"}, default=""), twin.after.commits) else "old"
