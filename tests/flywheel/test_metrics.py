"""pass@k by enumerating every subset; best@k and majority@k worked by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from flywheel.evaluation import metrics
from flywheel.evaluation.metrics import best_of, metric_key, outcomes, pass_at_k, weighted
from flywheel.records import Attempt
from flywheel.rewards.vote import majority

BLANK = Attempt(
    attempt_id="a", problem_id="p", generation=1, teacher="t", searcher="s", search_params={}, seed=0, index=0,
    prompt="", prompt_ids=(), output="", token_ids=(), tokenizer="", steps=(), stop_reason="eos", status="judged",
    answer=None, reward=0.0, reward_source="exact", step_rewards=(), flops_policy=10.0, flops_reward=1.0, tokens=3,
)  # fmt: skip


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int) -> None:
    for right in range(samples + 1):
        marks = [index < right for index in range(samples)]
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(marks, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(samples, right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples_by_binomials() -> None:
    for right, k in [(1, 1), (1, 64), (3, 16), (100, 2), (255, 1), (193, 64)]:
        expected = 1 - math.comb(256 - right, k) / math.comb(256, k)
        assert pass_at_k(256, right, k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("samples", "right", "k"), [(3, 1, 4), (0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_too_few_samples_are_an_error(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"needs at least|expected 0 <= right"):
        pass_at_k(samples, right, k)


def test_best_is_the_first_of_the_highest_reward() -> None:
    assert best_of([0.0, 1.0, 1.0]) == 1
    assert best_of([0.5, 0.5]) == 0
    assert best_of([-3.0, None, -2.0]) == 2
    assert best_of([None, None]) is None
    assert best_of([]) is None


def test_majority_is_the_largest_group_and_ties_go_to_the_first_seen() -> None:
    assert majority(["b", "a", "a"]) == 1
    assert majority(["b", "a", "a", "b"]) == 0
    assert majority([None, "a", None, None]) == 1
    assert majority([None, "c", "a", "b", "a"]) == 2
    assert majority([None, None]) is None
    assert majority([]) is None


def test_outcomes_of_one_problem_by_hand() -> None:
    """Five samples, rewards from a judge that prefers a wrong one at the third place."""
    given = [("x", 0.1, False), ("y", 0.2, True), ("x", 0.9, False), ("y", 0.9, True), (None, 0.0, False)]
    attempts = [replace(BLANK, index=i, answer=answer, reward=reward) for i, (answer, reward, _) in enumerate(given)]
    right = [good for _, _, good in given]
    greedy = replace(BLANK, reward=1.0, flops_policy=7.0)
    rows = outcomes("p", "g", greedy, attempts, right, (1, 2, 4, 5), 100.0, metrics.Kind())
    found = {(row.metric, row.budget): (row.value, row.flops) for row in rows}
    sampling = {1: 110.0, 2: 120.0, 4: 140.0, 5: 150.0}
    assert found.pop(("greedy", 1)) == (1.0, 107.0)
    assert found.pop(("right", 5)) == (2.0, 150.0)
    # Votes and pass rates look at no reward, so that judging is no part of their price.
    assert found == {
        ("pass", 1): (pytest.approx(2 / 5), sampling[1]),
        ("best", 1): (0.0, sampling[1] + 1),
        ("majority", 1): (0.0, sampling[1]),
        ("pass", 2): (pytest.approx(1 - 3 / 10), sampling[2]),
        ("best", 2): (1.0, sampling[2] + 2),
        ("majority", 2): (0.0, sampling[2]),
        ("pass", 4): (pytest.approx(1.0), sampling[4]),
        ("best", 4): (0.0, sampling[4] + 4),
        ("majority", 4): (0.0, sampling[4]),
        ("pass", 5): (1.0, sampling[5]),
        ("best", 5): (0.0, sampling[5] + 5),
        ("majority", 5): (0.0, sampling[5]),
    }
    assert {(row.problem_id, row.group) for row in rows} == {("p", "g")}


def test_weighted_is_the_group_of_the_highest_sum() -> None:
    assert weighted(["x", "y", "x"], [0.3, 0.5, 0.3]) == 0, "0.6 of x against 0.5 of y"
    assert weighted(["y", "x", "x"], [0.5, 0.2, 0.2]) == 0
    assert weighted(["x", "y"], [0.5, 0.5]) == 0, "ties go to the group seen first"
    assert weighted([None, "y", "y"], [9.0, 0.1, None]) == 1, "no answer and no reward do not count"
    assert weighted(["x", "x", "y"], [None, 0.4, 0.3]) == 1, "one with a reward stands for the group"
    assert weighted([None], [1.0]) is None


def test_weighted_can_disagree_with_naive_and_with_the_vote() -> None:
    given = [
        ("x", 0.9, False),
        ("y", 0.6, True),
        ("y", 0.6, True),
        ("z", 0.1, False),
        ("z", 0.1, False),
        ("z", 0.1, False),
    ]
    attempts = [replace(BLANK, index=i, answer=answer, reward=reward) for i, (answer, reward, _) in enumerate(given)]
    rows = outcomes("p", "g", BLANK, attempts, [r for *_, r in given], (6,), 0.0, metrics.Kind(graded=True))
    found = {row.metric: row.value for row in rows}
    assert (found["best"], found["weighted"], found["majority"]) == (0.0, 1.0, 0.0)


def test_a_vote_has_no_best() -> None:
    rows = outcomes("p", "g", BLANK, [BLANK], [False], (1,), 0.0, metrics.Kind(votes=True))
    assert {row.metric for row in rows} == {"greedy", "right", "pass", "majority"}


def test_a_reward_that_needs_the_reference_is_an_oracle() -> None:
    rows = outcomes("p", "g", BLANK, [BLANK], [False], (1,), 0.0, metrics.Kind(needs_reference=True))
    assert {row.metric for row in rows} == {"greedy", "right", "pass", "oracle", "majority"}


def test_budgets_beyond_the_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="pass@2 needs at least 2 samples, got 1"):
        outcomes("p", "g", BLANK, [BLANK], [False], (2,), 0.0, metrics.Kind())


def test_keys() -> None:
    assert [metric_key("greedy", 1), metric_key("pass", 16)] == ["greedy", "pass@16"]
    assert metrics.Outcome("p", "g", "pass", 1, 0.5, 1.0).value == 0.5
