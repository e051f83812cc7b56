"""Best-of-N and the solver as searchers: what each attempt says of itself, and that noise is addressed."""

from __future__ import annotations

from collections import Counter

import pytest

from flywheel.models.language import LanguageModel
from flywheel.models.sampler import TextSampler
from flywheel.problems.countdown import Countdown
from flywheel.records import Attempt, Problem
from flywheel.rewards.exact import Exact
from flywheel.search import best_of_n, solver
from flywheel.search.protocols import Run


@pytest.fixture(scope="module")
def problems(countdown: Countdown) -> list[Problem]:
    return countdown.problems("train", 6)


def searched(
    model: LanguageModel, countdown: Countdown, problems: list[Problem], run: Run, samples: int = 4
) -> list[list[Attempt]]:
    found, _ = best_of_n.search(
        problems, countdown, TextSampler(model), Exact(countdown), run,
        samples=samples, temperature=1.0, max_new_tokens=10,
    )  # fmt: skip
    return found


def test_what_an_attempt_says(tiny: LanguageModel, countdown: Countdown, problems: list[Problem]) -> None:
    found, cost = best_of_n.search(
        problems, countdown, TextSampler(tiny), Exact(countdown), Run(3, 2),
        samples=4, temperature=1.0, max_new_tokens=10,
    )  # fmt: skip
    assert [len(row) for row in found] == [4] * 6
    for problem, row in zip(problems, found, strict=True):
        for index, attempt in enumerate(row):
            assert (attempt.problem_id, attempt.index) == (problem.problem_id, index)
            assert (attempt.generation, attempt.seed, attempt.teacher) == (2, 3, tiny.snapshot)
            assert (attempt.searcher, attempt.reward_source) == ("best_of_n", "exact")
            assert attempt.prompt == countdown.prompt(problem)
            assert tiny.decode(attempt.prompt_ids) == attempt.prompt
            assert tiny.decode(attempt.token_ids) == attempt.output
            assert (attempt.token_ids[-1] in tiny.end_ids) == (attempt.stop_reason == "eos")
            assert attempt.tokens == len(attempt.token_ids) <= 10
            if attempt.stop_reason == "length":
                assert (attempt.status, attempt.reward, attempt.answer) == ("truncated", 0.0, None)
            else:
                assert attempt.reward == float(countdown.check(problem, attempt.output).right)
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


def test_greedy_is_one_answer(tiny: LanguageModel, countdown: Countdown, problems: list[Problem]) -> None:
    with pytest.raises(ValueError, match="greedy decoding gives one answer, got samples=2"):
        best_of_n.search(
            problems, countdown, TextSampler(tiny), Exact(countdown), Run(0, 0),
            samples=2, temperature=None, max_new_tokens=4,
        )  # fmt: skip


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
