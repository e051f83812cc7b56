"""Diverse verifier tree search (Beeching et al. 2024, *Scaling test-time compute with open models*): beam search that
cannot put all its beams on one idea.

The n beams of a problem are cut into n / width independent subtrees. Each samples `width` next steps, keeps its best
and goes on from there, however good those of the other subtrees are. Lookahead, the last step and what becomes of ended
beams are as in `beam`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel import sections
from flywheel.compute import Cost
from flywheel.records import Attempt, Problem
from flywheel.rewards.reward import Reward
from flywheel.search import frontier, unit
from flywheel.search.protocols import Run, Sampler, Sampling, Text, never_stop, not_told


@dataclass(frozen=True, slots=True)
class Dvts:
    """`samples` / `width` pools of `width` beams a problem; one sample is one pool of one beam."""

    samples: int
    width: int
    lookahead: int
    max_steps: int
    aggregate: sections.Aggregate
    sampling: Sampling
    max_new_tokens: int
    max_flops: float | None = None

    name = "dvts"
    needs_steps = True
    needs_decision = False
    judges_alone = False

    def __post_init__(self) -> None:
        unit.check_draws(self.samples, self.sampling)
        if self.samples > 1 and self.samples % self.width:
            raise ValueError(f"samples ({self.samples}) must be a multiple of width ({self.width}): whole subtrees")

    def params(self) -> dict[str, Any]:
        # Subtrees are independent: the first of four is the one that a search of one would have grown. Only a limit on
        # their FLOPs together makes the answers of one depend on how many there are.
        shared = {} if self.max_flops is None else {"samples": self.samples, "max_flops": self.max_flops}
        return unit.sampling_params(self.sampling, self.max_new_tokens) | {
            "width": self.beams,
            "lookahead": self.lookahead,
            "max_steps": self.max_steps,
            "aggregate": self.aggregate,
            **shared,
        }

    @property
    def beams(self) -> int:
        """Of a subtree."""
        return min(self.width, self.samples)

    def search(
        self,
        problems: Sequence[Problem],
        text: Text,
        sampler: Sampler,
        reward: Reward,
        run: Run,
        *,
        should_stop: Callable[[], None] = never_stop,
        finished: Callable[[int, list[Attempt]], None] = not_told,
    ) -> tuple[list[list[Attempt]], Cost]:
        pools = [self.beams] * (self.samples // self.beams)
        return frontier.search(self, pools, problems, text, sampler, reward, run, should_stop, finished)
