"""Training compute against search at play: how much of one buys how much of the other at equal strength, on one board.

    log10(test) = a log10(train) + e Elo + c

Ten times the training saves 10^-a times the FLOPs of search at play. Jones's procedure (2021, *Scaling scaling laws
with board games*, arXiv 2104.03113; andyljones/boardlaw, analysis/data.py, `train_test` and `train_test_model`): for
each of some levels of Elo, the least test FLOPs by which any agent with at most so much training is stronger, at each
amount of training; a level ends once its cheapest test is reached; then least squares over the pairs of all levels.
Beside his slope stands that within levels: the same regression with an offset c of each level's own, which asks nothing
of how strength rises from level to level. On a plane the two agree; where Elo is not linear in the logarithms, as near
perfect play or when weak and strong players differ in kind, his slope also answers for that bend. Three choices are
not his:

- Elo are means over the training seeds of a configuration, as in `flywheel.scaling.frontier`.
- FLOPs are not rounded, where he does to a tenth of a decade. Those of test are the caller's: his carry the nodes of
  training, which shifts c and not a.
- A level that the least training reaches with its least test is left out: less of both might do, so that its pair says
  nothing. His levels, -1500 to 0 on 9x9, all lie above such.

Elo 0 itself is no level: agents are rated above perfect play by luck alone. Neighbouring levels share agents, so that
residuals are not independent: intervals come from resampled points and not from the regression.

Known error: budgets and snapshots come in steps, and a pair has up to a step more of both than would do, the pair at
the least budget of a step of training. That shifts c, and flattens a: by 1 to 2 % on known planes with budgets a factor
of 1.05 to 4 apart. All draws share it, so that no interval shows it. Where strength is no plane, both slopes
hang on which players there are, by far more than that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval
from flywheel.scaling.frontier import LEAST_DECADES
from flywheel.scaling.replicates import (
    Floats,
    Integers,
    Names,
    percentiles,
    require_rows,
    seed_means,
    seed_rows,
)

LEVELS = (-1500.0, -1250.0, -1000.0, -750.0, -500.0, -250.0)
"""Elo; Jones's seven but for the last, perfect play itself."""


@dataclass(frozen=True, slots=True, eq=False)
class TradeoffPoints:
    """Rated players on one board, one a row in arrays of one length: a snapshot that searches with some budget.

    Raises InputError for lengths or numbers that cannot be. A row may stand more than once, as resampled seeds do.
    """

    runs: Names
    """Configurations: rows that differ in nothing but `seeds` are repetitions."""
    seeds: Integers
    snapshots: Integers
    budgets: Integers
    """Of the search, such as simulations a move."""
    train_flops: Floats
    test_flops: Floats
    """A move, or a game: in all rows the same."""
    elo: Floats

    def __post_init__(self) -> None:
        require_rows(self, positive=("train_flops", "test_flops"), finite=("elo",))

    def take(self, rows: Integers) -> TradeoffPoints:
        """These rows, in this order, as often as named."""
        return TradeoffPoints(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """The least test FLOPs that with at most so much training reach a level, by level and then rising in training."""

    levels: Floats
    """Elo."""
    train_flops: Floats
    test_flops: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Tradeoff:
    """The fitted plane and the pairs it was fitted to."""

    slope: float
    """a: decades of test compute a decade of training."""
    elo_slope: float
    """e: decades of test compute an Elo."""
    offset: float
    """c"""
    pairs: Pairs
    within: float
    """a within levels."""
    residuals: Floats
    """Of each pair, in decades of test compute above the plane."""

    @property
    def exchange(self) -> float:
        """By what factor ten times the training lowers the test compute, by `slope`."""
        return math.pow(10.0, -self.slope) if -self.slope < 308.0 else math.inf

    @property
    def exchange_within(self) -> float:
        """The same by `within`."""
        return math.pow(10.0, -self.within) if -self.within < 308.0 else math.inf

    @property
    def root_mean_square(self) -> float:
        """Of the residuals, in decades."""
        return math.sqrt(float(np.mean(np.square(self.residuals))))


@dataclass(frozen=True, slots=True)
class TradeoffIntervals:
    """95 % percentile intervals; `count` of each is the number of draws it comes from, `value` the fit to the data."""

    slope: Interval
    elo_slope: Interval
    offset: Interval
    within: Interval
    exchange: Interval
    unidentified: int
    """Draws left out as their slope could not be identified; many of them make the intervals too narrow."""


def tradeoff_pairs(points: TradeoffPoints, levels: Sequence[float] = LEVELS) -> Pairs:
    """The frontier of each level; one that nothing reaches, or that the least of both reaches, has no pairs."""
    _, (log_train, log_test, elo) = seed_means(
        (points.runs, points.snapshots, points.budgets),
        (np.log10(points.train_flops), np.log10(points.test_flops), points.elo),
    )
    trained, places = np.unique(log_train, return_inverse=True)
    cheapest = log_test[places == 0].min()
    found: list[tuple[float, float, float]] = []
    for level in sorted(set(levels)):
        least = np.full(len(trained), np.inf)
        strong = elo > level
        np.minimum.at(least, places[strong], log_test[strong])
        least = np.minimum.accumulate(least)
        if not strong.any() or least[0] == cheapest:
            continue
        start, stop = int(np.argmax(np.isfinite(least))), int(np.argmax(least == least[-1]))
        found.extend((level, trained[row], least[row]) for row in range(start, stop + 1))
    columns = np.asarray(found, dtype=np.float64).reshape(-1, 3)
    return Pairs(columns[:, 0], 10.0 ** columns[:, 1], 10.0 ** columns[:, 2])


def fit_tradeoff(points: TradeoffPoints, levels: Sequence[float] = LEVELS) -> Tradeoff:
    """The plane with the least squares over the pairs of all levels.

    Raises InputError where they cannot identify it: pairs of fewer than two levels, or in every level less than half a
    decade of training.
    """
    pairs = tradeoff_pairs(points, levels)
    log_train, log_test = np.log10(pairs.train_flops), np.log10(pairs.test_flops)
    ranges = {level: float(np.ptp(log_train[pairs.levels == level])) for level in np.unique(pairs.levels).tolist()}
    got = ", ".join(f"{decades:.1f} decades at {level:.0f}" for level, decades in ranges.items()) or "none"
    if len(ranges) < 2:
        raise InputError(
            f"got pairs of training and test compute for {len(ranges)} of {len(levels)} levels of Elo ({got}), "
            f"expected two or more; ask for levels inside the range of the Elo, {points.elo.min():.0f} to "
            f"{points.elo.max():.0f}, or add players"
        )
    if max(ranges.values()) < LEAST_DECADES:
        raise InputError(
            f"got too short a range of training compute to identify a slope ({got}), expected {LEAST_DECADES} decades "
            "in one level or more; add earlier snapshots with larger search budgets, or later ones with smaller"
        )
    design = np.stack([log_train, pairs.levels, np.ones(len(log_train))], axis=1)
    plane = np.linalg.lstsq(design, log_test)[0]
    slope, elo_slope, offset = plane.tolist()
    return Tradeoff(slope, elo_slope, offset, pairs, _within(pairs), log_test - design @ plane)


def _within(pairs: Pairs) -> float:
    """The slope with an offset of each level's own: that of deviations from the level's means."""
    _, level_of = np.unique(pairs.levels, return_inverse=True)
    counts = np.bincount(level_of)
    train, test = (
        values - (np.bincount(level_of, weights=values) / counts)[level_of]
        for values in (np.log10(pairs.train_flops), np.log10(pairs.test_flops))
    )
    return float(train @ test / (train @ train))


def resample_tradeoff_seeds(points: TradeoffPoints, generator: np.random.Generator) -> TradeoffPoints:
    """One bootstrap draw: for each run its training seeds, all snapshots and budgets of a seed together.

    See `flywheel.scaling.frontier.seed_rows`.
    """
    return points.take(seed_rows((points.runs,), points.seeds, generator))


def tradeoff_intervals(
    fitted: Tradeoff, draws: Iterable[TradeoffPoints], levels: Sequence[float] = LEVELS
) -> TradeoffIntervals:
    """Intervals from resampled points, at the levels of `fitted`. Raises InputError with fewer than two usable."""
    planes, unidentified = [], 0
    for draw in draws:
        try:
            planes.append(fit_tradeoff(draw, levels))
        except InputError:
            unidentified += 1
    return TradeoffIntervals(
        percentiles(fitted.slope, [plane.slope for plane in planes]),
        percentiles(fitted.elo_slope, [plane.elo_slope for plane in planes]),
        percentiles(fitted.offset, [plane.offset for plane in planes]),
        percentiles(fitted.within, [plane.within for plane in planes]),
        percentiles(fitted.exchange, [plane.exchange for plane in planes]),
        unidentified,
    )
