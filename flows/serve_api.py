"""The process behind a Prefect server of our own: `python -m flows.serve_api --port 4200 [--with PID]`.

Uvicorn on Prefect's own application, without Prefect's command line around it: that one starts a further process and
leaves it behind when it is killed. With `--with PID` it ends with the process that started it, whatever ended that.
Everything else is set by the environment: see `flows.server.settings`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
import time

from flows.processes import HOST


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve_api")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--with", type=int, dest="parent", help="end when this process, the parent, ends")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        end_with(arguments.parent)

    import uvicorn
    from prefect.server.api.server import create_app

    # A client that keeps its connection open must not hold up the end.
    uvicorn.run(create_app(), host=HOST, port=arguments.port, log_level="warning", timeout_graceful_shutdown=2)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, or look every second where the kernel cannot (macOS);
    leave at once if it is dead already."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        raise SystemExit(f"the process {parent} that asked for this server is gone")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
