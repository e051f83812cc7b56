"""Plans against brute force over a small grid, and label search against every subset of the samples."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from flywheel.errors import InputError
from flywheel.scaling.law import Law, Spread
from flywheel.scaling.planner import (
    Allocation,
    Forecast,
    Plan,
    Sensitivity,
    Unreachable,
    best,
    cheapest,
    forecast,
    label_gain,
    sensitivity,
)
from flywheel.scaling.uncertainty import Draws

AXES = ("parameters", "training", "runtime")
CENTRE = np.array([6.5, 15.0, 9.0])
LAW = Law(
    AXES,
    ((), ("parameters",), ("training",), ("runtime",)),
    CENTRE,
    np.array([0.0, 0.9, 0.8, 0.6]),
    0.05,
    0.95,
    CENTRE + np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3))),
    np.zeros(27),
    Spread(0.15, 12.0, 0.5, 200.0),
)
"""Measured for parameters 10^5.5 to 10^7.5, training 10^14 to 10^16, runtime 10^8 to 10^10."""


def allocation(size: float, generations: int, search: float = 16.0) -> Allocation:
    prices = {budget: 100.0 * size * max(1, budget) for budget in (0, 4, 16)}
    label = f"{size:.0e} x {generations}"
    return Allocation(label, size, search, generations, 1e8 * size * 4.0**generations, prices)


ALLOCATIONS = [allocation(size, generations) for size in (1e6, 3e6, 1e7) for generations in (1, 2, 3)]


def draws(deviation: float = 0.1, count: int = 200) -> Draws:
    generator = np.random.default_rng(0)
    coefficients = LAW.coefficients + generator.normal(0.0, deviation, (count, 4))
    return Draws(LAW, coefficients, np.full(count, LAW.floor), np.full(count, LAW.ceiling))


@pytest.fixture(scope="module")
def outlook() -> Forecast:
    return forecast(draws(), ALLOCATIONS, np.random.default_rng(1))


def by_hand(queries: float) -> list[tuple[float, float, str, int]]:
    """Total cost, accuracy, label and budget of every option."""
    return [
        (held.investment_flops + queries * price, LAW.predict(held.point(budget)), held.label, budget)
        for held in ALLOCATIONS
        for budget, price in held.query_flops.items()
    ]


@pytest.mark.parametrize("queries", [0.0, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.6, 0.7])
def test_the_cheapest_is_that_of_brute_force(outlook: Forecast, queries: float, target: float) -> None:
    plan = cheapest(outlook, queries, target)
    assert isinstance(plan, Plan)
    total, accuracy, label, budget = min(
        (row for row in by_hand(queries) if row[1] >= target), key=lambda row: (row[0], -row[1])
    )
    assert (plan.allocation.label, plan.budget) == (label, budget)
    assert (plan.total_flops, plan.accuracy.value) == (pytest.approx(total), pytest.approx(accuracy))
    assert plan.total_flops == plan.investment_flops + queries * plan.query_flops
    assert plan.accuracy.low < plan.accuracy.value < plan.accuracy.high


@pytest.mark.parametrize("queries", [1e4, 1e6, 1e8])
@pytest.mark.parametrize("budget", [3e15, 1e16, 1e18])
def test_the_best_is_that_of_brute_force(queries: float, budget: float) -> None:
    sure = forecast(draws(0.0), ALLOCATIONS, np.random.default_rng(1))
    plan = best(sure, queries, budget, tie=0.0)
    within = [row for row in by_hand(queries) if row[0] <= budget]
    assert bool(within) == isinstance(plan, Plan)
    if isinstance(plan, Plan):
        accuracy = max(row[1] for row in within)
        total = min(row[0] for row in within if row[1] >= accuracy)
        assert (plan.accuracy.value, plan.total_flops) == (pytest.approx(accuracy), pytest.approx(total))


def test_more_queries_move_compute_from_answering_to_training(outlook: Forecast) -> None:
    plans = [cheapest(outlook, queries, 0.6) for queries in (1e2, 1e5, 1e7, 1e9)]
    spent = [(plan.query_flops, plan.investment_flops) for plan in plans if isinstance(plan, Plan)]
    assert [query for query, _ in spent] == sorted((query for query, _ in spent), reverse=True)
    assert [investment for _, investment in spent] == sorted(investment for _, investment in spent)
    assert spent[0] != spent[-1]


def test_confidence_asks_the_lower_bound(outlook: Forecast) -> None:
    plain, sure = cheapest(outlook, 1e5, 0.6), cheapest(outlook, 1e5, 0.6, confidence=0.975)
    assert isinstance(plain, Plan)
    assert isinstance(sure, Plan)
    assert plain.accuracy.low < 0.6 <= sure.accuracy.low
    assert sure.total_flops > plain.total_flops
    with pytest.raises(InputError, match="got a confidence of"):
        cheapest(outlook, 1e5, 0.6, confidence=1.5)


def test_an_unreachable_target_says_what_is_in_the_way(outlook: Forecast) -> None:
    beyond = cheapest(outlook, 1e5, 0.97)
    assert isinstance(beyond, Unreachable)
    assert "ceiling is 0.95" in beyond.message
    most = max(row[1] for row in by_hand(1e5))
    assert beyond.nearest.accuracy.value == pytest.approx(most)
    small = cheapest(outlook, 1e5, most + 0.01)
    assert isinstance(small, Unreachable)
    assert "at the largest parameters, training, runtime offered" in small.message
    unsure = cheapest(outlook, 1e5, most - 0.01, confidence=0.975)
    assert isinstance(unsure, Unreachable)
    assert "with a confidence of 0.975: 1 of 27 are predicted to" in unsure.message


def test_a_budget_too_small_names_the_cheapest(outlook: Forecast) -> None:
    found = best(outlook, 1e6, 1e14)
    assert isinstance(found, Unreachable)
    assert found.nearest.total_flops == pytest.approx(min(row[0] for row in by_hand(1e6)))
    assert found.nearest.label in found.message


def test_a_gain_smaller_than_the_tie_is_not_paid_for() -> None:
    """However unsure the law: a gain is given away for its size alone, never because nobody is sure of it."""
    base = allocation(1e6, 3)
    dearer = replace(base, label="dearer", investment_flops=base.investment_flops * 2.0)
    accuracies = {held.label: LAW.predict(held.point(16)) for held in (base, dearer)}
    gain = accuracies["dearer"] - accuracies[base.label]
    for deviation in (0.0, 0.6):
        outlook = forecast(draws(deviation), [base, dearer], np.random.default_rng(1))
        for tie, label in ((gain * 0.9, "dearer"), (gain * 1.1, base.label)):
            plan = best(outlook, 1.0, 1e18, tie=tie)
            assert isinstance(plan, Plan)
            assert plan.allocation.label == label


def test_sensitivity_by_brute_force(outlook: Forecast) -> None:
    queries, target = 1e5, 0.6
    found = sensitivity(outlook, queries, target)
    assert isinstance(found, Sensitivity)
    assert found.choice == cheapest(outlook, queries, target)
    chosen: dict[str, int] = {}
    options = [(held, budget) for held in ALLOCATIONS for budget in held.query_flops]
    for law in draws().laws():
        costs = {
            f"{held.label} {budget}": held.investment_flops + queries * held.query_flops[budget]
            for held, budget in options
            if law.predict(held.point(budget)) >= target
        }
        name = min(costs, key=lambda label: costs[label]) if costs else "none"
        chosen[name] = chosen.get(name, 0) + 1
    assert found.unreached == chosen.pop("none", 0) / 200
    assert {f"{plan.allocation.label} {plan.budget}": round(share * 200) for plan, share in found.shares} == chosen
    shares = [share for _, share in found.shares]
    assert shares == sorted(shares, reverse=True)
    assert found.near[0] == found.choice
    assert all(plan.total_flops <= 1.1 * found.choice.total_flops for plan in found.near)
    near = [row for row in by_hand(queries) if row[1] >= target and row[0] <= 1.1 * found.choice.total_flops]
    assert len(found.near) == len(near)
    assert [(move.queries, move.target) for move in found.moves] == [
        (1e4, 0.6),
        (1e6, 0.6),
        (1e5, pytest.approx(0.55)),
        (1e5, pytest.approx(0.65)),
    ]
    assert all(move.choice == cheapest(outlook, move.queries, move.target) for move in found.moves)
    assert isinstance(sensitivity(outlook, queries, 0.97), Unreachable)


def test_a_plan_outside_the_data_says_so() -> None:
    far = allocation(1e9, 1)
    plan = cheapest(forecast(draws(), [far], np.random.default_rng(1)), 1e5, 0.5)
    assert isinstance(plan, Plan)
    assert plan.extrapolation.outside
    assert plan.extrapolation.beyond["parameters"] == pytest.approx(1.5)
    near = cheapest(forecast(draws(), [allocation(1e6, 1)], np.random.default_rng(1)), 1e5, 0.1)
    assert isinstance(near, Plan)
    assert not near.extrapolation.outside


def test_no_options_and_no_queries_are_refused(outlook: Forecast) -> None:
    with pytest.raises(InputError, match="got no allocation"):
        forecast(draws(), [], np.random.default_rng(1))
    with pytest.raises(InputError, match="got -1 queries"):
        cheapest(outlook, -1, 0.5)


def test_label_gain_is_the_mean_over_all_subsets() -> None:
    """Five samples a problem: every way to draw some of them is as likely."""
    right, per_problem = (0, 1, 2, 5), 2
    _, yields = label_gain(right, 5, (4, 1, 2), 100.0, 10.0, 30.0, per_problem)
    assert [row.budget for row in yields] == [1, 2, 4]
    before = (0.0, 0.0)
    for row in yields:
        solved = kept = 0.0
        for count in right:
            drawn = [sum(chosen) for chosen in itertools.combinations([1] * count + [0] * (5 - count), row.budget)]
            solved += sum(hits > 0 for hits in drawn) / len(drawn)
            kept += sum(min(hits, per_problem) for hits in drawn) / len(drawn)
        assert (row.solved, row.kept) == (pytest.approx(solved), pytest.approx(kept))
        assert row.flops == pytest.approx(4 * (10.0 + 100.0 * row.budget) + 30.0 * kept)
        assert row.marginal == pytest.approx((row.solved - before[0]) / (row.flops - before[1]))
        before = (row.solved, row.flops)


def test_label_search_stops_where_a_flop_brings_little() -> None:
    """Half of 100 problems are easy, a few hard, the others hopeless."""
    right = [48] * 50 + [2] * 10 + [0] * 40
    budgets = (1, 2, 4, 8, 16, 32, 64)
    chosen = {share: label_gain(right, 64, budgets, 1.0, 0.0, 0.0, 1, share)[0] for share in (0.01, 0.1, 0.5, 1.0)}
    assert list(chosen.values()) == sorted(chosen.values(), reverse=True)
    assert chosen[1.0] == 1, "pass@k is concave: the first sample brings most"
    assert chosen[0.01] > chosen[0.1]
    _, yields = label_gain(right, 64, budgets, 1.0, 0.0, 0.0, 1, 0.1)
    marginals = {row.budget: row.marginal for row in yields}
    assert marginals[chosen[0.1]] >= 0.1 * max(marginals.values()) > marginals[chosen[0.1] * 2]


def test_dear_prompts_ask_for_more_samples_of_each() -> None:
    """At a share of 1 the budget is that of most problems a FLOP."""
    budgets = (1, 2, 4, 8, 16, 32)
    for prompt, expected in ((0.0, 1), (3.0, 8), (100.0, 32)):
        chosen, yields = label_gain([4] * 100, 64, budgets, 1.0, prompt, 0.0, 1, 1.0)
        assert chosen == max(yields, key=lambda row: row.average).budget == expected


def test_nothing_solved_asks_for_the_least_budget() -> None:
    assert label_gain([0, 0], 8, (2, 8), 1.0, 1.0, 1.0, 1)[0] == 2
    assert math.isclose(label_gain([8, 8], 8, (2, 8), 1.0, 1.0, 1.0, 4)[1][1].kept, 8.0)


@pytest.mark.parametrize(
    ("right", "budgets", "per_problem"), [([], (1,), 1), ([9], (1,), 1), ([1], (16,), 1), ([1], (1,), 0), ([1], (), 1)]
)
def test_label_gain_checks_its_table(right: list[int], budgets: tuple[int, ...], per_problem: int) -> None:
    with pytest.raises(InputError):
        label_gain(right, 8, budgets, 1.0, 1.0, 1.0, per_problem)
