"""Best-of-N and the solver as searchers: what each attempt says of itself, and that noise is addressed."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest

from flywheel.compute import Cost
from flywheel.models.language import LanguageModel
from flywheel.models.sampler import TextSampler
from flywheel.problems.countdown import Countdown
from flywheel.records import Attempt, Problem
from flywheel.rewards.exact import Exact
from flywheel.search import solver
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Extension, Run, Sampling
from tests.flywheel.worlds import Lines, Scored, World, forest, problem


@pytest.fixture(scope="module")
def problems(countdown: Countdown) -> list[Problem]:
    return countdown.problems("train", 6)


def searched(
    model: LanguageModel, countdown: Countdown, problems: list[Problem], run: Run, samples: int = 4
) -> list[list[Attempt]]:
    searcher = BestOfN(samples, Sampling(1.0), 10)
    return searcher.search(problems, countdown, TextSampler(model), Exact(countdown), run)[0]


def test_what_an_attempt_says(tiny: LanguageModel, countdown: Countdown, problems: list[Problem]) -> None:
    searcher = BestOfN(4, Sampling(1.0), 10)
    found, cost = searcher.search(problems, countdown, TextSampler(tiny), Exact(countdown), Run(3, 2))
    assert [len(row) for row in found] == [4] * 6
    for asked, row in zip(problems, found, strict=True):
        for index, attempt in enumerate(row):
            assert (attempt.problem_id, attempt.index) == (asked.problem_id, index)
            assert (attempt.generation, attempt.seed, attempt.teacher) == (2, 3, tiny.snapshot)
            assert (attempt.searcher, attempt.reward_source) == ("best_of_n", "exact")
            assert attempt.search_params == {"temperature": 1.0, "top_p": 1.0, "top_k": None, "max_new_tokens": 10}
            assert attempt.prompt == countdown.prompt(asked)
            assert tiny.decode(attempt.prompt_ids) == attempt.prompt
            assert tiny.decode(attempt.token_ids) == attempt.output
            assert (attempt.token_ids[-1] in tiny.end_ids) == (attempt.stop_reason == "eos")
            assert attempt.tokens == len(attempt.token_ids) <= 10
            if attempt.stop_reason == "length":
                assert (attempt.status, attempt.reward, attempt.answer) == ("truncated", 0.0, None)
            else:
                assert attempt.reward == float(countdown.check(asked, attempt.output).right)
    flat = [attempt for row in found for attempt in row]
    assert len({attempt.attempt_id for attempt in flat}) == 24
    assert len({attempt.token_ids for attempt in flat}) > 20, "samples differ, within a problem and across"
    assert cost.policy == pytest.approx(sum(attempt.flops_policy for attempt in flat))
    assert cost.tokens == sum(attempt.tokens for attempt in flat)


def test_noise_is_addressed(tiny: LanguageModel, countdown: Countdown, problems: list[Problem]) -> None:
    """Seed, generation, purpose, problem and sample make the noise; a resumed or re-cut search draws it again."""
    run = Run(0, 1)
    tokens = [[a.token_ids for a in row] for row in searched(tiny, countdown, problems, run)]
    assert tokens == [[a.token_ids for a in row] for row in searched(tiny, countdown, problems, run)]
    for other in (Run(1, 1), Run(0, 2), Run(0, 1, "evaluate")):
        assert tokens != [[a.token_ids for a in row] for row in searched(tiny, countdown, problems, other)]


def test_ids_do_not_depend_on_the_number_of_samples(
    tiny: LanguageModel, countdown: Countdown, problems: list[Problem]
) -> None:
    few = searched(tiny, countdown, problems[:2], Run(0, 1), samples=2)
    many = searched(tiny, countdown, problems[:2], Run(0, 1), samples=5)
    assert [[a.attempt_id for a in row] for row in few] == [[a.attempt_id for a in row[:2]] for row in many]


def test_greedy_is_one_answer() -> None:
    with pytest.raises(ValueError, match="greedy decoding gives one answer, got samples=2"):
        BestOfN(2, Sampling(None), 4)


class Outcome(NamedTuple):
    found: list[list[Attempt]]
    cost: Cost
    asked: list[list[Extension]]
    judged: int
    """Answers that the reward was shown, again and again those of a vote."""


def limited(samples: int, max_flops: float | None, **reward: bool) -> Outcome:
    world = World({"p": forest(3, 4, 3, 0.4)})
    searcher = BestOfN(samples, Sampling(1.0), 20, max_flops)
    asked, judge = [problem("p/0"), problem("p/1")], Scored(lambda output: 0.5, **reward)
    found, cost = searcher.search(asked, Lines(), world, judge, Run(0, 1))
    shown = sum(len(outputs) for call in judge.judged for _, outputs in call)
    return Outcome(found, cost, world.sessions[0].asked, shown)


@pytest.mark.parametrize("votes", [False, True])
def test_samples_are_drawn_until_the_flops_are_spent(votes: bool) -> None:
    """They are the first of those of a search without a limit, and come in a few rounds."""
    free = limited(40, None, votes=votes).found
    for limit in (1.0, 30.0, 100.0, 250.0):
        drawn = limited(40, limit, votes=votes)
        for row, everything in zip(drawn.found, free, strict=True):
            took = [attempt.flops_policy + attempt.flops_reward for attempt in row]
            assert [a.token_ids for a in row] == [a.token_ids for a in everything[: len(row)]]
            assert sum(took) >= limit or len(row) == 40
            assert votes or sum(took) < limit + max(took), (
                "votes are held again in each round, at 5 FLOPs an answer here"
            )
        assert drawn.cost.policy == sum(a.flops_policy for row in drawn.found for a in row)
        assert drawn.cost.reward == sum(a.flops_reward for row in drawn.found for a in row) == 5.0 * drawn.judged
        assert len(drawn.asked) <= 12


def test_without_a_limit_all_is_one_batch() -> None:
    assert [len(requests) for requests in limited(5, None).asked] == [10]


def test_the_solver_is_always_right(tiny: LanguageModel, countdown: Countdown, problems: list[Problem]) -> None:
    encoder = TextSampler(tiny)
    found = solver.search(problems, countdown, "solver", encoder, Exact(countdown), Run(0, 0), count=3)
    assert {attempt.reward for attempt in found} == {1.0}
    assert {attempt.stop_reason for attempt in found} == {"finished"}
    assert max(Counter(attempt.problem_id for attempt in found).values()) <= 3
    assert len({(attempt.problem_id, attempt.answer) for attempt in found}) == len(found)
    for attempt in found:
        assert attempt.token_ids[-1] == tiny.tokenizer.eos_token_id
        assert tiny.decode(attempt.token_ids) == attempt.output
        assert (attempt.flops_policy, attempt.tokens, attempt.log_probability) == (0.0, 0, None)


def test_seed_labels_are_judged_by_the_reward_given(
    tiny: LanguageModel, countdown: Countdown, problems: list[Problem]
) -> None:
    """As one batch; its step scores are left out, and what it took is not."""
    reward = Scored(lambda output: 0.25, lambda steps: 0.5)
    found = solver.search(problems, countdown, "solver", TextSampler(tiny), reward, Run(0, 0), count=2)
    assert {(a.reward, a.reward_source, a.step_rewards, a.flops_reward) for a in found} == {(0.25, "scored", (), 5.0)}
    assert [[asked.problem_id for asked, _ in call] for call in reward.judged] == [[p.problem_id for p in problems]]
