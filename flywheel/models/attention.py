"""Attention for decoding many answers of few prompts: a prompt's keys and values are held once and shared by its rows.

Cascade attention: scores over the prompt come from one product a prompt, all its rows together; scores over what a row
has of its own from one a row; one softmax runs over both. It is registered with transformers' attention interface, so
that a model's own code runs around it. Keys and values lie in buffers made beforehand, and nothing is concatenated.

    columns of the suffix buffers:      0   1   2   3   4 = column, written by this step
                              row 0             a   b   c
                              row 1         d   e   f   g      rows end at one column, whenever they began
                              row 2                     h
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NAME = "flywheel_cascade"
"""The attention's name with transformers."""

_NARROW = 32
"""Up to this head size the CPU is faster over rows than over heads: see `rows_innermost`."""

_CACHED = 1 << 18
"""Bytes that stay in a core's own cache from one operation to the next."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the attention of one decoding step needs, the same for all layers. R rows, each of one of A prompts, each
    with S seats for its rows; K key-value heads, D their size, T columns, L prompt positions."""

    prompts: Any
    """[layers, 2, A, K, L, D]: keys and values of the prompts."""
    prompt_mask: Any
    """[A, L]: 0, or minus infinity beyond a prompt's end; None where all are as long."""
    seats: int
    row_at: Any
    """[A * S]: the row in each seat, any row in an empty one; None where rows stand in the order of their seats."""
    seat_of: Any
    """[R]: each row's seat, prompt * S + place; None likewise."""
    suffix: Any
    """[layers, 2, T, K, D, R]: keys and values of what the rows have of their own; in memory, rows or heads are
    innermost."""
    suffix_mask: Any
    """[columns, R] of the window: 0, or minus infinity before a row's first column; None where all began at once."""
    first: int
    """The window of columns begins here ..."""
    column: int
    """... and ends here, with the one that is written now."""


def rows_innermost(device: str, bits: int, heads: int, key_value_heads: int, head_size: int) -> bool:
    """Whether suffix buffers should have rows innermost. Thousands of products of one short query with a few short
    keys are slow on a CPU each; by rows they are a few long vector operations."""
    return device == "cpu" and bits >= 32 and heads == key_value_heads and head_size <= _NARROW


class InterfaceStep:
    """A decoding step by a model's own code, its attention replaced through transformers' attention interface."""

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface

        # Without a mask function of the same name, transformers makes no mask.
        AttentionInterface.register(NAME, _attend)
        self._model = model

    def __call__(self, tokens: Any, positions: Any, step: Step) -> Any:
        """Logits after one token for each row: `tokens` and `positions` [rows]; returns [rows, vocabulary]."""
        config = self._model.config
        before = config._attn_implementation
        config._attn_implementation = NAME
        try:
            output = self._model(
                input_ids=tokens.unsqueeze(1), position_ids=positions.unsqueeze(1), use_cache=False, cascade=step
            )
        finally:
            config._attn_implementation = before
        return output.logits[:, -1]


def _attend(
    module: Any, query: Any, key: Any, value: Any, _mask: Any, scaling: float, cascade: Step, **kwargs: Any
) -> tuple[Any, None]:
    """`query` [R, heads, 1, D], `key` and `value` [R, K, 1, D]; returns [R, 1, heads, D]."""
    for name in ("softcap", "s_aux", "sliding_window", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"the cascade has no {name}; transformers' own attention has to serve this model")
    keys, values = cascade.suffix[module.layer_idx]
    keys[cascade.column].copy_(key[:, :, 0].permute(1, 2, 0))
    values[cascade.column].copy_(value[:, :, 0].permute(1, 2, 0))
    window = slice(cascade.first, cascade.column + 1)
    prompts, query = cascade.prompts[module.layer_idx], query[:, :, 0] * scaling
    if cascade.suffix.stride(5) == 1:
        turned = query.permute(1, 2, 0).contiguous()
        mixed = attend_by_rows(cascade, prompts, keys[window], values[window], turned).permute(2, 0, 1).contiguous()
    else:
        mixed = _attend_by_heads(cascade, prompts, keys[window], values[window], query)
    return mixed.unsqueeze(1), None


def attend_by_rows(step: Step, prompts: Any, keys: Any, values: Any, query: Any) -> Any:
    """Rows innermost: the suffix by vector operations over rows. `query` [K, D, R], scaled; returns the same."""
    import torch

    prompt_count, heads, length, size = prompts.shape[1:]
    columns = keys.shape[0]
    scores = query.new_empty(columns + length, heads, query.shape[2])
    own, shared = scores[:columns], scores[columns:]
    _scores(keys, query, own)
    if step.suffix_mask is not None:
        own += step.suffix_mask.unsqueeze(1)

    def seated(by_row: Any) -> Any:
        """[K, x, R] as [A * K, x, S]."""
        if step.row_at is not None:
            by_row = by_row.index_select(2, step.row_at)
        split = by_row.unflatten(2, (prompt_count, step.seats)).permute(2, 0, 1, 3)
        return split.reshape(prompt_count * heads, -1, step.seats)

    def unseated(seats: Any) -> Any:
        """[A * K, x, S] as [K, x, R]."""
        by_row = seats.view(prompt_count, heads, -1, step.seats).permute(1, 2, 0, 3).flatten(2)
        return by_row if step.seat_of is None else by_row.index_select(2, step.seat_of)

    by_prompt = torch.bmm(prompts[0].reshape(-1, length, size), seated(query))  # [A * K, L, S]
    if step.prompt_mask is not None:
        by_prompt.view(prompt_count, heads, length, -1).add_(step.prompt_mask[:, None, :, None])
    shared.copy_(unseated(by_prompt).transpose(0, 1))
    weights = torch.softmax(scores, dim=0)
    mixed = _mixture(values, weights[:columns])  # [K, D, R]
    by_prompt = seated(weights[columns:].transpose(0, 1))
    mixed += unseated(torch.bmm(prompts[1].reshape(-1, length, size).transpose(1, 2), by_prompt))
    return mixed


def _scores(keys: Any, query: Any, out: Any) -> None:
    """`keys` [T, K, D, R] times `query` [K, D, R], summed over D into `out` [T, K, R]."""
    import torch

    together = _columns_together(query)
    products = query.new_empty((min(together, len(keys)), *query.shape))
    for part, scores in zip(keys.split(together), out.split(together), strict=True):
        torch.sum(torch.mul(part, query, out=products[: len(part)]), dim=2, out=scores)


def _mixture(values: Any, weights: Any) -> Any:
    """`values` [T, K, D, R] times `weights` [T, K, R], summed over T."""
    mixed = values.new_zeros(values.shape[1:])
    together = _columns_together(mixed)
    for part, weight in zip(values.split(together), weights.split(together), strict=True):
        if together == 1:
            mixed.addcmul_(part[0], weight[0].unsqueeze(1))
        else:
            mixed += (part * weight.unsqueeze(2)).sum(dim=0)
    return mixed


def _columns_together(column: Any) -> int:
    """Columns whose products fit into the processor's cache together."""
    return max(1, _CACHED // int(column.numel() * column.itemsize))


def _attend_by_heads(step: Step, prompts: Any, keys: Any, values: Any, query: Any) -> Any:
    """Heads innermost: a product a row and key-value head. `query` [R, heads, D], scaled; returns the same."""
    import torch

    prompt_count, heads, length, size = prompts.shape[1:]
    rows, group = query.shape[0], query.shape[1] // heads
    query = query.reshape(rows, heads, group, size)
    # Scores and their softmax in 32 bits at least, as transformers' own attention has them.
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.new_empty((rows, heads, group, length + len(keys)), dtype=wide)
    shared, own = scores[..., :length], scores[..., length:]

    def seated(by_row: Any) -> Any:
        """[R, K, G, x] as [A * K, S * G, x]."""
        if step.row_at is not None:
            by_row = by_row.index_select(0, step.row_at)
        split = by_row.unflatten(0, (prompt_count, step.seats)).transpose(1, 2)
        return split.reshape(prompt_count * heads, step.seats * group, -1)

    def unseated(seats: Any) -> Any:
        """[A * K, S * G, x] as [R, K, G, x]."""
        by_row = seats.view(prompt_count, heads, step.seats, group, -1).transpose(1, 2).flatten(0, 1)
        return by_row if step.seat_of is None else by_row.index_select(0, step.seat_of)

    prompts = prompts.reshape(2, prompt_count * heads, length, size)
    by_prompt = torch.bmm(seated(query), prompts[0].transpose(1, 2))
    shared.copy_(unseated(by_prompt))
    if step.prompt_mask is not None:
        of_row = step.prompt_mask.repeat_interleave(step.seats, dim=0)
        shared += (of_row if step.seat_of is None else of_row[step.seat_of])[:, None, None, :]
    keys = keys.permute(3, 1, 0, 2).flatten(0, 1)  # [R * K, T, D], a view: that is how they lie
    values = values.permute(3, 1, 0, 2).flatten(0, 1)
    own.copy_(torch.bmm(query.view(rows * heads, group, size), keys.transpose(1, 2)).view(own.shape))
    if step.suffix_mask is not None:
        own += step.suffix_mask.t()[:, None, None, :]
    weights = torch.softmax(scores, dim=-1).to(values.dtype)
    mixed = torch.bmm(weights[..., length:].flatten(0, 1), values).view(rows, heads, group, size)
    mixed = mixed + unseated(torch.bmm(seated(weights[..., :length]), prompts[1]))
    return mixed.flatten(1, 2)
