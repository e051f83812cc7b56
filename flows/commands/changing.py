"""Going back and forth between published generations, and mending: rollback, undo, recover, upgrade."""

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
    to: Annotated[str | None, typer.Argument(help="The generation to go back to, e.g. gen/4.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    exclude: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Leave a bad model behind instead: model/<digest>, gen/6/student."),
    ] = None,
    registry: RegistryPath = DEFAULT_REGISTRY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Go back to an earlier generation, any line's: labels, student, params and the champion alias. Nothing is deleted.

    With --exclude: put the labels that a model made or judged, their descendants and the models trained on them out of
    every later generation, and go on from the newest clean ancestor with every clean label.
    """
    from storage import rollback as rollbacks
    from storage.registry import Registry

    opened = Registry.open(registry)
    if (to is None) == (exclude is None):
        raise InputError("expected either a generation to go back to, e.g. gen/4, or --exclude model/<digest>")
    if exclude is not None:
        model = _model(opened, exclude)
        planned = rollbacks.plan_exclusion(opened, model, reason)
    else:
        generation = generation_number(opened, str(to))
        planned = rollbacks.plan(opened, generation)
    if dry_run:
        output.show(as_json, planned, _text(planned, "Would go"))
        return
    if not reason.strip():
        raise InputError('a rollback needs a reason, got none; add --reason "why", it is kept in the history')
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(
                "a rollback asks before it acts, and stdin is no terminal; add --yes, or look with --dry-run"
            )
        output.console(stderr=True).print(_text(planned, "Will go"), highlight=False)
        typer.confirm("Go on?", abort=True, err=True)
    if exclude is not None:
        done = rollbacks.exclude(opened, model, reason)
    else:
        done = rollbacks.rollback(opened, generation, reason)
    done = _move_alias(opened, done)
    output.show(as_json, done, _text(done, "Went"))


def undo(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """Take the last rollback or exclusion back, by another rollback to the generation before it."""
    from storage import rollback as rollbacks
    from storage.registry import Registry

    opened = Registry.open(registry)
    done = _move_alias(opened, rollbacks.undo(opened))
    output.show(as_json, done, _text(done, "Went"))


def recover(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """Mend what a killed process left and send MLflow what waits, as each run does at its start."""
    from storage import lock, recovery, tracking
    from storage.registry import Registry

    opened = Registry.open(registry)
    with lock.hold(opened, "recover"):
        mended = recovery.recover(opened)
        sent = tracking.send_queued(opened.layout)
    waiting = tracking.pending(opened.layout)
    lines = [f"Mended: {sentence}." for sentence in mended] or ["Nothing was to be mended."]
    lines += [f"Sent to MLflow: {', '.join(f'gen/{number}' for number in sent)}."] if sent else []
    lines += [f"{waiting} records still wait for MLflow."] if waiting else []
    output.show(as_json, {"mended": mended, "sent": sent, "waiting_for_mlflow": waiting}, "\n".join(lines))


def upgrade(
    registry: RegistryPath = DEFAULT_REGISTRY,
    back: Annotated[bool, typer.Option("--undo", help="Take the upgrade back.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a registry of an earlier version to this one, in one commit; reading it needs no upgrade."""
    from storage import upgrade as upgrades
    from storage.registry import Registry

    opened = Registry.open(registry)
    done = upgrades.undo(opened) if back else upgrades.upgrade(opened)
    after = "" if back else " To take it back: flywheel upgrade --undo"
    output.show(as_json, done, f"Brought {opened.root} from version {done['from']} to {done['to']}.{after}")


def _model(opened: Registry, text: str) -> str:
    """The digest of the model that an address names. Raises InputError for an address of anything else."""
    from storage import addresses

    address = addresses.resolve(opened, text)
    if address.kind not in {"model", "student", "reward_model"} or address.digest is None:
        raise InputError(
            f"--exclude: got {text!r}, expected a model: model/<digest>, gen/6/student, gen/6/reward_model"
        )
    return address.digest


def _move_alias(opened: Registry, done: dict[str, Any]) -> dict[str, Any]:
    """MLflow follows the registry; if it is away, the outcome says so and the next run does it."""
    from storage import tracking
    from storage.history import published

    champion = published(opened, done["alias"]["to"])["champion"]
    moved = tracking.set_alias(opened.layout, champion["snapshot"])
    return {**done, "alias": {**done["alias"], "moved": moved}}


def _text(done: dict[str, Any], verb: str) -> str:
    lines = [
        f"{verb} from gen/{done['from']} to gen/{done['to']}: {done['rows_dropped']} labels out, "
        f"{done['rows_kept']} stay, "
        f"{_count(len(done['models_abandoned']), 'model')} abandoned, {done['bytes_to_fetch']} bytes to fetch."
    ]
    if "model" in done:
        listed = ", ".join(model[:12] for model in done["models_excluded"])
        lines.insert(0, f"Excluded: model/{done['model']} and what came of it ({listed}).")
        if done["labels_kept"]:
            kept = ", ".join(f"gen/{number}" for number in done["labels_kept"])
            lines.append(f"Clean labels stay though their generation is left: {kept}.")
    if done["unfinished"] is not None:
        lines.append(f"Work on gen/{done['unfinished']}, which is in progress, is dropped.")
    if done["alias"]["from"] != done["alias"]["to"]:
        lines.append(f"Champion: the student of gen/{done['alias']['from']} -> that of gen/{done['alias']['to']}.")
    lines.append(f"To take it back: {done['undo']}")
    if done["alias"].get("moved") is False:
        lines.append("MLflow was away: its alias waits, and moves with the next `flywheel run` or `flywheel recover`.")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
