"""A campaign: generation after generation, until as many as asked for, a plateau, or a cap."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows import stop
from flows.generation import generation
from flows.progress import Tracker
from flywheel import params as parameters
from flywheel.errors import Interrupted
from flywheel.params import Params
from storage import history, ledger, lock, prepare, recovery, tracking
from storage.layout import tag_name
from storage.registry import Registry

_COMMAND_SECONDS = 600


@flow(name="campaign", validate_parameters=False)
def campaign(
    registry: str, generations: int | None = None, overrides: list[str] | None = None, on_failure: str | None = None
) -> list[dict[str, Any]]:
    """Run so many more generations beyond the last published (default `campaign.generations`); their history rows.

    A fresh registry makes generation 0 first; one that was cut off is finished and counts. The registry's lock is held
    throughout: RegistryBusy if another holds it. `on_failure` is a command run if a generation fails, over the params'.
    """
    opened = Registry.open(Path(registry))
    with lock.ensure(opened, "run"):
        tracker = Tracker(opened.layout)
        for sentence in recovery.recover(opened):
            tracker.note(sentence)
        sent = tracking.send_queued(opened.layout)
        if sent:
            tracker.note(f"sent to MLflow what had waited: {', '.join(tag_name(number) for number in sent)}")
        params = parameters.load(opened.layout.params, overrides)
        try:
            return _turn(opened, params, generations, tracker)
        except Interrupted:
            raise
        except Exception as error:
            _tell(opened, on_failure or params.execution.on_failure, error, tracker)
            raise
        finally:
            tracker.close()


def _turn(opened: Registry, params: Params, generations: int | None, tracker: Tracker) -> list[dict[str, Any]]:
    left = generations if generations is not None else params.campaign.generations
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
    rows = history.history(opened)
    if caps.plateau is not None:
        line = [row for row in rows if row["status"] != "abandoned"]
        stale = 0
        for row in reversed(line):
            if row["promoted"]:
                break
            stale += 1
        if stale >= caps.plateau:
            return f"plateau: {stale} generations in a row without a new champion (campaign.plateau)"
    if caps.max_flops is not None:
        spent = sum(
            sum(ledger.flops(ledger.read(opened.layout, row["generation"])).values()) for row in rows
        )
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


