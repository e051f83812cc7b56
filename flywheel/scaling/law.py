"""A smooth law of accuracy over log10 axes such as model size, training, label search, and runtime search.

    accuracy = floor + (ceiling - floor) * sigmoid(h),    h = sum over terms of coefficient * monomial

A monomial is a product of centred log10 axes: () is 1, ("training",) is x, ("training", "training") is x^2. On the
logit h a decade of one axis is worth slope_give / slope_get decades of another, whatever floor and ceiling are (after
Jones 2021, *Scaling scaling laws with board games*, where train-time and test-time compute exchange at such a rate).

The fit is of least squares, each cell weighed by 1 / (p (1 - p) / n + 0.01^2): the binomial variance of its fitted
accuracy p over n effective problems, and one point of accuracy for what a smooth law cannot know. Without the latter
cells near 0 or 1 would decide alone. n is p (1 - p) over the cluster-robust variance of means, pooled over all cells:
problems of one group count as little as they tell.

Residuals have two parts, estimated by the method of moments on the linearised fit (Searle, Casella and McCulloch 1992,
*Variance components*, chapter 5): one that all cells of a run share, on the logit (its seed, and what the law misses
about its configuration), and one of each cell, as a multiple of the variance above. Runs of one seed that start from
the same model count as one run: what that model lacks, they all lack.

Known errors: the law extends beyond its data without warning (ask `extrapolates`). A ceiling that no cell comes near
is hardly known, nor are coefficients that trade against it; exchange rates hardly mind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel.errors import InputError

Floats = npt.NDArray[np.float64]
Term = tuple[str, ...]
Point = Mapping[str, float]
"""Axes by name, not their logarithms. May hold more axes than the law has."""

_LAW_ERROR = 0.01
"""Standard deviation, in accuracy, that every cell is given besides its sampling error."""
_SLACK = 0.05
"""Decades beyond an axis that still count as within it: prices come from a model that is some per cent off."""
_FARTHEST = 30.0
"""Decades from the centre beyond which no point of equal accuracy is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Measured cells: one snapshot of one run at one runtime budget, all on the same problems."""

    axes: tuple[str, ...]
    values: Floats
    """[cells, axes], positive."""
    configurations: tuple[str, ...]
    """Of each cell: what a run was set up as, whatever its seed, snapshot and runtime budget."""
    seeds: tuple[int, ...]
    """Training seed of each cell."""
    outcomes: Floats
    """[cells, problems], each in 0..1."""
    groups: tuple[str, ...]
    """Of each problem: those of one group are not independent."""
    beginnings: tuple[str, ...] = ()
    """Of each cell: configurations of one beginning start, seed by seed, from the same model, and luck with it is luck
    of them all. Empty where each starts from a model of its own."""

    def __post_init__(self) -> None:
        count = len(self.configurations)
        if self.values.shape != (count, len(self.axes)) or len(self.seeds) != count or not count:
            raise InputError(
                f"got values of shape {self.values.shape}, {count} configurations and {len(self.seeds)} seeds, "
                f"expected [cells, {len(self.axes)}] and one of each a cell"
            )
        if len(self.beginnings) not in (0, count):
            raise InputError(f"got {len(self.beginnings)} beginnings, expected one of each of {count} cells, or none")
        if self.outcomes.shape != (count, len(self.groups)) or not self.groups:
            raise InputError(f"got outcomes of shape {self.outcomes.shape}, expected {(count, len(self.groups))}")
        if not (np.isfinite(self.values).all() and (self.values > 0).all()):
            raise InputError("got axes that are not all positive numbers; their logarithms are the law's axes")
        if not ((self.outcomes >= 0).all() and (self.outcomes <= 1).all()):
            raise InputError("got outcomes that are not all in 0..1")

    @property
    def accuracies(self) -> Floats:
        """[cells]"""
        return np.asarray(self.outcomes.mean(axis=1))

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Beginning and seed of each cell: what counts as one draw of luck."""
        return list(zip(self.beginnings or self.configurations, self.seeds, strict=True))

    def only(self, keep: npt.NDArray[np.bool_]) -> Cells:
        """The cells where `keep` [cells] holds."""
        at = np.flatnonzero(keep)
        configurations, seeds = tuple(self.configurations[i] for i in at), tuple(self.seeds[i] for i in at)
        beginnings = tuple(self.beginnings[i] for i in at) if self.beginnings else ()
        return Cells(self.axes, self.values[at], configurations, seeds, self.outcomes[at], self.groups, beginnings)


@dataclass(frozen=True, slots=True)
class Spread:
    """What the law leaves over."""

    runs: float
    """Standard deviation between runs, on the logit; not known, and 0, with less than 1 degree of freedom."""
    freedom: float
    """Degrees of freedom of `runs`: how many differences between runs the fit did not absorb."""
    cells: float
    """Variance within a run as a multiple of the variance that the cell was weighed by."""
    problems: float
    """Effective number of problems."""


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """How far a point lies from the data, in decades."""

    beyond: dict[str, float]
    """Of each axis out of range: how far, below 0 where it is too small."""
    distance: float
    """To the nearest measured cell, all axes together."""
    spacing: float
    """The widest gap between neighbouring values of any axis."""

    @property
    def outside(self) -> bool:
        """Beyond an axis, or farther from every cell than any two neighbours are apart, as in a corner of sizes and
        training that no run went to. (A point amid a grid of two axes is 0.7 gaps away at most.)"""
        return bool(self.beyond) or self.distance > self.spacing


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """A fitted law, or one draw of it."""

    axes: tuple[str, ...]
    terms: tuple[Term, ...]
    centres: Floats
    """[axes], log10."""
    coefficients: Floats
    """[terms], on the logit, a decade to each power."""
    floor: float
    ceiling: float
    measured: Floats
    """[cells, axes], log10."""
    residuals: Floats
    """[cells]: measured less fitted accuracy."""
    spread: Spread

    @property
    def root_mean_square(self) -> float:
        """Of the residuals, in accuracy."""
        return math.sqrt(float(np.mean(self.residuals**2)))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and largest measured value of each axis, not their logarithms."""
        low, high = (10.0 ** bound(self.measured, axis=0) for bound in (np.min, np.max))
        return {axis: (float(low[at]), float(high[at])) for at, axis in enumerate(self.axes)}

    def predict(self, point: Point) -> float:
        """Accuracy. Raises InputError for axes that are missing or not positive."""
        return float(self.accuracies(self.row(point)[None])[0])

    def accuracies(self, values: Floats) -> Floats:
        """[points] of values [points, axes], in the law's order of axes."""
        logits = monomials(np.log10(values) - self.centres, self.powers) @ self.coefficients
        return self.floor + (self.ceiling - self.floor) * sigmoid(logits)

    def row(self, point: Point) -> Floats:
        """[axes]: the point in the law's order. Raises InputError for axes that are missing or not positive."""
        if bad := [axis for axis in self.axes if not 0.0 < point.get(axis, 0.0) < math.inf]:
            raise InputError(f"got no positive number for {', '.join(bad)}; a point needs {', '.join(self.axes)}")
        return np.array([point[axis] for axis in self.axes], dtype=np.float64)

    def slopes(self, point: Point) -> dict[str, float]:
        """Partial derivatives of the logit by the log10 of each axis."""
        powers, centred = self.powers, np.log10(self.row(point)) - self.centres
        found = {}
        for at, axis in enumerate(self.axes):
            lowered = powers.copy()
            lowered[:, at] = np.maximum(powers[:, at] - 1, 0)
            found[axis] = float(monomials(centred[None], lowered)[0] @ (powers[:, at] * self.coefficients))
        return found

    def exchange(self, point: Point, give: str, get: str) -> float:
        """How many decades of `get` one decade more of `give` is worth at the same accuracy, by the slopes at a point.

        Infinite where only `get` does not raise accuracy, nan where neither does.
        """
        self._known(give, get)
        return exchange_rate(self.slopes(point), give, get)

    def at_accuracy(self, accuracy: float, point: Point, axis: str) -> dict[str, float] | None:
        """The point with `axis` (whose own value is not looked at) moved to where the law gives the accuracy.

        Only where accuracy rises with the axis; of several such places the nearest to the centre of the data. None
        where there is none within 30 decades, as for an accuracy that is not between floor and ceiling.
        """
        self._known(axis)
        if not self.floor < accuracy < self.ceiling:
            return None
        at, powers = self.axes.index(axis), self.powers
        centred = np.log10(self.row({**point, axis: 1.0})) - self.centres
        others = powers.copy()
        others[:, at] = 0
        parts = monomials(centred[None], others)[0] * self.coefficients
        polynomial = np.bincount(powers[:, at], weights=parts)[::-1]
        polynomial[-1] -= math.log((accuracy - self.floor) / (self.ceiling - accuracy))
        roots = np.roots(polynomial)
        real = roots.real[np.abs(roots.imag) < 1e-9]
        rising = [root for root in real if np.polyval(np.polyder(polynomial), root) > 0 and abs(root) <= _FARTHEST]
        if not rising:
            return None
        return {**point, axis: float(10.0 ** (min(rising, key=abs) + self.centres[at]))}

    def exchange_at(self, accuracy: float, point: Point, axis: str, give: str, get: str) -> float:
        """`exchange` where moving `axis` alone brings the point to an accuracy; nan where it cannot."""
        found = self.at_accuracy(accuracy, point, axis)
        return math.nan if found is None else self.exchange(found, give, get)

    def extrapolates(self, point: Point) -> Extrapolation:
        """How far a point lies outside the data."""
        row, low, high = np.log10(self.row(point)), self.measured.min(axis=0), self.measured.max(axis=0)
        past = np.where(row > high, row - high, np.minimum(row - low, 0.0))
        beyond = {axis: float(past[at]) for at, axis in enumerate(self.axes) if abs(past[at]) > _SLACK}
        gaps = [float(np.diff(np.unique(column)).max(initial=0.0)) for column in self.measured.T]
        return Extrapolation(beyond, float(np.sqrt(((self.measured - row) ** 2).sum(axis=1).min())), max(gaps))

    @property
    def powers(self) -> npt.NDArray[np.int64]:
        """[terms, axes]: of each axis in each term."""
        return _powers(self.axes, self.terms)

    def _known(self, *axes: str) -> None:
        if unknown := [axis for axis in axes if axis not in self.axes]:
            raise InputError(f"got {', '.join(unknown)}, expected axes of the law: {', '.join(self.axes)}")


def exchange_rate(slopes: Mapping[str, float], give: str, get: str) -> float:
    """`Law.exchange` by slopes."""
    otherwise = math.inf if slopes[give] > 0.0 else math.nan
    return slopes[give] / slopes[get] if slopes[get] > 0.0 else otherwise


def fit(cells: Cells, terms: Sequence[Term]) -> Law:
    """Least squares from several starts, floor in [0, smallest accuracy], ceiling in [largest accuracy, 1].

    Raises InputError where the data cannot tell the coefficients.
    """
    centres, features = design(cells, terms)
    accuracies, problems = cells.accuracies, effective_problems(cells)
    variances = weighing_variance((accuracies * problems + 1.0) / (problems + 2.0), problems)
    starts = _starts(features, accuracies)
    best = min((descend(features, accuracies, 1.0 / variances, start) for start in starts), key=lambda found: found[1])
    for _ in range(2):
        variances = weighing_variance(accuracies_of(features, best[0]), problems)
        best = descend(features, accuracies, 1.0 / variances, best[0])
    theta = best[0]
    residuals = accuracies - accuracies_of(features, theta)
    spread = _spread(cells, features, theta, residuals, problems)
    floor, ceiling = theta[-2:].tolist()
    measured = np.log10(cells.values)
    return Law(cells.axes, tuple(terms), centres, theta[:-2], floor, ceiling, measured, residuals, spread)


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-logit)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def weighing_variance(accuracies: Floats, problems: float) -> Floats:
    """[cells]: what a cell is weighed by the inverse of."""
    return np.asarray(accuracies * (1.0 - accuracies) / problems + _LAW_ERROR**2)


def _powers(axes: tuple[str, ...], terms: Sequence[Term]) -> npt.NDArray[np.int64]:
    """[terms, axes]"""
    return np.array([[term.count(axis) for axis in axes] for term in terms], dtype=np.int64)


def monomials(centred: Floats, powers: npt.NDArray[np.int64]) -> Floats:
    """[points, terms] of centred logarithms [points, axes]."""
    columns = [
        np.prod([centred[:, at] ** power for at, power in enumerate(row) if power], axis=0) + np.zeros(len(centred))
        for row in powers
    ]
    return np.stack(columns, axis=1)


def design(cells: Cells, terms: Sequence[Term]) -> tuple[Floats, Floats]:
    """Centres [axes] and features [cells, terms]. Raises InputError where the data cannot tell the coefficients."""
    if unknown := {axis for term in terms for axis in term} - set(cells.axes):
        raise InputError(f"got terms of {', '.join(sorted(unknown))}, expected axes among {', '.join(cells.axes)}")
    logs = np.log10(cells.values)
    spans = np.ptp(logs, axis=0)
    single = [axis for axis, span in zip(cells.axes, spans, strict=True) if span < 1e-9]
    if stuck := [axis for axis in single if any(axis in term for term in terms)]:
        raise InputError(f"every cell has the same {', '.join(stuck)}, so that its effect cannot be known; vary it")
    if len(logs) < len(terms) + 2:
        raise InputError(f"got {len(logs)} cells for {len(terms)} coefficients, floor and ceiling; measure more")
    if np.ptp(cells.accuracies) == 0.0:
        raise InputError(f"every cell has accuracy {cells.accuracies[0]:.3g}, so that no effect can be seen")
    centres = np.asarray(logs.mean(axis=0))
    features = monomials(logs - centres, _powers(cells.axes, terms))
    _, sizes, directions = np.linalg.svd(features / np.linalg.norm(features, axis=0), full_matrices=False)
    if sizes[-1] < 1e-7 * sizes[0]:
        mixed = [" * ".join(term) or "1" for term, part in zip(terms, directions[-1], strict=True) if abs(part) > 0.1]
        raise InputError(f"the cells cannot tell these terms apart: {', '.join(mixed)}; vary their axes independently")
    return centres, features


def effective_problems(cells: Cells) -> float:
    """p (1 - p) over the cluster-robust variance of a mean, both summed over cells; the number of groups where no
    cell's problems differ."""
    _, group_of = np.unique(cells.groups, return_inverse=True)
    order = np.argsort(group_of, kind="stable")
    firsts = np.flatnonzero(np.diff(group_of[order], prepend=-1))
    accuracies, groups, problems = cells.accuracies, len(firsts), len(group_of)
    sums = np.add.reduceat((cells.outcomes - accuracies[:, None])[:, order], firsts, axis=1)
    variance = float((sums**2).sum()) * groups / max(1, groups - 1) / problems**2
    return float((accuracies * (1.0 - accuracies)).sum()) / variance if variance > 0.0 else float(groups)


def accuracies_of(features: Floats, theta: Floats) -> Floats:
    """Of theta = (coefficients, floor, ceiling)."""
    return np.asarray(theta[-2] + (theta[-1] - theta[-2]) * sigmoid(features @ theta[:-2]))


def jacobian(features: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """[cells, theta], and [cells] the derivative of accuracy by the logit."""
    risen = sigmoid(features @ theta[:-2])
    gains = (theta[-1] - theta[-2]) * risen * (1.0 - risen)
    return np.column_stack([gains[:, None] * features, 1.0 - risen, risen]), gains


def _starts(features: Floats, accuracies: Floats) -> list[Floats]:
    """Coefficients by linear regression of the logit, for floor and ceiling near either end of where they may be."""
    low, high = float(accuracies.min()), float(accuracies.max())
    starts = []
    for floor in {0.0, 0.9 * low}:
        for ceiling in {1.0, high + 0.1 * (1.0 - high)}:
            risen = np.clip((accuracies - floor) / (ceiling - floor), 0.02, 0.98)
            coefficients = np.linalg.lstsq(features, np.log(risen / (1.0 - risen)), rcond=None)[0]
            starts.append(np.array([*coefficients, floor, ceiling]))
    return starts


def descend(features: Floats, accuracies: Floats, weights: Floats, start: Floats) -> tuple[Floats, float]:
    """Theta and its weighted sum of squares, by Levenberg and Marquardt's method with steps cut off at the bounds; a
    bound that the gradient holds on to is left out of the step."""
    low, high = np.full(len(start), -math.inf), np.full(len(start), math.inf)
    low[-2:], high[-2:] = (0.0, accuracies.max()), (accuracies.min(), 1.0)
    roots = np.sqrt(weights)
    theta = np.clip(start, low, high)
    errors = roots * (accuracies_of(features, theta) - accuracies)
    cost, damping = float(errors @ errors), 1e-3
    for _ in range(200):
        derivatives = roots[:, None] * jacobian(features, theta)[0]
        slope, curvature = derivatives.T @ errors, derivatives.T @ derivatives
        free = ~(((theta <= low) & (slope > 0.0)) | ((theta >= high) & (slope < 0.0)))
        curvature, slope = curvature[free][:, free], slope[free]
        scale = np.diag(curvature) + 1e-12 * np.trace(curvature)
        before = cost
        while damping < 1e12:
            step = np.zeros(len(theta))
            step[free] = -np.linalg.solve(curvature + damping * np.diag(scale), slope)
            trial = np.clip(theta + step, low, high)
            errors_there = roots * (accuracies_of(features, trial) - accuracies)
            reached = float(errors_there @ errors_there)
            if reached <= cost:
                theta, errors, cost, damping = trial, errors_there, reached, max(1e-9, damping / 10.0)
                break
            damping *= 10.0
        if before - cost <= 1e-8 * before:
            break
    return theta, cost


def _spread(cells: Cells, features: Floats, theta: Floats, residuals: Floats, problems: float) -> Spread:
    """Both variances, by equating sums of squares between and within runs with what is expected of them.

    With weighted errors e = Z u + d, u of runs and d of cells, the fit leaves M e, M = 1 - J J^+, and with P onto Z
    E|P M e|^2 = var(u) |P M Z|^2 + var(d) tr(P M), E|M e|^2 = var(u) |M Z|^2 + var(d) tr(M).
    """
    roots = 1.0 / np.sqrt(weighing_variance(accuracies_of(features, theta), problems))
    derivatives, gains = jacobian(features, theta)
    held = [(0.0 < theta[-2] < cells.accuracies.min()), (cells.accuracies.max() < theta[-1] < 1.0)]
    basis = np.linalg.qr(roots[:, None] * derivatives[:, [True] * features.shape[1] + held])[0]
    names = {run: number for number, run in enumerate(dict.fromkeys(cells.runs))}
    run_of = np.array([names[run] for run in cells.runs])
    runs = np.zeros((len(run_of), len(names)))
    runs[np.arange(len(run_of)), run_of] = roots * gains
    units = runs / np.maximum(np.linalg.norm(runs, axis=0), 1e-100)
    left = runs - basis @ (basis.T @ runs)
    errors = roots * residuals
    within = len(errors) - basis.shape[1]
    freedom = len(names) - float(((basis.T @ units) ** 2).sum())
    sums = np.array([float(((units.T @ errors) ** 2).sum()), float(errors @ errors)])
    expected = np.array([[float(((units.T @ left) ** 2).sum()), freedom], [float((left**2).sum()), float(within)]])
    if freedom < 1.0:
        return Spread(0.0, freedom, sums[1] / max(1, within), problems)
    if within - freedom < 1.0:
        return Spread(math.sqrt(sums[0] / expected[0, 0]), freedom, 0.0, problems)
    run_variance, cell_variance = np.linalg.solve(expected, sums).tolist()
    if run_variance <= 0.0:
        run_variance, cell_variance = 0.0, sums[1] / within
    return Spread(math.sqrt(run_variance), freedom, max(0.0, cell_variance), problems)
