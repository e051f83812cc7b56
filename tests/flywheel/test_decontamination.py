"""Contamination and near-duplicates against definitions spelled out naively, on texts made to overlap."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.problems.decontamination import SHINGLE, contaminated, near_duplicates, words

_few_words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join)
"""Four words only, so that n words in a row recur."""
TEXTS = st.lists(_few_words, max_size=8)


def naive_grams(text: str, size: int) -> set[tuple[str, ...]]:
    said = tuple(text.split())
    if 0 < len(said) < size:
        return {("whole", *said)}
    return {said[start : start + size] for start in range(len(said) - size + 1)}


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 6))
def test_contamination_is_n_words_in_a_row(texts: list[str], held_out: list[str], size: int) -> None:
    found = contaminated(texts, held_out, size)
    for position, text in enumerate(texts):
        hits = [other for other, held in enumerate(held_out) if naive_grams(text, size) & naive_grams(held, size)]
        assert (position in found) == bool(hits)
        if hits:
            match = found[position]
            assert match.other in hits
            assert f" {match.evidence} " in f" {text} "
            assert f" {match.evidence} " in f" {held_out[match.other]} "
            assert len(match.evidence.split()) == min(size, len(text.split()))


def jaccard(one: str, other: str) -> Fraction:
    mine, theirs = naive_grams(one, SHINGLE), naive_grams(other, SHINGLE)
    return Fraction(len(mine & theirs), len(mine | theirs)) if mine | theirs else Fraction(0)


def naive_near_duplicates(texts: list[str], threshold: str) -> dict[int, tuple[int, Fraction]]:
    kept: list[int] = []
    found = {}
    for position, text in enumerate(texts):
        alike = [(jaccard(text, texts[other]), -other) for other in kept]
        similarity, other = max(alike, default=(Fraction(0), 0))
        if similarity >= Fraction(threshold) and similarity > 0:
            found[position] = (-other, similarity)
        else:
            kept.append(position)
    return found


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(["0.1", "0.3", "0.5", "0.7", "0.8", "0.9", "1.0"]))
def test_near_duplicates_are_those_of_the_definition(texts: list[str], threshold: str) -> None:
    found = near_duplicates(texts, float(threshold))
    expected = naive_near_duplicates(texts, threshold)
    assert {p: (m.other, m.similarity) for p, m in found.items()} == {
        position: (other, float(similarity)) for position, (other, similarity) in expected.items()
    }
    for position, match in found.items():
        assert match.evidence in texts[position]
        assert match.evidence in texts[match.other]


@pytest.mark.parametrize("threshold", ["0.7", "0.8", "0.9"])
def test_near_duplicates_of_longer_texts_changed_a_little(threshold: str) -> None:
    """Similarities all around the threshold, hit exactly by some: 160 words, one to ten of them changed."""
    random_ = random.Random(3)
    originals = [random_.choices([f"w{i}" for i in range(40)], k=160) for _ in range(12)]
    texts = [" ".join(original) for original in originals]
    for original in originals:
        for changes in range(1, 11):
            changed = list(original)
            place = random_.randrange(160 - changes)
            changed[place : place + changes] = ["other"] * changes
            texts.append(" ".join(changed))
    expected = naive_near_duplicates(texts, threshold)
    found = near_duplicates(texts, float(threshold))
    assert len(expected) > 5
    assert {p: m.other for p, m in found.items()} == {p: other for p, (other, _) in expected.items()}


def test_a_threshold_means_the_decimal_it_is_written_as() -> None:
    """8 of 10 shingles are 0.8, which as a binary float is a little more than eight tenths."""
    common = "a b c d e f g h i j k l"  # 8 shingles
    first, second = f"{common} x", f"{common} y"  # 9 each: 8 in common, 10 in all
    assert jaccard(first, second) == Fraction(8, 10) < Fraction(0.8)
    assert near_duplicates([first, second], 0.8)
    assert not near_duplicates([first, second], 0.81)


def test_of_equally_similar_ones_the_earliest_is_named() -> None:
    first, second = "a b c d e f g h", "m n o p q r s t"
    assert near_duplicates([first, second, f"{first} {second}"], 0.3)[2].other == 0
    assert near_duplicates([second, first, f"{first} {second}"], 0.3)[2].other == 0


def test_words_are_lower_case_without_punctuation_but_signs_of_arithmetic_count() -> None:
    assert words("Natalia's 120-page book, isn't (it)?") == ["natalia", "s", "120", "page", "book", "isn", "t", "it"]
    assert words("12 + 5 - 3") != words("12 - 5 + 3")
    assert words("10-3=7") == ["10", "-", "3", "=", "7"]
    assert words("2*3") != words("2/3")
    assert words("Ёлка ÜBER") == ["ёлка", "über"]
    assert words("小明有3个") == ["小", "明", "有", "3", "个"]
    assert words(" …!") == []


def test_short_problems_are_compared_whole() -> None:
    assert contaminated(["What is 2+3?"], ["what is 2 + 3"], 13)[0].evidence == "what is 2 + 3"
    assert not contaminated(["What is 2+3?"], ["What is 2*3?", "So what is 2+3 then?"], 13)
    assert set(near_duplicates(["Add 2+3", "add 2 + 3!", "Add 2+4"], 0.8)) == {1}
    assert not contaminated(["", "?"], ["", "?"], 13), "texts without words say nothing"
    assert not near_duplicates(["", "?"], 0.8)


def test_an_instruction_that_all_share_costs_no_square_of_time() -> None:
    random_ = random.Random(0)
    start = "Solve the following problem step by step and give the final number at the end: "
    texts = [start + " ".join(random_.choices([f"w{i}" for i in range(3000)], k=40)) for _ in range(8000)]
    began = time.monotonic()
    assert near_duplicates([*texts, texts[17] + " please"], 0.8).keys() == {8000}
    assert time.monotonic() - began < 10.0
