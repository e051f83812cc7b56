"""When a search pays for itself: worked out on paper, against brute force, and on problems whose truth is known."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from flywheel import seeds
from flywheel.evaluation.metrics import pass_at_k
from flywheel.scaling.amortization import (
    Way,
    amortize,
    at_budget,
    at_budgets,
    at_equal_accuracy,
    break_even,
    common_target,
    estimate,
    payback,
    reaching,
    total_cost,
)
from flywheel.scaling.ways import Floats, Model, measured, missed_by_each, resampled, sampled


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


# Four samples a problem; of two problems one has 1 right sample, one has 2. A prompt costs 10 FLOPs, a sample 100.
# At once the model solves neither.
OLD = sampled("old", 0.0, (floats(0, 0), floats(110, 110)), 4, floats(1, 2), floats(10, 10), floats(100, 100))
# pass@k of 1 in 4: 1/4, 1/2, 3/4, 1. Of 2 in 4: 1/2, 5/6, 1, 1.
ACCURACY = [0.0, 3 / 8, 2 / 3, 7 / 8, 1.0]
ONCE = np.ones((1, 2))


def cells(model: Model, part: str) -> list[float]:
    return list(getattr(model, part).mean(axis=0))


def flat(name: str, investment: float, accuracy: float, flops: float, problems: int = 2) -> Model:
    """A model that answers at once, all problems alike."""
    return Model(name, investment, (0,), np.full((problems, 1), accuracy), np.full((problems, 1), flops))


def test_a_search_that_stops_at_the_first_right_answer() -> None:
    assert cells(OLD, "solved") == pytest.approx(ACCURACY)
    # The k-th sample is drawn where the first k - 1 had none right.
    drawn = [1.0, 1.0, 1 + 5 / 8, 1 + 5 / 8 + 1 / 3, 1 + 5 / 8 + 1 / 3 + 1 / 8]
    assert cells(OLD, "flops") == pytest.approx([10 + 100 * n for n in drawn])


@pytest.mark.parametrize("samples", [1, 5, 64])
def test_every_budget_at_once_is_chen_s_estimator(samples: int) -> None:
    right = np.arange(samples + 1, dtype=np.float64)
    expected = [[1.0 - pass_at_k(samples, int(c), k) for k in range(1, samples + 1)] for c in right]
    found = missed_by_each(samples, right)
    assert found[:, 0] == pytest.approx(1.0)
    np.testing.assert_allclose(found[:, 1:], expected, rtol=0, atol=1e-12)


def test_stopping_by_counting_every_order_of_the_samples() -> None:
    """Prices and chances by enumeration: all the ways in which 2 right answers lie among 6."""
    model = sampled("m", 0.0, (floats(0), floats(1)), 6, floats(2), floats(7), floats(3))
    places = list(combinations(range(6), 2))
    for budget in range(1, 7):
        drawn = Fraction(sum(min(min(place) + 1, budget) for place in places), len(places))
        solved = Fraction(sum(min(place) < budget for place in places), len(places))
        assert model.solved[0, budget] == pytest.approx(float(solved))
        assert model.flops[0, budget] == pytest.approx(7 + 3 * float(drawn))


def test_hard_problems_with_long_answers_cost_their_own_price() -> None:
    """Not the mean price times the mean number of samples, which is 1.75 * 110 here."""
    model = sampled("m", 0.0, (floats(0, 0), floats(1, 1)), 2, floats(1, 0), floats(0, 0), floats(20, 200))
    assert cells(model, "flops")[2] == pytest.approx((20 * 1.5 + 200 * 2) / 2)


def test_break_even_at_a_whole_budget() -> None:
    row = at_equal_accuracy(OLD, student_accuracy=2 / 3, student_flops=110.0, investment_flops=6250.0)
    assert row.budget == pytest.approx(2.0)
    assert row.reached
    assert row.search_flops == pytest.approx(172.5)
    assert row.queries == pytest.approx(6250.0 / 62.5)


def test_break_even_between_two_budgets() -> None:
    """Half the queries with budget 2, half with 3."""
    accuracy = (2 / 3 + 7 / 8) / 2
    row = at_equal_accuracy(OLD, accuracy, 110.0, 1000.0)
    assert row.budget == pytest.approx(2.5)
    assert row.search_accuracy == pytest.approx(accuracy)
    assert row.search_flops == pytest.approx((OLD.flops[:, 2].mean() + OLD.flops[:, 3].mean()) / 2)


def test_of_two_budgets_that_solve_as_much_the_cheaper_is_enough() -> None:
    """A target interpolated between them comes out a rounding too high."""
    solved = np.array([[0.0, 0.3, 0.3]] * 7 + [[1.0, 0.7, 0.7]])
    model = measured("m", 0.0, (1, 16, 64), solved, np.tile([1.0, 16.0, 64.0], (8, 1)))
    ones = np.ones((1, 8))
    accuracy, flops = (part[0] for part in model.means(ones))
    assert accuracy[16] == accuracy[-1]
    way = reaching(model, ones, float(np.nextafter(accuracy[16], 1.0)))
    assert (way.flops[0], bool(way.reached[0])) == (pytest.approx(16.0), True)
    assert flops[-1] == 64.0


def test_no_payback_where_the_search_is_cheaper() -> None:
    row = at_equal_accuracy(OLD, 0.2, student_flops=110.0, investment_flops=1000.0)
    assert (row.budget, row.search_flops, row.queries) == (1.0, 110.0, None)
    assert at_equal_accuracy(OLD, 0.9, student_flops=1e6, investment_flops=1.0).queries is None


def test_what_an_old_model_does_at_once_needs_no_search() -> None:
    good = sampled("good", 0.0, (floats(1, 0), floats(90, 90)), 4, floats(1, 2), floats(10, 10), floats(100, 100))
    row = at_equal_accuracy(good, 0.5, 90.0, 1000.0)
    assert (row.budget, row.search_flops, row.queries) == (0.0, 90.0, None)


def test_a_student_beyond_every_budget_is_compared_with_the_largest() -> None:
    old = sampled("old", 0.0, (floats(0, 0), floats(110, 110)), 4, floats(0, 2), floats(10, 10), floats(100, 100))
    row = at_equal_accuracy(old, 0.8, 110.0, 1000.0)
    assert (row.budget, row.search_accuracy, row.reached) == (4.0, 0.5, False)


def test_at_each_budget() -> None:
    rows = at_budgets(OLD, (1, 4), 0.5, 60.0, 500.0)
    assert [(row.budget, row.reached) for row in rows] == [(1.0, False), (4.0, True)]
    assert [row.search_accuracy for row in rows] == pytest.approx([3 / 8, 1.0])
    assert [row.queries for row in rows] == pytest.approx([500 / 50, 500 / (OLD.flops[:, 4].mean() - 60)])


def test_monotonic() -> None:
    """A better student replaces a dearer search and pays back sooner, so does a cheaper one; a dearer one later."""
    rows = [at_equal_accuracy(OLD, share / 100, 50.0, 1000.0) for share in range(1, 100)]
    flops = [row.search_flops for row in rows]
    queries = [row.queries or math.inf for row in rows]
    assert flops == sorted(flops)
    assert queries == sorted(queries, reverse=True)
    more = [at_equal_accuracy(OLD, 0.7, 50.0, cost).queries or 0.0 for cost in (1.0, 10.0, 100.0)]
    assert more == pytest.approx([more[0], 10 * more[0], 100 * more[0]])
    priced = [at_equal_accuracy(OLD, 0.7, price, 1000.0).queries or math.inf for price in range(10, 300, 10)]
    assert priced == sorted(priced)
    assert len(set(priced)) > 10


# A search on a board: alone 0.2, with 16 simulations 0.4, with 64 0.5; a look costs 10 FLOPs, a simulation 10 more.
BOARD = measured("board", 0.0, (1, 16, 64), np.array([[0.2, 0.4, 0.5]]), np.array([[10.0, 170.0, 650.0]]))


def test_a_measured_search_between_its_budgets() -> None:
    accuracy, flops = BOARD.means(np.ones((1, 1)))
    assert accuracy.shape == flops.shape == (1, 65)
    assert accuracy[0, [0, 1, 16, 64]] == pytest.approx([0.2, 0.2, 0.4, 0.5])
    # 4 lies half-way from 1 to 16 by its logarithm, 32 half-way from 16 to 64.
    assert accuracy[0, [4, 32]] == pytest.approx([0.3, 0.45])
    assert flops[0, [0, 1, 4, 40]] == pytest.approx([10.0, 10.0, 10 + 160 / 5, 410.0])


def test_break_even_with_a_measured_search() -> None:
    row = at_equal_accuracy(BOARD, 0.4, student_flops=10.0, investment_flops=1600.0)
    assert (row.budget, row.search_flops, row.queries) == pytest.approx((16.0, 170.0, 10.0))
    assert row.reached
    beyond = at_equal_accuracy(BOARD, 0.9, student_flops=10.0, investment_flops=6400.0)
    assert (beyond.budget, beyond.search_accuracy, beyond.queries) == pytest.approx((64.0, 0.5, 10.0))
    assert not beyond.reached


def test_the_costs_of_two_ways_meet_where_the_break_even_says() -> None:
    weights = resampled(["a", "b"], 50, seeds.generator(1, "test"))
    early, late = at_budget(OLD, weights, 3), at_budget(flat("late", 9000.0, 0.9, 40.0), weights, 0)
    for per_solved in (False, True):
        meet = break_even(early, late, per_solved)[:1]
        assert total_cost(early, meet, per_solved)[0] == pytest.approx(total_cost(late, meet, per_solved)[0])
        sooner, later = meet * 0.9, meet * 1.1
        assert total_cost(early, sooner, per_solved)[0] < total_cost(late, sooner, per_solved)[0]
        assert total_cost(early, later, per_solved)[0] > total_cost(late, later, per_solved)[0]
    queries = floats(1, 10)
    value, low, high = total_cost(early, queries)
    assert value == pytest.approx(early.flops[0] * queries)
    assert np.all(low <= value)
    assert np.all(value <= high)
    assert total_cost(late, floats(10), per_solved=True)[0] == pytest.approx([(9000 + 400) / (10 * 0.9)])


def test_ways_that_solve_nothing() -> None:
    """Whatever is invested, a first solved query is cheaper than none; and none is never cheaper."""
    nothing, something = (at_budget(flat("m", cost, a, 10.0), ONCE, 0) for cost, a in ((0.0, 0.0), (50.0, 0.5)))
    assert break_even(nothing, something, per_solved=True)[0] == 0.0
    assert math.isinf(break_even(something, nothing, per_solved=True)[0])


def by_hand(old: Model, student: Model, weights: Floats) -> list[float]:
    """Break-even queries in each draw, budget by budget and problem by problem, at the student's accuracy at once."""

    def mean(column: Floats, counts: Floats) -> float:
        return float(sum(x * n for x, n in zip(column, counts, strict=True)) / sum(counts))

    found = []
    for counts in weights:
        wanted = mean(student.solved[:, 0], counts)
        accuracy = [mean(old.solved[:, k], counts) for k in range(old.largest + 1)]
        price = [mean(old.flops[:, k], counts) for k in range(old.largest + 1)]
        k = next((k for k, value in enumerate(accuracy) if value >= wanted - 1e-12), old.largest)
        cost = price[k]
        if k > 1 and accuracy[k] > wanted:
            part = (wanted - accuracy[k - 1]) / (accuracy[k] - accuracy[k - 1])
            cost = price[k - 1] + part * (price[k] - price[k - 1])
        saved = cost - mean(student.flops[:, 0], counts)
        found.append(student.investment_flops / saved if saved > 1e-9 else math.inf)
    return found


def test_every_draw_by_brute_force() -> None:
    draw = np.random.default_rng(5)
    groups = [f"g{i // 2}" for i in range(12)]
    at_once = (draw.integers(0, 2, 12) * (np.arange(12) % 3 == 0), draw.uniform(90, 110, 12))
    old = sampled("old", 0.0, at_once, 8, draw.integers(0, 4, 12).astype(float), draw.uniform(5, 9, 12),
                  draw.uniform(80, 120, 12))  # fmt: skip
    student = Model("new", 5e4, (0,), draw.integers(0, 2, (12, 1)).astype(float), draw.uniform(90, 110, (12, 1)))
    weights = resampled(groups, 200, seeds.generator(0, "test"))
    assert weights.shape == (201, 12)
    assert np.all(weights[:, ::2] == weights[:, 1::2]), "a group comes whole"
    assert np.all(weights.sum(axis=1) == 12)
    target = student.means(weights)[0][:, 0]
    ways = [reaching(model, weights, target) for model in (old, student)]
    first, second = amortize(ways)
    expected = by_hand(old, student, weights)
    assert second.against_first is not None
    assert list(break_even(ways[0], ways[1])) == pytest.approx(expected)
    drawn = sorted(expected[1:])
    assert second.against_first.queries.value == pytest.approx(expected[0])
    assert second.against_first.queries.low == pytest.approx(drawn[4])
    assert second.against_first.queries.high == pytest.approx(drawn[195])
    assert second.against_first.never == sum(map(math.isinf, drawn)) / 200
    assert (first.against_first, first.against_before) == (None, None)


def test_the_target_that_both_reach() -> None:
    weights = resampled(["a", "b"], 20, seeds.generator(0, "test"))
    assert common_target(flat("new", 1.0, 0.9, 1.0), OLD, weights) == pytest.approx(np.full(21, 0.9))
    weak = sampled("weak", 0.0, (floats(0, 0), floats(1, 1)), 2, floats(1, 0), floats(0, 0), floats(1, 1))
    found = common_target(flat("new", 1.0, 0.9, 1.0), weak, weights)
    assert found[0] == 0.5
    # What it solves at most depends on the draw, and is reached in each.
    assert set(found) == {0.0, 0.5, 0.9}
    assert np.all(reaching(weak, weights, found).reached)


def test_what_cannot_reach_the_target_is_said_so() -> None:
    weights = resampled(["a", "b"], 100, seeds.generator(0, "test"))
    weak, early, late = flat("weak", 0.0, 0.4, 1.0), OLD, flat("late", 100.0, 0.8, 1.0)
    rows = amortize([reaching(model, weights, 0.7) for model in (weak, early, late)])
    assert [row.reached for row in rows] == [False, True, True]
    assert rows[0].reaching == 0.0
    assert all(row.against_first is None for row in rows)
    assert rows[1].against_before is None
    assert rows[2].against_before is not None
    assert rows[2].against_before.queries.value == pytest.approx(100.0 / (rows[1].flops.value - 1.0))


def test_never_is_infinite_and_counted() -> None:
    """Of two groups one makes the student cheaper, one dearer; where both count once, it is dearer."""
    old = Model("old", 0.0, (0,), np.ones((2, 1)), np.array([[10.0], [1.0]]))
    new = Model("new", 90.0, (0,), np.ones((2, 1)), np.array([[1.0], [20.0]]))
    weights = resampled(["a", "b"], 4000, seeds.generator(0, "test"))
    paid = payback(at_budget(old, weights, 0), at_budget(new, weights, 0))
    assert (paid.queries.value, paid.queries.low, paid.queries.high) == (math.inf, 10.0, math.inf)
    # Both problems from the first group: a quarter; the bound is four standard errors.
    assert paid.never == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 4000))


def test_the_interval_covers_the_truth() -> None:
    """Problems of a known world: each group has a chance p of its own, uniform on 0..1, for one sample to be right.

    In expectation a search of at most 2 solves 1 - E[(1 - p)^2] = 2/3 and draws 1 + E[1 - p] = 3/2 samples. A student
    that solves 2/3 at once, for half a sample, at 600 samples' investment is therefore paid back after 600 queries.
    """
    truth, covered, repeats = 600.0, 0, 120
    for number in range(repeats):
        draw = seeds.generator(number, "world")
        chance = np.repeat(draw.uniform(size=150), 2)
        right = draw.binomial(16, chance).astype(np.float64)
        nothing, ones = np.zeros(300), np.ones(300)
        old = sampled("old", 0.0, (nothing, ones), 16, right, nothing, ones)
        new = flat("new", 600.0, 1.0, 0.5, 300)
        weights = resampled([f"{i // 2}" for i in range(300)], 300, seeds.generator(number, "bootstrap"))
        interval = payback(reaching(old, weights, 2 / 3), at_budget(new, weights, 0)).queries
        assert interval.low < interval.high
        covered += interval.low <= truth <= interval.high
    # 95 % of 120 are 114, with a standard deviation of 2.4.
    assert covered >= 105


def test_same_seed_same_draws() -> None:
    groups = ["a", "b", "a", "c"]
    one, again, other = (resampled(groups, 10, seeds.generator(seed, "x")) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.all(one[0] == 1)


def test_an_estimate_without_draws_has_no_interval() -> None:
    alone = estimate(floats(3.0))
    assert alone.value == 3.0
    assert math.isnan(alone.low)
    way = at_budget(OLD, ONCE, 1)
    for per_solved, cost in ((False, 110.0), (True, 110 / (3 / 8))):
        value, *bounds = total_cost(way, floats(1), per_solved)
        assert value == pytest.approx([cost])
        assert np.all(np.isnan(bounds))


def test_bad_input() -> None:
    square, two = np.full((2, 2), 0.5), (0, 1)
    for solved, flops in ((square, np.ones((2, 3))), (np.ones(2), np.ones(2)), (np.ones((0, 2)), np.ones((0, 2)))):
        with pytest.raises(ValueError, match="expected two matrices"):
            Model("m", 0.0, two, solved, flops)
    for solved, flops in ((square * 3, square), (square, square * math.inf), (square * math.nan, square)):
        with pytest.raises(ValueError, match=r"expected chances in 0\.\.1 and finite FLOPs"):
            Model("m", 0.0, two, solved, flops)
    with pytest.raises(ValueError, match="got an investment of -1"):
        Model("m", -1.0, two, square, square)
    for budgets in ((), (1, 2), (0, 2), (0, 1, 1), (0, 1, 4, 2)):
        with pytest.raises(ValueError, match="expected rising ones from 0, then 1"):
            Model("m", 0.0, budgets, np.ones((2, len(budgets))), np.ones((2, len(budgets))))
    with pytest.raises(ValueError, match="expected 1 sample or more and 0 to 4 right ones"):
        sampled("m", 0.0, (floats(0), floats(1)), 4, floats(5), floats(1), floats(1))
    with pytest.raises(ValueError, match=r"got budgets \[0, 2, 4\], expected rising ones from 0, then 1"):
        measured("m", 0.0, (2, 4), square, square)
    with pytest.raises(ValueError, match="got a budget of 5, expected 0 to 4"):
        at_budget(OLD, ONCE, 5)
    with pytest.raises(ValueError, match="at least one problem"):
        resampled([], 10, seeds.generator(0))


def test_a_later_way_may_cost_no_more_to_have() -> None:
    """One that is cheaper in everything is so from the first query on."""

    def way(investment: float, flops: float) -> Way:
        return at_budget(flat("m", investment, 1.0, flops), ONCE, 0)

    assert break_even(way(10.0, 5.0), way(10.0, 4.0))[0] == 0.0
    assert break_even(way(10.0, 5.0), way(3.0, 4.0))[0] == 0.0
    assert math.isinf(break_even(way(10.0, 5.0), way(10.0, 5.0))[0])
