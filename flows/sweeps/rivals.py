"""A plan put to the test: the sweep in which it meets other allocations of the same compute, drawn without looking.

Rivals are drawn by a seed from all allocations of the grid that with one of their runtime budgets cost, investment and
queries together, within `WITHIN` of the budget; where several runtime budgets do, one of these is drawn too. A size
and a label search are drawn once, with one number of generations. The grid and its costs come from the table's FLOPs,
none of its accuracies: the draw does not know the law, and the plan only strikes its own size and search from it. For
a plan that was asked for a target the budget is what the plan costs. The sweep trains all with seeds that the table
has not seen, by the recipe of the shipped sweep; `flywheel fit` then tells rank and regret.
"""

from __future__ import annotations

from typing import Any

from flows.sweeps import definition
from flows.sweeps.definition import Family, Leg
from flows.sweeps.planning import Outlook
from flywheel.errors import InputError
from flywheel.scaling.planner import Allocation, Plan
from flywheel.seeds import generator
from storage import recipes

WITHIN = 0.15
"""Of the budget."""
TRAINING_SEEDS = 3


def contest(
    outlook: Outlook, plan: Plan, queries: float, count: int, seed: int, budget_flops: float | None = None
) -> dict[str, Any]:
    """The sweep, as its YAML says it; `budget_flops` is what the plan was asked to make most of.

    Raises InputError where the table's own sweep is not shipped, or the grid has too few options of that cost."""
    name, family = outlook.table.sweep, outlook.table.family
    if not (recipes.sweeps_folder() / f"{name}.yaml").is_file():
        raise InputError(f"sweep {name} is not among the shipped ones, so that its recipe for a contest is not known")
    _, base = definition.load(name)
    if family not in base.families:
        raise InputError(f"sweep {name} has no family {family} any more; make the table anew")
    around = budget_flops or plan.total_flops
    options: dict[str, list[tuple[Allocation, int]]] = {}
    for allocation, budget in outlook.forecast.options:
        total = allocation.investment_flops + queries * allocation.query_flops[budget]
        if abs(total / around - 1.0) <= WITHIN:
            options.setdefault(allocation.label, []).append((allocation, budget))
    random = generator(seed, "rivals")
    met = {"plan": (plan.allocation, plan.budget)}
    for label in random.permutation(sorted(options)).tolist():
        drawn = options[label][random.integers(len(options[label]))]
        # Fewer generations of one way to train are part of more: they would be the same runs.
        if len(met) <= count and not any(_same_runs(drawn[0], other) for other, _ in met.values()):
            met[label] = drawn
    if len(met) <= count:
        raise InputError(
            f"only {len(met) - 1} other allocations of the grid cost within {WITHIN:.0%} of {around:.3g} FLOPs, "
            f"expected {count}; ask for fewer rivals, or plan for another budget"
        )
    held, families = base.families[family], dict[str, Any]()
    for cell, (allocation, _) in met.items():
        place = families.setdefault(
            f"{family}-g{allocation.generations}",
            {"set": held.set, "cells": {}, "legs": _legs(held.legs, allocation.generations)},
        )
        place["cells"][cell] = _recipe(outlook, held, allocation) | {"generate.samples": int(allocation.search)}
    first = max(*base.seeds, *(row["seed"] for row in outlook.table.rows)) + 1
    measured = {*next(base.runs()).params(0).evaluate.budgets, *(budget for _, budget in met.values() if budget)}
    return {
        "note": f"The plan for {queries:,.0f} queries and {around:.3g} FLOPs in all, `{plan.label}`, against {count} "
        f"other allocations of as many FLOPs, drawn by seed {seed}.",
        "preset": base.preset,
        "set": base.set | {"evaluate.budgets": sorted(measured)},
        "seeds": [*range(first, first + TRAINING_SEEDS)],
        "contest": {
            "reference": "plan",
            "queries": queries,
            "answers": {cell: budget for cell, (_, budget) in met.items() if budget},
        },
        "families": families,
    }


def _same_runs(one: Allocation, other: Allocation) -> bool:
    return (one.parameters, one.search) == (other.parameters, other.search)


def _recipe(outlook: Outlook, family: Family, allocation: Allocation) -> dict[str, Any]:
    """What the sweep's own cell of this size changes, the one with the nearest label search."""
    rows = [row for row in outlook.table.rows if row["parameters"] == int(allocation.parameters)]
    row = min(rows, key=lambda row: abs(row["label_budget"] - allocation.search))
    return family.cells[row["cell"]]


def _legs(legs: list[Leg], generations: int) -> list[dict[str, Any]]:
    """The first so many generations of the sweep's legs."""
    cut = []
    for leg in legs:
        if generations > 0:
            cut.append({"generations": min(leg.generations, generations), "set": leg.set})
        generations -= leg.generations
    return cut
