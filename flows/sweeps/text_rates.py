"""What the axes of a law exchange at, at stated accuracies: a decade of one is worth so many decades of another.

The rate is taken where, from the centre of the data, more or less of one axis alone brings the accuracy about: the
first of training, runtime and parameters that stays within the data, else training, and then it is said that the point
lies beyond. With terms that bend, the rate differs from point to point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.evaluation.intervals import Interval
from flywheel.scaling.law import Floats, Law, exchange_rate
from flywheel.scaling.uncertainty import Draws, interval_of

SCALE = "parameters with training in proportion"
"""A decade of both: a larger model that is trained on as many tokens."""
PAIRS = (
    ("training", "runtime"), ("training", "parameters"), ("runtime", "parameters"),
    ("parameters", "training"), ("parameters", "runtime"), (SCALE, "runtime"),
    ("search", "training"), ("search", "runtime"),
)  # fmt: skip
"""Given and got; those with an axis that the law lacks are left out. Where more of what is given lowers accuracy, as a
larger model may that is trained with as many FLOPs, the rate is negative: so much it takes of the other."""
_MOVED = ("training", "runtime", "parameters")
_MIDDLE = (0.05, 0.95)
"""Accuracies at which rates are told lie between these quantiles of the cells'."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many decades of `get` a decade more of `give` is worth, at one accuracy."""

    accuracy: float
    give: str
    get: str
    decades: Interval
    """Infinite where only `get` no longer raises accuracy, nan where neither does or the accuracy is not reached. The
    interval is of the draws that tell it, `count`."""
    draws: int
    """In all."""
    moved: str
    """The axis along which the accuracy was reached from the centre."""
    outside: bool
    """The point lies beyond the data."""

    @property
    def words(self) -> str:
        """A sentence, with what is not known."""
        value, low, high = self.decades.value, self.decades.low, self.decades.high
        at = f"at accuracy {self.accuracy:.2g}"
        if math.isnan(value):
            unknown = f"{at}, what a decade of {self.give} is worth in {self.get} is not known"
            return f"{unknown}: neither raises accuracy there, or the law does not get there"
        if math.isinf(value):
            return f"{at}, no {self.get} is worth a decade of {self.give}: it no longer raises accuracy there"
        interval = f" [{low:.2f}, {high:.2f}]" if self.decades.count else ""
        untold = self.draws - self.decades.count
        remarks = [f"{untold} of {self.draws} draws do not tell"] if self.draws and untold else []
        remarks += ["beyond the data"] if self.outside else []
        told = f"{at}, a decade of {self.give} is worth {value:.2f}{interval} decades of {self.get}"
        return told + (f" ({'; '.join(remarks)})" if remarks else "")


def rates(
    law: Law, draws: Draws | None, accuracies: Floats, targets: Sequence[float] | None = None
) -> tuple[Rate, ...]:
    """All pairs at all targets; by default at the tenths among `accuracies` [cells]. Without draws no intervals."""
    low, high = np.quantile(accuracies, _MIDDLE).tolist()
    wanted = (
        targets or [tenth / 10 for tenth in range(1, 10) if low <= tenth / 10 <= high] or [round((low + high) / 2, 2)]
    )
    centre = dict(zip(law.axes, (10.0**law.centres).tolist(), strict=True))
    movable = [axis for axis in _MOVED if axis in law.axes] or [*law.axes]
    known = {*law.axes, *([SCALE] if {"parameters", "training"} <= {*law.axes} else [])}
    pairs = [(give, get) for give, get in PAIRS if give in known and get in known]
    laws = [law, *(draws.laws() if draws is not None else ())]
    found = []
    for target in wanted:
        within = [axis for axis in movable if _within(law, law.at_accuracy(target, centre, axis))]
        moved = (within or movable)[0]
        points = [each.at_accuracy(target, centre, moved) for each in laws]
        slopes = [None if point is None else _slopes(each, point) for each, point in zip(laws, points, strict=True)]
        for give, get in pairs:
            told = np.array([math.nan if held is None else exchange_rate(held, give, get) for held in slopes])
            interval = interval_of(float(told[0]), told[1:])
            found.append(Rate(target, give, get, interval, len(laws) - 1, moved, not within))
    return tuple(found)


def _slopes(law: Law, point: Mapping[str, float]) -> dict[str, float]:
    found = law.slopes(point)
    return found | {SCALE: found.get("parameters", 0.0) + found.get("training", 0.0)}


def _within(law: Law, point: Mapping[str, float] | None) -> bool:
    return point is not None and not law.extrapolates(point).outside
