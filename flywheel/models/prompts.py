"""Prompts run once: their keys and values, and the logits after them.

A batch is padded on the right, where causal attention never looks, so that it takes no mask; what the padding leaves in
the cache is masked when rows attend to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.compute import DecoderShape
from flywheel.models.language import LanguageModel

_RAGGED = 1.25
_TOKENS = 1 << 14


@dataclass(frozen=True, slots=True)
class Seating:
    """Rows in the seats of their prompts, as `attention.Step` wants them."""

    prompts: Any
    prompt_mask: Any
    seats: int
    row_at: Any
    seat_of: Any

    @property
    def prompt_positions(self) -> int:
        """Query-key pairs that a layer and head computes over prompts, padding and empty seats included."""
        return int(self.prompts.shape[2] * self.seats * self.prompts.shape[4])


class PromptStore:
    """Keys and values of a session's prompts, [layers, 2, prompts, key-value heads, longest, head size]."""

    def __init__(self, language_model: LanguageModel, shape: DecoderShape, prompts: Sequence[Sequence[int]]) -> None:
        self._language_model = language_model
        self._shape = shape
        self._prompts = prompts
        self.lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self._ready = np.zeros(len(prompts), dtype=bool)
        self._data: Any = None
        self.logits: Any = None
        """[prompts, vocabulary], after each prompt."""
        self._held: tuple[npt.NDArray[np.int64], Any, Any] | None = None
        self.useful = 0.0
        self.executed = 0.0
        """FLOPs of prefill so far, without and with padding."""

    def run(self, wanted: npt.NDArray[np.int64], should_stop: Callable[[], None]) -> None:
        """Run those of the wanted prompts that were not run yet."""
        import torch

        missing = np.unique(wanted[~self._ready[wanted]])
        for chunk in self._chunks(missing[np.argsort(self.lengths[missing], kind="stable")]):
            should_stop()
            lengths = self.lengths[chunk]
            longest, fill = int(lengths.max()), self._language_model.fill_id
            ids = [[*self._prompts[number], *[fill] * (longest - len(self._prompts[number]))] for number in chunk]
            model = self._language_model.model
            numbers = torch.from_numpy(chunk).to(model.device)
            last = torch.from_numpy(lengths - 1).to(model.device)
            output = model(
                input_ids=torch.tensor(ids, device=model.device), use_cache=True, logits_to_keep=last.unsqueeze(1)
            )
            logits = output.logits[:, 0].float()
            layers = output.past_key_values.layers
            if self._data is None:
                _, heads, _, size = layers[0].keys.shape
                room = (len(layers), 2, len(self._prompts), heads, int(self.lengths.max()), size)
                self._data = torch.zeros(room, dtype=layers[0].keys.dtype, device=model.device)
                self.logits = torch.zeros((len(self._prompts), logits.shape[1]), device=model.device)
            self.logits[numbers] = logits
            for layer, cached in enumerate(layers):
                self._data[layer, 0, numbers, :, :longest] = cached.keys
                self._data[layer, 1, numbers, :, :longest] = cached.values
            self._ready[chunk] = True
            self.useful += sum(self._shape.forward_sequence(length, logits=1) for length in lengths.tolist())
            self.executed += len(chunk) * self._shape.forward_sequence(longest, logits=1)

    def _chunks(self, numbers: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Prompts in the order of their lengths, cut into batches of about one length each."""
        start = 0
        for end in range(1, len(numbers) + 1):
            if end < len(numbers):
                longest = int(self.lengths[numbers[end]])
                alike = longest <= _RAGGED * int(self.lengths[numbers[start]])
                if alike and (end + 1 - start) * longest <= _TOKENS:
                    continue
            yield numbers[start:end]
            start = end

    def seat(self, row_prompts: npt.NDArray[np.int64]) -> Seating:
        """Seats for rows of these prompts, [rows]."""
        import torch

        numbers, prompts, mask = self._hold(np.unique(row_prompts))
        group = np.searchsorted(numbers, row_prompts)
        counts = np.bincount(group, minlength=len(numbers))
        seats = int(counts.max())
        order = np.argsort(group, kind="stable")
        first = np.cumsum(counts) - counts
        seat_of = np.empty(len(group), dtype=np.int64)
        seat_of[order] = group[order] * seats + np.arange(len(group)) - first[group[order]]
        if len(group) == len(numbers) * seats and (seat_of == np.arange(len(group))).all():
            return Seating(prompts, mask, seats, None, None)
        row_at = np.zeros(len(numbers) * seats, dtype=np.int64)
        row_at[seat_of] = np.arange(len(group))
        device = prompts.device
        return Seating(prompts, mask, seats, torch.from_numpy(row_at).to(device), torch.from_numpy(seat_of).to(device))

    def _hold(self, active: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Any, Any]:
        """Prompt numbers, ascending, with `active` among them; their keys and values, and their mask. What was held
        serves while at least half of it is active: to copy takes longer than a few empty seats."""
        import torch

        held = self._held
        if held is not None and 2 * len(active) >= len(held[0]) and np.isin(active, held[0]).all():
            return held
        if 2 * len(active) >= len(self._prompts):
            numbers, prompts = np.arange(len(self._prompts)), self._data
        else:
            numbers = active
            prompts = self._data.index_select(2, torch.from_numpy(active).to(self._data.device))
        lengths = self.lengths[numbers]
        longest = int(lengths.max())
        mask = None
        if int(lengths.min()) < longest:
            beyond = torch.from_numpy(np.arange(longest) >= lengths[:, None]).to(prompts.device)
            mask = torch.zeros(beyond.shape, device=prompts.device).masked_fill_(beyond, -torch.inf)
        self._held = (numbers, prompts[:, :, :, :, :longest], mask)
        return self._held
