"""The tree of answers that a session has made, and where a new answer sets out in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]
"""Places in a pool of keys and values, one a token."""


def no_slots() -> Slots:
    return np.empty(0, dtype=np.int64)


@dataclass(eq=False, slots=True)
class Node:
    """One segment of an answer."""

    prompt: int
    parent: Node | None
    token_ids: tuple[int, ...]
    """Of this segment, the end token included."""
    log_probabilities: tuple[float, ...]
    ended: bool
    """The model ended its answer here: nothing comes after."""
    blank: bool | None
    """Whether the last step is blank so far; None where nobody looked."""
    slots: Slots = field(default_factory=no_slots)
    """Where the keys and values of the segment's first tokens are kept. The last token drawn has none yet: it was not
    fed to the model. Once a node has children, all of its tokens have theirs."""
    depth: int = field(init=False)
    """Tokens of the whole answer up to here."""
    text: str | None = None
    """The whole answer decoded, once somebody asked."""

    def __post_init__(self) -> None:
        self.depth = len(self.token_ids) + (self.parent.depth if self.parent is not None else 0)

    def path(self) -> list[Node]:
        """The nodes from the prompt to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def answer(self) -> Iterator[int]:
        """Token ids of the whole answer."""
        return (token for node in self.path() for token in node.token_ids)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a row sets out."""

    prompt: int
    parent: Node | None
    """None: the prompt itself."""
    siblings: int
    """Rows that set out here in the same call, this one included."""

    @property
    def depth(self) -> int:
        """Tokens of the answer that are there before it."""
        return 0 if self.parent is None else self.parent.depth
