"""The process that serves a schedule: `python -m flows.serve --registry PATH --flow flows.campaign:campaign`.

It asks the Prefect server (PREFECT_API_URL) for runs that are due and runs each in a process of its own. When and how
is read from the registry's schedule.json. It keeps nothing: killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from flows.ticks import CAMPAIGN, DEPLOYMENT, Schedule, read_schedule
from flywheel.errors import InputError
from storage.layout import Layout


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve")
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--flow", default=CAMPAIGN, help="import path, module:name")
    arguments = parser.parse_args()
    layout = Layout(arguments.registry.resolve())
    schedule = read_schedule(layout)
    if schedule is None:
        raise SystemExit(f"{layout.root} has no schedule; make one with `flywheel schedule --cron ...`")
    serve(layout, schedule, load_flow(arguments.flow))


def serve(layout: Layout, schedule: Schedule, flow: Any) -> None:
    """Make the deployment and serve it until stopped.

    One run at a time. `queue`: this process takes one run, the next waits. `skip`: it takes a second one too, which
    Prefect's limit of one refuses and cancels.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    skip = schedule.when_busy == "skip"
    strategy = ConcurrencyLimitStrategy.CANCEL_NEW if skip else ConcurrencyLimitStrategy.ENQUEUE
    flow.serve(
        name=DEPLOYMENT,
        schedules=[Cron(schedule.cron, timezone=schedule.timezone)],
        parameters=schedule.parameters(layout),
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        limit=2 if skip else 1,
        pause_on_shutdown=False,
        print_starting_message=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def load_flow(path: str) -> Any:
    """The flow at an import path `module:name`. Raises InputError if there is none."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"got flow {path!r}, expected module:name of a Prefect flow ({error})") from error
    if not callable(getattr(found, "serve", None)):
        raise InputError(f"got flow {path!r}, which is {type(found).__name__}, not a Prefect flow")
    return found


if __name__ == "__main__":
    main()
