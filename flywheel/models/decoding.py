"""What a session needs of the machinery that runs a model: rows of answers that grow by a token a step.

There are two. `cascade` shares prompts and what answers have in common; it serves models whose layers are all plain
causal attention. `recomputing` serves any other by transformers' own attention and cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flywheel.models.trie import Slots, Start

Rows = npt.NDArray[np.int64]

MEMORY_BYTES = 1 << 31
"""Bound on keys and values of rows in flight, and likewise on their logits. Not what the machine has free: how many
rows are in flight shapes the last bits."""


class Decoder(Protocol):
    """Rows in flight, numbered from 0 without gaps."""

    @property
    def prefill(self) -> float:
        """FLOPs of prompts, each counted once."""

    @property
    def executed(self) -> float:
        """FLOPs of everything, padding included."""

    def begin(self, starts: Sequence[Start], limits: Sequence[int], should_stop: Callable[[], None]) -> None:
        """Get ready for a call's rows: where each sets out, and how many tokens it may have."""

    def room(self, waiting: Sequence[Start]) -> int:
        """How many of those waiting, from the first on, should be admitted now."""

    def admit(self, starts: Sequence[Start]) -> tuple[Any, list[float]]:
        """New rows behind the others. Returns their logits [new rows, vocabulary], and for each its share, in FLOPs,
        of running what it sets out from."""

    def feed(self, tokens: Any) -> Any:
        """A token for each row, [rows]; returns the next logits, [rows, vocabulary]."""

    def leave(self, rows: Rows, kept: Rows) -> tuple[list[Slots], Rows]:
        """Rows go, ascending. For those that may be gone on from, `kept` [rows] says how many of their newest fed
        tokens to keep, 0 for none. Returns where they are kept, and for each row that stays its former number."""

    def forget(self, slots: Slots) -> None:
        """Nobody goes on from these any more."""


def affordable(row_bytes: int, vocabulary: int, memory_bytes: int) -> int:
    """How many rows in flight memory allows, one at least: `row_bytes` of keys and values each, and logits."""
    # They are there as float32, with their probabilities, the sums of these and, where they are cut, their order.
    return max(1, memory_bytes // max(row_bytes, 4 * 4 * vocabulary))
