"""Data for other tools: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath


def export(
    address: Annotated[str, typer.Argument(help="A generation, e.g. gen/7.")],
    registry: RegistryPath = DEFAULT_REGISTRY,
    form: Annotated[
        str, typer.Option("--format", help="prompt-completion, messages, preference or stepwise: TRL's columns.")
    ] = "prompt-completion",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to make; by default named after tag and format.")
    ] = None,
    file_type: Annotated[str, typer.Option(help="parquet or jsonl.")] = "parquet",
    window: Annotated[
        bool, typer.Option("--window", help="All labels its student could learn from, not the generation's own alone.")
    ] = False,
    split: Annotated[
        list[str] | None,
        typer.Option(help="train (the default); valid and test add reference answers. May be given again."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Preference: pairs a problem, at most.")] = 1,
    step_threshold: Annotated[
        float, typer.Option(help="Stepwise: a step is right where its score is above this; 0: where any rollout was.")
    ] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: Json = False,
) -> None:
    """Write a generation's labels as a data set that TRL and datasets.load_dataset read, with a card of its lineage."""
    from storage import export as exports
    from storage.registry import Registry

    opened = Registry.open(registry)
    wanted = exports.Wanted(form, file_type, window, tuple(split or ["train"]), pairs, step_threshold)
    done = exports.export(opened, address, out or Path(exports.folder_for(address, wanted)), wanted, force)
    counts = ", ".join(f"{rows} rows of {name}" for name, rows in done["rows"].items())
    output.show(as_json, done, f"Wrote {counts} to {done['path']}")
