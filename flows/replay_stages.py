"""A stage made again in a scratch clone: Flywheel's own module as a child process, and what it said of itself."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

from flows import processes
from flows.apart import run_module
from flywheel.compute import Cost
from flywheel.params import Params
from storage.layout import Layout, tag_name

STAGES = ("problems", "generate", "filter", "train", "supervise", "evaluate")
"""In their order; `supervise` with process supervision only."""


@dataclass(frozen=True, slots=True)
class Done:
    """A stage that was made again. `flops`: executed ones; `numerics`: what its last bits depended on, empty where they
    depend on nothing."""

    generation: int
    stage: str
    seconds: float
    rows: int
    flops: float
    numerics: str


def run(stage: str, layout: Layout, params: Params) -> Done:
    """Make one stage again. It runs in a process group of its own, which is ended on a stop request or an error.

    Raises InputError or FlywheelError with the child's last words where it fails, Interrupted on a stop request.
    """
    start = time.monotonic()
    environment = processes.base_environment()
    if params.reward.function is not None:
        # A user's reward function is found from where the user is; after our own packages.
        environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], os.getcwd()])
    what = f"{stage} of {tag_name(params.generation)}, made again,"
    run_module(f"tasks.{stage}", root=layout.root, environment=environment, what=what)
    report = json.loads((layout.work(params.generation) / f"{stage}.json").read_text(encoding="utf-8"))["report"]
    return Done(
        params.generation,
        stage,
        time.monotonic() - start,
        report["rows_out"],
        Cost(**report["cost"]).executed,
        report["numerics"],
    )
