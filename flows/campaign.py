"""A campaign: generation after generation, until as many as asked for, a plateau, or a cap."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from prefect import flow

from flows import stop
from flows.generation import generation
from flows.progress import Tracker
from flywheel import params as parameters
from flywheel.errors import Interrupted, RegistryBusy
from flywheel.params import Params
from storage import history, ledger, lock, prepare, recovery, tracking
from storage.layout import tag_name
from storage.registry import Registry

_COMMAND_SECONDS = 600
_LOOK_AGAIN_SECONDS = 2.0


@flow(name="campaign", validate_parameters=False)
def campaign(
    registry: str,
    generations: int | None = None,
    overrides: list[str] | None = None,
    when_busy: Literal["fail", "skip", "queue"] = "fail",
) -> list[dict[str, Any]]:
    """Run so many more generations beyond the last published (default `campaign.generations`); their history rows.

    A fresh registry makes generation 0 first; one that was cut off is finished and counts. The registry's lock is held
    throughout. Where another process holds it, `when_busy` says whether to raise RegistryBusy, do nothing, or wait.
    """
    opened = Registry.open(Path(registry))
    try:
        with _held(opened, when_busy):
            return _run(opened, generations, overrides)
    except RegistryBusy:
        if when_busy == "skip" and lock.holder(opened) is not None:
            return []
        raise


@contextmanager
def _held(opened: Registry, when_busy: str) -> Iterator[None]:
    while when_busy == "queue" and not lock.inherited(opened.root) and lock.holder(opened) is not None:
        stop.check()
        time.sleep(_LOOK_AGAIN_SECONDS)
    with lock.ensure(opened, "run"):
        yield


def _run(opened: Registry, generations: int | None, overrides: list[str] | None) -> list[dict[str, Any]]:
    tracker = Tracker(opened.layout)
    # MLflow's import and, once, its database come while the first stages compute.
    warm = tracking.warm_up(opened.layout)
    published = len(opened.generations())
    for sentence in recovery.recover(opened):
        tracker.note(sentence)
    finished = len(opened.generations()) - published
    params = parameters.load(opened.layout.params, overrides)
    try:
        return _turn(opened, params, generations, finished, tracker)
    except Interrupted:
        raise
    except Exception as error:
        _tell(opened, params.execution.on_failure, error, tracker)
        raise
    finally:
        warm.join()
        sent = tracking.send_queued(opened.layout)
        if sent:
            tracker.note(f"sent to MLflow what had waited: {', '.join(tag_name(number) for number in sent)}")
        tracker.close()


def _turn(
    opened: Registry, params: Params, generations: int | None, finished: int, tracker: Tracker
) -> list[dict[str, Any]]:
    """`finished` counts generations that recovery has just published: cut off before, they count."""
    left = (generations if generations is not None else params.campaign.generations) - finished
    if opened.head_generation() is None:
        left += 1
    start, rows = time.monotonic(), []
    recipe = params.model_dump(mode="json")
    while left > 0:
        stop.check()
        reason = _capped(opened, params, time.monotonic() - start)
        if reason is not None:
            tracker.note(f"stopped before the next generation: {reason}")
            break
        unfinished = prepare.unfinished(opened)
        number = unfinished["generation"] if unfinished else opened.next_generation()
        rows.append(generation(f"generation {number}", str(opened.root), recipe))
        left -= 1
    return rows


def _capped(opened: Registry, params: Params, seconds: float) -> str | None:
    """Why the campaign should not go on; None if it should."""
    caps = params.campaign
    if caps.plateau is not None:
        line = [row for row in history.history(opened) if row["status"] != "abandoned"]
        stale = 0
        for row in reversed(line):
            if row["promoted"]:
                break
            stale += 1
        if stale >= caps.plateau:
            return f"plateau: {stale} generations in a row without a new champion (campaign.plateau)"
    if caps.max_flops is not None:
        spent = sum(sum(ledger.flops(ledger.read(opened.layout, number)).values()) for number in opened.generations())
        if spent >= caps.max_flops:
            return f"{spent:.3g} FLOPs spent of {caps.max_flops:.3g} (campaign.max_flops)"
    if caps.max_hours is not None and seconds >= caps.max_hours * 3600:
        return f"{seconds / 3600:.2f} hours of {caps.max_hours} (campaign.max_hours)"
    if caps.max_disk_gb is not None:
        used = _disk_bytes(opened.root) / 1e9
        if used >= caps.max_disk_gb:
            return f"{used:.2f} GB on disk of {caps.max_disk_gb} (campaign.max_disk_gb)"
    return None


def _disk_bytes(root: Path) -> int:
    """Bytes that the registry takes; a file linked from the cache counts once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                entry = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            seen[(entry.st_dev, entry.st_ino)] = entry.st_blocks * 512
    return sum(seen.values())


def _tell(opened: Registry, command: str | None, error: Exception, tracker: Tracker) -> None:
    """Run the user's command for a failure. Its own failure is said and does not hide the first."""
    if not command:
        return
    unfinished = prepare.unfinished(opened)
    environment = {
        **os.environ,
        "FLYWHEEL_REGISTRY": str(opened.root),
        "FLYWHEEL_GENERATION": str(unfinished["generation"] if unfinished else opened.next_generation()),
        "FLYWHEEL_ERROR": f"{type(error).__name__}: {error}",
    }
    try:
        done = subprocess.run(shlex.split(command), env=environment, timeout=_COMMAND_SECONDS, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as failure:
        tracker.note(f"the command for failures, {command!r}, could not be run: {failure}")
        return
    if done.returncode:
        tracker.note(f"the command for failures, {command!r}, ended with {done.returncode}")
