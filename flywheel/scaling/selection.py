"""Which terms a law needs: cross-validation that leaves out a configuration at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.errors import InputError
from flywheel.scaling.law import Cells, Term, effective_problems, fit, weighing_variance


@dataclass(frozen=True, slots=True)
class Score:
    """How well a set of terms predicts configurations that it has not seen."""

    terms: tuple[Term, ...]
    error: float
    """Mean over configurations of their cells' mean squared error over the variance they are weighed by. Infinite where
    the set cannot be fitted without one of them."""
    root_mean_square: float
    """Of the same errors, in accuracy, each configuration counted once."""
    excess: float
    """Mean error more than that of the best set."""
    excess_error: float
    """Standard error of the excess over configurations, paired."""
    problem: str | None
    """Why the set cannot be fitted."""


def choose_terms(cells: Cells, candidates: Sequence[Sequence[Term]]) -> tuple[tuple[Term, ...], list[Score]]:
    """The smallest set whose error, leaving out one configuration at a time, is within one standard error of the best
    (Hastie, Tibshirani and Friedman 2009, *The elements of statistical learning*, section 7.10), and all scores.

    Raises InputError where no set can be fitted, or there are fewer than three configurations.
    """
    names = sorted(set(cells.configurations))
    if len(names) < 3:
        raise InputError(f"got {len(names)} configurations, expected 3 or more: each is left out in turn")
    held = np.array(cells.configurations)
    problems = effective_problems(cells)
    variances = weighing_variance((cells.accuracies * problems + 1.0) / (problems + 2.0), problems)
    errors, squares = (np.full((len(candidates), len(names)), math.inf) for _ in range(2))
    reasons: list[str | None] = [None] * len(candidates)
    for number, terms in enumerate(candidates):
        try:
            for at, name in enumerate(names):
                out = held == name
                residuals = cells.accuracies[out] - fit(cells.only(~out), terms).accuracies(cells.values[out])
                errors[number, at] = np.mean(residuals**2 / variances[out])
                squares[number, at] = np.mean(residuals**2)
        except InputError as problem:
            errors[number] = squares[number] = math.inf
            reasons[number] = f"without {name}: {problem}"
    if all(reasons):
        raise InputError(f"no set of terms can be fitted with a configuration left out; the first: {reasons[0]}")
    best = errors[int(np.argmin(errors.mean(axis=1)))]
    scores = []
    for number, terms in enumerate(candidates):
        more = errors[number] - best if reasons[number] is None else np.full(len(names), math.inf)
        error = math.inf if reasons[number] else float(np.std(more, ddof=1)) / math.sqrt(len(names))
        means = (float(errors[number].mean()), math.sqrt(float(squares[number].mean())), float(more.mean()))
        scores.append(Score(tuple(terms), *means, error, reasons[number]))
    within = [score for score in scores if score.problem is None and score.excess <= score.excess_error]
    return min(within, key=lambda score: (len(score.terms), score.error)).terms, scores
