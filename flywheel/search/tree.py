"""Monte Carlo tree search over the steps of an answer (Hao et al. 2023, *Reasoning with language model is planning with
world model*; values and priors as in AlphaZero, see `puct`).

An iteration walks from the prompt down to a node without children, samples `width` next steps of it, values it, and
counts that value in all nodes on the way. A node's value is its step score where the reward gives step scores, else the
reward of one answer sampled from it to the end. A whole answer is worth its reward; one without a verdict counts as 0
on the way. Steps sampled twice are one child; the last step allowed runs to the end token.

Attempts are the different answers that ended, wherever in the tree or in a roll-out: the `samples` of highest reward,
best first, those found earlier first where rewards are equal. Where none ended, the line that the search would have
gone on with is decoded greedily to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flywheel import sections
from flywheel.compute import Cost
from flywheel.records import Attempt, Problem, StopReason
from flywheel.rewards.reward import Judgement, Reward
from flywheel.search import puct, step_scores, unit
from flywheel.search.protocols import (
    Extension,
    Run,
    Sampler,
    Sampling,
    Segment,
    Session,
    Text,
    never_stop,
    not_told,
)
from flywheel.search.puct import Node
from flywheel.search.unit import Asked, Leaf

GREEDY = Sampling(temperature=None)


@dataclass(frozen=True, slots=True)
class Tree:
    """`samples` iterations a problem, `width` children a node."""

    samples: int
    width: int
    max_steps: int
    aggregate: sections.Aggregate
    sampling: Sampling
    max_new_tokens: int
    max_flops: float | None = None

    name = "tree"
    needs_steps = False
    needs_decision = False
    judges_alone = True

    def __post_init__(self) -> None:
        unit.check_draws(self.width, self.sampling)

    def params(self) -> dict[str, Any]:
        return unit.sampling_params(self.sampling, self.max_new_tokens) | {
            "samples": self.samples,
            "width": self.width,
            "max_steps": self.max_steps,
            "aggregate": self.aggregate,
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
        asked = [unit.ask(problem, text, sampler) for problem in problems]
        session = unit.open_session(asked, text, sampler)
        forest = Forest(self, asked, session, text, reward, run, should_stop)
        found: list[list[Attempt]] = [[] for _ in problems]
        searching = list(range(len(problems)))
        for iteration in range(self.samples):
            forest.simulate(searching)
            over = iteration + 1 == self.samples
            done = [position for position in searching if over or forest.exhausted(position) or forest.spent(position)]
            searching = [position for position in searching if position not in done]
            forest.complete(done)
            for position in done:
                leaves, judgements = forest.best(position)
                found[position] = unit.attempts(
                    self, asked[position], leaves, judgements, session, text, sampler, reward, run
                )
                finished(position, found[position])
                session.release(position)
            if not searching:
                break
        return found, unit.total(session, found)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer that was found, and what the reward says of it."""

    node: int
    stop_reason: StopReason
    judgement: Judgement

    @property
    def value(self) -> float:
        return self.judgement.reward or 0.0

    def rank(self) -> float:
        """An answer without a verdict comes after all that have one."""
        return -1.0 if self.judgement.reward is None else self.judgement.reward


Said = tuple[unit.Content, StopReason]
"""Names an answer of a problem."""


@dataclass(slots=True)
class Growing:
    """One problem's tree."""

    root: Node = field(default_factory=Node)
    answers: dict[Said, Answer] = field(default_factory=dict)
    """What was found, in the order found; cut off and failed ones too."""
    expansions: int = 0
    open_leaves: int = 1
    """Nodes from which there is still a going on."""
    flops: float = 0.0
    flops_scores: float = 0.0


class Forest:
    """The trees of a batch unit. Each method does one thing to some of them, as one batch."""

    def __init__(
        self,
        searcher: Tree,
        asked: Sequence[Asked],
        session: Session,
        text: Text,
        reward: Reward,
        run: Run,
        should_stop: Callable[[], None],
    ) -> None:
        self.trees = [Growing() for _ in asked]
        self._searcher, self._asked, self._session = searcher, asked, session
        self._text, self._reward, self._run, self._should_stop = text, reward, run, should_stop

    def simulate(self, positions: Sequence[int]) -> None:
        """One iteration of each tree: select, expand, value, back up."""
        leaves = {position: puct.select(self.trees[position].root) for position in positions}
        unvalued = {position: leaf for position, leaf in leaves.items() if leaf.value is None}
        rolled_out = self._expand(unvalued)
        if self._reward.gives_steps:
            self._score(unvalued)
        for position, said in rolled_out.items():
            unvalued[position].value = self.trees[position].answers[said].value
        for leaf in leaves.values():
            assert leaf.value is not None, "every leaf has been valued"
            puct.back_up(leaf, leaf.value)

    def _expand(self, leaves: dict[int, Node]) -> dict[int, Said]:
        """Sample the children of each leaf, and one answer to the end where the value has to come from there; judge all
        that ended. Returns the latter answers."""
        how, roll_out = self._searcher, not self._reward.gives_steps
        requests = []
        for position, leaf in leaves.items():
            tree, problem = self.trees[position], self._asked[position].problem
            for place in range(how.width + roll_out):
                key = unit.key(self._run, problem, how.name, tree.expansions, place)
                one_step = place < how.width and leaf.depth + 1 < how.max_steps
                left = how.max_new_tokens - leaf.tokens
                requests.append(Extension(position, leaf.node, key, how.sampling, left, one_step))
            tree.expansions += 1
        segments = iter(self._session.extend(requests, self._should_stop) if requests else [])
        grown = {position: [next(segments) for _ in range(how.width + roll_out)] for position in leaves}
        self._judge([(at, self._ended(leaves[at], segment)) for at, row in grown.items() for segment in row])
        for position, row in grown.items():
            self.trees[position].flops += sum(segment.flops for segment in row)
            self._attach(self.trees[position], leaves[position], row[: how.width])
        rolled = {position: self._ended(leaves[position], row[-1]) for position, row in grown.items() if roll_out}
        return {position: ended[0] for position, ended in rolled.items() if ended is not None}

    def _attach(self, tree: Growing, leaf: Node, segments: Sequence[Segment]) -> None:
        """The different steps among the segments become the leaf's children. Where a server failed there is no step."""
        drawn: dict[tuple[unit.Content, str], list[Segment]] = {}
        for segment in segments:
            if segment.stop_reason != "failed":
                said = unit.content(self._session, segment.node), segment.stop_reason
                drawn.setdefault(said, []).append(segment)
        firsts = [same[0] for same in drawn.values()]
        priors = puct.priors([first.log_probability for first in firsts], [len(same) for same in drawn.values()])
        for first, prior in zip(firsts, priors, strict=True):
            child = Node(first.node, leaf, leaf.depth + 1, leaf.tokens + first.tokens, prior)
            ended = self._ended(leaf, first)
            if ended is not None:
                child.ended, child.value = ended[0][1], tree.answers[ended[0]].value
            leaf.children.append(child)
        tree.open_leaves += sum(child.ended is None for child in leaf.children) - 1
        if not firsts:
            leaf.ended = "failed"

    def _ended(self, leaf: Node, segment: Segment) -> tuple[Said, int] | None:
        """The answer that a leaf's segment makes, and its node; None where there is a going on from it."""
        if segment.stop_reason == "step" and leaf.tokens + segment.tokens < self._searcher.max_new_tokens:
            return None
        return (unit.content(self._session, segment.node), unit.stop_reason(segment)), segment.node

    def _judge(self, ended: Sequence[tuple[int, tuple[Said, int] | None]]) -> None:
        """Judge the answers that were not found before."""
        new: dict[int, dict[Said, int]] = {}
        for position, answer in ended:
            if answer is not None and answer[0] not in self.trees[position].answers:
                new.setdefault(position, {}).setdefault(*answer)
        rows = [
            (self._asked[position], [Leaf(node, reason, 0.0) for (_, reason), node in row.items()])
            for position, row in new.items()
        ]
        judged = unit.judge(self._reward, rows, self._session, self._text, self._should_stop) if rows else []
        for (position, row), judgements in zip(new.items(), judged, strict=True):
            for (said, node), judgement in zip(row.items(), judgements, strict=True):
                self.trees[position].answers[said] = Answer(node, said[1], judgement)

    def _score(self, leaves: dict[int, Node]) -> None:
        """Value leaves by their steps; nothing is known of the prompt alone, which has no rival."""
        said = [
            (self._asked[position].problem, self._session.text(leaf.node) if leaf.node is not None else "")
            for position, leaf in leaves.items()
        ]
        scores = step_scores.score(said, self._text, self._reward, self._searcher.aggregate, self._should_stop)
        for (position, leaf), score in zip(leaves.items(), scores, strict=True):
            leaf.value = score.value
            self.trees[position].flops_scores += score.flops

    def exhausted(self, position: int) -> bool:
        """Whether all that can be reached has been sampled to its end: more visits would find nothing new."""
        return self.trees[position].open_leaves == 0

    def spent(self, position: int) -> bool:
        tree, most = self.trees[position], self._searcher.max_flops
        judged = sum(answer.judgement.flops for answer in tree.answers.values())
        return most is not None and tree.flops + tree.flops_scores + judged >= most

    def complete(self, positions: Sequence[int]) -> None:
        """Where no answer ended: decode the best line greedily to its end; with no FLOPs left it stays cut off."""
        lines = {
            position: puct.best_line(self.trees[position].root)
            for position in positions
            if all(answer.stop_reason != "eos" for answer in self.trees[position].answers.values())
        }
        open_lines = {position: line for position, line in lines.items() if line.ended is None}
        going = {position: line for position, line in open_lines.items() if not self.spent(position)}
        requests = [
            Extension(position, line.node, 0, GREEDY, self._searcher.max_new_tokens - line.tokens)
            for position, line in going.items()
        ]
        segments = self._session.extend(requests, self._should_stop) if requests else []
        ended = []
        for (position, line), segment in zip(going.items(), segments, strict=True):
            self.trees[position].flops += segment.flops
            ended.append((position, self._ended(line, segment)))
        for position, line in open_lines.items():
            if position not in going and line.node is not None:
                cut: Said = unit.content(self._session, line.node), "length"
                ended.append((position, (cut, line.node)))
        self._judge(ended)

    def best(self, position: int) -> tuple[list[Leaf], list[Judgement]]:
        """A problem's answers and their judgements: those that ended, else the one of highest reward that was cut off,
        the last found of equals. They share what the whole search took."""
        tree = self.trees[position]
        answers = list(tree.answers.values())
        ended = [answer for answer in answers if answer.stop_reason == "eos"]
        told = sorted(ended, key=Answer.rank, reverse=True)[: self._searcher.samples]
        if not told:
            told = [max(reversed(answers), key=Answer.rank)]
        nodes = {answer.node for answer in told}
        untold = sum(answer.judgement.flops for answer in answers if answer.node not in nodes)
        shares = tree.flops / len(told), (tree.flops_scores + untold) / len(told)
        return [Leaf(answer.node, answer.stop_reason, *shares) for answer in told], [a.judgement for a in told]
