"""`flywheel schedule`: runs at the times a cron expression names, on the services of `flywheel up`.

What happens when it cannot go as planned is stated, each by an option:

- the run before is still at work at the next tick: `when_busy` `skip` drops the tick (the default), `queue` keeps it;
- ticks were missed, the machine off or the services down: `missed` `latest` makes good the newest at the next `up` (the
  default), `skip` none, `all` every one that Prefect had planned ahead (at most 50);
- after a reboot: `flywheel up` restores services and schedule from `.flywheel`. One line does so at every boot, in
  crontab: `@reboot cd /path && flywheel up --registry registry`; or in a systemd user unit of `Type=oneshot` with
  `RemainAfterExit=yes`, `ExecStart=flywheel up --registry ...`, `ExecStop=flywheel down --registry ...`;
- a generation fails: `on_failure` is a command that is run.
"""

from __future__ import annotations

from typing import Any

from flows import services
from flows.rest import Missed
from flows.ticks import CAMPAIGN, Schedule, WhenBusy, local_timezone, read_schedule, write_schedule
from storage.layout import Layout


def schedule(
    layout: Layout,
    cron: str,
    *,
    generations: int = 1,
    until_plateau: int | None = None,
    when_busy: WhenBusy = "skip",
    missed: Missed = "latest",
    on_failure: str | None = None,
    dry_run: bool = False,
    timezone: str | None = None,
    flow: str = CAMPAIGN,
) -> dict[str, Any]:
    """Set the registry's schedule, in place of an earlier one: {"cron", "timezone", "next": five ISO times, "policy",
    "served"}; `served` is whether it counts already, which it does where the services are up.

    `timezone` is an IANA name, this machine's by default. With `dry_run` nothing is stored or started. Raises
    ConfigError with everything wrong in the request.
    """
    wanted = Schedule(
        cron=cron,
        timezone=timezone or local_timezone(),
        generations=generations,
        until_plateau=until_plateau,
        when_busy=when_busy,
        missed=missed,
        on_failure=on_failure,
        flow=flow,
    ).check()
    shown = describe(wanted)
    if dry_run:
        return shown | {"served": False}
    write_schedule(layout, wanted)
    return shown | {"served": services.restart_serving(layout)}


def unschedule(layout: Layout) -> bool:
    """Forget the schedule and stop serving it. False if there was none."""
    there = read_schedule(layout) is not None
    write_schedule(layout, None)
    services.restart_serving(layout)
    return there


def describe(wanted: Schedule) -> dict[str, Any]:
    """A schedule as the command line shows it."""
    names = ("generations", "until_plateau", "when_busy", "missed", "on_failure")
    return {
        "cron": wanted.cron,
        "timezone": wanted.timezone,
        "next": wanted.next(5),
        "policy": {name: getattr(wanted, name) for name in names},
    }
