"""Which search and which reward pay: searchers, rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, Overrides, Preset, RegistryPath, generation_number, numbers
from flows.commands.running import quiet_prefect


def searchers(
    address: Annotated[str, typer.Argument(help="A generation whose student is searched with, e.g. gen/2.")],
    registry: RegistryPath = DEFAULT_REGISTRY,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for table, figure and page.")] = Path("searchers"),
    budgets: Annotated[str, typer.Option(help="Budgets N, by commas.")] = "1,2,4,8,16,32,64,128,256",
    problems: Annotated[int | None, typer.Option(min=1, help="How many test problems; all by default.")] = None,
    outcome_from: Annotated[
        Path | None,
        typer.Option(help="A registry whose generation of this number has the same student and an outcome model."),
    ] = None,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Every searcher and reward on one student at equal budgets: accuracy, FLOPs, and the field's findings tested.

    The generation needs a process reward model (supervise.enabled). An outcome model is trained in a copy of the
    registry as it was before that generation (supervise.estimate=outcome). A call that is cut off goes on where it was.
    """
    from flows import display, progress, search_page, server, stop
    from flywheel.models import language
    from storage import lock
    from storage.registry import Registry

    opened = Registry.open(registry)
    generation, wanted = generation_number(opened, address), numbers("--budgets", budgets)
    notes = output.console(stderr=True)
    with lock.hold(opened, "measure searchers"), stop.on_signals():
        quiet_prefect()
        started = server.start_early(opened.layout)
        language.warm_up()
        with server.own_server(opened.layout, started):
            from flows.search_table import search_table_of

            terminal = display.Terminal(output.console(), notes)
            with terminal.showing(), progress.listening(terminal):
                document = search_table_of(
                    str(opened.root),
                    generation,
                    str(out.resolve()),
                    wanted,
                    problems,
                    set_ or [],
                    None if outcome_from is None else str(outcome_from.resolve()),
                )
    output.show(as_json, document, f"{search_page.page(document)}\nWrote {out}/README.md, table.json and table.svg.")


def rewards(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for registries, table and figure.")] = Path(
        "rewards"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, by commas.")] = "0,1,2",
    settings: Annotated[
        list[str] | None, typer.Option("--setting", help="One of the rewards by its name; may be given again.")
    ] = None,
    preset: Preset = "countdown",
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """What knowing "better" is worth: campaigns with exact, noisy, voted and learned rewards at equal compute."""
    from flows import reward_study

    notes = output.console(stderr=True)
    result = reward_study.study(
        out, numbers("--seeds", seeds), preset, set_ or [], lambda text: notes.print(text, highlight=False),
        settings or (),
    )  # fmt: skip
    output.show(as_json, result, f"{reward_study.page(result)}\nWrote {out}/README.md, study.json and study.svg.")
