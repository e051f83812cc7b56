"""The tree of a Monte Carlo tree search over steps, and the rule by which it is walked; no model and no reward.

PUCT (Silver et al. 2018, *A general reinforcement learning algorithm that masters chess, shogi, and Go through
self-play*, pseudocode): of a node's children, go to the one with the largest

    Q + c P sqrt(N) / (1 + n),     c = 1.25 + log((N + 19652 + 1) / 19652)

where N counts the visits of the node, its own evaluation among them, n and Q the child's visits and mean value (0
before the first), and P its prior. Values are chances of a right answer, in 0..1, the same for every level: there is no
opponent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flywheel.records import StopReason

C_BASE = 19652.0
C_INIT = 1.25


@dataclass(slots=True)
class Node:
    """An answer so far, or a whole one."""

    node: int | None = None
    """Of the session; None is the prompt."""
    parent: Node | None = None
    depth: int = 0
    tokens: int = 0
    prior: float = 1.0
    ended: StopReason | None = None
    """Why there is no going on from here; None where there is."""
    value: float | None = None
    """What it is worth by itself, once that is known."""
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.visits if self.visits else 0.0


def select(root: Node) -> Node:
    """Walk down to a node that has no children yet, or can have none. Ties go to the child sampled first."""
    node = root
    while node.children:
        parent = node
        node = max(node.children, key=lambda child: puct(parent, child))
    return node


def puct(parent: Node, child: Node) -> float:
    c = C_INIT + math.log((parent.visits + C_BASE + 1.0) / C_BASE)
    return child.mean + c * child.prior * math.sqrt(parent.visits) / (1 + child.visits)


def back_up(node: Node, value: float) -> None:
    """Count a visit of this value at the node and at all above it."""
    at: Node | None = node
    while at is not None:
        at.visits += 1
        at.total += value
        at = at.parent


def priors(log_probabilities: Sequence[float | None], counts: Sequence[int]) -> list[float]:
    """Of siblings: their probabilities under the model, normalised over them; where a model does not say, the share of
    the draws that each came up in."""
    known = [log for log in log_probabilities if log is not None]
    if len(known) < len(log_probabilities):
        return [count / sum(counts) for count in counts]
    weights = [math.exp(log - max(known)) for log in known]
    return [weight / sum(weights) for weight in weights]


def best_line(root: Node) -> Node:
    """Where the search would go on from: down the most visited children, the likelier ones where visits are equal."""
    node = root
    while node.children:
        node = max(node.children, key=lambda child: (child.visits, child.prior))
    return node
