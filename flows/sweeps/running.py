"""The runs of a sweep, each an ordinary registry made by ordinary campaigns: `OUT/runs/<family>-<cell>-seed-<s>`.

A run is a child process that computes with one thread, `jobs` of them side by side; all talk to one Prefect server. So
lineage, verify, replay and resuming are those of any registry, and a sweep that is cut off anywhere goes on from there.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows import stop
from flows.apart import run_module
from flows.progress import Tracker
from flows.sweeps.definition import Run, Sweep
from flows.sweeps.one_run import complete, done, folder
from flywheel.errors import FlywheelError, InputError, Interrupted, joined
from storage.layout import Layout
from storage.tables import replace_text

__all__ = ["complete", "done", "folder", "prepare", "run_all"]


def prepare(sweep: Sweep, out: Path) -> list[Run]:
    """The sweep's runs, once it is sure that none lies in `out` by another recipe or has generations that no recipe
    accounts for; what is new is written down. Raises InputError."""
    path = out / "recipes.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    runs = list(sweep.runs())
    if changed := [run.name for run in runs if held.get(run.name, run.digest()) != run.digest()]:
        raise InputError(
            f"{out} holds {', '.join(changed[:3])}{' and others' if changed[3:] else ''} by another recipe; name a new "
            "folder with --out, or go on with the sweep of then"
        )
    for run in runs:
        if (head := done(out, run) or 0) > run.generations:
            raise InputError(
                f"{folder(out, run)} has generations up to {head}, the sweep makes {run.generations}; take back what "
                f"was run in it: flywheel rollback gen/{run.generations} --registry {folder(out, run)}"
            )
    out.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(held | {run.name: run.digest() for run in runs}, indent=1, sort_keys=True) + "\n")
    return runs


@flow(name="sweep", flow_run_name="sweep {name}", validate_parameters=False)
def run_all(name: str, out: str, definition: dict[str, Any], jobs: int, hours: float | None = None) -> None:
    """Make what is missing of a sweep's runs, `jobs` at a time, beginning none after `hours`.

    `definition` is a `Sweep` as JSON. Raises Interrupted on a stop request, and what failed once all others are made.
    """
    del name  # For people, who read it in the flow run's.
    root, until = Path(out), time.monotonic() + hours * 3600 if hours is not None else None
    runs = prepare(Sweep.model_validate(definition), root)
    waiting = [run for run in runs if not complete(root, run)]
    tracker = Tracker(Layout(root))
    tracker.note(f"{len(runs) - len(waiting)} of {len(runs)} runs are made, {jobs} at a time")
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=jobs)
    try:
        with pool as runner, stop.at_termination():
            futures: list[PrefectFuture[Any]] = [
                runner.submit(one_run, {"run": run, "out": root, "until": until, "tracker": tracker}) for run in waiting
            ]
            wait(futures)
            if failed := failures(futures):
                raise joined(failed)
    finally:
        tracker.close()


def failures(futures: list[PrefectFuture[Any]]) -> list[FlywheelError]:
    """What failed of those that are done. Raises Interrupted, and what is no FlywheelError."""
    failed: list[FlywheelError] = []
    for future in futures:
        try:
            future.result()
        except Interrupted:
            raise
        except FlywheelError as error:
            failed.append(error)
    return failed


def ready(out: Path, runs: list[Run]) -> list[Run]:
    """Those of a family whose seed has all of its runs made."""
    waiting = {run.seed for run in runs if done(out, run) != run.generations}
    return [run for run in runs if run.seed not in waiting]


@task(name="run", task_run_name="{run.name}", cache_policy=NO_CACHE)
def one_run(run: Run, out: Path, until: float | None, tracker: Any) -> None:
    """Make what is missing of one run, unless it is too late to begin."""
    stop.check()
    if until is not None and time.monotonic() >= until:
        return
    start, ends = time.monotonic(), list(itertools.accumulate(leg.generations for leg in run.legs))
    legs = [[end, [*run.overrides(number), "execution.threads=1"]] for number, end in enumerate(ends)]
    # It stands where the user does: paths and a reward function of the user's are seen from there.
    here = os.getcwd()
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    run_module(
        "flows.sweeps.one_run", str(folder(out, run)), run.preset, json.dumps(legs), json.dumps(run.controls),
        root=Path(here), environment={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        what=f"run {run.name}",
    )  # fmt: skip
    tracker.note(f"{run.name}: {run.generations} generations, {time.monotonic() - start:.0f} s")
