"""A stage's module as a child process, which a stop request can end at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from flows import stop
from flywheel.errors import FlywheelError, InputError

_POLL_SECONDS = 0.1
_END_SECONDS = 10.0
_LINES_SHOWN = 20


def run_module(module: str, *arguments: str, root: Path, environment: dict[str, str], what: str) -> None:
    """Run `python -m module arguments` in the folder `root`, in a process group of its own, and wait for it.

    Raises InputError or FlywheelError with its last words where it fails (`what` is its subject), Interrupted on a stop
    request; then what is left of the group is ended.
    """
    child = subprocess.Popen(
        # -P: the folders of a registry must not stand in for Python packages of the same name.
        [sys.executable, "-P", "-m", module, *arguments],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert child.stderr is not None
    stderr, said = child.stderr, list[str]()
    reader = threading.Thread(target=lambda: said.extend(stderr), daemon=True)
    reader.start()
    try:
        while child.poll() is None:
            stop.check()
            time.sleep(_POLL_SECONDS)
    finally:
        _end(child)
        reader.join()
        stderr.close()
    if child.returncode:
        kind = InputError if child.returncode == InputError.exit_code else FlywheelError
        raise kind(f"{what} ended with {child.returncode}: {''.join(said[-_LINES_SHOWN:]).strip()}")


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
