"""When search pays for itself: what was spent to have a later model, over the queries that it then answers cheaper.

    Q* = (investment_later - investment_earlier) / (cost_earlier - cost_later)        costs are FLOPs a query

Both at equal accuracy: each model is given its least budget that reaches it, from none at all (its answer at once) to
the largest measured; between two whole budgets queries are mixed. A model that samples stops as soon as its checker
accepts an answer. Beyond Q* queries the later model is the cheaper of the two.

Intervals are percentiles of a bootstrap over groups of test problems, the same draws for all models. They say how far
the test set is to be trusted, not how another run's training would have come out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel.scaling.ways import Floats, Model

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was measured, with its 95 % interval; of queries, infinity stands for never."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A model with one budget, in each draw: arrays [1 + draws], the first of what was measured."""

    model: str
    investment_flops: float
    budget: Floats
    """0 is the answer at once; a part means queries mixed between two budgets."""
    accuracy: Floats
    flops: Floats
    """A query's."""
    reached: npt.NDArray[np.bool_]
    """False where even the largest budget stays below the accuracy that was asked for; it stands here then."""


@dataclass(frozen=True, slots=True)
class Payback:
    """Queries after which the later of two models is the cheaper one, and the share of draws in which it never is."""

    queries: Estimate
    never: float


@dataclass(frozen=True, slots=True)
class Row:
    """A model at the accuracy that was asked for."""

    name: str
    investment_flops: float
    reached: bool
    reaching: float
    """Share of draws in which it reaches the accuracy."""
    budget: Estimate
    accuracy: Estimate
    flops: Estimate
    against_first: Payback | None
    """None for the first model itself and where one of the two does not reach the accuracy."""
    against_before: Payback | None
    """The same against the model before it."""


def common_target(student: Model, first: Model, weights: Floats) -> Floats:
    """In each draw the accuracy of the student at once or, where less, the most that the first model reaches."""
    target: Floats = np.minimum(student.means(weights)[0][:, 0], first.means(weights)[0].max(axis=1))
    return target


def reaching(model: Model, weights: Floats, target: float | Floats) -> Way:
    """The model with its least budget that reaches the target, in each draw."""
    accuracy, flops = model.means(weights)
    wanted = np.broadcast_to(np.asarray(target, dtype=np.float64), len(weights))
    # A target that was itself interpolated may lie a rounding above two budgets of equal accuracy.
    enough = accuracy >= wanted[:, None] - _ROUNDING
    reached: npt.NDArray[np.bool_] = np.any(enough, axis=1)
    above = np.where(reached, enough.argmax(axis=1), model.largest)
    # No mixture below one sample: a query is answered once at least.
    below = np.where(reached & (above > 1), above - 1, above)
    each = np.arange(len(weights))
    gained = accuracy[each, above] - accuracy[each, below]
    part = np.divide(wanted - accuracy[each, below], gained, out=np.ones_like(gained), where=gained > 0)

    def mixed(cells: Floats) -> Floats:
        between: Floats = cells[each, below] + part * (cells[each, above] - cells[each, below])
        return between

    budget = below + part * (above - below)
    return Way(model.name, model.investment_flops, budget, mixed(accuracy), mixed(flops), reached)


def at_budget(model: Model, weights: Floats, budget: int) -> Way:
    """The model with this budget, whatever accuracy it has; 0 is its answer at once."""
    if not 0 <= budget <= model.largest:
        raise ValueError(f"{model.name}: got a budget of {budget}, expected 0 to {model.largest}")
    accuracy, flops = (part[:, budget] for part in model.means(weights))
    budgets, reached = np.full(len(weights), float(budget)), np.full(len(weights), True)
    return Way(model.name, model.investment_flops, budgets, accuracy, flops, reached)


def break_even(earlier: Way, later: Way, per_solved: bool = False) -> Floats:
    """Queries from which on the later one has cost less in all, in each draw; infinite where it never has.

    `per_solved` compares the cost of a solved query, (investment + Q * cost) / (Q * accuracy), for ways that differ in
    accuracy. A draw in which the earlier one does not reach the target is priced at its largest budget, too cheap, so
    that queries are at most these; one in which the later one does not, as never.
    """
    mine, theirs = (later.accuracy, earlier.accuracy) if per_solved else (np.float64(1.0), np.float64(1.0))
    invested = later.investment_flops * theirs - earlier.investment_flops * mine
    saved = earlier.flops * mine - later.flops * theirs
    pays = (saved > 0) & later.reached
    queries: Floats = np.divide(np.maximum(invested, 0.0), saved, out=np.full(len(saved), np.inf), where=pays)
    return queries


def estimate(draws: Floats) -> Estimate:
    """The first value with the 2.5 and 97.5 percentiles of the others; without any, nobody knows."""
    low, high = _bounds(draws[1:])
    return Estimate(float(draws[0]), float(low), float(high))


def _bounds(drawn: Floats) -> tuple[Floats, Floats]:
    """The 2.5 and 97.5 percentiles over the first axis, without interpolation: infinity stays what it is. Not a number
    where there are no draws."""
    if not len(drawn):
        return np.full(drawn.shape[1:], np.nan), np.full(drawn.shape[1:], np.nan)
    ordered = np.sort(drawn, axis=0)
    last = len(drawn) - 1
    return ordered[math.floor(0.025 * last)], ordered[math.ceil(0.975 * last)]


def payback(earlier: Way, later: Way, per_solved: bool = False) -> Payback:
    """`break_even` with its interval."""
    queries = break_even(earlier, later, per_solved)
    return Payback(estimate(queries), float(np.mean(np.isinf(queries[1:]))) if len(queries) > 1 else float("nan"))


def amortize(ways: Sequence[Way]) -> list[Row]:
    """A row a way, of models that reach for one accuracy in the same draws, from the least investment up."""
    rows = []
    for number, way in enumerate(ways):
        against = [
            payback(other, way) if number and way.reached[0] and other.reached[0] else None
            for other in (ways[0], ways[number - 1])
        ]
        rows.append(
            Row(
                way.model,
                way.investment_flops,
                bool(way.reached[0]),
                float(np.mean(way.reached[1:] if len(way.reached) > 1 else way.reached)),
                estimate(way.budget),
                estimate(way.accuracy),
                estimate(way.flops),
                *against,
            )
        )
    return rows


def total_cost(way: Way, queries: Floats, per_solved: bool = False) -> tuple[Floats, Floats, Floats]:
    """FLOPs in all after so many queries, or those of a solved query: value, low and high, [queries] each."""
    if not per_solved:
        # It rises with the FLOPs of a query, and so do its bounds.
        price = estimate(way.flops)
        value, low, high = (way.investment_flops + queries * each for each in (price.value, price.low, price.high))
        return value, low, high
    with np.errstate(divide="ignore"):
        cost = (way.investment_flops + queries * way.flops[:, None]) / (queries * way.accuracy[:, None])
    return cost[0], *_bounds(cost[1:])


@dataclass(frozen=True, slots=True)
class BreakEven:
    """`budget` of the old model's search against one answer of the student. FLOPs are a query's.

    `queries` is None where the search is never dearer, so that the investment is never earned back. `reached` is false
    where even the largest measured budget stays below the student's accuracy: the row then compares with that budget.
    """

    budget: float
    search_accuracy: float
    search_flops: float
    student_accuracy: float
    student_flops: float
    investment_flops: float
    queries: float | None
    reached: bool


def at_equal_accuracy(
    model: Model, student_accuracy: float, student_flops: float, investment_flops: float
) -> BreakEven:
    """Compare with the budget of the old model that just reaches the student's accuracy."""
    way = reaching(model, np.ones((1, len(model.solved))), student_accuracy)
    return _against(way, student_accuracy, student_flops, investment_flops)


def at_budgets(
    model: Model, budgets: Sequence[int], student_accuracy: float, student_flops: float, investment_flops: float
) -> list[BreakEven]:
    """Compare with each budget of the old model's search, whatever accuracies the two reach."""
    ways = (at_budget(model, np.ones((1, len(model.solved))), budget) for budget in budgets)
    return [_against(way, student_accuracy, student_flops, investment_flops) for way in ways]


def _against(way: Way, student_accuracy: float, student_flops: float, investment_flops: float) -> BreakEven:
    accuracy, flops = float(way.accuracy[0]), float(way.flops[0])
    saved = flops - student_flops
    return BreakEven(
        float(way.budget[0]),
        accuracy,
        flops,
        student_accuracy,
        student_flops,
        investment_flops,
        investment_flops / saved if saved > 0 else None,
        bool(way.reached[0]) and accuracy >= student_accuracy - _ROUNDING,
    )
