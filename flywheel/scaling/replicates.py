"""Repeated measurements: rows that differ in nothing but the training seed, their means, and draws of a bootstrap."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
Mask = npt.NDArray[np.bool_]


def seed_rows(configurations: Sequence[npt.NDArray[Any]], seeds: Integers, generator: np.random.Generator) -> Integers:
    """Rows of one bootstrap draw: of each configuration's n seeds n - 1, with replacement, each with all its rows.

    A configuration is what has the same values in all of `configurations`. n - 1 and not n, as then the variance of a
    mean is right for few seeds too, which else comes out (n - 1)/n too small (Rao and Wu 1988, *Resampling inference
    with complex survey data*). A configuration with one seed keeps it, and adds nothing to the width of an interval;
    InputError if all have one.
    """
    groups = codes(*configurations)
    first, units = np.unique(codes(groups, seeds), return_index=True, return_inverse=True)[1:]
    group_of_unit = groups[first]
    counts = np.zeros(len(first), dtype=np.int64)
    starts = np.searchsorted(group_of_unit, np.arange(group_of_unit[-1] + 2)) if len(first) else np.zeros(1, np.int64)
    if len(first) == len(starts) - 1:
        raise InputError(
            "got one training seed of every configuration, so that nothing says how much seeds differ; train some "
            "configurations with two seeds or more"
        )
    for start, stop in itertools.pairwise(starts.tolist()):
        drawn = generator.integers(start, stop, size=max(1, stop - start - 1))
        np.add.at(counts, drawn, 1)
    return np.repeat(np.arange(len(seeds)), counts[units])


def seed_means(
    configurations: Sequence[npt.NDArray[Any]], values: Sequence[Floats]
) -> tuple[Integers, tuple[Floats, ...]]:
    """A row of each configuration, and the means of the values over all rows that share its configuration."""
    _, first, inverse, counts = np.unique(
        codes(*configurations), return_index=True, return_inverse=True, return_counts=True
    )
    return first, tuple(np.bincount(inverse, weights=value) / counts for value in values)


def percentiles(value: float, drawn: Sequence[float]) -> Interval:
    """The 2.5th and 97.5th percentile of the draws, beside the value of the data. Without interpolation, which infinite
    draws would not bear. InputError for fewer than two."""
    if len(drawn) < 2:
        raise InputError(
            f"got {len(drawn)} draws whose fit is identified, expected two or more; add runs, seeds or a longer range "
            "of compute"
        )
    low, high = np.quantile(np.asarray(drawn, dtype=np.float64), (0.025, 0.975), method="inverted_cdf").tolist()
    return Interval(value, low, high, len(drawn))


def require_rows(table: Any, positive: Sequence[str], finite: Sequence[str]) -> None:
    """Raise InputError unless all fields are arrays of one length, and those named hold numbers that can be."""
    shapes = {field.name: np.shape(getattr(table, field.name)) for field in dataclasses.fields(table)}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(f"got arrays of the shapes {got}, expected one row of each for every point")
    for name in (*positive, *finite):
        values = getattr(table, name)
        if wrong := np.flatnonzero(~np.isfinite(values) | ((values <= 0.0) & (name in positive))).tolist():
            wanted = "above 0 and finite" if name in positive else "finite"
            raise InputError(f"got {name} {values[wrong[0]]} in row {wrong[0]}, expected {wanted}; leave the row out")


def codes(*columns: npt.NDArray[Any]) -> Integers:
    """A number from 0 for each row, equal where all columns are, in the order of the columns."""
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, inverse = np.unique(column, return_inverse=True)
        codes = np.unique(codes * max(1, len(values)) + inverse, return_inverse=True)[1]
    return codes
