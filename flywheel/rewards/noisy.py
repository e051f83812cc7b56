"""A reward that is wrong at a stated rate: to see what a flywheel makes of labels from a fallible judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flywheel.records import Problem
from flywheel.rewards.reward import Answer, Judgement, NoSteps, Reward
from flywheel.seeds import stream


class Noisy(NoSteps):
    """Turns the reward of a share `flip` of the well-formed answers round (1 - reward).

    Which ones is a function of seed, problem and canonical answer: asked again, or in another order, the judge errs in
    the same places, so neither sampling more nor a retry averages the error away.
    """

    votes = False

    def __init__(self, base: Reward, flip: float, seed: int) -> None:
        self._base = base
        self._flip = flip
        self._seed = seed
        self.name = f"noisy({base.name}, {flip:g})"
        self.needs_reference = base.needs_reference
        self.verifies = base.verifies

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        judged = self._base.judge(groups, should_stop)
        return [
            [self._perhaps_flipped(problem, judgement) for judgement in row]
            for (problem, _), row in zip(groups, judged, strict=True)
        ]

    def _perhaps_flipped(self, problem: Problem, judgement: Judgement) -> Judgement:
        if judgement.status != "judged" or judgement.reward is None:
            return judgement
        draw = stream(self._seed, "noisy", problem.problem_id, judgement.answer) / 2.0**64
        return replace(judgement, reward=1.0 - judgement.reward) if draw < self._flip else judgement
