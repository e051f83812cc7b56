"""Keys and values that rows in flight have of their own, in buffers made before a call (drawing in `attention`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel.models.decoding import Rows
from flywheel.models.pool import TokenPool
from flywheel.models.trie import Slots, no_slots


class Memory:
    """Buffers for one call at a time, kept from call to call and from session to session: to get fresh pages from the
    system takes as long as some steps of a small model."""

    def __init__(self) -> None:
        self._flat: Any = None

    def take(self, elements: int, dtype: Any, device: Any) -> Any:
        """A flat tensor of any finite numbers (masked, they still must not spoil a sum); the one before is void."""
        import torch

        if self._flat is None or self._flat.numel() < elements:
            self._flat = torch.zeros(elements, dtype=dtype, device=device)
        return self._flat[:elements]


class Suffix:
    """`data` [layers, 2, columns, key-value heads, head size, rows]; in memory, rows or heads are innermost."""

    def __init__(self, layers: int, heads: int, size: int, by_rows: bool, memory: Memory, pool: TokenPool) -> None:
        self._layers, self._heads, self._size, self._by_rows = layers, heads, size, by_rows
        self._memory, self._pool = memory, pool
        self.columns = 0
        self.data: Any = None

    def allocate(self, columns: int, rows: int, dtype: Any, device: Any) -> None:
        """Room for a call's rows; what was in it is void."""
        flat = self._memory.take(self._layers * 2 * columns * self._heads * self._size * rows, dtype, device)
        self.columns = columns
        if self._by_rows:
            self.data = flat.view(self._layers, 2, columns, self._heads, self._size, rows)
        else:
            by_row = flat.view(self._layers, 2, rows, self._heads, columns, self._size)
            self.data = by_row.permute(0, 1, 4, 3, 5, 2)

    def load(self, slots: Sequence[Slots], row: int, end: int) -> None:
        """Copy what the pool keeps into rows from number `row` on, so that each ends before column `end`."""
        lengths = np.array([len(one) for one in slots], dtype=np.int64)
        if not lengths.any():
            return
        rows = np.repeat(np.arange(row, row + len(slots)), lengths)
        columns = end - (np.repeat(np.cumsum(lengths), lengths) - np.arange(len(rows)))
        places = self._numbers(columns), self._numbers(rows)
        self.data[:, :, places[0], :, :, places[1]] = self._pool.get(np.concatenate(slots))

    def save(self, rows: Rows, kept: Rows, ends: Rows) -> list[Slots]:
        """Keep the last `kept` tokens of some rows, which lie before the columns `ends`, in the pool."""
        total = int(kept.sum())
        if total == 0:
            return [no_slots() for _ in rows]
        cuts = np.cumsum(kept)
        columns = np.repeat(ends - cuts, kept) + np.arange(total)
        places = self._numbers(columns), self._numbers(np.repeat(rows, kept))
        return np.split(self._pool.put(self.data[:, :, places[0], :, :, places[1]]), cuts[:-1])

    def move(self, movers: Rows, holes: Rows, first: int, end: int) -> None:
        """Put rows into the places of others, their columns from `first` to before `end`."""
        window = self.data[:, :, first:end]
        window.index_copy_(5, self._numbers(holes), window.index_select(5, self._numbers(movers)))

    def shift(self, first: int, end: int, rows: int) -> None:
        """Move the columns from `first` to before `end` of the first rows to the front."""
        self.data[:, :, : end - first, :, :, :rows] = self.data[:, :, first:end, :, :, :rows].clone()

    def mask(self, starts: Rows) -> Any:
        """[columns, rows]: minus infinity before each row's first column; None where all begin at once."""
        import torch

        if (starts == starts[0]).all():
            return None
        before = torch.from_numpy(np.arange(self.columns)[:, None] < starts).to(self.data.device)
        return torch.zeros(before.shape, device=before.device).masked_fill_(before, -torch.inf)

    def _numbers(self, values: Rows) -> Any:
        import torch

        return torch.from_numpy(values).to(self.data.device)
