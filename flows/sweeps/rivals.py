"""A plan put to the test: the sweep in which it meets other allocations of the same compute, drawn without looking.

Rivals are drawn by a seed from all allocations of the grid that with one of their runtime budgets cost, investment and
queries together, within `WITHIN` of the plan; where several budgets do, one of these is drawn too. The grid and its
costs come from the table's FLOPs, none of its accuracies, so that the draw does not know the law that the plan was
chosen by. The sweep trains all with seeds that the table has not seen, by its own recipe; `flywheel fit` then tells
rank and regret.
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
"""Of the plan's FLOPs in all."""
TRAINING_SEEDS = 3


def contest(outlook: Outlook, plan: Plan, queries: float, count: int, seed: int) -> dict[str, Any]:
    """The sweep, as its YAML says it. Raises InputError where the table's own sweep is not shipped, or the grid has too
    few options of that cost."""
    name, family = outlook.table.sweep, outlook.table.family
    if not (recipes.sweeps_folder() / f"{name}.yaml").is_file():
        raise InputError(f"sweep {name} is not among the shipped ones, so that its recipe for a contest is not known")
    _, base = definition.load(name)
    if family not in base.families:
        raise InputError(f"sweep {name} has no family {family} any more; make the table anew")
    options: dict[str, list[tuple[Allocation, int]]] = {}
    for allocation, budget in outlook.forecast.options:
        total = allocation.investment_flops + queries * allocation.query_flops[budget]
        if abs(total / plan.total_flops - 1.0) <= WITHIN and allocation.label != plan.allocation.label:
            options.setdefault(allocation.label, []).append((allocation, budget))
    if len(options) < count:
        raise InputError(
            f"only {len(options)} other allocations of the grid cost within {WITHIN:.0%} of the plan's "
            f"{plan.total_flops:.3g} FLOPs, expected {count}; ask for fewer rivals, or plan for another budget"
        )
    random = generator(seed, "rivals")
    drawn = sorted(random.choice(sorted(options), size=count, replace=False).tolist())
    met = {"plan": (plan.allocation, plan.budget)}
    met |= {label: options[label][random.integers(len(options[label]))] for label in drawn}
    held, families = base.families[family], dict[str, Any]()
    for cell, (allocation, _) in met.items():
        place = families.setdefault(
            f"{family}-g{allocation.generations}",
            {"set": held.set, "cells": {}, "legs": _legs(held.legs, allocation.generations)},
        )
        place["cells"][cell] = _recipe(outlook, held, allocation) | {"generate.samples": int(allocation.search)}
    first = max(base.seeds) + 1
    measured = {*next(base.runs()).params(0).evaluate.budgets, *(budget for _, budget in met.values() if budget)}
    return {
        "note": f"The plan for {queries:,.0f} queries and {plan.total_flops:.3g} FLOPs in all, against {count} other "
        f"allocations of as many FLOPs, drawn by seed {seed}.",
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
