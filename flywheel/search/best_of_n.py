"""Best-of-N: sample N answers a problem, let the reward judge each. Which is best is the reader's choice: filters keep
those above a threshold, evaluation takes the first of the highest reward or the largest group of equal answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from flywheel.compute import Cost
from flywheel.records import Attempt, Problem, attempt_id
from flywheel.rewards.reward import Reward
from flywheel.search.protocols import Run, Sampler, Text, never_stop
from flywheel.seeds import stream

NAME = "best_of_n"


def search(
    problems: Sequence[Problem],
    text: Text,
    sampler: Sampler,
    reward: Reward,
    run: Run,
    *,
    samples: int,
    temperature: float | None,
    max_new_tokens: int,
    should_stop: Callable[[], None] = never_stop,
) -> tuple[list[list[Attempt]], Cost]:
    """Search one batch unit: `samples` attempts for each problem, in the order of `problems`, and the unit's cost.

    A temperature of None takes the likeliest token at each position (then `samples` must be 1).
    """
    if temperature is None and samples != 1:
        raise ValueError(f"greedy decoding gives one answer, got samples={samples}")
    prompts = [text.prompt(problem) for problem in problems]
    prompt_ids = [sampler.encode_prompt(prompt) for prompt in prompts]
    keys = np.array(
        [
            [stream(run.seed, run.generation, run.purpose, problem.problem_id, index) for index in range(samples)]
            for problem in problems
        ],
        dtype=np.uint64,
    )
    sampled, cost = sampler.sample(
        prompt_ids, keys, temperature=temperature, max_new_tokens=max_new_tokens, should_stop=should_stop
    )
    # N is no part of what shapes one sample: the first four of sixteen are the four that N = 4 would have drawn.
    search_params = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    attempts, reward_flops = [], 0.0
    for problem, prompt, ids, rows in zip(problems, prompts, prompt_ids, sampled, strict=True):
        found = []
        for index, row in enumerate(rows):
            output = sampler.decode(row.token_ids)
            judgement = reward.judge(problem, output, row.stop_reason)
            reward_flops += judgement.flops
            found.append(
                Attempt(
                    attempt_id=attempt_id(
                        problem.problem_id, run.generation, sampler.snapshot, NAME, search_params, run.seed, index
                    ),
                    problem_id=problem.problem_id,
                    generation=run.generation,
                    teacher=sampler.snapshot,
                    searcher=NAME,
                    search_params=search_params,
                    seed=run.seed,
                    index=index,
                    prompt=prompt,
                    prompt_ids=tuple(ids),
                    output=output,
                    token_ids=row.token_ids,
                    tokenizer=sampler.tokenizer_id,
                    steps=tuple(text.steps(output)),
                    stop_reason=row.stop_reason,
                    status=judgement.status,
                    answer=judgement.answer,
                    reward=judgement.reward,
                    reward_source=reward.name,
                    step_rewards=(),
                    flops_policy=row.flops,
                    flops_reward=judgement.flops,
                    tokens=len(row.token_ids),
                    log_probability=row.log_probability,
                )
            )
        attempts.append(found)
    return attempts, replace(cost, reward=cost.reward + reward_flops)
