"""Going back and forth between published generations: rollback, undo."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath, generation_number
from flywheel.errors import InputError

if TYPE_CHECKING:
    from storage.registry import Registry


def rollback(
    to: Annotated[str, typer.Argument(help="The generation to go back to, e.g. gen/4.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    registry: RegistryPath = DEFAULT_REGISTRY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Go back to an earlier generation: labels, student, params and the champion alias. Nothing is deleted."""
    from storage import rollback as rollbacks
    from storage.registry import Registry

    opened = Registry.open(registry)
    generation = generation_number(opened, to)
    planned = rollbacks.plan(opened, generation)
    if dry_run:
        output.show(as_json, planned, _rollback_text(planned, "Would go"))
        return
    if not reason.strip():
        raise InputError('a rollback needs a reason, got none; add --reason "why", it is kept in the history')
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(
                "a rollback asks before it acts, and stdin is no terminal; add --yes, or look with --dry-run"
            )
        output.console(stderr=True).print(_rollback_text(planned, "Will go"), highlight=False)
        typer.confirm("Go on?", abort=True, err=True)
    done = rollbacks.rollback(opened, generation, reason)
    done = _move_alias(opened, done)
    output.show(as_json, done, _rollback_text(done, "Went"))


def undo(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """Take the last rollback back, by another one to the generation before it."""
    from storage import rollback as rollbacks
    from storage.registry import Registry

    opened = Registry.open(registry)
    done = _move_alias(opened, rollbacks.undo(opened))
    output.show(as_json, done, _rollback_text(done, "Went"))


def _move_alias(opened: Registry, done: dict[str, Any]) -> dict[str, Any]:
    """MLflow follows the registry; if it is away, the outcome says so and the next run does it."""
    from storage import tracking
    from storage.history import published

    champion = published(opened, done["alias"]["to"])["champion"]
    moved = tracking.set_alias(opened.layout, champion["snapshot"])
    return {**done, "alias": {**done["alias"], "moved": moved}}


def _rollback_text(done: dict[str, Any], verb: str) -> str:
    lines = [
        f"{verb} from gen/{done['from']} to gen/{done['to']}: {done['rows_dropped']} labels out, "
        f"{done['rows_kept']} stay, "
        f"{len(done['models_abandoned'])} models abandoned, {done['bytes_to_fetch']} bytes to fetch.",
        f"Champion: the student of gen/{done['alias']['from']} -> that of gen/{done['alias']['to']}.",
        f"To take it back: {done['undo']}",
    ]
    if done["alias"].get("moved") is False:
        lines.append("MLflow was away: its alias moves with the next `flywheel run`.")
    return "\n".join(lines)
