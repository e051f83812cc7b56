"""Making a published generation again: replay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath, generation_number
from flywheel.errors import Interrupted

if TYPE_CHECKING:
    from flows.replay_stages import Done

_SHOWN = 20
"""Differences that the text lists; `--json` has all."""
_MEANS = {
    "identical": "identical: every output, table and weight has the recorded digest.",
    "equivalent": "equivalent: other bytes, and nothing that tells the two apart in distribution.",
    "different": "different: it did not come out as recorded.",
}


def replay(
    generation: Annotated[str, typer.Argument(help="A generation, e.g. gen/4.")],
    registry: RegistryPath = DEFAULT_REGISTRY,
    keep: Annotated[
        Path | None, typer.Option(help="A new folder to make it in, and to leave; else the clone is removed.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a reward function that params name, in a clone of another's registry.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="EXECUTION.B=V", help="Other threads or another device; may be given again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a generation again in a scratch clone and compare digests; exit code 1 where it comes out different.

    It takes as long as the generation did. Nothing is published, the registry is not locked, and the FLOPs spent stand
    in no ledger. Equal bytes are expected at equal versions, instruction set, threads and code; else, or with a GPU or
    a server, agreement in distribution, by paired tests that are named.
    """
    from flows import replay as replays
    from flows import stop
    from storage.registry import Registry

    opened = Registry.open(registry)
    number = generation_number(opened, generation)
    with stop.on_signals():
        try:
            found = replays.replay(opened, number, keep, trust, set_ or [], _tell)
        except Interrupted:
            left = f"what was made is in {keep}" if keep is not None else "the clone was removed"
            raise Interrupted(f"stopped on request; {left}, the registry is as it was") from None
    output.show(as_json, found, text_of(found))
    if found["result"] == "different":
        raise typer.Exit(1)


def _tell(done: Done) -> None:
    text = f"gen/{done.generation}: {done.stage} made again in {done.seconds:.1f} s, {done.rows:,} rows"
    output.console(stderr=True).print(text, highlight=False, soft_wrap=True)


def text_of(found: dict[str, Any]) -> str:
    """The verdict, the outputs, why equal bytes could not be expected, tests, and what differs."""
    width = max(len(name) for name in found["outputs"])
    lines = [f"gen/{found['generation']} is {_MEANS[found['result']]}"]
    for name, sides in found["outputs"].items():
        here = "the same" if sides["recorded"] == sides["here"] else (sides["here"] or "not there")[:12]
        lines.append(f"  {name:<{width}}  {sides['recorded'][:12]}  {here}")
    if found["result"] != "identical":
        lines += [f"leeway: {reason}" for reason in found["leeway"]]
        lines += [_test(test, found["level"]) for test in found["tests"]]
        lines += [_difference(one) for one in found["differences"][:_SHOWN]]
        if len(found["differences"]) > _SHOWN:
            lines.append(f"... and {len(found['differences']) - _SHOWN} more; `--json` lists all")
    if found["kept"]:
        lines.append(f"Kept in {found['kept']}")
    return "\n".join([*lines, f"Made again in {found['seconds']:.1f} s, {found['flops']:.3g} FLOPs."])


def _test(test: dict[str, Any], level: float) -> str:
    return (
        f"{test['test']}: {test['of']}, here minus recorded {test['value']:+.4g} ({test['low']:+.4g} to "
        f"{test['high']:+.4g}, {test['count']:,}), p = {test['p']:.3g}, told apart below {level:.3g}"
    )


def _difference(one: dict[str, Any]) -> str:
    place = [f"table {one['table']}"] if "table" in one else [one["file"]] if "file" in one else []
    where = f"differs: {', '.join([one['output'], *place])}"
    if "why" in one:
        return f"{where}: {one['why']}"
    first = one.get("first")
    if "table" not in one:
        told = f"; first at {first['key']}: {first['recorded']!r}, here {first['here']!r}" if first else ""
        return f"{where}: {one['recorded'] or 'not there'}, here {one['here'] or 'not there'}{told}"
    columns = f"; columns of one only: {', '.join(one['columns'])}" if one["columns"] else ""
    if first is None:
        return f"{where}: the same rows in other bytes{columns}"
    rows = one["rows"]
    return (
        f"{where}: {one['only_recorded']:,} of {rows['recorded']:,} rows are only recorded, {one['only_here']:,} of "
        f"{rows['here']:,} only here{columns}; first at row {first['row']}: {first['recorded']}, here {first['here']}"
    )
