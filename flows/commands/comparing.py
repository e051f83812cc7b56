"""Two generations beside each other: diff."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath, generation_number


def diff(
    before: Annotated[str, typer.Argument(metavar="FROM", help="A generation, e.g. gen/4.")],
    after: Annotated[str, typer.Argument(metavar="TO", help="Another, on the same line or not, e.g. gen/7.")],
    registry: RegistryPath = DEFAULT_REGISTRY,
    table: Annotated[
        str, typer.Option(help="The table whose rows are compared: labels, attempts, step_labels, problems.")
    ] = "labels",
    limit: Annotated[int, typer.Option(min=0, help="Example rows of each kind of change, at most.")] = 3,
    as_json: Json = False,
) -> None:
    """What changed between two generations: labels, rewards, rejections, params, metrics, code, models, FLOPs.

    Compared are all labels that a student may learn from, its ancestors' too, by what they teach: problem and canonical
    answer. Of several that teach the same the oldest counts, as in training. Files of both lines are not compared.
    """
    from storage import diff as diffs
    from storage.registry import Registry

    opened = Registry.open(registry)
    old, new = (generation_number(opened, text) for text in (before, after))
    found = diffs.diff(opened, old, new, table, limit)
    if as_json:
        output.print_json(found)
        return
    from rich.markup import escape

    from flows.diff_text import sections

    for section in sections(found, table):
        if isinstance(section, str):
            typer.echo(section)
        elif section:
            output.table([{escape(name): escape(cell) for name, cell in row.items()} for row in section])
