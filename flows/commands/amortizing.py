"""When what was invested is paid back: amortize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath
from flywheel.errors import InputError


def amortize(
    registry: RegistryPath = DEFAULT_REGISTRY,
    target: Annotated[
        float | None,
        typer.Option(
            metavar="ACCURACY",
            help="On test, above 0 and up to 1; the champion's at once if not given, or all that generation 0 reaches.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=100, help="Of the bootstrap over groups of test problems.")] = 1000,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw cost against queries, to a .svg or a .png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """After how many queries a generation has cost less in all than an earlier one with more search, as often right."""
    from flows.amortize import amortized
    from storage.history import history
    from storage.registry import Registry

    if figure is not None and (figure.suffix not in {".svg", ".png"} or figure.is_dir()):
        raise InputError(f"--figure: got {figure}, expected a file that ends in .svg or .png")
    opened = Registry.open(registry)
    document = amortized(opened, history(opened), target, draws)
    if figure is not None:
        _draw(document, figure)
    if as_json:
        output.print_json(document)
        return
    from flows.page import amortization_rows, beyond_reach

    typer.echo(document["sentence"])
    output.table(amortization_rows(document))
    if beyond := beyond_reach(document):
        typer.echo(beyond)
    if figure is not None:
        typer.echo(f"Wrote {figure}")


def _draw(document: dict[str, Any], path: Path) -> None:
    from flows.figures import by_queries_file
    from flows.series import costs

    asked = "Moves" if document["board"] else "Queries"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(by_queries_file(costs(document), asked, path.suffix[1:]))
