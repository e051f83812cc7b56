"""A schedule as a registry stores it, in `.flywheel/schedule.json`, and the moments a cron expression names."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flows.rest import Missed
from flywheel.errors import ConfigError, RegistryError
from storage.layout import Layout
from storage.tables import replace_text

DEPLOYMENT = "flywheel"
"""What the schedule's deployment is called in Prefect."""
CAMPAIGN = "flows.campaign:campaign"
WhenBusy = Literal["skip", "queue"]
_FORM = "five fields: minute hour day-of-month month day-of-week, such as `0 2 * * *` (every day at 2:00)"


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to run and what to do when it cannot be done; `timezone` is an IANA name."""

    cron: str
    timezone: str
    generations: int = 1
    """New generations a tick."""
    until_plateau: int | None = None
    """Ticks do nothing more once so many generations in a row brought no new champion (`campaign.plateau`)."""
    when_busy: WhenBusy = "skip"
    """A tick while the run before is still at work: it is dropped, or waits for its turn."""
    missed: Missed = "latest"
    """Ticks that came while no service ran (machine off, `down`): `up` makes good the newest, none, or every one."""
    on_failure: str | None = None
    """A command run when a generation fails (`execution.on_failure`)."""
    flow: str = CAMPAIGN
    """Import path of the flow to run, `module:name`."""

    def check(self) -> Schedule:
        """This schedule with its cron in plain spacing. Raises ConfigError with everything wrong with it."""
        problems = _cron_problems(self.cron)
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            problems.append(f"timezone: got {self.timezone!r}, expected an IANA name such as Europe/Amsterdam")
        if self.generations < 1:
            problems.append(f"generations: got {self.generations}, expected 1 or more")
        if self.until_plateau is not None and self.until_plateau < 1:
            problems.append(f"until_plateau: got {self.until_plateau}, expected 1 or more")
        if self.when_busy not in ("skip", "queue"):
            problems.append(f"when_busy: got {self.when_busy!r}, expected skip or queue")
        if self.missed not in ("latest", "skip", "all"):
            problems.append(f"missed: got {self.missed!r}, expected latest, skip or all")
        if self.missed == "all" and self.when_busy == "skip":
            problems.append(
                "missed: all needs when_busy: queue, or all but the first are dropped because that one is busy"
            )
        if self.on_failure is not None:
            problems += _command_problems(self.on_failure)
        if problems:
            raise ConfigError(problems, source="the schedule")
        return replace(self, cron=" ".join(self.cron.split()))

    def next(self, count: int = 5) -> list[str]:
        """The next ticks, ISO times with offset."""
        from cronsim import CronSim

        ticks = CronSim(self.cron, datetime.now(ZoneInfo(self.timezone)))
        return [next(ticks).isoformat(timespec="seconds") for _ in range(count)]

    def parameters(self, layout: Layout) -> dict[str, Any]:
        """What every scheduled run of the flow is called with."""
        return {
            "registry": str(layout.root),
            "generations": self.generations,
            "when_busy": self.when_busy,
            "until_plateau": self.until_plateau,
            "on_failure": self.on_failure,
        }


def read_schedule(layout: Layout) -> Schedule | None:
    """The stored schedule; None if there is none. Raises RegistryError for a damaged file."""
    path = layout.local / "schedule.json"
    try:
        return Schedule(**json.loads(path.read_text(encoding="utf-8"))).check()
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, ConfigError) as error:
        raise RegistryError(f"{path} is damaged ({error}); set it again with `flywheel schedule --cron ...`") from error


def write_schedule(layout: Layout, schedule: Schedule | None) -> None:
    """Store a schedule, or with None forget it."""
    path = layout.local / "schedule.json"
    if schedule is None:
        path.unlink(missing_ok=True)
    else:
        replace_text(path, json.dumps(asdict(schedule), indent=1) + "\n")


def local_timezone() -> str:
    """This machine's time zone by its IANA name: TZ, else what /etc/localtime links to, else UTC."""
    names = [os.environ.get("TZ", "").removeprefix(":")]
    names.append(os.path.realpath("/etc/localtime").rpartition("zoneinfo/")[2])
    for name in names:
        try:
            if name and not Path(name).is_absolute():
                return ZoneInfo(name).key
        except (ZoneInfoNotFoundError, ValueError):
            continue
    return "UTC"


def _cron_problems(cron: str) -> list[str]:
    if len(cron.split()) != 5:
        return [f"cron: got {cron!r}, expected {_FORM}"]
    # Not Prefect's own parser: `status` reads schedules too, and importing Prefect takes a second.
    from cronsim import CronSim, CronSimError

    try:
        CronSim(cron, datetime.now())
    except CronSimError as error:
        return [f"cron: got {cron!r} ({error}), expected {_FORM}"]
    return []


def _command_problems(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        return [f"on_failure: got {command!r}, not a command line ({error})"]
    return [] if words else ["on_failure: got an empty command, expected one to run, or leave it out"]
