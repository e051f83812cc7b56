"""The word-level tokenizer: whatever the grammar can say comes back as it was."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.models.tokenizer import END, PAD, UNKNOWN, word_level
from flywheel.problems.countdown import Countdown

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
