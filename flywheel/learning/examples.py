"""Labels as a learner sees them: token ids, and which of them are to be learned.

Held as flat arrays (4 bytes a token), so that ten million short labels take some hundred megabytes, not tens of
gigabytes of Python objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.compute import DecoderShape
from flywheel.seeds import generator

IGNORED = -100


class Examples:
    """(prompt ids, completion ids, weight) triples, indexable; a completion ends with its end token."""

    def __init__(self, triples: Iterable[tuple[Sequence[int], Sequence[int], float]]) -> None:
        ids: list[npt.NDArray[np.int32]] = []
        starts, prompts, weights = [0], [], []
        for prompt, completion, weight in triples:
            ids.append(np.array([*prompt, *completion], dtype=np.int32))
            starts.append(starts[-1] + len(prompt) + len(completion))
            prompts.append(len(prompt))
            weights.append(weight)
        self._ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        self._starts = np.array(starts, dtype=np.int64)
        self._prompts = np.array(prompts, dtype=np.int32)
        self._weights = np.array(weights, dtype=np.float32)
        self.lengths: npt.NDArray[np.int64] = np.diff(self._starts)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self._ids[self._starts[index] : self._starts[index + 1]]
        return {"ids": ids, "prompt": int(self._prompts[index]), "weight": float(self._weights[index])}


class EpochOrder:
    """The order of examples in each epoch: a permutation that is a function of the seed and the epoch alone.

    The data loader calls `set_epoch`; a resumed run therefore sees the very batches that the killed one would have.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        return generator(self.seed, "epoch", epoch).permutation(self.count)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def __len__(self) -> int:
        return self.count


def collate(rows: list[dict[str, Any]], fill: int) -> dict[str, Any]:
    """A right-padded batch: input_ids, attention_mask, labels (IGNORED on prompt and padding), weights, [rows, ...]."""
    import torch

    longest = max(len(row["ids"]) for row in rows)
    input_ids = np.full((len(rows), longest), fill, dtype=np.int64)
    labels = np.full((len(rows), longest), IGNORED, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for position, row in enumerate(rows):
        length, prompt = len(row["ids"]), row["prompt"]
        input_ids[position, :length] = row["ids"]
        labels[position, prompt:length] = row["ids"][prompt:]
        mask[position, :length] = 1
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "weights": torch.tensor([row["weight"] for row in rows]),
    }


def training_flops(
    lengths: npt.NDArray[np.int64], order: EpochOrder, epochs: float, batch_size: int, shape: DecoderShape
) -> tuple[float, float, int]:
    """(useful, padding, tokens) of so many epochs in this order; a last part epoch counts its batches."""
    price = {int(length): shape.training_sequence(int(length)) for length in np.unique(lengths)}
    useful = executed = 0.0
    tokens = 0
    steps_left = round(epochs * -(-len(lengths) // batch_size))
    epoch = 0
    while steps_left > 0:
        ordered = lengths[order.order(epoch)]
        for start in range(0, len(ordered), batch_size):
            if steps_left == 0:
                break
            batch = ordered[start : start + batch_size]
            useful += sum(price[int(length)] for length in batch)
            executed += len(batch) * price[int(batch.max())]
            tokens += int(batch.sum())
            steps_left -= 1
        epoch += 1
    return useful, executed - useful, tokens
