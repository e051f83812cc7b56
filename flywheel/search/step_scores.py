"""Scores of answers so far, by a reward that gives step scores: what beam search, DVTS and tree search steer by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flywheel import sections
from flywheel.records import Problem
from flywheel.rewards.aggregate import aggregate as put_together
from flywheel.rewards.reward import Reward
from flywheel.search.protocols import Text


@dataclass(frozen=True, slots=True)
class Score:
    """What an answer so far is worth, in 0..1, and what it took to say so."""

    value: float
    flops: float


def score(
    partial: Sequence[tuple[Problem, str]],
    text: Text,
    reward: Reward,
    aggregate: sections.Aggregate,
    should_stop: Callable[[], None],
) -> list[Score]:
    """Score answers so far as one batch. A blank step is none; an answer without any step says nothing and is worth 0,
    unseen by the reward."""
    cut = [(problem, [step for step in text.steps(output) if step.strip()]) for problem, output in partial]
    shown = [(problem, steps) for problem, steps in cut if steps]
    answers = iter(reward.score_steps(shown, should_stop) if shown else [])
    scores = []
    for _, steps in cut:
        if not steps:
            scores.append(Score(0.0, 0.0))
            continue
        given = next(answers)
        if len(given.scores) != len(steps):
            raise ValueError(f"reward {reward.name} gave {len(given.scores)} scores for {len(steps)} steps")
        scores.append(Score(put_together(given.scores, aggregate), given.flops))
    return scores
