"""Best-of-N: sample N answers a problem, let the reward judge each. Which is best is the reader's choice: filters keep
those above a threshold, evaluation takes the first of the highest reward, the group of the highest sum (weighted), or
the largest group of equal answers (majority)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.compute import Cost
from flywheel.records import Attempt, Problem
from flywheel.rewards.reward import Reward
from flywheel.search import unit
from flywheel.search.draws import Draws
from flywheel.search.protocols import Run, Sampler, Sampling, Text, never_stop, not_told


@dataclass(frozen=True, slots=True)
class BestOfN:
    """`samples` independent answers a problem. Greedy sampling gives one."""

    samples: int
    sampling: Sampling
    max_new_tokens: int
    max_flops: float | None = None
    """No further sample of a problem is drawn once it has taken so much; the last ones may go beyond it."""

    name = "best_of_n"
    needs_steps = False
    needs_decision = False
    judges_alone = False

    def __post_init__(self) -> None:
        unit.check_draws(self.samples, self.sampling)

    def params(self) -> dict[str, Any]:
        # N is no part of what shapes one sample: the first four of sixteen are the four that N = 4 would have drawn.
        return unit.sampling_params(self.sampling, self.max_new_tokens)

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
        draws = Draws(
            problems, text, sampler, reward, run, self.sampling, self.max_new_tokens, self.max_flops, should_stop
        )
        found: list[list[Attempt]] = [[] for _ in problems]
        wanted = dict.fromkeys(range(len(problems)), self.samples)
        while wanted:
            counts = {position: draws.affordable(position, count) for position, count in wanted.items()}
            draws.draw(counts)
            for position, count in counts.items():
                wanted[position] -= count
                if draws.affordable(position, wanted[position]) == 0:
                    del wanted[position]
                    found[position] = unit.attempts(
                        self, draws.asked[position], draws.leaves[position], draws.judgements[position],
                        draws.session, text, sampler, reward, run,
                    )  # fmt: skip
                    finished(position, found[position])
                    draws.session.release(position)
        return found, unit.total(draws.session, found)
