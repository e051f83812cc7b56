"""A module as a child process that a stop request can end at any moment, and that ends with its parent.

`python -m flows.apart PARENT MODULE ARGUMENTS` is such a child. The kernel ends it when the thread that started it ends
(Linux means the thread), and that thread waits in `run_module`. So a whole tree of them falls with its root, be it by
SIGKILL; what else the children started is told by its own pipes.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

from flows import processes, stop
from flows.processes import Process, end_with
from flywheel.errors import FlywheelError, InputError

_POLL_SECONDS = 0.1
_END_SECONDS = 10.0
"""Until SIGKILL. One that waits for a child of its own may need longer; then the kernel ends that child with it."""
_LAST_WORDS_SECONDS = 2.0
_LINES_SHOWN = 20


def run_module(module: str, *arguments: str, root: Path, environment: dict[str, str], what: str) -> None:
    """Run `python -m module arguments` in the folder `root`, in a process group of its own, and wait for it.

    Raises InputError or FlywheelError with its last words where it fails (`what` is its subject), Interrupted on a stop
    request; then what is left of the group is ended.
    """
    child = subprocess.Popen(
        # -P: the folders of a registry must not stand in for Python packages of the same name.
        [sys.executable, "-P", "-m", "flows.apart", str(os.getpid()), module, *arguments],
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

    def listen() -> None:
        with stderr:
            said.extend(stderr)

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        while child.poll() is None:
            stop.check()
            time.sleep(_POLL_SECONDS)
    finally:
        # Also of a child that has ended: what it left behind in its group.
        processes.stop(Process(child.pid, None), _END_SECONDS)
        child.wait()
        # A process in a session of its own may hold the pipe for longer.
        reader.join(_LAST_WORDS_SECONDS)
    if child.returncode:
        kind = InputError if child.returncode == InputError.exit_code else FlywheelError
        raise kind(f"{what} ended with {child.returncode}: {''.join(said[-_LINES_SHOWN:]).strip()}")


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
