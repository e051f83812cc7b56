"""What to compare a campaign with: control, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, Overrides, Preset, RegistryPath, numbers
from flows.commands.running import quiet_prefect


def control(
    name: Annotated[str, typer.Argument(help="no-search, ceiling or tuned-search.")],
    registry: RegistryPath = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Measure what to compare with: no-search and ceiling at the same total FLOPs, tuned-search at its best."""
    from flows import display, progress, server, stop
    from flywheel.models import language
    from storage import lock
    from storage.registry import Registry

    opened = Registry.open(registry)
    notes = output.console(stderr=True)
    with lock.hold(opened, f"control {name}"), stop.on_signals():
        quiet_prefect()
        started = server.start_early(opened.layout)
        language.warm_up()
        with server.own_server(opened.layout, started):
            from flows.controls import control as run_control

            terminal = display.Terminal(output.console(), notes)
            with terminal.showing(), progress.listening(terminal):
                result = run_control(name, str(opened.root))
    key, reached = next(iter(result["test"].items()))
    text = f"{name}: {key} {reached['value']:.3f} on test ({reached['low']:.3f} to {reached['high']:.3f})"
    output.show(as_json, result, f"{text}, {result['flops']:.3g} FLOPs of training.")


def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for registries, table and picture.")] = Path(
        "comparison"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, by commas.")] = "0,1,2",
    preset: Preset = "countdown",
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Campaigns and both controls over several seeds: a table and a picture of student, search, control and ceiling."""
    from flows import comparison, display

    notes = output.console(stderr=True)
    result = comparison.compare(
        out, numbers("--seeds", seeds), preset, set_ or [], say=lambda text: notes.print(text, highlight=False)
    )
    output.show(as_json, result, display.comparison_text(result))
