"""Which faults a scenario is put through, from the steps of its calm twin. Deterministic: the same seed, the same list.

The list is in such an order that any beginning of it is spread evenly over kinds and steps.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.reliability.injection import Fault, Twin
from tests.reliability.shim.sitecustomize import READS

KILLED = "SIGKILL"
KILLED_TWICE = "SIGKILL, and again while it is mended"
CHILD = "SIGKILL to the child alone"
BOTH = "SIGKILL to parent and child"
TIMED = "SIGKILL to parent and child, a moment after its start"
ORPHANED = "SIGKILL to the parent, the child goes on"
NO_SPACE_ONCE = "one call finds no space"
NO_SPACE = "no space from here on"
FILLED = "the file system is full from here on"
LIMITED = "files may not grow further"
UNPLUGGED = "the remote goes away"
_MOMENTS = 3
"""How many moments a child is killed at where no step of it can be named."""
_DEAD = ("sh", "-c", ': > "$0"; kill -9 $$', "{hit}")
_DEAD_PARENT = ("sh", "-c", ': > "$0"; kill -9 $PPID; sleep 0.2; exec "$@"', "{hit}")
_TIMED = """
timeout -s KILL {seconds} "$@"; status=$?
if [ $status = 137 ]; then : > "$0"; kill -9 {victims}; fi
exit $status
"""
_PARENT_TOO = ("sh", "-c", '"$@"; status=$?; [ $status != 137 ] || kill -9 $PPID $$; exit $status', "sh")
_REMOTE = {"dvc push", "dvc fetch", "dvc pull", "dvc status"}
_SPARE = (0, 4096, 65536)
"""Bytes left on a file system that is full but for them."""
_LIMITS = (0, 512, 4096, 16384)
"""Bytes that a file may have."""
_NEED_SPACE = ("open ", "os.rename ", "os.link ", "os.symlink ", "os.mkdir ", "fsync ")


@cache
def can_trace() -> bool:
    """Whether strace is there and may look at other processes."""
    return (
        shutil.which("strace") is not None
        and not subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False).returncode
    )


@cache
def can_mount(folder: Path) -> bool:
    """Whether this user may mount a file system."""
    place = folder / "mount"
    place.mkdir(parents=True, exist_ok=True)
    mounted = (
        shutil.which("mount") is not None
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
    )
    if mounted:
        subprocess.run(["umount", str(place)], check=True)
    place.rmdir()
    return mounted


def faults(twin: Twin, seed: int, mounting: bool) -> list[Fault]:
    """Every fault for a scenario with these steps; `mounting` says whether file systems may be mounted."""
    kinds = [
        [*_kills(twin, seed)],
        [*_dvc(twin)],
        [*_git(twin, seed)],
        [*_space(twin, mounting)],
    ]
    spread = [_spread(kind) for kind in kinds]
    ranked = [
        ((position + 0.5) / len(kind), number, fault)
        for number, kind in enumerate(spread)
        for position, fault in enumerate(kind)
    ]
    return [fault for _, _, fault in sorted(ranked, key=lambda entry: entry[:2])]


def _kills(twin: Twin, seed: int) -> Iterator[Fault]:
    count = len(changes(twin.steps["product"]))
    draw = random.Random(seed)
    for step in range(1, count + 1):
        yield Fault(KILLED, "product", step, "kill")
    for step in range(1, count + 1):
        yield Fault(KILLED_TWICE, "product", step, "kill", again=draw.randint(3, 40))


def _dvc(twin: Twin) -> Iterator[Fault]:
    for process in (name for name in twin.steps if name.startswith("dvc ")):
        steps = range(1, len(twin.steps[process]) + 1)
        for step in steps:
            yield Fault(CHILD, process, step, "kill")
            yield Fault(BOTH, process, step, "kill both")
        for step in steps[:: max(1, len(steps) // _MOMENTS)]:
            yield Fault(ORPHANED, process, step, "kill parent")
        if process in _REMOTE:
            for step in steps[:: max(1, len(steps) // _MOMENTS)]:
                yield Fault(UNPLUGGED, process, step, "unplug")


def _git(twin: Twin, seed: int) -> Iterator[Fault]:
    draw = random.Random(seed + 1)
    started: Counter[str] = Counter()
    for words in twin.steps["product"]:
        event, name = words.split(" ", 1)
        if event != "subprocess.Popen" or not name.startswith("git "):
            continue
        started[name] += 1
        process = f"start {name} {started[name]}"
        yield Fault(CHILD, process, 0, _DEAD)
        if process not in twin.steps:  # it only reads
            continue
        yield Fault(ORPHANED, process, 0, _DEAD_PARENT)
        calls: Counter[str] = Counter()
        for step, call in enumerate(twin.steps[process], 1):
            calls[call] += 1
            killed = _traced("signal=SIGKILL", call, calls[call])
            yield Fault(CHILD, process, step, killed)
            yield Fault(BOTH, process, step, (*_PARENT_TOO, *killed))
            if call == "write":
                yield Fault(NO_SPACE_ONCE, process, step, _traced("error=ENOSPC", call, calls[call]))
        for step in range(1, _MOMENTS + 1):
            seconds = f"{draw.uniform(0.0005, 0.012):.4f}"
            yield Fault(TIMED, process, step, ("sh", "-c", _TIMED.format(seconds=seconds, victims="$PPID $$"), "{hit}"))


def _traced(what: str, call: str, number: int) -> tuple[str, ...]:
    """strace does `what` to the n-th system call of this name, in each process of the child that comes so far."""
    return ("strace", "-f", "-qq", "-o", "{hit}", "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={number}")


def _space(twin: Twin, mounting: bool) -> Iterator[Fault]:
    for process, steps in twin.steps.items():
        if process.startswith("start "):
            continue
        needing = [number for number, words in enumerate(changes(steps), 1) if words.startswith(_NEED_SPACE)]
        for step in needing:
            yield Fault(NO_SPACE_ONCE, process, step, "fail once")
        for step in needing[:: max(1, len(needing) // (4 * _MOMENTS))]:
            yield Fault(NO_SPACE, process, step, "full")
        for index, step in enumerate(needing[:: max(1, len(needing) // (4 * _MOMENTS))] if mounting else []):
            yield Fault(FILLED, process, step, "fill", spare=_SPARE[index % len(_SPARE)], mounted=True)
    for spare in _LIMITS:
        yield Fault(LIMITED, "product", 1, "limit", spare=spare)


def changes(steps: list[str]) -> list[str]:
    """Steps that count: children that only read are noted, but are none."""
    return [words for words in steps if words.removeprefix("subprocess.Popen ") not in READS]


def _spread(faults: list[Fault]) -> list[Fault]:
    """The same faults in the order 0, 1/2, 1/4, 3/4, 1/8, ... of the list."""
    width = max(1, (len(faults) - 1).bit_length())
    order = [int(f"{number:0{width}b}"[::-1], 2) for number in range(2**width)]
    return [faults[number] for number in order if number < len(faults)]
