"""The domain's own solver as a searcher: it makes the seed labels, and it is the ceiling of what labels can teach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel.records import Attempt, Problem, attempt_id
from flywheel.rewards.reward import Reward
from flywheel.search.protocols import Run, Text

NAME = "solver"


class Solver(Text, Protocol):
    """A domain that can solve its own problems."""

    def solutions(self, problem: Problem, count: int) -> list[str]: ...


class Encoder(Protocol):
    """How answers become token ids."""

    tokenizer_id: str

    def encode_prompt(self, text: str) -> list[int]: ...

    def encode_answer(self, text: str) -> list[int]: ...


def search(
    problems: Sequence[Problem],
    solver: Solver,
    snapshot: str,
    encoder: Encoder,
    reward: Reward,
    run: Run,
    *,
    count: int,
) -> list[Attempt]:
    """Up to `count` different solutions a problem, judged like any attempt. A solver's work is counted as no FLOPs."""
    found = []
    for problem in problems:
        prompt = solver.prompt(problem)
        for index, output in enumerate(solver.solutions(problem, count)):
            judgement = reward.judge(problem, output, "finished")
            found.append(
                Attempt(
                    attempt_id=attempt_id(problem.problem_id, run.generation, snapshot, NAME, {}, run.seed, index),
                    problem_id=problem.problem_id,
                    generation=run.generation,
                    teacher=snapshot,
                    searcher=NAME,
                    search_params={},
                    seed=run.seed,
                    index=index,
                    prompt=prompt,
                    prompt_ids=tuple(encoder.encode_prompt(prompt)),
                    output=output,
                    token_ids=tuple(encoder.encode_answer(output)),
                    tokenizer=encoder.tokenizer_id,
                    steps=tuple(solver.steps(output)),
                    stop_reason="finished",
                    status=judgement.status,
                    answer=judgement.answer,
                    reward=judgement.reward,
                    reward_source=reward.name,
                    step_rewards=(),
                    flops_policy=0.0,
                    flops_reward=judgement.flops,
                    tokens=0,
                )
            )
    return found
