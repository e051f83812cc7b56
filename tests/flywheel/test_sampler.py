"""The sampler against `generate`, against one full forward pass, and against the probabilities it should follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flywheel.errors import Interrupted, ModelError
from flywheel.models import drawing
from flywheel.models.language import LanguageModel
from flywheel.models.protocols import Extension, Sampling, SegmentStop
from flywheel.models.sampler import TextSampler
from flywheel.search.protocols import never_stop
from flywheel.seeds import stream

PLAIN = Sampling(1.0)
TEXTS = ["3 5 8 -> 19\n", "1 1 1 -> 3\n", "9 9 2 -> 7\n8 * 3 = 24\n", "4 ->", "2 6 7 -> 40\n7 * 6 = 42\n42 - 2 ="]


@dataclass(frozen=True)
class Sample:
    token_ids: tuple[int, ...]
    stop_reason: SegmentStop
    log_probability: float | None
    flops: float


def sample(
    model: LanguageModel, prompts: Sequence[Sequence[int]], count: int, limit: int, sampling: Sampling = PLAIN
) -> list[list[Sample]]:
    """`count` answers a prompt."""
    session = TextSampler(model).open(prompts, [""] * len(prompts), "\n")
    requests = [
        Extension(number, None, stream(0, number, index), sampling, limit)
        for number in range(len(prompts))
        for index in range(count)
    ]
    found = [
        Sample(session.token_ids(one.node), one.stop_reason, one.log_probability, one.flops)
        for one in session.extend(requests, never_stop)
    ]
    return [found[start : start + count] for start in range(0, len(found), count)]


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


def full_pass(model: LanguageModel, prompt: list[int], row: Sample, temperature: float) -> Any:
    """Log-probabilities at each sampled position, [tokens, vocabulary], by one pass without padding or cache."""
    import torch

    ids = torch.tensor([[*prompt, *row.token_ids]])
    with torch.no_grad():
        logits = model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def generated(model: LanguageModel, prompts: list[list[int]], limit: int, **settings: Any) -> list[list[int]]:
    import torch

    longest = max(map(len, prompts))
    fill = model.fill_id
    out = model.model.generate(
        input_ids=torch.tensor([[fill] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=limit,
        **(settings or {"do_sample": False}),
    )
    end = model.tokenizer.eos_token_id
    rows = [row[longest:].tolist() for row in out]
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def test_greedy_is_what_generate_gives_on_ragged_prompts(sharp: LanguageModel) -> None:
    prompts = prompts_of(sharp)
    found = sample(sharp, prompts, 1, 24, Sampling(None))
    expected = generated(sharp, prompts, 24)
    assert [list(row.token_ids) for (row,) in found] == expected
    assert len({tuple(row) for row in expected}) > 2, "the answers differ, so the comparison says something"
    alone = [sample(sharp, [prompt], 1, 24, Sampling(None)) for prompt in prompts]
    assert [one[0][0].token_ids for one in alone] == [row.token_ids for (row,) in found]


def test_greedy_stops_at_the_end_token_as_generate_does(sharp: LanguageModel) -> None:
    """Each token that greedy decoding would give is made the end token in turn."""
    prompts = prompts_of(sharp)
    for end in {token for row in generated(sharp, prompts, 8) for token in row}:
        sharp.tokenizer.eos_token = sharp.tokenizer.convert_ids_to_tokens(end)
        sharp.model.generation_config.eos_token_id = end
        found = sample(sharp, prompts, 1, 8, Sampling(None))
        assert [list(row.token_ids) for (row,) in found] == generated(sharp, prompts, 8)


def cells(seen: Any, expected: Any) -> tuple[Any, Any]:
    """Counts of what is expected five times at least, and of the rest together."""
    often = expected >= 5
    assert often.sum() >= 2
    pairs = [*zip(seen[often], expected[often], strict=True), (seen[~often].sum(), expected[~often].sum())]
    if pairs[-1][1] < 1:
        pairs.pop()
    return tuple(np.array(pairs).T)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_tokens_follow_the_softmax(sharp: LanguageModel, temperature: float) -> None:
    """Chi-square over tokens expected five times at least; fails by chance once in 10 000 (the keys are fixed)."""
    prompts = prompts_of(sharp)[:2]
    count = 4000
    found = sample(sharp, prompts, count, 1, Sampling(temperature))
    for prompt, rows in zip(prompts, found, strict=True):
        expected = full_pass(sharp, prompt, rows[0], temperature)[0].exp().numpy() * count
        seen = np.bincount([row.token_ids[0] for row in rows], minlength=len(expected)).astype(float)
        often, wanted = cells(seen, expected)
        assert stats.chisquare(often, wanted * often.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, 0.7), Sampling(1.3, 0.95, 6)])
def test_tokens_are_as_frequent_as_those_of_generate(sharp: LanguageModel, sampling: Sampling) -> None:
    """Of whole answers, by place: two samples of one distribution (chi-square of a contingency table)."""
    import torch

    prompt, count, limit = prompts_of(sharp)[0], 1500, 3
    ours = np.array([row.token_ids for row in sample(endless(sharp), [prompt], count, limit, sampling)[0]])
    torch.manual_seed(11)
    theirs = np.array(
        generated(
            sharp, [prompt], limit, do_sample=True, num_return_sequences=count,
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or 0,
        )
    )  # fmt: skip
    for place in range(limit):
        table = np.array([np.bincount(one[:, place], minlength=len(sharp.tokenizer)) for one in (ours, theirs)])
        often = table.sum(axis=0) >= 10
        table = np.column_stack([table[:, often], table[:, ~often].sum(axis=1)])
        assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-4


def endless(model: LanguageModel) -> LanguageModel:
    """No answer ends by itself."""
    model.model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    model.model.generation_config.pad_token_id = 0
    return model


def test_later_tokens_follow_the_softmax_of_what_precedes(sharp: LanguageModel) -> None:
    """By the probability integral transform: where the drawn token lies in its distribution is uniform."""
    prompts = prompts_of(sharp)
    found = sample(sharp, prompts, 60, 6)
    random, places = np.random.default_rng(0), []
    for prompt, rows in zip(prompts, found, strict=True):
        for row in rows:
            cumulative = full_pass(sharp, prompt, row, 1.0).exp().cumsum(dim=-1)
            for position, token in enumerate(row.token_ids):
                low = float(cumulative[position, token - 1]) if token else 0.0
                places.append(random.uniform(low, float(cumulative[position, token])))
    assert len(places) > 1000
    assert stats.kstest(places, "uniform").pvalue > 1e-4


def test_samples_do_not_depend_on_their_number(sharp: LanguageModel) -> None:
    """The first 4 of 16 are the 4 of N = 4, though rows leave the batch at other times; in float64 exactly."""
    prompts = prompts_of(sharp)
    sharp.model.generation_config.eos_token_id = list(range(12))  # many ends, so that rows leave early
    many, few = sample(sharp, prompts, 16, 12), sample(sharp, prompts, 4, 12)
    assert {len(row.token_ids) for rows in many for row in rows} >= {1, 2, 12}
    for one, other in zip(many, few, strict=True):
        assert [row.token_ids for row in one[:4]] == [row.token_ids for row in other]
        assert [row.stop_reason for row in one[:4]] == [row.stop_reason for row in other]
        assert [row.flops for row in one[:4]] == [row.flops for row in other]


@pytest.mark.parametrize("temperature", [0.7, 1.0, None])
def test_stop_reasons_and_log_probabilities(sharp: LanguageModel, temperature: float | None) -> None:
    prompts = prompts_of(sharp)
    sharp.model.generation_config.eos_token_id = list(range(8))
    found = sample(sharp, prompts, 12 if temperature else 1, 6, Sampling(temperature))
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


def warped(logits: Any, sampling: Sampling) -> Any:
    """Probabilities as transformers' own warpers make them."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k is not None:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return torch.softmax(scores, dim=-1)


SAMPLINGS = [
    Sampling(1.0), Sampling(0.4), Sampling(1.0, 0.5), Sampling(1.0, 1.0, 3), Sampling(2.0, 0.9, 5), Sampling(1.0, 1e-6),
    Sampling(0.7, 1.0, 1), Sampling(1.0, 0.999, 1000),
]  # fmt: skip


@pytest.mark.parametrize("mixed", [False, True])
def test_each_row_is_drawn_by_its_own_sampling(mixed: bool) -> None:
    """Against transformers' warpers: the token is where the cumulative probability passes the draw."""
    import torch

    logits = 3.0 * torch.randn(200, 30, generator=torch.Generator().manual_seed(1))
    rows = [SAMPLINGS[row % len(SAMPLINGS)] for row in range(200)] if mixed else []
    for each in [rows] if mixed else [[one] * 200 for one in SAMPLINGS]:
        keys = [stream(4, row) for row in range(200)]
        positions = np.arange(200) % 7
        tokens, logs = drawing.draws_for(each, keys).choose(logits.clone(), np.arange(200), positions)
        for row, one in enumerate(each):
            expected = warped(logits[row : row + 1], one)[0].double()
            draw = float(drawing.uniform(np.array([keys[row]], dtype=np.uint64), int(positions[row]))[0])
            token = int(tokens[row])
            assert float(expected[token]) > 0.0
            below = float(expected[:token].sum())
            assert below - 1e-5 <= draw <= below + float(expected[token]) + 1e-5
            assert float(logs[row]) == pytest.approx(float(expected[token].log()), abs=1e-4)


def test_greedy_rows_among_others_take_the_likeliest() -> None:
    import torch

    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(2))
    each = [Sampling(None) if row % 3 else Sampling(1.5) for row in range(40)]
    tokens, logs = drawing.draws_for(each, list(range(40))).choose(logits.clone(), np.arange(40), np.zeros(40, int))
    greedy = np.flatnonzero(np.arange(40) % 3)
    assert tokens[greedy].tolist() == logits.argmax(dim=-1)[greedy].tolist()
    assert tokens.tolist() != logits.argmax(dim=-1).tolist()
    expected = torch.log_softmax(logits, dim=-1).max(dim=-1).values[greedy]
    torch.testing.assert_close(logs[greedy], expected)


def test_of_equals_the_lower_id_stays() -> None:
    import torch

    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    cut = drawing.truncate(logits, torch.tensor([2, 3]), torch.tensor([1.0, 1.0]))
    assert torch.isfinite(cut).tolist() == [[False, True, True, False], [True, True, True, False]]
    cut = drawing.truncate(logits, torch.tensor([9, 9]), torch.tensor([0.29, 0.6]))
    assert torch.isfinite(cut).tolist() == [[False, True, False, False], [True, True, True, False]]


def test_a_draw_that_rounds_to_one_takes_no_impossible_token() -> None:
    import torch

    logits = torch.tensor([[0.0, 1.0, -torch.inf], [-torch.inf, 0.0, 0.0]])
    top = torch.tensor([1 - 2.0**-53] * 2, dtype=torch.float64)
    chosen, log_probability = drawing.invert(logits, top)
    assert chosen.tolist() == [1, 2]
    assert torch.isfinite(log_probability).all()
    bottom = torch.zeros(2, dtype=torch.float64)
    assert drawing.invert(logits, bottom)[0].tolist() == [0, 1]


def test_it_stops_when_asked(tiny: LanguageModel) -> None:
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted("stop")

    session = TextSampler(tiny).open(prompts_of(tiny), TEXTS, "\n")
    with pytest.raises(Interrupted):
        session.extend([Extension(0, None, 1, Sampling(), 50)], stop)
    assert len(calls) == 4


def test_text_sampler_is_the_model_as_searchers_see_it(tiny: LanguageModel) -> None:
    text = TextSampler(tiny)
    assert (text.snapshot, text.tokenizer_id) == (tiny.snapshot, tiny.tokenizer_id)
    ids = text.encode_prompt(TEXTS[0])
    assert text.decode(ids) == TEXTS[0]
    shape = tiny.shape
    positions = 4.0 * shape.layers * shape.attention_width * len(ids) * (len(ids) + 1) / 2
    # Logits are made after the last token alone.
    products = 2.0 * (shape.matrix_parameters * len(ids) - shape.head_parameters * (len(ids) - 1))
    assert text.prompt_flops(len(ids)) == pytest.approx(products + positions)
    session = text.open([ids], [TEXTS[0]], "\n")
    assert session.prompt_flops(0) == text.prompt_flops(len(ids))


def test_chat_prompts_are_what_the_template_renders(tiny: LanguageModel) -> None:
    text = TextSampler(tiny)
    messages = [{"role": "user", "content": "3 5 8 -> 19"}]
    with pytest.raises(ModelError, match="no chat template"):
        text.encode_chat(messages)
    tiny.tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}8 * 3{% endif %}"
    )
    assert text.encode_chat(messages) == ("3 5 8 -> 19\n8 * 3", tiny.encode("3 5 8 -> 19\n8 * 3"))
    with pytest.raises(ModelError, match="refuses messages with the roles system, user: no system"):
        text.encode_chat([{"role": "system", "content": "be brief"}, *messages])
