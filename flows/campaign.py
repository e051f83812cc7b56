"""A campaign: generation after generation, until as many as asked for, a plateau, or a cap."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect import flow

from flows import stop
from flows.generation import generation
from flows.progress import Tracker
from flywheel import params as parameters
from flywheel.errors import Interrupted, RegistryBusy
from flywheel.params import Params, folder_name
from storage import git, history, ledger, lock, openlineage, prepare, recipes, recovery, tracking, trust
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
    until_plateau: int | None = None,
    on_failure: str | None = None,
) -> list[dict[str, Any]]:
    """Run so many more generations beyond the last published (default `campaign.generations`); their history rows.

    A fresh registry makes generation 0 first; one that was cut off is finished and counts. The registry's lock is held
    throughout. Where another process holds it, `when_busy` says whether to raise RegistryBusy, do nothing, or wait.
    `overrides` change the recipe from here on; `until_plateau` and `on_failure` are this call's own, over
    `campaign.plateau` and `execution.on_failure`.
    """
    opened = Registry.open(Path(registry))
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock.ensure(opened, "run"))
                break
            except RegistryBusy:
                if when_busy == "skip":
                    return []
                if when_busy == "fail":
                    raise
            stop.check()
            time.sleep(_LOOK_AGAIN_SECONDS)
        opened.require_newest_version()
        tracker = Tracker(opened.layout)
        # MLflow's import and, once, its database come while the first stages compute.
        warm = tracking.warm_up(opened.layout)
        before = set(opened.generations())
        for sentence in recovery.recover(opened):
            tracker.note(sentence)
        # Published by recovery: cut off before, so they count; generation 0 is nobody's that was asked for.
        finished = len({number for number in opened.generations() if number > 0} - before)
        params = recipes.absolute(parameters.load(opened.layout.params, overrides))
        trust.require(opened, params)
        if params.execution.openlineage is not None:
            openlineage.require()
        try:
            return _turn(opened, params, until_plateau, generations, finished, tracker)
        except Interrupted:
            raise
        except Exception as error:
            _tell(opened, on_failure or params.execution.on_failure, error, tracker)
            raise
        finally:
            warm.join()
            _send_records(opened, tracker)
            tracker.close()


def _send_records(opened: Registry, tracker: Tracker) -> None:
    """Give MLflow what waits, and what a kill between tag and record left out."""
    layout = opened.layout
    for number, tagged in history.tagged(opened).items():
        folder = folder_name(number)
        if (layout.local / "runs" / f"{folder}.json").exists() or (layout.local / "queue" / f"{folder}.json").exists():
            continue
        tag = tag_name(number)
        texts = git.read_many(opened.root, [f"{tag}:metrics.json", f"{tag}:params.yaml"])
        metrics, params = (yaml.safe_load(text or b"") or {} for text in texts)
        lineage = history.published(opened, number)
        tracking.queue(layout, lineage, metrics, params, tagged.run, tag, None, 0.0, tagged.object)
    sent = tracking.send_queued(layout)
    if sent:
        tracker.note(f"sent to MLflow what had waited: {', '.join(tag_name(number) for number in sent)}")


def _turn(
    opened: Registry,
    params: Params,
    until_plateau: int | None,
    generations: int | None,
    finished: int,
    tracker: Tracker,
) -> list[dict[str, Any]]:
    """`finished` counts generations that recovery has just published: cut off before, they count."""
    left = (generations if generations is not None else params.campaign.generations) - finished
    if opened.head_generation() is None:
        left += 1
    start, rows = time.monotonic(), []
    recipe = params.model_dump(mode="json")
    while left > 0:
        stop.check()
        reason = _capped(opened, params, until_plateau or params.campaign.plateau, time.monotonic() - start)
        if reason is not None:
            tracker.note(f"stopped before the next generation: {reason}")
            break
        unfinished = prepare.unfinished(opened)
        number = unfinished["generation"] if unfinished else opened.next_generation()
        rows.append(generation(f"generation {number}", str(opened.root), recipe))
        left -= 1
    return rows


def _capped(opened: Registry, params: Params, plateau: int | None, seconds: float) -> str | None:
    """Why the campaign should not go on; None if it should."""
    caps = params.campaign
    if plateau is not None:
        line = [row for row in history.history(opened) if row["status"] != "abandoned"]
        stale = 0
        for row in reversed(line):
            if row["promoted"]:
                break
            stale += 1
        if stale >= plateau:
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
