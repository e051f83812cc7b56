"""When a search pays for itself, worked out on paper."""

from __future__ import annotations

import math

import pytest

from flywheel.scaling.amortization import MeasuredCurve, SearchCurve, at_budgets, at_equal_accuracy

# Four samples a problem; of two problems one has 1 right sample, one has 2. A prompt costs 10 FLOPs, a sample 100.
CURVE = SearchCurve(samples=4, right=(1, 2), prompt_flops=10.0, sample_flops=100.0)
# pass@k of 1 in 4: 1/4, 1/2, 3/4, 1. Of 2 in 4: 1/2, 5/6, 1, 1.
ACCURACY = [0.0, 3 / 8, 2 / 3, 7 / 8, 1.0]


def test_the_curve() -> None:
    assert [CURVE.accuracy(budget) for budget in range(5)] == pytest.approx(ACCURACY)
    # The k-th sample is drawn where the first k - 1 had none right.
    drawn = [0.0, 1.0, 1 + 5 / 8, 1 + 5 / 8 + 1 / 3, 1 + 5 / 8 + 1 / 3 + 1 / 8]
    assert [CURVE.flops(budget) for budget in range(5)] == pytest.approx([10 + 100 * n for n in drawn])


def test_break_even_at_a_whole_budget() -> None:
    row = at_equal_accuracy(CURVE, student_accuracy=2 / 3, student_flops=110.0, investment_flops=6250.0)
    assert (row.budget, row.reached) == (pytest.approx(2.0), True)
    assert row.search_flops == pytest.approx(172.5)
    assert row.queries == pytest.approx(6250.0 / 62.5)


def test_break_even_between_two_budgets() -> None:
    """Half the queries with budget 2, half with 3."""
    accuracy = (2 / 3 + 7 / 8) / 2
    row = at_equal_accuracy(CURVE, accuracy, 110.0, 1000.0)
    assert row.budget == pytest.approx(2.5)
    assert row.search_accuracy == pytest.approx(accuracy)
    assert row.search_flops == pytest.approx((CURVE.flops(2) + CURVE.flops(3)) / 2)


def test_no_payback_where_the_search_is_cheaper() -> None:
    row = at_equal_accuracy(CURVE, 0.2, student_flops=110.0, investment_flops=1000.0)
    assert (row.budget, row.search_flops, row.queries) == (1.0, 110.0, None)
    assert at_equal_accuracy(CURVE, 0.9, student_flops=1e6, investment_flops=1.0).queries is None


def test_a_student_beyond_every_budget_is_compared_with_the_largest() -> None:
    curve = SearchCurve(4, (0, 2), 10.0, 100.0)
    row = at_equal_accuracy(curve, 0.8, 110.0, 1000.0)
    assert (row.budget, row.search_accuracy, row.reached) == (4.0, 0.5, False)


def test_monotonic() -> None:
    """A better student replaces a dearer search and pays back sooner; a dearer investment later."""
    rows = [at_equal_accuracy(CURVE, share / 100, 50.0, 1000.0) for share in range(1, 100)]
    flops = [row.search_flops for row in rows]
    queries = [row.queries or math.inf for row in rows]
    assert flops == sorted(flops)
    assert queries == sorted(queries, reverse=True)
    more = [at_equal_accuracy(CURVE, 0.7, 50.0, cost).queries or 0.0 for cost in (1.0, 10.0, 100.0)]
    assert more == pytest.approx([more[0], 10 * more[0], 100 * more[0]])


def test_at_each_budget() -> None:
    rows = at_budgets(CURVE, (1, 4), 0.5, 60.0, 500.0)
    assert [(row.budget, row.reached) for row in rows] == [(1.0, False), (4.0, True)]
    assert [row.search_accuracy for row in rows] == pytest.approx([3 / 8, 1.0])
    assert [row.queries for row in rows] == pytest.approx([500 / 50, 500 / (CURVE.flops(4) - 60)])


# A search on a board: alone 0.2, with 16 simulations 0.4, with 64 0.5; a look costs 10 FLOPs, a simulation 10 more.
MEASURED = MeasuredCurve((1, 16, 64), (0.2, 0.4, 0.5), (10.0, 170.0, 650.0))


def test_a_measured_search_between_its_budgets() -> None:
    assert [MEASURED.accuracy(budget) for budget in (0, 1, 16, 64)] == pytest.approx([0.0, 0.2, 0.4, 0.5])
    # 4 lies half-way from 1 to 16 by its logarithm, 32 half-way from 16 to 64.
    assert [MEASURED.accuracy(budget) for budget in (4, 32)] == pytest.approx([0.3, 0.45])
    assert [MEASURED.flops(budget) for budget in (1, 4, 40)] == pytest.approx([10.0, 10 + 160 / 5, 410.0])


def test_break_even_with_a_measured_search() -> None:
    row = at_equal_accuracy(MEASURED, 0.4, student_flops=10.0, investment_flops=1600.0)
    assert (row.budget, row.search_flops, row.queries) == pytest.approx((16.0, 170.0, 10.0))
    assert row.reached
    beyond = at_equal_accuracy(MEASURED, 0.9, student_flops=10.0, investment_flops=6400.0)
    assert (beyond.budget, beyond.search_accuracy, beyond.queries) == pytest.approx((64.0, 0.5, 10.0))
    assert not beyond.reached
