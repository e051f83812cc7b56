"""What runs on this machine, and what is wrong with it: schedule, up, down, doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath
from flywheel.errors import InputError


def schedule(
    registry: RegistryPath = DEFAULT_REGISTRY,
    cron: Annotated[str | None, typer.Option(help='When, five fields, e.g. "0 2 * * *".')] = None,
    generations: Annotated[int, typer.Option("--generations", "-n", min=1, help="Generations each time.")] = 1,
    until_plateau: Annotated[
        int | None, typer.Option(min=1, help="Stop adding after so many generations without a new champion.")
    ] = None,
    when_busy: Annotated[str, typer.Option(help="A tick while a run is at work: skip it, or queue it.")] = "skip",
    missed: Annotated[str, typer.Option(help="Ticks missed while down: run the latest, skip, or all.")] = "latest",
    on_failure: Annotated[str | None, typer.Option(help="A command to run when a generation fails.")] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA name; the machine's own by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the next five runs.")] = False,
    off: Annotated[bool, typer.Option("--off", help="Remove the schedule.")] = False,
    as_json: Json = False,
) -> None:
    """Run generations by the clock, on the services that `up` starts; shows the schedule if no --cron is given."""
    from flows import schedule as schedules
    from flows.ticks import read_schedule
    from storage.registry import Registry

    layout = Registry.open(registry).layout
    if off:
        removed = schedules.unschedule(layout)
        output.show(as_json, {"removed": removed}, "The schedule is removed." if removed else "There was no schedule.")
        return
    if cron is None:
        held = read_schedule(layout)
        if held is None:
            raise InputError('no schedule yet; make one with --cron, e.g. flywheel schedule --cron "0 2 * * *"')
        found = schedules.describe(held)
    else:
        found = schedules.schedule(
            layout, cron, generations=generations, until_plateau=until_plateau, when_busy=_one(when_busy, "when-busy"),
            missed=_one(missed, "missed"), on_failure=on_failure, dry_run=dry_run, timezone=timezone,
        )  # fmt: skip
    lines = [f"{found['cron']} ({found['timezone']}); the next runs:", *(f"  {moment}" for moment in found["next"])]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in found["policy"].items() if value is not None]
    if cron is not None and not dry_run and not found.get("served"):
        lines.append("It counts once the services run: flywheel up")
    output.show(as_json, found, "\n".join(lines))


def up(
    registry: RegistryPath = DEFAULT_REGISTRY,
    port_prefect: Annotated[int | None, typer.Option(min=1, max=65535, help="A free one by default.")] = None,
    port_mlflow: Annotated[int | None, typer.Option(min=1, max=65535, help="A free one by default.")] = None,
    as_json: Json = False,
) -> None:
    """Start, in the background on this machine: Prefect's server and UI, MLflow's, and the schedule if there is one."""
    from flows import services
    from storage.registry import Registry

    found = services.up(Registry.open(registry).layout, port_prefect=port_prefect, port_mlflow=port_mlflow)
    output.show(as_json, found, _services_text(found))


def down(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """End the services that `up` started, and only those."""
    from flows import services
    from storage.registry import Registry

    ended = services.down(Registry.open(registry).layout)
    output.show(as_json, {"ended": ended}, f"Ended: {', '.join(ended)}." if ended else "Nothing was running.")


def doctor(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """What is wrong with this machine or registry, and how to mend it. Exit code 1 if something is."""
    from flows.doctor import examine

    findings = examine(registry)
    text = "\n".join(f"{'ok  ' if found.ok else 'BAD '} {found.what}: {found.detail}" for found in findings)
    output.show(
        as_json, {"ok": all(found.ok for found in findings), "findings": [found.as_dict() for found in findings]}, text
    )
    if not all(found.ok for found in findings):
        raise typer.Exit(1)


def _services_text(found: dict[str, Any]) -> str:
    lines = []
    for name, service in found.items():
        page = (service["url"] or "running").removesuffix("/api")
        state = page if service["alive"] else "not running"
        lines.append(f"{name:8} {state}")
    lines.append(
        "They answer on this machine only and ask for no password: whoever could reach them could start runs and read "
        "everything. From elsewhere, look through a tunnel: ssh -L PORT:127.0.0.1:PORT this-machine"
    )
    return "\n".join(lines)


def _one(value: str, option: str) -> Any:
    known = {"when-busy": ("skip", "queue"), "missed": ("latest", "skip", "all")}[option]
    if value not in known:
        raise InputError(f"--{option}: got {value!r}, expected one of {', '.join(known)}")
    return value
