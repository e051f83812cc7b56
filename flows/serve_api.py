"""The process behind a Prefect server of our own: `python -m flows.serve_api --port 4200 [--with PID]`.

Uvicorn on Prefect's own application, without Prefect's command line around it: that one starts a further process and
leaves it behind when it is killed. With `--with PID` it ends with the process that started it, whatever ended that.
Everything else is set by the environment: see `flows.server.settings`.
"""

from __future__ import annotations

import argparse

from flows.processes import HOST, end_with


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


if __name__ == "__main__":
    main()
