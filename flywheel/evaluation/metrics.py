"""Accuracy of one problem's attempts at each runtime budget.

    greedy        the likeliest answer is right
    pass@k        k samples hold a right one: unbiased from n >= k samples (Chen et al. 2021, eq. 1)
    best@k        of the first k samples, the first of the highest reward is right (naive best-of-N)
    weighted@k    of the first k samples, the group of equal answers with the highest sum of rewards is right
    majority@k    of the first k samples, the largest group of equal answers is right

Budgets below n take the first k samples, so that groups stay whole. Where the reward needs the reference answer,
`best@k` could not be had at run time and is named `oracle@k`. A reward that votes is `majority@k` itself; `weighted@k`
is for rewards that tell degrees, such as reward models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.records import Attempt
from flywheel.rewards.vote import majority


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold a right one: 1 - prod(1 - k/i)."""
    if not 0 <= right <= samples or k < 1:
        raise ValueError(f"got samples={samples}, right={right}, k={k}; expected 0 <= right <= samples and k >= 1")
    if samples < k:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {samples}; sample more or lower the budget")
    if samples - right < k:
        return 1.0
    missed = 1.0
    for i in range(samples - right + 1, samples + 1):
        missed *= 1.0 - k / i
    return 1.0 - missed


def best_of(rewards: Sequence[float | None]) -> int | None:
    """Index of the first attempt of the highest reward; attempts without one (timeouts) do not stand."""
    standing = [(reward, -index) for index, reward in enumerate(rewards) if reward is not None]
    return -max(standing)[1] if standing else None


def weighted(answers: Sequence[str | None], rewards: Sequence[float | None]) -> int | None:
    """Index of the first member of the group of equal answers with the highest sum of rewards; ties go to the group
    seen first. Answers of None and attempts without a reward do not count. None where nothing counts."""
    sums: dict[str, float] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None and reward is not None:
            sums[answer] = sums.get(answer, 0.0) + reward
    if not sums:
        return None
    winner = max(sums, key=lambda answer: sums[answer])
    return next(i for i, answer in enumerate(answers) if answer == winner and rewards[i] is not None)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a reward is, as far as metrics go."""

    needs_reference: bool = False
    votes: bool = False
    graded: bool = False
    """Tells degrees, not only right and wrong."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one snapshot made of one problem at one budget. `value` is in 0..1, `right` a count."""

    problem_id: str
    group: str
    metric: str
    budget: int
    value: float
    flops: float


def outcomes(
    problem_id: str,
    group: str,
    greedy: Attempt,
    attempts: Sequence[Attempt],
    right: Sequence[bool],
    budgets: Sequence[int],
    prefill_flops: float,
    reward: Kind,
) -> list[Outcome]:
    """All metrics of one problem. `right` says which attempts an exact check calls right; `greedy` is judged by reward.

    FLOPs are what answering at that budget takes: the shared prompt, the first k samples, and, where the metric looks
    at rewards, judging them.
    """
    found = [
        Outcome(problem_id, group, "greedy", 1, float(greedy.reward or 0.0), prefill_flops + greedy.flops_policy),
        Outcome(
            problem_id, group, "right", len(attempts), float(sum(right)), prefill_flops + _sampling_flops(attempts)
        ),
    ]
    for budget in budgets:
        first = attempts[:budget]
        answers, rewards = [attempt.answer for attempt in first], [attempt.reward for attempt in first]
        sampled = prefill_flops + _sampling_flops(first)
        judged = sampled + sum(attempt.flops_reward for attempt in first)
        values = [
            ("pass", pass_at_k(len(attempts), sum(right), budget), sampled),
            ("majority", _is_right(majority(answers), right), sampled),
        ]
        if not reward.votes:
            values.append(("oracle" if reward.needs_reference else "best", _is_right(best_of(rewards), right), judged))
        if reward.graded:
            values.append(("weighted", _is_right(weighted(answers, rewards), right), judged))
        found += [Outcome(problem_id, group, name, budget, value, flops) for name, value, flops in values]
    return found


def _is_right(index: int | None, right: Sequence[bool]) -> float:
    return float(index is not None and right[index])


def metric_key(metric: str, budget: int) -> str:
    """`greedy`, `pass@16`, ..."""
    return metric if metric == "greedy" else f"{metric}@{budget}"


def _sampling_flops(attempts: Sequence[Attempt]) -> float:
    return sum(attempt.flops_policy for attempt in attempts)
