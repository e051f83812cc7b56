"""Keys and values of the tokens that searches may go on from, a slot a token, given back when their search is over."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel.models.trie import Slots

_LEAST = 256


class TokenPool:
    """A tensor [slots, *shape] that doubles when it is full."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, device: Any) -> None:
        import torch

        self._data = torch.empty((0, *shape), dtype=dtype, device=device)
        self._free: Slots = np.empty(0, dtype=np.int64)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return len(self._data) - len(self._free)

    def put(self, data: Any) -> Slots:
        """Keep `data` [tokens, *shape]; returns where."""
        import torch

        count, held = len(data), len(self._data)
        if count > len(self._free):
            grown = max(_LEAST, 2 * held, self.taken + count)
            more = torch.empty((grown, *self._data.shape[1:]), dtype=self._data.dtype, device=self._data.device)
            more[:held] = self._data
            self._data = more
            # Taken from the end: the lowest first.
            self._free = np.concatenate([np.arange(grown - 1, held - 1, -1), self._free])
        slots = self._free[len(self._free) - count :][::-1].copy()
        self._free = self._free[: len(self._free) - count]
        self._data[torch.from_numpy(slots).to(self._data.device)] = data
        return slots

    def get(self, slots: Slots) -> Any:
        """What is kept there, [tokens, *shape]."""
        import torch

        return self._data[torch.from_numpy(slots).to(self._data.device)]

    def free(self, slots: Slots) -> None:
        """These may be used anew."""
        self._free = np.concatenate([self._free, slots[::-1]])
