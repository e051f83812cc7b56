"""What it took: ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath


def ledger(
    registry: RegistryPath = DEFAULT_REGISTRY,
    by: Annotated[str, typer.Option(help="One line a `generation`, `stage` or `model`.")] = "generation",
    as_json: Json = False,
) -> None:
    """What was spent: FLOPs by kind, tokens, device-seconds and, with a price, money; rolled-back generations too."""
    from flows.account import account, sentences, table
    from storage.registry import Registry

    document = account(Registry.open(registry), by)
    if as_json:
        output.print_json(document)
        return
    output.table(table(document))
    for sentence in sentences(document):
        typer.echo(sentence)
