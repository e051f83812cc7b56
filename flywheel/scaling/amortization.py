"""When label search pays for itself: the search that labels cost, spread over the queries the student answers at once.

    Q* = (C_label + C_train) / (C_search - C_student)

C_search is what the *old* model must spend on a query to be as good as the student is at once: it samples until its
checker accepts an answer, at most N times, N the smallest budget whose pass@N reaches the student's accuracy (between
two whole budgets, mixed). C_student is one greedy answer. Beyond Q* queries the student is the cheaper of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flywheel.evaluation.metrics import pass_at_k


@dataclass(frozen=True, slots=True)
class SearchCurve:
    """What a model's search makes of a test set: n samples a problem, how many were right, and mean prices in FLOPs."""

    samples: int
    right: tuple[int, ...]
    """Right samples of each problem."""
    prompt_flops: float
    sample_flops: float

    def accuracy(self, budget: int) -> float:
        """Mean pass@budget, 0 at budget 0."""
        if budget == 0:
            return 0.0
        return math.fsum(pass_at_k(self.samples, right, budget) for right in self.right) / len(self.right)

    def flops(self, budget: int) -> float:
        """Expected FLOPs a query of sampling until the first verified answer, at most `budget` times."""
        drawn = math.fsum(1.0 - self.accuracy(before) for before in range(budget))
        return self.prompt_flops + self.sample_flops * drawn


@dataclass(frozen=True, slots=True)
class MeasuredCurve:
    """What a search makes of a test set where its budget is no number of samples: measured at some rising budgets, the
    first of them 1; in between by linear interpolation, of accuracy over the budget's logarithm, of FLOPs over the
    budget. It does not stop by itself at the first right answer, as it knows none."""

    budgets: tuple[int, ...]
    accuracies: tuple[float, ...]
    prices: tuple[float, ...]
    """FLOPs a query."""

    @property
    def samples(self) -> int:
        return self.budgets[-1]

    def accuracy(self, budget: int) -> float:
        """At a budget, 0 at budget 0."""
        if budget == 0:
            return 0.0
        return float(np.interp(math.log(budget), [math.log(held) for held in self.budgets], self.accuracies))

    def flops(self, budget: int) -> float:
        """FLOPs a query at a budget."""
        return float(np.interp(budget, self.budgets, self.prices))


class Curve(Protocol):
    """Accuracy and price of a search by its budget, a whole number up to `samples`."""

    @property
    def samples(self) -> int: ...

    def accuracy(self, budget: int) -> float: ...

    def flops(self, budget: int) -> float: ...


@dataclass(frozen=True, slots=True)
class BreakEven:
    """`budget` samples of the old model's search against one answer of the student. FLOPs are a query's.

    `queries` is None where the search is never dearer, so that the investment is never earned back. `reached` is false
    where even the largest measured budget stays below the student's accuracy: the row then compares with that budget.
    """

    budget: float
    search_accuracy: float
    search_flops: float
    student_accuracy: float
    student_flops: float
    investment_flops: float
    queries: float | None
    reached: bool


def at_equal_accuracy(
    curve: Curve, student_accuracy: float, student_flops: float, investment_flops: float
) -> BreakEven:
    """Compare with the search budget that just reaches the student's accuracy."""
    below, above = 0.0, 0.0
    for budget in range(1, curve.samples + 1):
        below, above = above, curve.accuracy(budget)
        if above >= student_accuracy:
            part = (student_accuracy - below) / (above - below) if above > below else 1.0
            low, high = (curve.flops(budget - 1) if budget > 1 else 0.0), curve.flops(budget)
            if budget == 1:
                # No mixture below one sample: a query is answered once at least.
                part, low = 1.0, high
            return _row(
                budget - 1 + part,
                below + part * (above - below),
                low + part * (high - low),
                student_accuracy,
                student_flops,
                investment_flops,
                True,
            )
    most = curve.samples
    return _row(float(most), above, curve.flops(most), student_accuracy, student_flops, investment_flops, False)


def at_budgets(
    curve: Curve,
    budgets: Sequence[int],
    student_accuracy: float,
    student_flops: float,
    investment_flops: float,
) -> list[BreakEven]:
    """Compare with each budget of the search, whatever accuracies the two reach."""
    rows = []
    for budget in budgets:
        accuracy = curve.accuracy(budget)
        rows.append(
            _row(
                float(budget),
                accuracy,
                curve.flops(budget),
                student_accuracy,
                student_flops,
                investment_flops,
                accuracy >= student_accuracy,
            )
        )
    return rows


def _row(
    budget: float,
    search_accuracy: float,
    search_flops: float,
    student_accuracy: float,
    student_flops: float,
    investment_flops: float,
    reached: bool,
) -> BreakEven:
    saved = search_flops - student_flops
    return BreakEven(
        budget,
        search_accuracy,
        search_flops,
        student_accuracy,
        student_flops,
        investment_flops,
        investment_flops / saved if saved > 0 else None,
        reached,
    )
