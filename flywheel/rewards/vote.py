"""Majority vote: no checker at all, the answers judge each other."""

from __future__ import annotations

from collections.abc import Sequence


def majority(answers: Sequence[str | None]) -> int | None:
    """Index of the first member of the largest group of equal answers; ties go to the group seen first.

    Answers of None (malformed or truncated) have no vote. Returns None where nobody voted.
    """
    counts: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    if not counts:
        return None
    return list(answers).index(max(counts, key=lambda answer: counts[answer]))
