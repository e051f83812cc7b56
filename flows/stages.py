"""The stages as Prefect task runs: a task run a shard, with retries; a stop request is never retried.

What is cached is decided by each stage's fingerprint (`tasks.stage`), not by Prefect.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows import stop
from flows.apart import run_module
from flows.progress import Step, Tracker
from flywheel import params as parameters
from flywheel.errors import InputError, Interrupted
from flywheel.params import Params
from storage import ledger
from storage.layout import Layout
from tasks.stage import Hooks, Report

Whole = Callable[[Params, Layout, Hooks], Report]


def worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what may go away by itself: not a stop request, nor input that will be as wrong the next time."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, Interrupted | InputError | AssertionError)


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def whole(stage: str, root: str, tracker: Any) -> Report:
    """One stage in one task run."""
    layout, params = _read(root)
    run: Whole = importlib.import_module(f"tasks.{stage}").run
    return run(params, layout, _hooks(params, stage, tracker))


@task(name="shard", task_run_name="{stage} {shard}/{shards}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def one_shard(stage: str, root: str, shard: int, shards: int, tell: Any) -> Report:
    """One shard of a stage, in this process."""
    layout, params = _read(root)
    module = importlib.import_module(f"tasks.{stage}")
    report: Report = module.run_shard(params, layout, shard, shards, Hooks(tell, stop.check))
    return report


@task(name="shard", task_run_name="{stage} {shard}/{shards}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def one_shard_apart(stage: str, root: str, shard: int, shards: int, tell: Any) -> None:
    """One shard in a process of its own, which a stop request can end at any moment: finished units stay."""
    # A user's reward function is found from where the user is.
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words, what = f"{shard}/{shards}", f"{stage} shard {shard}/{shards}"
    run_module(f"tasks.{stage}", "--shard", words, root=Path(root), environment=environment, what=what)
    tell(1, 1)


def run_whole(stage: str, layout: Layout, params: Params, tracker: Tracker) -> Report:
    """Run a stage that is not cut, and write its row of the ledger."""
    tracker.step(Step(params.generation, stage))
    report = whole.with_options(retries=params.execution.retries)(stage, str(layout.root), tracker)
    return _account(layout, tracker, report)


def run_sharded(stage: str, layout: Layout, params: Params, tracker: Tracker) -> Report:
    """Run a stage's shards, one at a time or several at once, then join them."""
    _run_shards(stage, layout, params, tracker)
    return _account(layout, tracker, importlib.import_module(f"tasks.{stage}").finish(params, layout))


def run_sharded_then_whole(stage: str, layout: Layout, params: Params, tracker: Tracker) -> Report:
    """Run the shards of a stage, then the stage, which finds them done and goes on from there: work that is not cut."""
    _run_shards(stage, layout, params, tracker)
    return run_whole(stage, layout, params, tracker)


def _run_shards(stage: str, layout: Layout, params: Params, tracker: Tracker) -> None:
    execution = params.execution
    shards = execution.shards
    tracker.step(Step(params.generation, stage))
    if execution.runner == "serial":
        done_before = 0
        for shard in range(shards):

            def tell(done: int, total: int, before: int = done_before) -> None:
                # Shards differ by one unit at most; the sum over all is known only to the last.
                tracker.step(Step(params.generation, stage, before + done, total * shards))

            report = one_shard.with_options(retries=execution.retries)(stage, str(layout.root), shard, shards, tell)
            done_before += report.rows_in
    else:
        finished = 0

        def count(_done: int, _total: int) -> None:
            nonlocal finished
            finished += 1
            tracker.step(Step(params.generation, stage, finished, shards))

        pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=execution.workers)
        with pool as runner, stop.at_termination():
            shard_task = one_shard_apart.with_options(retries=execution.retries)
            futures: list[PrefectFuture[Any]] = [
                runner.submit(shard_task, {"stage": stage, "root": str(layout.root), "shard": shard, "shards": shards,
                                           "tell": count})
                for shard in range(shards)
            ]  # fmt: skip
            wait(futures)
            for future in futures:
                future.result()


def _account(layout: Layout, tracker: Tracker, report: Report) -> Report:
    if not report.reused or not any(row["stage"] == report.stage for row in ledger.read(layout, report.generation)):
        ledger.record(layout, report.ledger_row())
    tracker.finished(report)
    return report


def _read(root: str) -> tuple[Layout, Params]:
    layout = Layout(Path(root))
    return layout, parameters.load(layout.params)


def _hooks(params: Params, stage: str, tracker: Tracker) -> Hooks:
    def tell(done: int, total: int) -> None:
        tracker.step(Step(params.generation, stage, done, total))

    return Hooks(tell, stop.check)
