"""The compute frontier: the best Elo that so much training compute reaches, over board sizes, and Jones's law of it.

    elo(b, C) = min(0, max(plateau, incline))    plateau = p1 b + p0    incline = s log10(C) + k b + c

b is the board size, C the training FLOPs, Elo 0 perfect play. A board one larger costs 10^(-k/s) times the compute for
the same Elo (Jones 2021, *Scaling scaling laws with board games*, arXiv 2104.03113; his fit: andyljones/boardlaw,
analysis/data.py, `Changepoint`). Three choices are not his:

- The frontier is of means over the training seeds of a configuration, each at its snapshot, where he takes the best of
  all agents: a maximum over noisy seeds rises with their number. The best of several means is still a maximum, so the
  level keeps some of that bias; the slope keeps it only as far as it differs along the frontier.
- Fitted are the snapshots that improve on all that cost no more, not curves interpolated at 101 values of compute.
- Saturated points, from -50 Elo on, are left out, where he keeps them under the ceiling: what nears perfect play bends
  over before it, and would flatten the incline. -50 is where his own code calls play perfect. As a frontier only rises,
  this cuts it off at a compute and leaves no hole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval
from flywheel.scaling.replicates import (
    Floats,
    Integers,
    Mask,
    Names,
    percentiles,
    require_rows,
    seed_means,
    seed_rows,
)

SATURATION = -50.0
"""Elo from which play counts as perfect (boardlaw, analysis/data.py, `perfect_play`): 43 % against a perfect one."""
LEAST_DECADES = 0.5
"""Range of compute, of one board size at least, without which a slope is a guess."""
_LEAST_SLOPE = 1.0
"""Elo a decade; less is no incline."""
LEAST_RISE = 100.0
"""Elo that the frontier must rise by along the incline of one size at least: the best of many ratings of one strength,
each 30 Elo off, rises by some 75."""
_ROUNDING = 1e-6
"""Squared Elo below which laws fit equally well."""
_START_SHARES = (0.0, 0.15, 0.3, 0.5, 0.7)
_START_TILTS = (0.0, 0.35, 0.7)
"""Where the change-point fit starts: shares of the points taken for the plateau, those with the least compute, once a
board one larger is allowed so many decades more (0.31 in Jones's constants)."""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Rated snapshots, one a row in arrays of one length. Raises InputError for lengths or numbers that cannot be.

    All Elo must mean the same on every size: relative to perfect play, or where there is none, to an anchor that is
    equally far from it on each. A row may stand more than once, as resampled seeds do.
    """

    sizes: Integers
    runs: Names
    """Configurations: rows that differ in nothing but `seeds` are repetitions."""
    seeds: Integers
    snapshots: Integers
    """Which of its run's, such as the generation; their FLOPs may differ a little between seeds."""
    flops: Floats
    """Of training, up to the snapshot, above 0: an untrained network is no point."""
    elo: Floats

    def __post_init__(self) -> None:
        require_rows(self, positive=("flops",), finite=("elo",))

    def take(self, rows: Integers) -> Points:
        """These rows, in this order, as often as named."""
        return Points(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class FrontierPoints:
    """Means over seeds that beat all of their size that cost no more, by size and then rising in FLOPs and Elo."""

    sizes: Integers
    runs: Names
    snapshots: Integers
    flops: Floats
    """Geometric means over seeds."""
    elo: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The fitted law and what it was fitted to; masks are over `points`."""

    slope: float
    """s: Elo a decade of training compute."""
    size_slope: float
    """k: Elo a board size, at equal compute."""
    offset: float
    """c: Elo."""
    plateau_slope: float | None
    """p1: Elo a board size; None where fewer than two sizes have points on the plateau."""
    plateau_offset: float | None
    """p0: Elo; with one size on the plateau its height there, with none None."""
    plateau_sizes: tuple[int, ...]
    """Those the plateau was fitted to."""
    saturation: float | None
    points: FrontierPoints
    used: Mask
    """Unsaturated."""
    on_plateau: Mask
    """Used, where the plateau is above the incline."""
    residuals: Floats
    """Elo above the law; NaN for points that were not used."""
    decades: dict[int, float]
    """By board size the range of compute of the used points on the incline, in powers of ten."""

    @property
    def compute_factor(self) -> float:
        """How many times the compute a board one larger takes for the same Elo."""
        decades = -self.size_slope / self.slope
        return 10.0**decades if decades < 308.0 else math.inf

    @property
    def root_mean_square(self) -> float:
        """Of the residuals, in Elo."""
        return math.sqrt(float(np.mean(np.square(self.residuals[self.used]))))

    def predict(self, size: npt.ArrayLike, flops: npt.ArrayLike) -> Floats:
        """Elo at a board size and training FLOPs above 0; shapes broadcast.

        With one size on the plateau other sizes have none, and without saturation there is no ceiling.
        """
        b = np.asarray(size, dtype=np.float64)
        elo = self.slope * np.log10(flops) + self.size_slope * b + self.offset
        if self.plateau_offset is not None:
            elo = np.maximum(elo, _heights(b, self.plateau_slope, self.plateau_offset, self.plateau_sizes))
        return np.asarray(elo if self.saturation is None else np.minimum(elo, 0.0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class FrontierIntervals:
    """95 % percentile intervals; `count` of each is the number of draws it comes from, `value` the fit to the data."""

    slope: Interval
    size_slope: Interval
    offset: Interval
    compute_factor: Interval
    plateau_slope: Interval | None
    """None where the fit to the data has none, or fewer than two draws have."""
    plateau_offset: Interval | None
    """Together with the slope only: the height of a single size is no offset."""
    unidentified: int
    """Draws left out as their slope could not be identified; many of them make the intervals too narrow."""


def frontier_points(points: Points) -> FrontierPoints:
    """The rising frontier of the means over seeds, saturated points among it. Raises InputError for no points."""
    first, (log_flops, elo) = seed_means(
        (points.sizes, points.runs, points.snapshots), (np.log10(points.flops), points.elo)
    )
    # Of two at one price the better comes first, so that the other improves on nothing.
    order = np.lexsort((-elo, log_flops, points.sizes[first]))
    kept = order[_improving(points.sizes[first][order], elo[order])]
    rows = first[kept]
    return FrontierPoints(
        points.sizes[rows], points.runs[rows], points.snapshots[rows], 10.0 ** log_flops[kept], elo[kept]
    )


def fit_frontier(points: Points, saturation: float | None = SATURATION) -> Frontier:
    """The law with the least squares over the unsaturated frontier; `saturation` None says that there is no ceiling.

    Whether there is a plateau, on one size or on a line over several, is by Schwarz's information criterion: a plateau
    through the lowest point of two sizes lowers the squares of any incline.

    Raises InputError where the points cannot identify the slopes: fewer than two board sizes, or in every size less
    than half a decade of compute or 100 Elo, below saturation or of that on the incline.
    """
    envelope = frontier_points(points)
    used = np.ones(len(envelope.elo), dtype=np.bool_) if saturation is None else envelope.elo < saturation
    sizes, log_flops, elo = envelope.sizes[used], np.log10(envelope.flops[used]), envelope.elo[used]
    _require_range(sizes, log_flops, elo, "below saturation" if saturation is not None else "on the frontier")
    best = min(_partitions(sizes, log_flops, elo), key=lambda law: law.criterion, default=None)
    if best is None:
        raise InputError(
            f"got {len(elo)} usable points of the frontier, too few apart for a slope of compute and one of the board "
            "size; add snapshots at other amounts of training compute"
        )
    incline = ~best.on_plateau
    _require_range(
        sizes[incline], log_flops[incline], elo[incline], "on the incline, the others on the plateau of the untrained"
    )
    slope, size_slope, offset = best.incline
    if slope < _LEAST_SLOPE:
        raise InputError(
            f"got a slope of {slope:.3g} Elo a decade, expected a frontier that rises; add runs with more training "
            "compute, or more seeds"
        )
    on_plateau, residuals = np.zeros_like(used), np.full(len(used), np.nan)
    on_plateau[used], residuals[used] = best.on_plateau, best.residuals
    ranges = {int(size): _spread(log_flops[incline & (sizes == size)]) for size in np.unique(envelope.sizes)}
    return Frontier(
        slope,
        size_slope,
        offset,
        best.plateau_slope,
        best.plateau_offset,
        best.plateau_sizes,
        saturation,
        envelope,
        used,
        on_plateau,
        residuals,
        ranges,
    )


def resample_seeds(points: Points, generator: np.random.Generator) -> Points:
    """One bootstrap draw: for each run on each size its training seeds, all snapshots of a seed together.

    See `seed_rows`; games and openings are for the caller to resample, who puts in the new ratings first.
    """
    return points.take(seed_rows((points.sizes, points.runs), points.seeds, generator))


def frontier_intervals(fitted: Frontier, draws: Iterable[Points]) -> FrontierIntervals:
    """Intervals from resampled points, each fitted as `fitted` was. Raises InputError with fewer than two usable."""
    laws, unidentified = [], 0
    for draw in draws:
        try:
            laws.append(fit_frontier(draw, fitted.saturation))
        except InputError:
            unidentified += 1
    plateau_slope = plateau_offset = None
    plateaus = [
        (slope, offset)
        for law in laws
        if (slope := law.plateau_slope) is not None and (offset := law.plateau_offset) is not None
    ]
    if fitted.plateau_slope is not None and fitted.plateau_offset is not None and len(plateaus) > 1:
        plateau_slope = percentiles(fitted.plateau_slope, [slope for slope, _ in plateaus])
        plateau_offset = percentiles(fitted.plateau_offset, [offset for _, offset in plateaus])
    return FrontierIntervals(
        percentiles(fitted.slope, [law.slope for law in laws]),
        percentiles(fitted.size_slope, [law.size_slope for law in laws]),
        percentiles(fitted.offset, [law.offset for law in laws]),
        percentiles(fitted.compute_factor, [law.compute_factor for law in laws]),
        plateau_slope,
        plateau_offset,
        unidentified,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    incline: tuple[float, float, float]
    """s, k, c"""
    plateau_slope: float | None
    plateau_offset: float | None
    plateau_sizes: tuple[int, ...]
    on_plateau: Mask
    residuals: Floats
    criterion: float
    """Schwarz's: n log(mean square) + parameters x log(n)."""


def _partitions(sizes: Integers, log_flops: Floats, elo: Floats) -> Iterator[_Law]:
    """Laws that no regrouping of the points improves, from several starts.

    Least squares of a maximum of planes by turns: fit each plane to its points, give each point to the higher plane
    (Magnani and Boyd 2009, *Convex piecewise-linear fitting*, section 3). It finds local optima, and may circle.
    """
    design = np.stack([log_flops, sizes, np.ones(len(sizes))], axis=1)
    seen = set()
    for share, tilt in itertools.product(_START_SHARES, _START_TILTS):
        shifted = log_flops - tilt * sizes
        on_plateau = shifted < np.quantile(shifted, share)
        while (key := on_plateau.tobytes()) not in seen:
            seen.add(key)
            if (law := _least_squares(design, elo, on_plateau)) is None:
                break
            yield law
            on_plateau = law.on_plateau


def _least_squares(design: Floats, elo: Floats, on_plateau: Mask) -> _Law | None:
    """Both planes, each through its points, and which is above at which point; None where they give no incline."""
    sizes = design[:, 1]
    held = tuple(int(size) for size in np.unique(sizes[on_plateau]))
    incline, _, rank, _ = np.linalg.lstsq(design[~on_plateau], elo[~on_plateau])
    if rank < 3:
        return None
    rising = design @ incline
    slope = offset = None
    level = np.full(len(elo), -np.inf)
    if len(held) > 1:
        slope, offset = np.linalg.lstsq(design[on_plateau, 1:], elo[on_plateau])[0].tolist()
    elif held:
        offset = float(elo[on_plateau].mean())
    if offset is not None:
        level = _heights(sizes, slope, offset, held)
    residuals = elo - np.maximum(rising, level)
    spread = math.log(float(np.mean(np.square(residuals))) + _ROUNDING)
    criterion = len(elo) * spread + (3 + min(len(held), 2)) * math.log(len(elo))
    return _Law(tuple(incline.tolist()), slope, offset, held, level > rising, residuals, criterion)


def _heights(sizes: Floats, slope: float | None, offset: float, held: tuple[int, ...]) -> Floats:
    """The plateau: without a slope it is known at the sizes held alone, and elsewhere there is none."""
    if slope is None:
        return np.where(np.isin(sizes, held), offset, -np.inf)
    return slope * sizes + offset


def _require_range(sizes: Integers, log_flops: Floats, elo: Floats, where: str) -> None:
    ranges = {int(size): (_spread(log_flops[sizes == size]), _spread(elo[sizes == size])) for size in np.unique(sizes)}
    got = ", ".join(
        f"{rise:.0f} Elo over {decades:.2f} decades at size {size}" for size, (decades, rise) in ranges.items()
    )
    if len(ranges) < 2:
        raise InputError(
            f"got points {where} of {len(ranges)} board sizes ({got or 'no points'}), expected two or more; add runs "
            "of another size that play better than untrained and below perfection"
        )
    if not any(decades >= LEAST_DECADES and rise >= LEAST_RISE for decades, rise in ranges.values()):
        raise InputError(
            f"got too short a range {where} to identify a slope ({got}), expected {LEAST_RISE:.0f} Elo over "
            f"{LEAST_DECADES} decades of training compute at one size or more; add earlier snapshots and smaller "
            "networks, longer runs, or a larger board"
        )


def _spread(values: Floats) -> float:
    return float(np.ptp(values)) if len(values) else 0.0


def _improving(sizes: Integers, elo: Floats) -> Mask:
    """Which rows beat all before them of the same size, the rows sorted by size."""
    improving = np.zeros(len(elo), dtype=np.bool_)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        before = np.maximum.accumulate(np.concatenate([[-np.inf], elo[rows][:-1]]))
        improving[rows] = elo[rows] > before
    return improving
