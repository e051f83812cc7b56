"""Sampling many answers to many prompts at once.

Prompts of a batch unit are left-padded and run once; their keys and values are then repeated for the N samples of each.
Rows that have ended leave the batch as soon as an eighth of it has. Each token is drawn by inverting the cumulative
distribution at one counter-based uniform number, keyed by the row and the position: what a row draws never depends on
its neighbours, on the order of work, or on a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.compute import Cost
from flywheel.models.language import LanguageModel
from flywheel.records import StopReason
from flywheel.seeds import uniform

_SHRINK_AT = 7 / 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled continuation. `token_ids` ends with the end token if `stop_reason` is `eos`."""

    token_ids: tuple[int, ...]
    stop_reason: StopReason
    log_probability: float
    """Sum over tokens, in nats, under the distribution sampled from."""
    flops: float
    """Forward work of this row alone; the prompt is shared and counted in the unit's cost."""


class TextSampler:
    """A language model as searchers see it."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._language_model = language_model
        self.snapshot = language_model.snapshot
        self.tokenizer_id = language_model.tokenizer_id

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of running a prompt once."""
        return self._language_model.shape.forward_sequence(tokens)

    def encode_prompt(self, text: str) -> list[int]:
        return self._language_model.encode_prompt(text)

    def encode_answer(self, text: str) -> list[int]:
        return self._language_model.encode_answer(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._language_model.decode(ids)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: npt.NDArray[np.uint64],
        *,
        temperature: float | None,
        max_new_tokens: int,
        should_stop: Callable[[], None],
    ) -> tuple[list[list[Sample]], Cost]:
        return sample(
            self._language_model,
            prompts,
            keys,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            should_stop=should_stop,
        )


def sample(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    keys: npt.NDArray[np.uint64],
    *,
    temperature: float | None,
    max_new_tokens: int,
    should_stop: Callable[[], None] = lambda: None,
) -> tuple[list[list[Sample]], Cost]:
    """Sample continuations of `prompts` (token ids). `keys` is [prompts, samples], one key a row.

    A temperature of None takes the likeliest token (greedy). `should_stop` is called each step and may raise to end the
    work. Returns samples in the shape of `keys`, and the cost of the whole unit.
    """
    import torch
    from transformers import DynamicCache

    model, shape = language_model.model, language_model.shape
    device = model.device
    count, samples = keys.shape
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    input_ids = torch.tensor([[language_model.fill_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    ragged = min(lengths) < longest
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=device) if ragged else None
    ends = torch.tensor(sorted(language_model.end_ids), device=device)

    with torch.inference_mode():
        # With the config the cache has the layers that the model wants, sliding windows among them.
        cache = DynamicCache(config=model.config)
        logits = _forward(model, input_ids, mask, None, cache)
        cache.batch_repeat_interleave(samples)
        logits = logits.repeat_interleave(samples, dim=0)
        mask = mask.repeat_interleave(samples, dim=0) if mask is not None else None
        rows = torch.arange(count * samples, device=device)
        row_lengths = torch.tensor(lengths, device=device).repeat_interleave(samples)
        row_keys = keys.reshape(-1)
        tokens = torch.zeros(count * samples, max_new_tokens, dtype=torch.long)
        taken = torch.zeros(count * samples, dtype=torch.long)
        ended = torch.zeros(count * samples, dtype=torch.bool)
        log_probability = torch.zeros(count * samples, dtype=torch.float64)
        executed = count * shape.forward_sequence(longest)
        alive = torch.ones(count * samples, dtype=torch.bool, device=device)
        for position in range(max_new_tokens):
            should_stop()
            draw = None
            if temperature is not None:
                draw = torch.from_numpy(uniform(row_keys, position)).to(device)
            chosen, chosen_log = _choose(logits, temperature, draw)
            home = rows[alive].cpu()
            tokens[home, position] = chosen[alive].cpu()
            log_probability[home] += chosen_log[alive].double().cpu()
            taken[home] += 1
            finished = alive & torch.isin(chosen, ends)
            ended[rows[finished].cpu()] = True
            alive = alive & ~finished
            left = int(alive.sum())
            if left == 0 or position + 1 == max_new_tokens:
                break
            if left <= _SHRINK_AT * len(rows):
                keep = alive.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                rows, chosen, row_keys, alive = rows[keep], chosen[keep], row_keys[keep.cpu().numpy()], alive[keep]
                row_lengths = row_lengths[keep]
                mask = mask[keep] if mask is not None else None
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = (row_lengths + position).unsqueeze(1)
            logits = _forward(model, chosen.unsqueeze(1), mask, positions, cache)
            executed += shape.forward(len(rows), longest + position + 1)

    return _collect(count, samples, lengths, tokens, taken, ended, log_probability, executed, language_model)


def _forward(model: Any, input_ids: Any, mask: Any, positions: Any, cache: Any) -> Any:
    """Logits after the last token of each row, [rows, vocabulary]."""
    if positions is None and mask is not None:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def _choose(logits: Any, temperature: float | None, draw: Any) -> tuple[Any, Any]:
    """Token and its log-probability for each row."""
    import torch

    if temperature is None:
        log_probabilities = torch.log_softmax(logits, dim=-1)
        chosen = logits.argmax(dim=-1)
    else:
        log_probabilities = torch.log_softmax(logits / temperature, dim=-1)
        cumulative = log_probabilities.exp().cumsum(dim=-1)
        # Scaled by the last entry, since rounding leaves the sum a little off 1. A draw that rounds up to 1 would pass
        # the end and pick the last token, however unlikely it is.
        below_one = 1.0 - torch.finfo(cumulative.dtype).eps / 2
        threshold = draw.to(cumulative.dtype).clamp(max=below_one) * cumulative[:, -1]
        chosen = torch.searchsorted(cumulative, threshold.unsqueeze(1), right=True).squeeze(1)
        chosen = chosen.clamp(max=logits.shape[-1] - 1)
    return chosen, log_probabilities.gather(1, chosen.unsqueeze(1)).squeeze(1)


def _collect(
    count: int,
    samples: int,
    lengths: list[int],
    tokens: Any,
    taken: Any,
    ended: Any,
    log_probability: Any,
    executed: float,
    language_model: LanguageModel,
) -> tuple[list[list[Sample]], Cost]:
    shape = language_model.shape
    flat = []
    for row in range(count * samples):
        length, used = lengths[row // samples], int(taken[row])
        flat.append(
            Sample(
                token_ids=tuple(tokens[row, :used].tolist()),
                stop_reason="eos" if bool(ended[row]) else "length",
                log_probability=float(log_probability[row]),
                # The last token is drawn but never fed back.
                flops=shape.forward_sequence(length + used - 1, start=length),
            )
        )
    policy = sum(row.flops for row in flat)
    prefill = sum(shape.forward_sequence(length) for length in lengths)
    cost = Cost(
        policy=policy,
        prefill=prefill,
        padding=max(0.0, executed - policy - prefill),
        tokens=sum(len(row.token_ids) for row in flat),
    )
    return [flat[start : start + samples] for start in range(0, count * samples, samples)], cost
