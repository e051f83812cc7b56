"""Problems that say what others say: training problems that give test problems away, and near-duplicates.

Contamination is an n-gram of words in common (Brown et al. 2020, *Language models are few-shot learners*, app. C:
13 words); what matched is returned, so that it can be written down. Near-duplicates have a Jaccard similarity of their
5-word shingles of at least a threshold; found exactly, not by MinHash: two texts that similar must share one of their
rarest shingles (prefix filtering; Bayardo et al. 2007, *Scaling up all pairs similarity search*), so an inverted index
of those finds every pair. Neither sees a paraphrase.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

SHINGLE = 5
"""Words of a shingle."""

_WORD = re.compile(
    # Scripts without spaces: a character is a word. Then runs of letters or digits, then signs that make a formula.
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[+*/=<>^]|(?<!\w)-|-(?=\d)"
)


@dataclass(frozen=True, slots=True)
class Match:
    """A text that matched another."""

    other: int
    """Position of the other text."""
    evidence: str
    """The words in common (contamination), or those of the first shingle in common (near-duplicates)."""
    similarity: float | None
    """Near-duplicates: Jaccard similarity of the shingles."""


def words(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation. Signs of arithmetic are words, so that 12 + 5 is
    not 12 - 5; a hyphen is not."""
    return _WORD.findall(text.lower().replace("−", "-"))


def contaminated(texts: Sequence[str], held_out: Sequence[str], size: int) -> dict[int, Match]:
    """Those of `texts`, by position, that share `size` words in a row with one of `held_out`: the first that match,
    with the first of the held-out texts they match. A text of fewer words matches the text that has the same ones."""
    index: dict[str, int] = {}
    for other, text in enumerate(held_out):
        for gram in _grams(words(text), size):
            index.setdefault(gram, other)
    found = {}
    for position, text in enumerate(texts):
        for gram in _grams(words(text), size):
            if gram in index:
                found[position] = Match(index[gram], gram, None)
                break
    return found


def near_duplicates(texts: Sequence[str], threshold: float) -> dict[int, Match]:
    """Those of `texts`, by position, whose similarity to an earlier one that is kept is at least `threshold`: with the
    most similar of those, the earliest where several are. Texts without a shingle in common are never alike."""
    ranked, gram_of = _ranked_shingles(texts)
    # A decimal such as 0.7 is meant as written; as a binary float it would ask for a word more or less.
    share = Fraction(str(threshold))
    postings: dict[int, list[int]] = {}
    found: dict[int, Match] = {}
    for position, ranks in enumerate(ranked):
        if not len(ranks):
            continue
        prefix = [int(rank) for rank in ranks[: len(ranks) - max(1, math.ceil(share * len(ranks))) + 1]]
        mine = set(ranks.tolist())
        best: tuple[Fraction, int, int] | None = None
        for other in sorted({other for rank in prefix for other in postings.get(rank, ())}):
            theirs = ranked[other]
            if min(len(mine), len(theirs)) < share * max(len(mine), len(theirs)):
                continue
            shared = mine.intersection(theirs.tolist())
            similarity = Fraction(len(shared), len(mine) + len(theirs) - len(shared))
            if similarity >= share and (best is None or similarity > best[0]):
                best = (similarity, other, min(shared))
        if best is not None:
            found[position] = Match(best[1], gram_of(position, best[2]), float(best[0]))
            continue
        for rank in prefix:
            postings.setdefault(rank, []).append(position)
    return found


def _grams(said: list[str], size: int) -> Iterator[str]:
    """Every run of `size` words; the whole of a shorter text, which has too few words to equal part of another."""
    for start in range(max(1, len(said) - size + 1) if said else 0):
        yield " ".join(said[start : start + size])


def _ranked_shingles(texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int64]], _GramOf]:
    """For each text its different shingles as ranks, rarest first; and a way back to the words."""
    hashed = [np.unique(np.array([_hash(gram) for gram in _grams(words(text), SHINGLE)], np.uint64)) for text in texts]
    if not hashed:
        return [], _GramOf(texts, np.array([], np.uint64))
    known, inverse, counts = np.unique(np.concatenate(hashed), return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    rank = np.empty(len(known), np.int64)
    rank[order] = np.arange(len(known))
    ends = np.cumsum([len(one) for one in hashed])
    return [np.sort(part) for part in np.split(rank[inverse], ends[:-1])], _GramOf(texts, known[order])


@dataclass(frozen=True, slots=True)
class _GramOf:
    """The words of a text's shingle of a rank."""

    texts: Sequence[str]
    hashes: npt.NDArray[np.uint64]

    def __call__(self, position: int, rank: int) -> str:
        grams = _grams(words(self.texts[position]), SHINGLE)
        return next(gram for gram in grams if _hash(gram) == int(self.hashes[rank]))


def _hash(gram: str) -> int:
    return int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big")
