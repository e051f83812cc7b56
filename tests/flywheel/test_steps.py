"""Where steps end, told by token ids, against the text that those ids decode to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.models.protocols import Extension, Sampling
from flywheel.models.sampler import TextSampler
from flywheel.models.steps import StepEnds
from flywheel.search.protocols import never_stop
from flywheel.seeds import stream

PIECES = ["\n", " ", "a", "b", ".", "\n\n", "a\n", "\nb", " \n", ".\n", "a\n\nb", "\n\n\n", "\nb\n"]


@pytest.fixture(scope="module")
def spelled() -> LanguageModel:
    """Tokens that are pieces of text with newlines at all places, as byte-pair vocabularies have them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {piece: number for number, piece in enumerate([*PIECES, "</s>"])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", clean_up_tokenization_spaces=False
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary) + 3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, eos_token_id=len(PIECES), bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config).eval(), fast, "snapshot", "tokenizer")


def ends_by_text(texts: list[str], step_end: str) -> list[bool]:
    """After each token of one answer: whether it completed a step, by splitting the whole text. A step that is blank
    does not end, and counts with the one that follows it."""
    ended, text = [], ""
    for token in texts:
        before = text.split(step_end)
        text += token
        now = text.split(step_end)
        ended.append(any(step.strip() for step in now[len(before) - 1 : -1]))
    return ended


@pytest.mark.parametrize("step_end", ["\n", "\n\n", ".", ".\n", "\n\n\n"])
def test_ends_are_those_of_the_text(spelled: LanguageModel, step_end: str) -> None:
    """Random answers, many rows at once."""
    ends = StepEnds(spelled, step_end)
    tokens = np.random.default_rng(3).integers(0, len(PIECES), size=(300, 12))
    blank = np.ones(300, dtype=bool)
    found = np.array(
        [
            ends.ends(tokens[:, place], blank, lambda row, place=place: tokens[row, : place + 1].tolist())
            for place in range(12)
        ]
    ).T
    expected = [ends_by_text([PIECES[token] for token in row], step_end) for row in tokens]
    assert found.tolist() == expected
    assert 0 < found.sum() < found.size
    last = [not "".join(PIECES[token] for token in row).split(step_end)[-1].strip() for row in tokens]
    assert [ends.blank(row.tolist()) for row in tokens] == last


@pytest.mark.parametrize("step_end", ["\n", "\n\n"])
def test_segments_end_with_their_step(spelled: LanguageModel, step_end: str) -> None:
    session = TextSampler(spelled).open([[2, 3]], [""], step_end)
    requests = [Extension(0, None, stream(1, i), Sampling(3.0), 10, one_step=True) for i in range(60)]
    for _ in range(3):
        segments = session.extend(requests, never_stop)
        for request, segment in zip(requests, segments, strict=True):
            answer = session.token_ids(segment.node)
            own = len(answer) - segment.tokens
            shown = [token for token in answer if token < len(PIECES)]
            if len(shown) == len(answer):
                ended = ends_by_text([PIECES[token] for token in answer], step_end)[own:]
                assert not any(ended[:-1]), "it would have ended earlier"
                assert (segment.stop_reason == "step") == ended[-1]
            if segment.stop_reason == "length":
                assert segment.tokens == request.max_new_tokens
            assert (segment.stop_reason == "eos") == (answer[-1] == len(PIECES))
        reasons = {segment.stop_reason for segment in segments}
        assert {"step", "eos"} <= reasons
        requests = [
            Extension(0, segment.node, stream(2, segment.node), Sampling(3.0), 4, one_step=True)
            for segment in segments
            if segment.stop_reason != "eos"
        ]


def test_words_of_countdown_end_steps(tiny: LanguageModel) -> None:
    ends = StepEnds(tiny, "\n")
    ids = tiny.encode("8 * 3 = 24\n24 - 5 = 19\n\n7")
    blank = np.ones(1, dtype=bool)
    found = [bool(ends.ends(np.array([token]), blank, lambda _: [])[0]) for token in ids]
    assert [place for place, end in enumerate(found) if end] == [5, 11]


def test_an_empty_step_end_is_refused(tiny: LanguageModel) -> None:
    session = TextSampler(tiny).open([[3]], [""], "")
    with pytest.raises(ValueError, match="step_end is empty"):
        session.extend([Extension(0, None, 1, Sampling(), 4, one_step=True)], never_stop)


def test_text_leaves_out_the_end_token_only(tmp_path: Path, tiny: LanguageModel) -> None:
    language.save(tiny.model, tiny.tokenizer, tmp_path / "model")
    model = language.load(tmp_path / "model", "cpu")
    model.model.generation_config.eos_token_id = list(range(1, 40))
    session = TextSampler(model).open([model.encode("3 5 8 -> 19\n")], [""], "\n")
    segments = session.extend([Extension(0, None, i, Sampling(1.0), 2) for i in range(80)], never_stop)
    assert {segment.stop_reason for segment in segments} == {"eos", "length"}
    for segment in segments:
        ids = session.token_ids(segment.node)
        shown = ids[:-1] if segment.stop_reason == "eos" else ids
        assert session.text(segment.node) == model.tokenizer.decode(shown, skip_special_tokens=False)
