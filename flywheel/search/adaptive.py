"""Adaptive sampling: N samples a problem on average, where they still help.

The unit's N x problems samples are given out in rounds. In the first every problem gets the same. After each, problems
that are decided leave, and what they did not use goes to the others (Snell et al. 2024, *Scaling LLM test-time compute
optimally can be more effective than scaling model parameters*: compute where the problem's difficulty repays it).

A problem is decided
- by a reward that verifies: at its first answer of reward 1;
- by a vote: when the leading group cannot be overtaken with all that is left; or when it is ahead in truth, and not by
  luck, with a chance of at least `confidence` (Aggarwal et al. 2023, *Let's sample step by step: adaptive-consistency*,
  0.95): with v votes against w for the runner-up, the share of Beta(v + 1, w + 1) above one half.

The others share the next round in proportion to the chance that a sample still decides something (in the spirit of
Damani et al. 2024, *Learning how hard to think*: give to the largest gain), so that middling problems get more and
hopeless ones less:
- verified: the posterior mean reward of a sample, (2 m + sum of rewards) / (2 + n);
- voted: the posterior chance that a sample is for one of the two leading groups, (2 m + v + w) / (2 + n), times the
  chance that the leader is not ahead in truth.
m is the same rate over the whole unit, with one success and one failure added: a prior worth two samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.compute import Cost
from flywheel.records import Attempt, Problem
from flywheel.rewards.reward import Judgement, Reward
from flywheel.search import unit
from flywheel.search.draws import Draws
from flywheel.search.protocols import Run, Sampler, Sampling, Text, never_stop, not_told

_PRIOR_SAMPLES = 2.0


@dataclass(frozen=True, slots=True)
class Adaptive:
    """`samples` a problem on average, in `rounds` rounds (as many as `samples` at most). A problem's samples are the
    first of those that best-of-N would draw."""

    samples: int
    rounds: int
    sampling: Sampling
    max_new_tokens: int
    max_flops: float | None = None
    """No further sample of a problem is drawn once it has taken so much; the last ones may go beyond it."""
    confidence: float = 0.95

    name = "adaptive"
    needs_steps = False
    needs_decision = True
    judges_alone = False

    def __post_init__(self) -> None:
        unit.check_draws(self.samples, self.sampling)

    def params(self) -> dict[str, Any]:
        return unit.sampling_params(self.sampling, self.max_new_tokens) | {
            "samples": self.samples,
            "rounds": self.rounds,
            "confidence": self.confidence,
            "max_flops": self.max_flops,
        }

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

        def tell(position: int) -> None:
            found[position] = unit.attempts(
                self, draws.asked[position], draws.leaves[position], draws.judgements[position],
                draws.session, text, sampler, reward, run,
            )  # fmt: skip
            finished(position, found[position])
            draws.session.release(position)

        left = self.samples * len(problems)
        undecided = list(range(len(problems)))
        rounds = min(self.rounds, self.samples)
        for number in range(rounds):
            wanted = dict(zip(undecided, allot(left // (rounds - number), weights(draws.judgements, undecided, reward)),
                              strict=True))  # fmt: skip
            while wanted := {position: count for position, count in wanted.items() if count}:
                counts = {position: draws.affordable(position, count) for position, count in wanted.items()}
                draws.draw(counts)
                left -= sum(counts.values())
                for position, count in counts.items():
                    wanted[position] -= count
                    one_more = draws.affordable(position, 1)
                    if one_more == 0 or decided(draws.judgements[position], reward, left, self.confidence):
                        wanted[position] = 0
                        undecided.remove(position)
                        tell(position)
            if not undecided:
                break
        for position in undecided:
            tell(position)
        return found, unit.total(draws.session, found)


def decided(judgements: Sequence[Judgement], reward: Reward, left: int, confidence: float) -> bool:
    """Whether further samples, `left` at most, are not worth drawing."""
    if reward.verifies:
        return any((judgement.reward or 0.0) >= 1.0 for judgement in judgements)
    first, second = leaders(judgements)
    return first - second > left or ahead(first, second) >= confidence


def leaders(judgements: Sequence[Judgement]) -> tuple[int, int]:
    """Votes of the largest group of equal answers and of the next."""
    groups = Counter(judgement.answer for judgement in judgements if judgement.answer is not None)
    first, second = [*sorted(groups.values(), reverse=True), 0, 0][:2]
    return first, second


def ahead(first: int, second: int) -> float:
    """The chance that the first of two groups is the more likely one, after so many votes for each under a uniform
    prior: the share of Beta(first + 1, second + 1) above one half, as a binomial sum."""
    votes = first + second + 1
    return sum(math.comb(votes, wins) for wins in range(first + 1)) / (1 << votes)


def weights(judgements: Sequence[Sequence[Judgement]], undecided: Sequence[int], reward: Reward) -> list[float]:
    """What a sample of each undecided problem is worth, by the rule above; all the same before the first."""
    if reward.verifies:
        hits = [sum(judgement.reward or 0.0 for judgement in row) for row in judgements]
        doubts = [1.0] * len(judgements)
    else:
        hits = [float(sum(leaders(row))) for row in judgements]
        doubts = [1.0 - ahead(*leaders(row)) for row in judgements]
    mean = (sum(hits) + 1.0) / (sum(map(len, judgements)) + 2.0)
    return [
        doubts[at] * (_PRIOR_SAMPLES * mean + hits[at]) / (_PRIOR_SAMPLES + len(judgements[at])) for at in undecided
    ]


def allot(total: int, weights: Sequence[float]) -> list[int]:
    """Give out a number of samples in proportion to weights; what does not divide goes to the largest remainders, ties
    to the first."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda at: counts[at] - exact[at])
    for at in order[: total - sum(counts)]:
        counts[at] += 1
    return counts
