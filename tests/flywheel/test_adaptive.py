"""Adaptive sampling: its rules against closed forms and enumeration, its search against allocations worked by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from scipy import stats

from flywheel.records import Attempt
from flywheel.rewards.reward import Judgement
from flywheel.search.adaptive import Adaptive, ahead, allot, decided, leaders, weights
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run, Sampling
from tests.flywheel.worlds import Lines, Scored, Table, World, forest, problem

RUN = Run(0, 1)


def adaptive(samples: int, rounds: int, **settings: Any) -> Adaptive:
    return Adaptive(samples, rounds, Sampling(1.0), 20, **settings)


def searched(
    searcher: Adaptive | BestOfN, world: World, reward: Scored, names: Sequence[str]
) -> tuple[list[list[Attempt]], list[int]]:
    told: list[int] = []
    problems = [problem(name) for name in names]
    found, _ = searcher.search(
        problems, Lines(), world, reward, RUN, finished=lambda position, _: told.append(position)
    )
    return found, told


def votes(*answers: str | None) -> list[Judgement]:
    return [Judgement(0.0, "judged", answer) for answer in answers]


def rewards(*values: float | None) -> list[Judgement]:
    return [Judgement(value, "judged", "x") for value in values]


VERIFIES = Scored(lambda output: 0.0, verifies=True)
VOTES = Scored(lambda output: 0.0, votes=True)


def test_the_chance_to_be_ahead_is_a_beta_s_upper_half() -> None:
    for first, second in itertools.product(range(0, 40, 3), repeat=2):
        assert ahead(first, second) == pytest.approx(stats.beta.sf(0.5, first + 1, second + 1), abs=1e-12)
    assert ahead(3000, 100) == 1.0


def test_when_a_problem_is_decided() -> None:
    assert decided(rewards(0.0, 1.0), VERIFIES, 100, 0.95)
    assert not decided(rewards(0.0, None, 0.9), VERIFIES, 100, 0.95)
    assert leaders(votes("a", "b", "a", None, "c", "a", None)) == (3, 1)
    assert leaders(votes(None, None)) == (0, 0)
    assert not decided(votes("a", "a", "b"), VOTES, 1, 0.95), "one more vote for b would make it a tie"
    assert decided(votes("a", "a", "b"), VOTES, 0, 0.95)
    assert not decided(votes("a", "a", "a"), VOTES, 3, 0.95), "15 / 16, and three are left"
    assert decided(votes("a", "a", "a", "a"), VOTES, 99, 0.95), "31 / 32"
    assert not decided(votes("a", "b"), VOTES, 0, 0.95), "more samples would tell, if there were any"


def test_samples_are_given_out_in_proportion() -> None:
    assert allot(8, [0.45, 0.2, 0.2]) == [4, 2, 2]
    assert allot(7, [1.0, 1.0, 1.0]) == [3, 2, 2]
    assert allot(2, [1.0, 1.0, 1.0]) == [1, 1, 0]
    assert allot(0, [1.0]) == [0]
    for total, row in itertools.product(range(30), itertools.product([0.1, 0.7, 2.0], repeat=4)):
        counts = allot(total, row)
        assert sum(counts) == total
        assert all(abs(count - total * weight / sum(row)) < 1.0 for count, weight in zip(counts, row, strict=True))


def test_middling_problems_weigh_more_than_hopeless_ones() -> None:
    tried = [rewards(0.0, 0.6), rewards(0.0, 0.0), rewards(0.0), rewards(0.0, 1.0)]
    middling, hopeless, untried = weights(tried, [0, 1, 2], VERIFIES)
    assert middling > untried > hopeless
    mean = (1.6 + 1) / (7 + 2)
    assert (middling, hopeless) == (pytest.approx((2 * mean + 0.6) / 4), pytest.approx(2 * mean / 4))
    race, scattered, won = weights([votes(*"aaabbb"), votes(*"abcdef"), votes(*"aaaaab")], [0, 1, 2], VOTES)
    assert race > scattered > won


def test_the_rule_is_near_the_best_allocation_there_is() -> None:
    """Enumeration of every way to give 9 samples to problems with 1, 3 and 6 failures: how many more are solved in the
    mean, under the same prior, is within 3 % of the best way; an equal split is not."""
    tried = [rewards(*[0.0] * failures) for failures in (1, 3, 6)] + [rewards(1.0)] * 4
    mean = (4 + 1) / (14 + 2)

    def solved(counts: Sequence[int]) -> float:
        total = 0.0
        for failures, count in zip((1, 3, 6), counts, strict=True):
            # Beta-binomial: no success in `count` further samples.
            total += 1.0 - stats.betabinom(count, 2 * mean, 2 * (1 - mean) + failures).pmf(0) if count else 0.0
        return total

    best = max(solved(ways) for ways in itertools.product(range(10), repeat=3) if sum(ways) == 9)
    ours = allot(9, weights(tried, [0, 1, 2], VERIFIES))
    assert ours[0] > ours[1] > ours[2]
    assert solved(ours) >= 0.97 * best
    assert solved(ours) > solved([3, 3, 3])


SURE: Table = {"": {"right": 1.0}}
PART: Table = {"": {"part": 1.0}}
NEVER: Table = {"": {"wrong": 1.0}}


def test_an_allocation_worked_by_hand() -> None:
    """16 samples in two rounds. Two each; then sure is decided, and the mean reward is (2 + 1 + 1) / (8 + 2) = 0.4.
    Part weighs (0.8 + 1) / 4 = 0.45, each of the others 0.2: of 8 samples 4.24, 1.88 and 1.88, so 4, 2 and 2."""
    world = World({"sure": SURE, "part": PART, "never": NEVER, "nor": NEVER})
    worth = {"right": 1.0, "part": 0.5, "wrong": 0.0}
    reward = Scored(lambda output: worth[output], verifies=True)
    found, told = searched(adaptive(4, 2), world, reward, ["sure", "part", "never", "nor"])
    assert [len(row) for row in found] == [2, 6, 4, 4]
    assert told == [0, 1, 2, 3]
    assert world.sessions[0].released == {0, 1, 2, 3}


@pytest.mark.parametrize(("samples", "rounds"), [(1, 1), (1, 4), (3, 2), (8, 3), (16, 16), (5, 9)])
@pytest.mark.parametrize("reward", [VERIFIES, VOTES])
def test_never_more_than_the_budget_and_all_of_it_where_it_helps(samples: int, rounds: int, reward: Scored) -> None:
    names = [f"p/{number}" for number in range(7)]
    found, told = searched(adaptive(samples, rounds), World({"p": forest(1, 2, 5)}), reward, names)
    drawn = sum(map(len, found))
    assert drawn <= 7 * samples
    assert min(map(len, found)) >= 1
    assert sorted(told) == list(range(7))
    if not reward.votes:
        assert drawn == 7 * samples, "no answer is right, so all are tried to the end"


def test_a_problem_s_samples_are_the_first_of_best_of_n() -> None:
    world = World({"p": forest(1, 3, 4)})
    reward = Scored(lambda output: float(output.startswith("a")), verifies=True)
    names = [f"p/{number}" for number in range(6)]
    found, _ = searched(adaptive(6, 3), world, reward, names)
    most = max(map(len, found))
    everything, _ = searched(BestOfN(most, Sampling(1.0), 20), world, reward, names)
    assert len(set(map(len, found))) > 1
    for few, many in zip(found, everything, strict=True):
        assert [a.token_ids for a in few] == [a.token_ids for a in many[: len(few)]]
        assert not {a.attempt_id for a in few} & {a.attempt_id for a in many}, "but another search"


def test_more_is_solved_with_the_same_samples() -> None:
    """Half of 60 problems have a right answer in 0.7 of samples, half in 0.06. With 8 samples each best-of-N solves
    1 - 0.94^8 = 39 % of the hard ones; with what the easy ones leave, some 14 each, it is 1 - 0.94^14 = 58 %."""
    world = World({"easy": {"": {"right": 0.7, "wrong": 0.3}}, "hard": {"": {"right": 0.06, "wrong": 0.94}}})
    reward = Scored(lambda output: float(output == "right"), verifies=True)
    names = [f"{kind}/{number}" for number in range(30) for kind in ("easy", "hard")]
    ours, _ = searched(adaptive(8, 4), world, reward, names)
    plain, _ = searched(BestOfN(8, Sampling(1.0), 20), world, reward, names)
    assert sum(map(len, ours)) <= sum(map(len, plain)) == 480
    solved = [sum(any(a.reward == 1.0 for a in row) for row in rows) for rows in (ours, plain)]
    assert solved[0] >= solved[1] + 4


def test_a_vote_stops_where_it_is_won() -> None:
    world = World({"one": {"": {"x": 1.0}}, "race": {"": {"x": 0.5, "y": 0.5}}})
    reward = Scored(lambda output: 0.0, votes=True)
    names = ["one", *(f"race/{number}" for number in range(5))]
    found, _ = searched(adaptive(8, 4), world, reward, names)
    assert len(found[0]) == min(map(len, found)) <= 4, "unanimous: four votes would be enough"
    left = 8 * 6 - sum(map(len, found))
    for name, row in zip(names, found, strict=True):
        counts = Counter(attempt.answer for attempt in row)
        assert left == 0 or decided(votes(*counts.elements()), VOTES, 0, 0.95)
        held = [len(outputs) for call in reward.judged for asked, outputs in call if asked.problem_id == name]
        assert held == sorted(held), "each vote is held over all answers so far"
        assert held[-1] == len(row)
    assert max(map(len, found)) > 8


def test_a_problem_stops_at_its_flops() -> None:
    """A sample takes one token, its end another, judging 5: 7 FLOPs. 22 pay for three, and a fourth is begun."""
    world = World({"never": NEVER, "sure": SURE})
    reward = Scored(lambda output: float(output == "right"), verifies=True)
    found, _ = searched(adaptive(8, 2, max_flops=22.0), world, reward, ["never", "sure"])
    assert [len(row) for row in found] == [4, 1]
