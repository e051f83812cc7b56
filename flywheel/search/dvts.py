"""Diverse verifier tree search (Beeching et al. 2024, *Scaling test-time compute with open models*): beam search that
cannot put all its beams on one idea.

The n beams of a problem are cut into n / width independent subtrees. Each samples `width` next steps, keeps its best
and goes on from there, however good those of the other subtrees are. Lookahead, the last step and what becomes of ended
beams are as in `beam`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flywheel.search import unit
from flywheel.search.beam import Beam


@dataclass(frozen=True, slots=True)
class Dvts(Beam):
    """`samples` / `width` pools of `width` beams a problem; one sample is one pool of one beam."""

    name = "dvts"

    def __post_init__(self) -> None:
        # By name: a class with slots is made twice, and super() would mean the first.
        Beam.__post_init__(self)
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

    @property
    def pools(self) -> list[int]:
        return [self.beams] * (self.samples // self.beams)
