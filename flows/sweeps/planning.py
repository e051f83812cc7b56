"""From a sweep's table to a plan: what to train, for how long, and how to answer, for a number of queries.

The grid: model sizes and label-search budgets of the table, generations up to the last one run, runtime budgets greedy
and the powers of two from 4 to the largest measured. Accuracy is the fitted law's, investment the cost model's, a query
the full price of its samples: a checker that ends sampling at the first right answer makes it cheaper, so that totals
are upper bounds, the more so the more a plan samples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.sweeps import text_fits
from flows.sweeps.cost_model import CostModel, fit_costs
from flows.sweeps.text_fits import LEAST_SAMPLES, FittedLaw, TextTable
from flywheel.errors import InputError
from flywheel.scaling import planner
from flywheel.scaling.planner import Allocation, Forecast, Plan, Unreachable
from flywheel.seeds import generator

TIE = 0.005
"""Accuracy by which two options may differ and still count as equally good."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a plan is asked for: the least cost for a target, or the highest accuracy for a budget."""

    queries: float
    target: float | None = None
    """Accuracy on test."""
    budget_flops: float | None = None
    """Investment and all queries together."""
    confidence: float | None = None
    """Share of draws in which a new run has to reach the target; None asks it of the prediction alone."""

    def __post_init__(self) -> None:
        if (self.target is None) == (self.budget_flops is None):
            raise InputError(
                "give either --target, an accuracy to reach at least cost, or --budget, FLOPs to make most of"
            )
        if self.target is not None and not 0.0 < self.target <= 1.0:
            raise InputError(f"got a target of {self.target:g}, expected an accuracy above 0 and up to 1, such as 0.6")
        if self.budget_flops is not None and not 0.0 < self.budget_flops < float("inf"):
            raise InputError(f"got a budget of {self.budget_flops:g}, expected FLOPs above 0, such as 1e15")
        if self.confidence is not None and self.target is None:
            raise InputError("--confidence is that of reaching a target; with --budget leave it out")
        if not 0.0 <= self.queries < float("inf"):
            raise InputError(f"got {self.queries:g} queries, expected a number of 0 or more, such as 1e6")


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer, and how firm it is."""

    question: Question
    choice: Plan | Unreachable
    shares: tuple[tuple[Plan, float], ...]
    """What draws of the law would choose, with the share of draws, the largest first."""
    unreached: float
    """Share of draws in which no option would do."""
    near: tuple[Plan, ...]
    """Nearly as good, the choice first: for a target at most 10 % dearer, for a budget at most `TIE` below the best."""
    moves: tuple[tuple[str, Plan | Unreachable], ...]
    """The choice under changed circumstances, said in words."""


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """What a table says of every option."""

    table: TextTable
    fitted: FittedLaw
    costs: CostModel
    forecast: Forecast


def look(folder: Path, draws: int = 400, seed: int = 0, family: str | None = None) -> Outlook:
    """Fit law and costs to a folder's tables and ask both for the whole grid. Raises InputError where the table is not
    there, or holds too little for a law with intervals."""
    table = text_fits.read(folder, family)
    fitted = text_fits.fit_law(table, draws, seed)
    if fitted.draws is None:
        raise InputError(
            f"{folder} allows no intervals, without which nothing is planned: {fitted.reasons['intervals']}"
        )
    costs = fit_costs(table.rows, tuple({row["budget"] for row in table.rows if text_fits.is_cell(row)}))
    noise = generator(seed, "plan", table.family)
    return Outlook(table, fitted, costs, planner.forecast(fitted.draws, allocations(table, costs), noise))


def allocations(table: TextTable, costs: CostModel) -> list[Allocation]:
    """Every size of the table with every label-search budget and number of generations."""
    students = [row for row in table.rows if row["control"] is None]
    sizes = sorted({(row["parameters"], row["hidden_size"], row["layers"]) for row in students})
    searched = sorted({row["label_budget"] for row in students if row["generation"] > 0})
    budgets = [0] if 0 in costs.budgets else []
    budgets += [k for power in range(2, 31) if LEAST_SAMPLES <= (k := 2**power) <= costs.budgets[-1]]
    return [
        Allocation(
            f"w{width}-s{samples}-g{generations}",
            float(parameters),
            float(samples),
            generations,
            costs.investment(parameters, samples, generations),
            {budget: costs.query(parameters, budget) for budget in budgets},
        )
        for parameters, width, _ in sizes
        for samples in searched
        for generations in range(1, costs.generations + 1)
    ]


def advise(outlook: Outlook, question: Question) -> Advice:
    """The plan for a question. Raises InputError as the planner does."""
    return (
        _for_target(outlook.forecast, question)
        if question.target is not None
        else _for_budget(outlook.forecast, question)
    )


def _for_target(forecast: Forecast, question: Question) -> Advice:
    assert question.target is not None
    found = planner.sensitivity(forecast, question.queries, question.target, question.confidence)
    if isinstance(found, Unreachable):
        return Advice(question, found, (), 1.0, (), ())
    moves = [(f"{move.queries:.3g} queries, target {move.target:.3g}", move.choice) for move in found.moves]
    return Advice(question, found.choice, found.shares, found.unreached, found.near, tuple(moves))


def _for_budget(forecast: Forecast, question: Question) -> Advice:
    budget, queries = question.budget_flops, question.queries
    assert budget is not None
    choice = planner.best(forecast, queries, budget, TIE)
    if isinstance(choice, Unreachable):
        return Advice(question, choice, (), 1.0, (), ())
    totals = forecast.totals(queries)
    within = np.flatnonzero(totals <= budget)
    order = within[np.argsort(totals[within], kind="stable")]
    # Each draw takes the cheapest option within the same tie of its own best.
    drawn = forecast.drawn[:, order]
    firsts = np.argmax(drawn >= drawn.max(axis=1, keepdims=True) - TIE, axis=1)
    chosen = Counter(order[firsts].tolist())
    near = order[forecast.accuracies[order] >= forecast.accuracies[order].max() - TIE]
    plans = [forecast.plan(int(at), queries) for at in near]
    changes = [(queries / 10.0, budget), (queries * 10.0, budget), (queries, budget / 10.0), (queries, budget * 10.0)]
    return Advice(
        question,
        choice,
        tuple((forecast.plan(at, queries), times / len(drawn)) for at, times in chosen.most_common()),
        0.0,
        tuple(sorted(plans, key=lambda plan: plan.label != choice.label)),
        tuple(
            (f"{asked:.3g} queries, budget {flops:.3g}", planner.best(forecast, asked, flops, TIE))
            for asked, flops in changes
        ),
    )
