"""FLOP formulas against PyTorch's own counter and against sums written out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flywheel.compute import Cost, DecoderShape
from flywheel.models.language import decoder_shape


def counted(model: object, **inputs: object) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
def test_forward_agrees_with_the_counter(tied: bool, heads: int, groups: int) -> None:
    """Within 2 %: the counter sees matrix products alone, as the formula does. Eager attention, since the counter does
    not see into the fused one; it multiplies the whole square, so every token has the whole length for context."""
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=groups,
        intermediate_size=80, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    shape = decoder_shape(model)
    length = 48
    ids = torch.randint(0, 97, (2, length))
    whole = counted(model, input_ids=ids, use_cache=False)
    assert whole == pytest.approx(2 * shape.forward(length, length), rel=0.02)
    cache = DynamicCache(config=config)
    model(input_ids=ids, past_key_values=cache)
    one = counted(model, input_ids=ids[:, :1], past_key_values=cache)
    assert one == pytest.approx(2 * shape.forward(1, length + 1), rel=0.02)


@pytest.mark.parametrize(("length", "start"), [(1, 0), (7, 0), (9, 4), (5, 5), (3, 9)])
def test_a_sequence_is_the_sum_of_its_positions(length: int, start: int) -> None:
    shape = DecoderShape(matrix_parameters=1000, layers=3, attention_width=16)
    expected = 0.0
    for position in range(start, length):
        attended = position + 1
        expected += 2 * 1000 + 3 * (2 * 16 * attended + 2 * 16 * attended)
    assert shape.forward_sequence(length, start) == pytest.approx(expected)


def test_training_is_three_forwards() -> None:
    shape = DecoderShape(1000, 3, 16)
    assert shape.training_sequence(8) == 3 * shape.forward_sequence(8)


def test_costs_add_by_kind() -> None:
    one = Cost(policy=1.0, reward=2.0, training=4.0, prefill=8.0, padding=16.0, tokens=32)
    total = one + one + Cost()
    assert total == Cost(2.0, 4.0, 8.0, 16.0, 32.0, 64)
    assert (total.useful, total.executed) == (30.0, 62.0)


def test_logits_are_billed_where_they_are_made() -> None:
    shape = DecoderShape(matrix_parameters=1000, layers=3, attention_width=16, head_parameters=400)
    assert shape.forward_sequence(8, logits=1) == shape.forward_sequence(8) - 7 * 2 * 400
    assert shape.forward_sequence(8, logits=8) == shape.forward_sequence(8)
    assert shape.forward_sequence(3, start=9, logits=1) == 0.0


@pytest.mark.slow
def test_the_share_that_is_left_out_is_as_documented() -> None:
    """To a tenth: another version of transformers may have other operations."""
    from tests.flywheel import elementwise

    text = (Path(__file__).resolve().parents[2] / "docs/compute.md").read_text(encoding="utf-8")
    names = [*elementwise.DECODERS, *elementwise.BOARDS]
    told = {name: re.findall(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE) for name in names}
    table = elementwise.table()
    found = {name: re.findall(rf"^\| {name} \|(.*)\|$", table, re.MULTILINE) for name in names}

    def numbers(rows: list[str]) -> list[float]:
        (row,) = rows
        return [float(number) for number in re.findall(r"[0-9.]+", row)]

    for name in names:
        assert numbers(found[name]) == pytest.approx(numbers(told[name]), rel=0.1), name
    # What the page says of it in words.
    assert numbers(found["width 384"])[0] < 1.0 < numbers(found["width 256"])[0]
