"""Does a law foretell what it has not seen? Predicted accuracy of the cells held back, beside what was measured.

The problems are the same, so that draws that resample runs alone are asked (`resample_problems=False`). Seeds of a
configuration are runs of their own; all share a draw of the law. What the law misses about a configuration its seeds
share too, which intervals of their mean do not know: those are too narrow by as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flows.plain import plain
from flywheel.evaluation.intervals import Interval
from flywheel.scaling.law import Cells, Floats
from flywheel.scaling.uncertainty import Draws, new_runs


@dataclass(frozen=True, slots=True)
class Foretold:
    """A cell held back."""

    configuration: str
    seed: int
    generation: int
    budget: int
    """Runtime budget; 0 is greedy."""
    predicted: Interval
    """With its 95 % predictive interval."""
    measured: float
    outside: bool
    """It lies beyond the data of the fit."""

    @property
    def inside(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.predicted.low <= self.measured <= self.predicted.high


@dataclass(frozen=True, slots=True)
class ForetoldMean:
    """A configuration held back: the mean over its seeds, generations and budgets."""

    configuration: str
    predicted: Interval
    measured: float
    cells: int
    coverage: float
    """Share of its cells that lie inside their own intervals."""
    mean_absolute_error: float
    """Of its cells."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How good the predictions are."""

    rows: tuple[Foretold, ...]
    configurations: tuple[ForetoldMean, ...]

    @property
    def runs(self) -> int:
        """How many the cells are of."""
        return len({(row.configuration, row.seed) for row in self.rows})

    @property
    def coverage(self) -> float:
        """Share of cells inside their 95 % intervals. Cells of a run are not independent."""
        return float(np.mean([row.inside for row in self.rows]))

    @property
    def mean_absolute_error(self) -> float:
        """In accuracy."""
        return float(np.mean([abs(row.predicted.value - row.measured) for row in self.rows]))

    @property
    def bias(self) -> float:
        """Mean of measured less predicted accuracy."""
        return float(np.mean([row.measured - row.predicted.value for row in self.rows]))

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        told = {
            "runs": self.runs,
            "coverage": self.coverage,
            "mean_absolute_error": self.mean_absolute_error,
            "bias": self.bias,
        }
        rows = [plain(row) | {"inside": row.inside} for row in self.rows]
        return told | {"configurations": plain(self.configurations), "rows": rows}


def calibrate(
    draws: Draws, cells: Cells, generations: Sequence[int], budgets: Sequence[int], generator: np.random.Generator
) -> Calibration:
    """Ask the draws for cells that they have not seen, on the same problems; generations and budgets are the cells'.

    `cells` may have more axes than the law. Raises InputError where runs are too few to tell how much they differ.
    """
    values = cells.values[:, [cells.axes.index(axis) for axis in draws.law.axes]]
    predicted, measured = draws.law.accuracies(values), cells.accuracies
    drawn = np.empty((len(draws.floors), len(values)))
    for run in dict.fromkeys(cells.runs):
        at = [number for number, other in enumerate(cells.runs) if other == run]
        drawn[:, at] = new_runs(draws, values[at], generator)
    rows = [
        Foretold(
            *run,
            generation,
            budget,
            _interval(float(predicted[at]), drawn[:, at]),
            float(measured[at]),
            draws.law.extrapolates(dict(zip(draws.law.axes, values[at].tolist(), strict=True))).outside,
        )
        for at, (run, generation, budget) in enumerate(zip(cells.runs, generations, budgets, strict=True))
    ]
    means = []
    for name in dict.fromkeys(cells.configurations):
        at = [number for number, other in enumerate(cells.configurations) if other == name]
        means.append(
            ForetoldMean(
                name,
                _interval(float(predicted[at].mean()), drawn[:, at].mean(axis=1)),
                float(measured[at].mean()),
                len(at),
                float(np.mean([rows[number].inside for number in at])),
                float(np.mean(np.abs(predicted[at] - measured[at]))),
            )
        )
    return Calibration(tuple(rows), tuple(means))


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Interval(value, low, high, len(drawn))
