"""A stage made again in a scratch clone: Flywheel's own module as a child process, and what it said of itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from flows import processes, stop
from flywheel.compute import Cost
from flywheel.errors import FlywheelError, InputError
from flywheel.params import Params
from storage.layout import Layout, tag_name

STAGES = ("problems", "generate", "filter", "train", "supervise", "evaluate")
"""In their order; `supervise` with process supervision only."""
_POLL_SECONDS = 0.1
_END_SECONDS = 10.0
_LINES_SHOWN = 20


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
    child = subprocess.Popen(
        # -P: the clone's folders must not stand in for Python packages of the same name.
        [sys.executable, "-P", "-m", f"tasks.{stage}"],
        cwd=layout.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(child.stderr or []), daemon=True)
    reader.start()
    try:
        while child.poll() is None:
            stop.check()
            time.sleep(_POLL_SECONDS)
    finally:
        _end(child)
        reader.join()
        assert child.stderr is not None
        child.stderr.close()
    if child.returncode:
        kind = InputError if child.returncode == InputError.exit_code else FlywheelError
        words = "".join(said[-_LINES_SHOWN:]).strip()
        raise kind(f"{stage} of {tag_name(params.generation)}, made again, ended with {child.returncode}: {words}")
    report = json.loads((layout.work(params.generation) / f"{stage}.json").read_text(encoding="utf-8"))["report"]
    return Done(
        params.generation,
        stage,
        time.monotonic() - start,
        report["rows_out"],
        Cost(**report["cost"]).executed,
        report["numerics"],
    )


def _end(child: subprocess.Popen[str]) -> None:
    """End what is left of a child's group."""
    for number, patience in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, None)):
        if child.poll() is not None:
            return
        os.killpg(child.pid, number)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
