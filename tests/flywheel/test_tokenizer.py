"""Tokenizers made here: whatever the grammar can say, or any text at all, comes back as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import ConfigError
from flywheel.models.tokenizer import END, PAD, UNKNOWN, byte_pair, word_level
from flywheel.problems.countdown import Countdown
from flywheel.sections import Model

WORDS = list(Countdown(3, 1, 9, 40, (0.6, 0.2, 0.2)).vocabulary())
TOKENIZER = word_level(WORDS)
_lines = st.lists(st.sampled_from([word for word in WORDS if word != "\n"]), min_size=1, max_size=8).map(" ".join)
TEXTS = st.lists(st.one_of(_lines, st.just("")), max_size=5).map("\n".join)


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_text_round_trips_and_a_word_is_a_token(text: str) -> None:
    ids = encode(text)
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert len(ids) == len(text.split()) + text.count("\n")
    assert TOKENIZER.unk_token_id not in ids


@settings(max_examples=100, deadline=None)
@given(_lines, TEXTS)
def test_prompt_and_answer_are_tokenised_as_they_are_together(prompt: str, answer: str) -> None:
    """A prompt ends with its newline, so that ids can be stored apart and joined."""
    assert encode(prompt + "\n") + encode(answer) == encode(prompt + "\n" + answer)


def test_special_tokens() -> None:
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token, TOKENIZER.unk_token) == (PAD, END, UNKNOWN)
    assert TOKENIZER.bos_token_id is None
    assert len({TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id}) == 3
    assert len(TOKENIZER) == len(WORDS) + 3
    assert encode("3 banana 5")[1] == TOKENIZER.unk_token_id
    ids = [*encode("8 * 3 = 24"), TOKENIZER.eos_token_id]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "8 * 3 = 24"


CORPUS = [f"Ann has {i} apples and buys {i * 7} more apples.\n#### {i * 8}\n" for i in range(200)]
BYTE_PAIR = byte_pair(iter(CORPUS), 280)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60).filter(lambda text: "\ufffd" not in text))
def test_byte_pairs_give_any_text_back(text: str) -> None:
    ids = BYTE_PAIR.encode(text, add_special_tokens=False)
    assert BYTE_PAIR.decode(ids, skip_special_tokens=False) == text
    assert BYTE_PAIR.pad_token_id not in ids
    assert BYTE_PAIR.eos_token_id not in ids, "a text that quotes the end token has not ended"


def test_byte_pairs_are_learned_but_digits_stay_apart() -> None:
    assert len(BYTE_PAIR) == 280
    assert (BYTE_PAIR.pad_token, BYTE_PAIR.eos_token, BYTE_PAIR.bos_token_id) == (PAD, END, None)
    pieces = [BYTE_PAIR.decode([token]) for token in BYTE_PAIR.encode(CORPUS[45], add_special_tokens=False)]
    assert " apples" in pieces
    assert pieces[-4:] == ["3", "6", "0", "\n"]
    assert not [token for token in BYTE_PAIR.get_vocab() if sum(map(str.isdigit, token)) > 1]
    quoted = BYTE_PAIR.encode(f"a{END}b", add_special_tokens=False)
    assert BYTE_PAIR.decode(quoted) == f"a{END}b"


def test_a_vocabulary_holds_all_bytes_and_no_more_than_the_corpus_gives() -> None:
    with pytest.raises(ConfigError, match=r"model.vocabulary: got 257, expected at least 258"):
        byte_pair(iter(CORPUS), 257)
    assert len(byte_pair(iter([]), 258)) == len(byte_pair(iter(["ab"]), 5000)) == 258


MADE = """
from tests.flywheel.test_tokenizer import BYTE_PAIR
print(BYTE_PAIR.backend_tokenizer.to_str())
"""


@pytest.mark.slow
def test_the_same_corpus_gives_the_same_tokenizer_in_any_process() -> None:
    """Neither the order of a hash table nor the number of threads may show."""
    environment = {**os.environ, "PYTHONHASHSEED": "5", "RAYON_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", MADE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == BYTE_PAIR.backend_tokenizer.to_str()


def test_a_model_from_scratch_learns_its_tokens_from_a_corpus(tmp_path: Path) -> None:
    from flywheel.models import language

    sizes = Model(hidden_size=16, layers=1, heads=2, intermediate_size=32, vocabulary=280)
    snapshots = [language.create(sizes, None, iter(CORPUS), 7, tmp_path / name) for name in ("one", "two")]
    assert snapshots[0] == snapshots[1]
    loaded = language.load(tmp_path / "one", "cpu")
    assert loaded.model.config.vocab_size == len(loaded.tokenizer) == 280
    assert loaded.decode(loaded.encode_answer(CORPUS[3])) == CORPUS[3]
    assert loaded.encode_answer("")[-1] in loaded.end_ids


def test_a_saved_byte_pair_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    BYTE_PAIR.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*CORPUS[:5], f"quoting {END} and {PAD}", " \n\n é 小 12,345"):
        assert loaded.encode(text, add_special_tokens=False) == BYTE_PAIR.encode(text, add_special_tokens=False)
