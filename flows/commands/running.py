"""Making a registry and running generations in it: init, run, status."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, Overrides, Preset, RegistryPath
from flywheel.errors import InputError

if TYPE_CHECKING:
    from flows.sweeps.plan_file import Orders
    from storage.registry import Registry


def init(registry: RegistryPath = DEFAULT_REGISTRY, preset: Preset = "countdown", set_: Overrides = None,
         as_json: Json = False) -> None:  # fmt: skip
    """Make a registry: a git + DVC repository with the recipe of one generation."""
    made = make(registry, preset, set_ or [])
    output.show(as_json, {"registry": str(made.root), "preset": preset}, f"Made a registry in {made.root} ({preset}).")


def run(
    registry: RegistryPath = DEFAULT_REGISTRY,
    generations: Annotated[int | None, typer.Option("--generations", "-n", min=1, help="How many more.")] = None,
    set_: Overrides = None,
    preset: Annotated[str | None, typer.Option(help="For a new registry; countdown if not given.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="In a clone: let its params name code to run, from now on.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of `flywheel plan --out`: generations up to its number; as many samples a problem in label search "
            "as brought most labels a FLOP among the newest attempts, or before any as it says. A new registry takes "
            "model and recipe too.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run generations beyond the last published one; makes the registry if there is none, goes on with one cut off."""
    from flows import display, progress, server, stop
    from flywheel import params
    from flywheel.models import language
    from storage import lock
    from storage import trust as trusting
    from storage.registry import Registry

    orders, changes = None, set_ or []
    if plan is not None:
        from flows.sweeps import plan_file

        orders = plan_file.read(plan)
    if registry.exists() and any(registry.iterdir()):
        opened = Registry.open(registry)
        _check_preset(opened, preset)
        if orders is not None:
            samples, why = _label_search(opened, orders)
            typer.echo(why, err=True)
            changes = [f"generate.samples={samples}", *changes]
        if trust:
            trusting.trust(opened)
        trusting.require(opened, params.load(opened.layout.params, changes))
    else:
        if orders is not None:
            changes = [*orders.overrides_for_new(preset), *changes]
            preset = orders.preset
        opened = make(registry, preset or "countdown", changes)
    if orders is not None and generations is None:
        generations = orders.left(opened.head_generation())
        if generations == 0:
            done = {"registry": str(opened.root), "generations": []}
            output.show(
                as_json, done, f"{opened.root} has the generations that the plan asks for: {orders.generations}."
            )
            return
    out, notes = output.console(), output.console(stderr=True)
    with lock.hold(opened, "run"), stop.on_signals():
        quiet_prefect()
        started = server.start_early(opened.layout)
        language.warm_up()
        with server.own_server(opened.layout, started):
            from flows.campaign import campaign

            terminal = display.Terminal(out, notes, quiet_rows=as_json)
            with terminal.showing(), progress.listening(terminal):
                rows = campaign(str(opened.root), generations, changes)
    if as_json:
        output.print_json({"registry": str(opened.root), "generations": rows})
        return
    if rows:
        out.print()
        out.print(display.overhead_sentence(rows), highlight=False, soft_wrap=True)
        summary = summary_of(opened)
        if summary is not None:
            out.print(summary["sentence"], style="bold", highlight=False, soft_wrap=True)


def status(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """What runs, what holds the registry, what is next: a line each."""
    from flows.status import status as read_status
    from storage.registry import Registry

    found = read_status(Registry.open(registry))
    output.show(as_json, found.document, "\n".join(found.lines))


def make(registry: Path, preset: str, overrides: list[str]) -> Registry:
    """A new registry from a preset with its overrides."""
    from storage import recipes
    from storage.registry import Registry

    preset = recipes.preset_for(preset, overrides)
    return Registry.init(registry, recipes.recipe(preset, overrides), recipes.recipe_text(), preset)


def _label_search(opened: Registry, orders: Orders) -> tuple[int, str]:
    """Samples a problem for a registry's next generation that follows a plan, and why. Raises InputError for a model of
    another size."""
    from flows.sweeps import label_budget
    from flywheel import params

    held = params.load(opened.layout.params)
    orders.require(held)
    found = label_budget.newest(opened, held.filter.threshold, held.filter.per_problem)
    if found is None:
        return (
            orders.samples,
            f"no attempts to learn from yet: the next search draws {orders.samples}, as the plan says",
        )
    return found.follow(orders.samples)


def _check_preset(opened: Registry, preset: str | None) -> None:
    """A preset is chosen when a registry is made."""
    made = json.loads(opened.layout.marker.read_text(encoding="utf-8")).get("preset")
    if preset is not None and preset != made:
        raise InputError(
            f"{opened.root} was made with preset {made}, got --preset {preset}; "
            "name a new folder with --registry, or change single params with --set"
        )


def quiet_prefect() -> None:
    """An error is told once, by `main`; Prefect would print its traceback for every flow it passes through."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


def summary_of(opened: Registry) -> dict[str, Any] | None:
    """What the campaign came to, `flows.summary`'s document; None before there is anything to say."""
    from flows.summary import summarise
    from flywheel import params
    from storage.history import history as read_history

    recipe = params.load(opened.layout.params)
    board = recipe.problems.domain == "hex"
    budget = recipe.evaluate.budgets[-1] if board else recipe.generate.samples
    summary = summarise(opened, read_history(opened), budget)
    return summary.as_dict() if summary else None
