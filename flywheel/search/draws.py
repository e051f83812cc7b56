"""Independent samples of a unit's problems, drawn and judged in rounds: what best-of-N and adaptive sampling share.

Sample i of a problem is a function of (run, generation, purpose, problem, i), whoever draws it and in whichever round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flywheel.records import Problem
from flywheel.rewards.reward import Judgement, Reward
from flywheel.search import unit
from flywheel.search.protocols import Extension, Run, Sampler, Sampling, Text
from flywheel.search.unit import Leaf


class Draws:
    """The samples of each problem so far, and what the reward says of them."""

    def __init__(
        self,
        problems: Sequence[Problem],
        text: Text,
        sampler: Sampler,
        reward: Reward,
        run: Run,
        sampling: Sampling,
        max_new_tokens: int,
        max_flops: float | None,
        should_stop: Callable[[], None],
    ) -> None:
        self.asked = [unit.ask(problem, text, sampler) for problem in problems]
        self.session = unit.open_session(self.asked, text, sampler)
        self.leaves: list[list[Leaf]] = [[] for _ in problems]
        self.judgements: list[list[Judgement]] = [[] for _ in problems]
        self._text, self._reward, self._run = text, reward, run
        self._sampling, self._max_new_tokens, self._max_flops = sampling, max_new_tokens, max_flops
        self._should_stop = should_stop

    def draw(self, counts: Mapping[int, int]) -> None:
        """So many more samples (one at least) of the problems at these positions: one batch for the model, one for
        the reward."""
        requests = []
        for position, count in counts.items():
            drawn = len(self.leaves[position])
            keys = unit.keys(self._run, self.asked[position].problem, range(drawn, drawn + count))
            requests += [Extension(position, None, key, self._sampling, self._max_new_tokens) for key in keys]
        for request, segment in zip(requests, self.session.extend(requests, self._should_stop), strict=True):
            self.leaves[request.prompt].append(Leaf(segment.node, unit.stop_reason(segment), segment.flops))
        if self._reward.votes:
            self._judge_groups(counts)
        else:
            self._judge_new(counts)

    def affordable(self, position: int, wanted: int) -> int:
        """How many of the samples wanted are drawn next: all, or half of what the FLOPs left would pay for at the
        dearest price so far, since a dearer one may come, but one at least; none where they are spent. The first
        sample tells the price."""
        if self._max_flops is None or wanted == 0:
            return wanted
        prices = [
            leaf.flops + leaf.flops_reward + judgement.flops
            for leaf, judgement in zip(self.leaves[position], self.judgements[position], strict=True)
        ]
        if sum(prices) >= self._max_flops:
            return 0
        if not prices:
            return 1
        if max(prices) == 0.0:
            return wanted
        return min(wanted, max(1, int((self._max_flops - sum(prices)) / max(prices) / 2)))

    def _judge_new(self, counts: Mapping[int, int]) -> None:
        rows = [(self.asked[position], self.leaves[position][-count:]) for position, count in counts.items()]
        judged = unit.judge(self._reward, rows, self.session, self._text, self._should_stop)
        for position, judgements in zip(counts, judged, strict=True):
            self.judgements[position] += judgements

    def _judge_groups(self, counts: Mapping[int, int]) -> None:
        """A vote is held anew over the whole group; what earlier ones took is not forgotten."""
        for position in counts:
            held = self.judgements[position]
            for index, judgement in enumerate(held):
                leaf = self.leaves[position][index]
                self.leaves[position][index] = replace(leaf, flops_reward=leaf.flops_reward + judgement.flops)
        rows = [(self.asked[position], self.leaves[position]) for position in counts]
        judged = unit.judge(self._reward, rows, self.session, self._text, self._should_stop)
        for position, judgements in zip(counts, judged, strict=True):
            self.judgements[position] = judgements
