"""Playing the game a registry is about, and what came of it: play, arena, strength."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath, generation_number
from flywheel.errors import InputError


def play(
    model: Annotated[str, typer.Option("--model", "-m", help="Whom, e.g. gen/7; the champion if not given.")] = "",
    budget: Annotated[int, typer.Option("--budget", "-b", min=0, help="Simulations a move; 0: no search.")] = 64,
    parallel: Annotated[int, typer.Option(min=1, help="Leaves looked at together: quicker for large budgets.")] = 1,
    side: Annotated[str, typer.Option(help="Yours: first (X, top to bottom) or second (O, left to right).")] = "first",
    registry: RegistryPath = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Play Hex against a snapshot in the terminal."""
    import tempfile
    from dataclasses import replace

    from flows import board_players, playing
    from flywheel.models import board_net
    from storage.history import history
    from storage.registry import Registry
    from tasks.boards import networks

    if side not in {"first", "second"}:
        raise InputError(f"--side: got {side!r}, expected first or second")
    opened = Registry.open(registry)
    params = board_players.recipe_of(opened)
    if model:
        generation = generation_number(opened, model)
    else:
        line = [row for row in history(opened) if row["status"] != "abandoned"]
        if not line:
            raise InputError(f"{opened.root} has no generation yet; `flywheel run` makes the first")
        generation = line[-1]["champion"]
    with tempfile.TemporaryDirectory(prefix="flywheel-play-") as scratch:
        net = board_players.network(opened, params, generation, Path(scratch))
        result = playing.play(
            params.problems.size,
            params.problems.swap,
            board_net.evaluator(net),
            replace(networks.playing(params, budget), parallel=parallel) if budget else None,
            0 if side == "first" else 1,
            lambda prompt: input() if as_json else input(prompt),
            lambda text: typer.echo(text, err=as_json),
        )
    if as_json:
        output.print_json({"model": f"gen/{generation}", "budget": budget, **result})


def arena(
    players: Annotated[
        list[str],
        typer.Argument(help="Two or more of gen/7 (alone), gen/7@64 (simulations), perfect, random, gtp:COMMAND."),
    ],
    openings: Annotated[int, typer.Option(min=1, help="Openings that each two play from both sides.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    registry: RegistryPath = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Matches between snapshots, searches, perfect play and engines: games won and Elo with intervals."""
    from flows import matches
    from storage.registry import Registry

    notes = output.console(stderr=True)
    result = matches.tournament(
        Registry.open(registry), players, openings, seed, lambda text: notes.print(text, highlight=False)
    )
    if as_json:
        output.print_json(result)
        return
    output.table([{name: output.cell(value) for name, value in row.items()} for row in result["pairs"]])
    output.table([{name: output.cell(value) for name, value in row.items()} for row in result["ratings"]])


def strength(
    registry: RegistryPath = DEFAULT_REGISTRY,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for table, figure and page.")] = Path("strength"),
    budget: Annotated[int, typer.Option(min=1, help="Simulations of generation 0's search.")] = 256,
    openings: Annotated[int, typer.Option(min=1, help="Openings played from both sides, a generation.")] = 64,
    as_json: Json = False,
) -> None:
    """Strength at Hex by generation against FLOPs and seconds, and when the weights have swallowed the first search."""
    from flows import strength as study
    from storage.registry import Registry

    notes = output.console(stderr=True)
    document = study.strength(
        Registry.open(registry), out, budget, openings, lambda text: notes.print(text, highlight=False)
    )
    output.show(as_json, document, f"{study.page(document)}\nWrote {out}/README.md, strength.json and strength.svg.")
