"""Labels as a learner sees them: token ids, and which of them are to be learned.

Held as flat arrays (4 bytes a token), so that ten million short labels take some hundred megabytes, not tens of
gigabytes of Python objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

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

    def save(self, file: Path) -> None:
        """Write them to an .npz file, from which `load` reads them in another process."""
        np.savez(file, ids=self._ids, starts=self._starts, prompts=self._prompts, weights=self._weights)

    @classmethod
    def load(cls, file: Path) -> Self:
        """What `save` wrote."""
        examples = cls([])
        with np.load(file, allow_pickle=False) as arrays:
            examples._ids, examples._starts = arrays["ids"], arrays["starts"]
            examples._prompts, examples._weights = arrays["prompts"], arrays["weights"]
        examples.lengths = np.diff(examples._starts)
        return examples

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self._ids[self._starts[index] : self._starts[index + 1]]
        return {"ids": ids, "prompt": int(self._prompts[index]), "weight": float(self._weights[index])}


class WithBlanks:
    """Examples and, past their end, blanks that teach nothing (weight 0).

    Blanks fill up an epoch's last batch where batches are shared by several processes: each then has as many steps as
    the others, and no example is learned twice.
    """

    def __init__(self, examples: Examples, count: int) -> None:
        self.count = count
        self._examples = examples
        self._blank = examples[int(np.argmin(examples.lengths))] | {"weight": 0.0}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index] if index < len(self._examples) else self._blank


class EpochOrder:
    """The order of examples in each epoch: a permutation that is a function of the seed and the epoch alone.

    The data loader calls `set_epoch`; a resumed run therefore sees the very batches that the killed one would have.
    Up to `padded_count` numbers follow past the examples' end, those of `WithBlanks`.
    """

    def __init__(self, count: int, seed: int, padded_count: int | None = None) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0
        self.padded_count = count if padded_count is None else padded_count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        return generator(self.seed, "epoch", epoch).permutation(self.count)

    def __iter__(self) -> Iterator[int]:
        return iter([*self.order(self.epoch).tolist(), *range(self.count, self.padded_count)])

    def __len__(self) -> int:
        return self.padded_count


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
    lengths: npt.NDArray[np.int64],
    order: EpochOrder,
    epochs: float,
    batch_size: int,
    shape: DecoderShape,
    frozen_parameters: int = 0,
) -> tuple[float, float, int]:
    """(useful, padding, tokens) of so many epochs in this order; a last part epoch counts its batches.

    `lengths` has shape (examples,) or, where an example is several sequences of one batch, (examples, sequences).
    `frozen_parameters` are those of the shape's matrices that are not learned. Backward multiplies each matrix twice
    (Kaplan et al. 2020, section 2.1): by its output's gradient for the input's, and that with the input for its own. A
    frozen one needs the former only, 2 FLOPs a parameter and token less. Known error: below the lowest matrix that is
    learned nothing at all is propagated, which is not taken off.
    """
    price = {
        int(length): shape.training_sequence(int(length)) - 2.0 * frozen_parameters * int(length)
        for length in np.unique(lengths)
    }
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
            useful += sum(price[int(length)] for length in batch.ravel())
            executed += batch.size * price[int(batch.max())]
            tokens += int(batch.sum())
            steps_left -= 1
        epoch += 1
    return useful, executed - useful, tokens


def looking_flops(lengths: npt.NDArray[np.int64], batch_size: int, shape: DecoderShape) -> tuple[float, float]:
    """(useful, padding) of one forward pass over sequences in their order, in batches as long as their longest."""
    useful = sum(shape.forward_sequence(int(length)) for length in lengths)
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    executed = sum(len(batch) * shape.forward_sequence(int(batch.max())) for batch in batches)
    return useful, max(0.0, executed - useful)
