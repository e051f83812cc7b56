"""Running a reward model over many texts: batches of about one length, padded on the right and masked.

A score is that of the text alone, but for the last bits of a batched product, and so are its FLOPs; what a batch takes
beyond those of its texts is padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from flywheel.models.reward_model import RewardModel


def score_texts(
    reward_model: RewardModel,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    should_stop: Callable[[], None] = lambda: None,
) -> list[float]:
    """Scores in 0..1 of whole texts, given as token ids, by a model of the style `sequence`."""
    found = [0.0] * len(rows)
    for batch in _batches(rows, batch_size):
        should_stop()
        part = [rows[index] for index in batch]
        logits = _run(reward_model, part, _fill_for_pooling(reward_model, part)).logits.float()
        for index, score in zip(batch, _good(logits).tolist(), strict=True):
            found[index] = score
    return found


def score_positions(
    reward_model: RewardModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int,
    should_stop: Callable[[], None] = lambda: None,
) -> list[tuple[float, ...]]:
    """Scores in 0..1 at each position of each (token ids, positions) pair, by a model of style `token` or `words`."""
    import torch

    found: list[tuple[float, ...]] = [()] * len(rows)
    wanted = [index for index, (_, positions) in enumerate(rows) if positions]
    for numbers in _batches([rows[index][0] for index in wanted], batch_size):
        should_stop()
        batch = [wanted[number] for number in numbers]
        # Only those logits are made that are read.
        kept, narrow = sorted({position for index in batch for position in rows[index][1]}), _narrow(reward_model)
        settings = {"logits_to_keep": torch.tensor(kept, device=reward_model.model.device)} if narrow else {}
        logits = _run(reward_model, [rows[index][0] for index in batch], _fill(reward_model), **settings).logits
        place = {position: number for number, position in enumerate(kept)} if narrow else None
        for row, index in enumerate(batch):
            columns = [place[position] if place is not None else position for position in rows[index][1]]
            there = logits[row, columns].float()
            if reward_model.words is not None:
                there = there[:, [reward_model.words[1], reward_model.words[0]]]
            found[index] = tuple(_good(there).tolist())
    return found


def flops_of(
    reward_model: RewardModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> tuple[list[float], float]:
    """FLOPs of scoring each of some (token ids, positions) pairs, and those that their batches take on padding. Texts
    without a position are not run."""
    shape, narrow = reward_model.shape, _narrow(reward_model)
    useful = [
        shape.forward_sequence(len(ids), logits=len(set(positions)) if narrow else None) if positions else 0.0
        for ids, positions in rows
    ]
    wanted = [index for index, (_, positions) in enumerate(rows) if positions]
    executed = 0.0
    for numbers in _batches([rows[index][0] for index in wanted], batch_size):
        batch = [rows[wanted[number]] for number in numbers]
        longest = max(len(ids) for ids, _ in batch)
        kept = len({position for _, positions in batch for position in positions}) if narrow else None
        executed += len(batch) * shape.forward_sequence(longest, logits=kept)
    return useful, max(0.0, executed - sum(useful))


def _narrow(reward_model: RewardModel) -> bool:
    """Whether logits can be made at some positions alone: those of a causal LM are as wide as its vocabulary."""
    return "logits_to_keep" in inspect.signature(reward_model.model.forward).parameters


def _good(logits: Any) -> Any:
    """Probability of being right, from one logit or from those of wrong and right in the last dimension."""
    import torch

    if logits.shape[-1] == 1:
        return torch.sigmoid(logits[..., 0])
    # As a logistic function of the difference: a softmax of two.
    return torch.sigmoid(logits[..., 1] - logits[..., 0])


def _batches(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Positions in `rows`, longest first, in batches."""
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _run(reward_model: RewardModel, rows: Sequence[Sequence[int]], fill: int, **settings: Any) -> Any:
    import torch

    model = reward_model.model
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask, **settings)


def _fill(reward_model: RewardModel) -> int:
    """A token id that pads; masked, so any will do where the tokenizer has none."""
    padding = reward_model.tokenizer.pad_token_id
    return int(padding) if padding is not None else 0


def _fill_for_pooling(reward_model: RewardModel, rows: Sequence[Sequence[int]]) -> int:
    """What pads for a decoder that classifies a text at its last token which is not its config's padding id."""
    config = reward_model.model.config
    if not reward_model.names_padding:
        # One that no text holds: a text's own last token must not be taken for padding.
        held = {token for row in rows for token in row}
        config.pad_token_id = next(token for token in range(config.vocab_size) if token not in held)
    return int(config.pad_token_id)
