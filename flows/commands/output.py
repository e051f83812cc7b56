"""What a command shows: text or a table on stdout, or with `--json` one document and nothing else there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from flows.plain import json_text

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False) -> Console:
    """Rich's console on stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr)


def show(as_json: bool, document: Any, text: str) -> None:
    """The document with `--json`, else the text."""
    if as_json:
        print_json(document)
    else:
        typer.echo(text)


def print_json(document: Any) -> None:
    """One document on stdout."""
    typer.echo(json_text(document, indent=1))


def print_json_rows(rows: Any) -> None:
    """A list, written as it is read."""
    typer.echo("[", nl=False)
    for index, row in enumerate(rows):
        typer.echo((",\n " if index else "") + json_text(row), nl=False)
    typer.echo("]")


def table(rows: list[dict[str, str]], names: list[str] | None = None) -> None:
    """A table of `rows` with the columns `names`, by default all that any row has, in the order they come up; a cell
    that a row lacks is empty."""
    from rich import box
    from rich.table import Table

    names = names or list(dict.fromkeys(name for row in rows for name in row))
    drawn = Table(*names, box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*(row.get(name, "") for name in names))
    shown_on = console()
    if not shown_on.is_terminal:
        # A pipe has no width; cells must not be folded for one.
        shown_on.width = 10_000
    shown_on.print(drawn)


def cell(value: Any) -> str:
    """A value of a query as a table shows it."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def or_dash(value: Any) -> str:
    """A value, or a dash where there is none."""
    return "-" if value is None else str(value)
