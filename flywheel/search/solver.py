"""The domain's own solver as a searcher: it makes the seed labels, and it is the ceiling of what labels can teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from flywheel.records import Attempt, Problem, attempt_ids
from flywheel.rewards.reward import Answer, Reward
from flywheel.search import unit
from flywheel.search.protocols import Run, Text, never_stop

NAME = "solver"


class Solver(Text, Protocol):
    """A domain that can solve its own problems."""

    def solutions(self, problem: Problem, count: int) -> list[str]: ...


class Encoder(unit.Encoder, Protocol):
    """How questions and answers become token ids."""

    tokenizer_id: str

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
    should_stop: Callable[[], None] = never_stop,
) -> list[Attempt]:
    """Up to `count` different solutions a problem, judged by the reward like any attempt; step rewards are left out,
    whatever the reward gives. A solver's work is counted as no FLOPs."""
    groups = []
    for problem in problems:
        should_stop()
        outputs = solver.solutions(problem, count)
        groups.append((problem, [Answer(output, "finished", tuple(solver.steps(output))) for output in outputs]))
    found = []
    for (problem, answers), judgements in zip(groups, reward.judge(groups, should_stop), strict=True):
        asked = unit.ask(problem, solver, encoder)
        names = attempt_ids(problem.problem_id, run.generation, snapshot, NAME, {}, run.seed, len(answers))
        for index, (name, answer, judgement) in enumerate(zip(names, answers, judgements, strict=True)):
            found.append(
                Attempt(
                    attempt_id=name,
                    problem_id=problem.problem_id,
                    generation=run.generation,
                    teacher=snapshot,
                    searcher=NAME,
                    search_params={},
                    seed=run.seed,
                    index=index,
                    prompt=asked.prompt,
                    prompt_ids=asked.prompt_ids,
                    output=answer.output,
                    token_ids=tuple(encoder.encode_answer(answer.output)),
                    tokenizer=encoder.tokenizer_id,
                    steps=answer.steps,
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
