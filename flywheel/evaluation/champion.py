"""Whether a new student takes over: only if it is not worse on valid, paired by problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flywheel.evaluation.intervals import Interval, mean


@dataclass(frozen=True, slots=True)
class Decision:
    """`difference` is student minus champion, in accuracy; None where there was no champion to compare with."""

    promoted: bool
    difference: Interval | None
    reason: str


def decide(
    student: Mapping[str, float], champion: Mapping[str, float], groups: Mapping[str, str], margin: float
) -> Decision:
    """Compare greedy accuracy by problem id. Raises ValueError where the two were not measured on the same problems."""
    if not champion:
        return Decision(True, None, "the first student")
    if student.keys() != champion.keys():
        raise ValueError(
            f"student and champion were measured on different valid problems ({len(student)} and {len(champion)}); "
            "a champion is comparable only while params.problems stays as it was"
        )
    names = sorted(student)
    difference = mean([student[name] - champion[name] for name in names], [groups[name] for name in names])
    if difference.value >= -margin:
        return Decision(True, difference, "not worse than the champion on valid")
    return Decision(
        False,
        difference,
        f"greedy accuracy on valid changed by {difference.value:+.3f}, below the margin of {-margin:+.3f}",
    )
