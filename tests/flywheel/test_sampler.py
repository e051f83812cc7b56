"""The sampler against `generate`, against one full forward pass, and against the probabilities it should follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from flywheel.errors import Interrupted
from flywheel.models import sampler
from flywheel.models.language import LanguageModel
from flywheel.models.sampler import Sample, TextSampler
from flywheel.seeds import stream

TEXTS = ["3 5 8 -> 19\n", "1 1 1 -> 3\n", "9 9 2 -> 7\n8 * 3 = 24\n", "4 ->", "2 6 7 -> 40\n7 * 6 = 42\n42 - 2 ="]


@pytest.fixture
def sharp(tiny: LanguageModel) -> LanguageModel:
    """Random weights made large, so that answers are neither uniform nor all alike, in float64: no ties by rounding."""
    import torch

    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.mul_(6.0 if parameter.dim() > 1 else 1.0)
    tiny.model.double()
    return tiny


def prompts_of(model: LanguageModel) -> list[list[int]]:
    return [model.encode_prompt(text) for text in TEXTS]


def keys_for(rows: int, samples: int) -> npt.NDArray[np.uint64]:
    return np.array([[stream(0, row, index) for index in range(samples)] for row in range(rows)], dtype=np.uint64)


def full_pass(model: LanguageModel, prompt: list[int], row: Sample, temperature: float) -> Any:
    """Log-probabilities at each sampled position, [tokens, vocabulary], by one pass without padding or cache."""
    import torch

    ids = torch.tensor([[*prompt, *row.token_ids]])
    with torch.no_grad():
        logits = model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def generated(model: LanguageModel, prompts: list[list[int]], limit: int) -> list[list[int]]:
    import torch

    longest = max(map(len, prompts))
    fill = model.fill_id
    out = model.model.generate(
        input_ids=torch.tensor([[fill] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=limit,
        do_sample=False,
    )
    end = model.tokenizer.eos_token_id
    rows = [row[longest:].tolist() for row in out]
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def test_greedy_is_what_generate_gives_on_ragged_prompts(sharp: LanguageModel) -> None:
    prompts = prompts_of(sharp)
    found, _ = sampler.sample(sharp, prompts, keys_for(len(prompts), 1), temperature=None, max_new_tokens=24)
    expected = generated(sharp, prompts, 24)
    assert [list(row.token_ids) for (row,) in found] == expected
    assert len({tuple(row) for row in expected}) > 2, "the answers differ, so the comparison says something"
    alone = [sampler.sample(sharp, [prompt], keys_for(1, 1), temperature=None, max_new_tokens=24) for prompt in prompts]
    assert [one[0][0][0].token_ids for one in alone] == [row.token_ids for (row,) in found]


def test_greedy_stops_at_the_end_token_as_generate_does(sharp: LanguageModel) -> None:
    """Each token that greedy decoding would give is made the end token in turn."""
    prompts = prompts_of(sharp)
    for end in {token for row in generated(sharp, prompts, 8) for token in row}:
        sharp.tokenizer.eos_token = sharp.tokenizer.convert_ids_to_tokens(end)
        sharp.model.generation_config.eos_token_id = end
        found, _ = sampler.sample(sharp, prompts, keys_for(len(prompts), 1), temperature=None, max_new_tokens=8)
        assert [list(row.token_ids) for (row,) in found] == generated(sharp, prompts, 8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_tokens_follow_the_softmax(sharp: LanguageModel, temperature: float) -> None:
    """Chi-square over tokens expected five times at least; fails by chance once in 10 000 (the keys are fixed)."""
    prompts = prompts_of(sharp)[:2]
    count = 4000
    found, _ = sampler.sample(sharp, prompts, keys_for(2, count), temperature=temperature, max_new_tokens=1)
    for prompt, rows in zip(prompts, found, strict=True):
        expected = full_pass(sharp, prompt, rows[0], temperature)[0].exp().numpy() * count
        seen = np.bincount([row.token_ids[0] for row in rows], minlength=len(expected)).astype(float)
        often = expected >= 5
        assert often.sum() >= 2
        cells = [*zip(seen[often], expected[often], strict=True), (seen[~often].sum(), expected[~often].sum())]
        if cells[-1][1] < 1:
            cells.pop()
        seen_cells, expected_cells = np.array(cells).T
        expected_cells *= seen_cells.sum() / expected_cells.sum()
        assert stats.chisquare(seen_cells, expected_cells).pvalue > 1e-4


def test_later_tokens_follow_the_softmax_of_what_precedes(sharp: LanguageModel) -> None:
    """By the probability integral transform: where the drawn token lies in its distribution is uniform."""
    prompts = prompts_of(sharp)
    found, _ = sampler.sample(sharp, prompts, keys_for(len(prompts), 60), temperature=1.0, max_new_tokens=6)
    random, places = np.random.default_rng(0), []
    for prompt, rows in zip(prompts, found, strict=True):
        for row in rows:
            cumulative = full_pass(sharp, prompt, row, 1.0).exp().cumsum(dim=-1)
            for position, token in enumerate(row.token_ids):
                low = float(cumulative[position, token - 1]) if token else 0.0
                places.append(random.uniform(low, float(cumulative[position, token])))
    assert len(places) > 1000
    assert stats.kstest(places, "uniform").pvalue > 1e-4


def test_samples_do_not_depend_on_their_number_or_neighbours(sharp: LanguageModel) -> None:
    """The first 4 of 16 are the 4 of N = 4, though rows leave the batch at other times; in float64 exactly."""
    prompts = prompts_of(sharp)
    sharp.model.generation_config.eos_token_id = list(range(12))  # many ends, so that rows leave early
    keys = keys_for(len(prompts), 16)
    many, _ = sampler.sample(sharp, prompts, keys, temperature=1.0, max_new_tokens=12)
    few, _ = sampler.sample(sharp, prompts, keys[:, :4], temperature=1.0, max_new_tokens=12)
    assert {len(row.token_ids) for rows in many for row in rows} >= {1, 2, 12}
    for one, other in zip(many, few, strict=True):
        assert [row.token_ids for row in one[:4]] == [row.token_ids for row in other]
        assert [row.stop_reason for row in one[:4]] == [row.stop_reason for row in other]
        assert [row.flops for row in one[:4]] == [row.flops for row in other]
    turned, _ = sampler.sample(sharp, prompts[::-1], keys[::-1, 8:], temperature=1.0, max_new_tokens=12)
    assert [[row.token_ids for row in rows] for rows in turned[::-1]] == [
        [row.token_ids for row in rows[8:]] for rows in many
    ]


def test_the_same_call_gives_the_same_bits(tiny: LanguageModel) -> None:
    prompts, keys = prompts_of(tiny), keys_for(len(TEXTS), 8)
    once = sampler.sample(tiny, prompts, keys, temperature=1.0, max_new_tokens=8)
    assert once == sampler.sample(tiny, prompts, keys, temperature=1.0, max_new_tokens=8)
    other = sampler.sample(tiny, prompts, keys + np.uint64(1), temperature=1.0, max_new_tokens=8)
    assert once[0] != other[0]


@pytest.mark.parametrize("temperature", [0.7, 1.0, None])
def test_stop_reasons_and_log_probabilities(sharp: LanguageModel, temperature: float | None) -> None:
    prompts = prompts_of(sharp)
    sharp.model.generation_config.eos_token_id = list(range(8))
    samples = 12 if temperature else 1
    keys = keys_for(len(prompts), samples)
    found, _ = sampler.sample(sharp, prompts, keys, temperature=temperature, max_new_tokens=6)
    reasons = set()
    for prompt, rows in zip(prompts, found, strict=True):
        for row in rows:
            ends = [token in sharp.end_ids for token in row.token_ids]
            assert not any(ends[:-1]), "nothing comes after an end token"
            assert row.stop_reason == ("eos" if ends[-1] else "length")
            assert row.stop_reason == "eos" or len(row.token_ids) == 6
            reasons.add(row.stop_reason)
            by_position = full_pass(sharp, prompt, row, temperature or 1.0)
            expected = sum(float(by_position[i, token]) for i, token in enumerate(row.token_ids))
            assert row.log_probability == pytest.approx(expected, abs=1e-4)
    assert reasons == {"eos", "length"} or temperature is None


def by_hand(model: LanguageModel, positions: range) -> float:
    """FLOPs of feeding these positions, one by one."""
    shape = model.shape
    return sum(
        2.0 * shape.matrix_parameters + 4.0 * shape.layers * shape.attention_width * (position + 1)
        for position in positions
    )


def test_the_cost_is_the_sum_of_the_positions(sharp: LanguageModel) -> None:
    prompts = prompts_of(sharp)
    sharp.model.generation_config.eos_token_id = list(range(8))
    found, cost = sampler.sample(sharp, prompts, keys_for(5, 12), temperature=1.0, max_new_tokens=6)
    policy = tokens = 0.0
    for prompt, rows in zip(prompts, found, strict=True):
        for row in rows:
            # The prompt was run before; the last token is never fed back.
            own = by_hand(sharp, range(len(prompt), len(prompt) + len(row.token_ids) - 1))
            assert row.flops == pytest.approx(own)
            policy, tokens = policy + own, tokens + len(row.token_ids)
    assert (cost.policy, cost.tokens) == (pytest.approx(policy), tokens)
    assert cost.prefill == pytest.approx(sum(by_hand(sharp, range(len(prompt))) for prompt in prompts))
    assert (cost.reward, cost.training) == (0.0, 0.0)
    assert cost.padding > 0
    longest = max(map(len, prompts))
    assert cost.executed < 5 * by_hand(sharp, range(longest)) + 60 * by_hand(sharp, range(longest, longest + 5))


def test_nothing_is_wasted_where_nothing_is_ragged(sharp: LanguageModel) -> None:
    prompts = [sharp.encode_prompt("1 2 3 -> 6\n"), sharp.encode_prompt("4 5 6 -> 9\n")]
    found, cost = sampler.sample(sharp, prompts, keys_for(2, 3), temperature=0.01, max_new_tokens=5)
    assert {row.stop_reason for rows in found for row in rows} == {"length"}
    assert cost.padding == pytest.approx(0.0, abs=1e-6 * cost.useful)


def test_one_token_and_one_prompt(tiny: LanguageModel) -> None:
    found, cost = sampler.sample(tiny, [[5]], keys_for(1, 1), temperature=1.0, max_new_tokens=1)
    assert len(found[0][0].token_ids) == 1
    assert (cost.policy, cost.tokens) == (0.0, 1)


def test_a_draw_that_rounds_to_one_takes_no_impossible_token() -> None:
    import torch

    logits = torch.tensor([[0.0, 1.0, -torch.inf], [-torch.inf, 0.0, 0.0]])
    top = torch.tensor([1 - 2.0**-53] * 2, dtype=torch.float64)
    chosen, log_probability = sampler._choose(logits, 1.0, top)
    assert chosen.tolist() == [1, 2]
    assert torch.isfinite(log_probability).all()
    bottom = torch.zeros(2, dtype=torch.float64)
    assert sampler._choose(logits, 1.0, bottom)[0].tolist() == [0, 1]


def test_it_stops_when_asked(tiny: LanguageModel) -> None:
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        sampler.sample(tiny, prompts_of(tiny), keys_for(5, 2), temperature=1.0, max_new_tokens=50, should_stop=stop)
    assert len(calls) == 3


def test_text_sampler_is_the_model_as_searchers_see_it(tiny: LanguageModel) -> None:
    text = TextSampler(tiny)
    assert (text.snapshot, text.tokenizer_id) == (tiny.snapshot, tiny.tokenizer_id)
    ids = text.encode_prompt(TEXTS[0])
    assert text.decode(ids) == TEXTS[0]
    assert text.prompt_flops(len(ids)) == pytest.approx(by_hand(tiny, range(len(ids))))
