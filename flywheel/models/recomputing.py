"""Rows of answers by transformers' own attention and cache: for models that the cascade does not serve.

Sliding windows, caps, sinks and recurrent layers are theirs to handle. Nothing outlives a call: a prompt, or an answer
that is gone on from, is run again in every call, once for all the rows that set out from it, and counted so. Rows are
admitted only when none are in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flywheel.compute import DecoderShape
from flywheel.models.decoding import MEMORY_BYTES, Rows, affordable
from flywheel.models.language import LanguageModel
from flywheel.models.trie import Node, Slots, Start, no_slots


class RecomputingDecoder:
    """The methods of `decoding.Decoder`; what it keeps is nothing."""

    def __init__(
        self,
        language_model: LanguageModel,
        shape: DecoderShape,
        prompts: Sequence[Sequence[int]],
        memory_bytes: int = MEMORY_BYTES,
        capacity: int | None = None,
    ) -> None:
        self._language_model, self._model, self._shape = language_model, language_model.model, shape
        self._prompts = prompts
        self._memory_bytes, self._most = memory_bytes, capacity
        self._counted: set[int] = set()
        self.prefill, self.executed = 0.0, 0.0
        self._cache: Any = None
        self._mask: Any = None
        self._lengths: Rows = np.empty(0, dtype=np.int64)
        self._capacity = 0

    def begin(self, starts: Sequence[Start], limits: Sequence[int], should_stop: Callable[[], None]) -> None:
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        longest = max(len(self._prompts[start.prompt]) + start.depth for start in starts) + max(limits)
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        row_bytes = longest * config.num_hidden_layers * 2 * heads * size * self._model.dtype.itemsize
        rows = affordable(row_bytes, vocabulary, self._memory_bytes)
        self._capacity = min(rows, self._most or rows)
        self._clear()

    def _clear(self) -> None:
        self._cache = self._mask = None
        self._lengths = np.empty(0, dtype=np.int64)

    def room(self, waiting: Sequence[Start]) -> int:
        return 0 if len(self._lengths) else min(self._capacity, len(waiting))

    def admit(self, starts: Sequence[Start]) -> tuple[Any, list[float]]:
        import torch
        from transformers import DynamicCache

        places: dict[tuple[int, Node | None], int] = {}
        place_of = [places.setdefault((start.prompt, start.parent), len(places)) for start in starts]
        sequences = [
            [*self._prompts[prompt], *(parent.answer() if parent is not None else ())] for prompt, parent in places
        ]
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        longest, device = int(lengths.max()), self._model.device
        fill = self._language_model.fill_id
        ids = torch.tensor([[fill] * (longest - len(one)) + one for one in sequences], device=device)
        self._mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths.tolist()], device=device)
        positions = (self._mask.cumsum(dim=1) - 1).clamp_(min=0)
        # With the config the cache has the layers that the model wants, sliding windows among them.
        self._cache = DynamicCache(config=self._model.config)
        logits = self._forward(ids, positions)
        self.executed += len(sequences) * self._shape.forward_sequence(longest, logits=1)
        self._lengths = lengths
        which = np.array(place_of, dtype=np.int64)
        self._select(which)
        return logits[torch.from_numpy(which).to(device)], self._shares(starts, place_of)

    def _shares(self, starts: Sequence[Start], place_of: Sequence[int]) -> list[float]:
        """A prompt's first run is its prefill; whatever is run again, the rows that set out from it bear."""
        together = np.bincount(place_of)
        shares, news = [], set()
        for start, place in zip(starts, place_of, strict=True):
            if start.parent is None and start.prompt not in self._counted:
                news.add(start.prompt)
                shares.append(0.0)
            else:
                length = len(self._prompts[start.prompt]) + start.depth
                shares.append(self._shape.forward_sequence(length, logits=1) / int(together[place]))
        lengths = [len(self._prompts[prompt]) for prompt in sorted(news)]
        self.prefill += sum(self._shape.forward_sequence(length, logits=1) for length in lengths)
        self._counted |= news
        return shares

    def feed(self, tokens: Any) -> Any:
        import torch

        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        positions = torch.from_numpy(self._lengths).to(tokens.device).unsqueeze(1)
        logits = self._forward(tokens.unsqueeze(1), positions)
        self._lengths = self._lengths + 1
        self.executed += self._shape.forward(len(tokens), self._mask.shape[1])
        return logits

    def _forward(self, ids: Any, positions: Any) -> Any:
        """Logits after the last token of each row, [rows, vocabulary]."""
        padded = bool((self._lengths < self._mask.shape[1]).any()) if len(self._lengths) else not self._mask.all()
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask if padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def leave(self, rows: Rows, kept: Rows) -> tuple[list[Slots], Rows]:
        former = np.setdiff1d(np.arange(len(self._lengths)), rows)
        if len(former):
            self._select(former)
        else:
            self._clear()
        return [no_slots() for _ in rows], former

    def _select(self, rows: Rows) -> None:
        import torch

        chosen = torch.from_numpy(rows).to(self._mask.device)
        self._cache.reorder_cache(chosen)
        self._mask = self._mask[chosen]
        self._lengths = self._lengths[rows]

    def forget(self, slots: Slots) -> None:
        """Nothing was kept."""
