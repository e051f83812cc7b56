"""Beams that grow step by step, steered by step scores: what beam search and DVTS have in common.

    pool of 4 beams, width 2                 the 2 best of 4, twice each            one ended: 3 beams are left
    "8 * 3 = 24"  0.9  ──┬── "24 - 5 = 19"  (eos) an answer
                         └── "24 / 5 = 4"   0.1  ────────── ...
    "3 + 5 = 8"   0.6  ──┬── "8 * 8 = 64"   0.2  ──┬─────── ...
    "8 - 5 = 3"   0.2    │                         └─────── ...
    "5 + 8 = 13"  0.1    └── "8 + 8 = 16"   0.1

A pool is a set of beams of one problem that compete. In each round every beam of the pool takes a step. A beam that
ended (or was cut off by the token limit) leaves the pool for good and is an answer; its place is not filled again, so
that a pool of n beams yields n answers at most. Of the others the best 1 / width are kept and continued by all beams
that are left. Two beams of a pool that say the same (token by token) count once: as a prefix, which is scored once and
kept once, and as an answer. Beams of different pools or problems are never compared, however alike they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flywheel import sections
from flywheel.compute import Cost
from flywheel.records import Attempt, Problem, StopReason
from flywheel.rewards.reward import Reward
from flywheel.search import step_scores, unit
from flywheel.search.protocols import Extension, Run, Sampler, Sampling, Searcher, Text
from flywheel.search.unit import Leaf

GREEDY = Sampling(temperature=None)


class StepSearcher(Searcher, Protocol):
    """The settings that beam search and DVTS share."""

    @property
    def width(self) -> int: ...
    @property
    def lookahead(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def aggregate(self) -> sections.Aggregate: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def max_flops(self) -> float | None: ...


@dataclass(slots=True)
class Prefix:
    """An answer so far."""

    node: int
    tokens: int
    seen: int
    """The node that the score looks at: its own, or the end of its lookahead."""
    value: float = 0.0


@dataclass(slots=True)
class Pool:
    """Beams that compete."""

    position: int
    """The problem's place in the unit: the number of its prompt."""
    number: int
    """Of the pool among the problem's."""
    beams: int
    """That have not ended."""
    kept: list[Prefix] = field(default_factory=list)
    """What the beams stand on, best first; none before the first round, when all stand on the prompt."""
    ended: dict[tuple[unit.Content, StopReason], int] = field(default_factory=dict)
    """Nodes of answers in the order found: earlier rounds first, in one round what the better prefix led to."""
    flops: float = 0.0
    flops_reward: float = 0.0


class Frontier:
    """All pools of a batch unit. Each method does one thing to every pool that has beams left, as one batch."""

    def __init__(
        self,
        searcher: StepSearcher,
        pools: Sequence[int],
        problems: Sequence[Problem],
        text: Text,
        sampler: Sampler,
        reward: Reward,
        run: Run,
        should_stop: Callable[[], None],
    ) -> None:
        self.asked = [unit.ask(problem, text, sampler) for problem in problems]
        self.session = unit.open_session(self.asked, text, sampler)
        self.pools = [
            [Pool(position, number, beams) for number, beams in enumerate(pools)] for position in range(len(problems))
        ]
        self._searcher, self._problems, self._text, self._reward = searcher, problems, text, reward
        self._run, self._should_stop = run, should_stop

    def live(self) -> Iterator[Pool]:
        return (pool for row in self.pools for pool in row if pool.beams)

    def grow(self, step: int) -> None:
        """Every beam takes its next step; in the last round it runs to its end. The better prefixes come first, and
        have one beam more where the beams do not divide evenly."""
        how, last = self._searcher, step + 1 == self._searcher.max_steps
        beams: list[tuple[Pool, int]] = []
        requests = []
        for pool in self.live():
            for place in range(pool.beams):
                parent = pool.kept[place * len(pool.kept) // pool.beams] if pool.kept else None
                node, tokens = (parent.node, parent.tokens) if parent else (None, 0)
                key = unit.key(self._run, self._problems[pool.position], how.name, pool.number, step, place)
                left = how.max_new_tokens - tokens
                beams.append((pool, tokens))
                requests.append(Extension(pool.position, node, key, how.sampling, left, one_step=not last))
        for pool in self.live():
            pool.kept = []
        said = set()
        for (pool, before), segment in zip(beams, self.session.extend(requests, self._should_stop), strict=True):
            pool.flops += segment.flops
            tokens = before + segment.tokens
            content = unit.content(self.session, segment.node)
            if segment.stop_reason != "step" or tokens >= how.max_new_tokens:
                pool.beams -= 1
                pool.ended.setdefault((content, unit.stop_reason(segment)), segment.node)
            elif (pool.position, pool.number, content) not in said:
                said.add((pool.position, pool.number, content))
                pool.kept.append(Prefix(segment.node, tokens, seen=segment.node))

    def look_ahead(self) -> None:
        """Roll each prefix some greedy steps further, for the score's eyes only."""
        rolled = [(pool, prefix, prefix.tokens) for pool in self._contested() for prefix in pool.kept]
        for _ in range(self._searcher.lookahead):
            requests = [
                Extension(pool.position, prefix.seen, 0, GREEDY, self._searcher.max_new_tokens - tokens, one_step=True)
                for pool, prefix, tokens in rolled
            ]
            segments = self.session.extend(requests, self._should_stop) if requests else []
            going = []
            for (pool, prefix, tokens), segment in zip(rolled, segments, strict=True):
                pool.flops += segment.flops
                prefix.seen, tokens = segment.node, tokens + segment.tokens
                if segment.stop_reason == "step" and tokens < self._searcher.max_new_tokens:
                    going.append((pool, prefix, tokens))
            rolled = going

    def score(self) -> None:
        """Score each prefix, with what it was seen to lead to."""
        scored = [(pool, prefix) for pool in self._contested() for prefix in pool.kept]
        partial = [(self._problems[pool.position], self.session.text(prefix.seen)) for pool, prefix in scored]
        scores = step_scores.score(partial, self._text, self._reward, self._searcher.aggregate, self._should_stop)
        for (pool, prefix), given in zip(scored, scores, strict=True):
            prefix.value = given.value
            pool.flops_reward += given.flops

    def keep(self) -> None:
        """Keep the best 1 / width of each pool, one at least; ties go to the one grown first."""
        for pool in self.live():
            best = sorted(pool.kept, key=lambda prefix: -prefix.value)
            pool.kept = best[: max(1, pool.beams // self._searcher.width)]

    def cut_off(self) -> None:
        """End the search of problems whose FLOPs are spent: what is kept is told as an answer that was cut off."""
        most = self._searcher.max_flops
        for row in self.pools:
            if most is not None and sum(pool.flops + pool.flops_reward for pool in row) >= most:
                for pool in row:
                    for prefix in pool.kept:
                        pool.ended.setdefault((unit.content(self.session, prefix.node), "length"), prefix.node)
                    pool.beams, pool.kept = 0, []

    def leaves(self, position: int) -> list[Leaf]:
        """A problem's answers, pool by pool, each with an equal share of what its pool took."""
        return [
            Leaf(node, stop_reason, pool.flops / len(pool.ended), pool.flops_reward / len(pool.ended))
            for pool in self.pools[position]
            for (_, stop_reason), node in pool.ended.items()
        ]

    def _contested(self) -> Iterator[Pool]:
        """Pools in which there is something to choose: a single prefix is kept whatever its score."""
        return (pool for pool in self.live() if len(pool.kept) > 1)


def search(
    searcher: StepSearcher,
    pools: Sequence[int],
    problems: Sequence[Problem],
    text: Text,
    sampler: Sampler,
    reward: Reward,
    run: Run,
    should_stop: Callable[[], None],
    finished: Callable[[int, list[Attempt]], None],
) -> tuple[list[list[Attempt]], Cost]:
    """Search with so many beams in each pool of a problem. The round of a step: grow, look ahead, score, keep."""
    frontier = Frontier(searcher, pools, problems, text, sampler, reward, run, should_stop)
    found: list[list[Attempt]] = [[] for _ in problems]
    searching = list(range(len(problems)))
    for step in range(searcher.max_steps):
        frontier.grow(step)
        frontier.look_ahead()
        frontier.score()
        frontier.keep()
        frontier.cut_off()
        done = [position for position in searching if not any(pool.beams for pool in frontier.pools[position])]
        searching = [position for position in searching if position not in done]
        rows = [(frontier.asked[position], frontier.leaves(position)) for position in done]
        judged = unit.judge(reward, rows, frontier.session, text, should_stop) if rows else []
        for position, (asked, leaves), judgements in zip(done, rows, judged, strict=True):
            found[position] = unit.attempts(
                searcher, asked, leaves, judgements, frontier.session, text, sampler, reward, run
            )
            finished(position, found[position])
            frontier.session.release(position)
        if not searching:
            break
    return found, unit.total(frontier.session, found)
