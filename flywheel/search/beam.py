"""Beam search over steps, steered by step scores (Snell et al. 2024, *Scaling LLM test-time compute optimally can be
more effective than scaling model parameters*, section 5).

n beams take a step each; their steps are scored; the best n / width are kept and continued in `width` ways each. With
lookahead a step is scored with what it leads to: some greedy steps are rolled out and shown to the reward, and thrown
away. The last step allowed runs to the end token. What ended beams become, and what becomes of their place, is
`frontier`'s to say.
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
class Beam:
    """One pool of `samples` beams a problem. Of fewer beams than `width` the single best is kept; one beam alone is a
    sample, and nothing is scored."""

    samples: int
    width: int
    lookahead: int
    max_steps: int
    aggregate: sections.Aggregate
    sampling: Sampling
    max_new_tokens: int
    max_flops: float | None = None

    name = "beam"
    needs_steps = True
    needs_decision = False
    judges_alone = False

    def __post_init__(self) -> None:
        unit.check_draws(self.samples, self.sampling)

    def params(self) -> dict[str, Any]:
        return unit.sampling_params(self.sampling, self.max_new_tokens) | {
            "samples": self.samples,
            "width": self.width,
            "lookahead": self.lookahead,
            "max_steps": self.max_steps,
            "aggregate": self.aggregate,
            "max_flops": self.max_flops,
        }

    @property
    def pools(self) -> list[int]:
        """Beams of each pool: beams compete within theirs."""
        return [self.samples]

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
        return frontier.search(self, self.pools, problems, text, sampler, reward, run, should_stop, finished)
