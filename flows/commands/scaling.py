"""What the next FLOP should buy: sweep, fit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import output
from flows.commands.options import Json
from flows.commands.running import quiet_prefect

if TYPE_CHECKING:
    from flows.sweeps.definition import Sweep


def sweep(
    preset: Annotated[
        str,
        typer.Argument(help="hex-quick, hex, hex-fixed, hex-search, countdown, countdown-ablations, or a YAML file."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for registries and tables; sweeps/NAME by default.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, a thread each.")] = 2,
    hours: Annotated[
        float | None, typer.Option(min=0.0, help="Begin no run after so long, then play the games of what is made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Campaigns over model sizes, training compute, search budgets and seeds, and one table of what came of them.

    Every run is a registry of its own below the folder, so that each row of the table leads to a snapshot with its
    lineage. A sweep that is cut off, or that --hours ended, goes on where it was with the same command.
    """
    from flows import display, progress, server, stop
    from flows.sweeps import definition, one_run
    from flywheel.errors import FlywheelError, Interrupted, joined
    from storage import lock
    from storage.layout import Layout
    from storage.registry import Registry
    from storage.tables import write_table

    name, wanted = definition.load(preset)
    folder, runs = (out or Path("sweeps") / name).absolute(), list(wanted.runs())
    terminal = display.Terminal(output.console(), output.console(stderr=True))
    failed: list[FlywheelError] = []
    # The folder is locked as the registries in it are.
    with lock.hold(Registry(folder), "sweep"), stop.on_signals(), ExitStack() as inside:
        quiet_prefect()
        lacking = _lacks(wanted, folder)
        if lacking:
            layout = Layout(folder)
            inside.enter_context(server.own_server(layout, server.start_early(layout)))
        from flows.sweeps import results, running

        inside.enter_context(terminal.showing())
        inside.enter_context(progress.listening(terminal))
        running.prepare(wanted, folder)
        if wanted.arena is not None:
            from flows.sweeps import arena

            arena.forget(folder, [run for run in runs if running.done(folder, run) is None])
        definition_json = wanted.model_dump(mode="json")
        if lacking:
            try:
                running.run_all(name, str(folder), definition_json, jobs, hours)
            except Interrupted:
                raise
            except FlywheelError as error:
                failed.append(error)
        rows, games = results.write(name, wanted, folder), None
        if wanted.arena is not None:
            if lacking:
                try:
                    games = arena.play_all(name, str(folder), definition_json, jobs)
                except Interrupted:
                    raise
                except FlywheelError as error:
                    failed.append(error)
            else:
                games = write_table(folder / "games.parquet", arena.gathered(wanted.by_family(), folder, wanted.arena))
        left = sum(not one_run.complete(folder, run) for run in runs)
    document = {"sweep": name, "folder": str(folder), "runs left": left, "rows": rows, "games": games}
    words = f"{rows} rows in {folder}/results.parquet" + (f", {games:,} games in games.parquet" if games else "")
    again = f"\nRuns left: {left}. Call again to go on." if left else f"\nFits and figures: flywheel fit {folder}"
    output.show(as_json, document, words + "." + again)
    if failed:
        raise joined(failed)


def _lacks(wanted: Sweep, folder: Path) -> bool:
    """Whether generations, controls or games are still to be made."""
    from flows.sweeps import one_run

    if not all(one_run.complete(folder, run) for run in wanted.runs()):
        return True
    if wanted.arena is None:
        return False
    from flows.sweeps import arena

    return any(arena.missing(run, runs, folder, wanted.arena) for runs in wanted.by_family() for run in runs)


def fit(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder, or one with its tables alone.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for fits.json and figures; FOLDER.")] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            help="A page of markdown to be written into, between <!-- NAME --> and <!-- end of NAME -->, "
            "NAME being FOLDER's own."
        ),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Of several families of texts, which.")] = None,
    draws: Annotated[int, typer.Option(min=10, help="Draws of the bootstrap.")] = 400,
    as_json: Json = False,
) -> None:
    """Fit a sweep's table: exchange rates of training, search and model size, with intervals and figures."""
    from flows.sweeps import fitting, markdown

    target = out or folder
    if page is not None:
        markdown.require_place(page, folder.resolve().name)
    found = fitting.fit(folder, target, draws, family)
    if page is not None:
        fitting.write_into_page(found, folder, target, page)
    output.show(as_json, found.document, f"{found.section(Path())}\n\nWrote {target}/fits.json and figures.")
