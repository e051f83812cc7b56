"""Ways to an answer: what each budget of each model makes of each test problem, and the draws of a bootstrap over them.

Plain arrays, whoever measured them: a registry's outcomes or a sweep's table. A budget is a whole number, of samples or
of simulations; a budget that was not measured lies between two that were, never beyond the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model on the test problems: a column a measured budget, the first of them 0, its answer at once."""

    name: str
    investment_flops: float
    """What it took to have this model, from where those that are compared part."""
    budgets: tuple[int, ...]
    solved: Floats
    """[problems, budgets]: chance of a right answer, in 0..1."""
    flops: Floats
    """Of the same shape: expected FLOPs a query."""

    def __post_init__(self) -> None:
        rising = self.budgets[:2] in ((0,), (0, 1)) and list(self.budgets) == sorted(set(self.budgets))
        if not rising:
            raise ValueError(f"{self.name}: got budgets {list(self.budgets)}, expected rising ones from 0, then 1")
        shape = (len(self.solved), len(self.budgets))
        if not len(self.solved) or self.solved.shape != shape or self.flops.shape != shape:
            raise ValueError(
                f"{self.name}: got solved {self.solved.shape} and flops {self.flops.shape}, expected two matrices "
                f"[problems, {len(self.budgets)} budgets]"
            )
        if not (np.all((self.solved >= 0) & (self.solved <= 1)) and np.all(np.isfinite(self.flops))):
            raise ValueError(f"{self.name}: expected chances in 0..1 and finite FLOPs in every cell")
        if not 0 <= self.investment_flops < np.inf:
            raise ValueError(f"{self.name}: got an investment of {self.investment_flops}, expected FLOPs from 0 up")

    @property
    def largest(self) -> int:
        """The largest budget; 0 of a model without a search."""
        return self.budgets[-1]

    def means(self, weights: Floats) -> tuple[Floats, Floats]:
        """Accuracy and FLOPs a query with every whole budget from 0 to the largest, [draws, 1 + largest] each.

        `weights`: how often each problem counts, [draws, problems]. Between two measured budgets linear: accuracy over
        the budget's logarithm, FLOPs over the budget.
        """
        # One product: to read the weights takes longer than to multiply by so few columns.
        sums = weights @ np.column_stack([self.solved, self.flops, np.ones(len(self.solved))])
        accuracy, flops = np.split(sums[:, :-1] / sums[:, -1:], 2, axis=1)
        if len(self.budgets) == 1 + self.largest:
            return accuracy, flops
        whole, held, unit = np.arange(1, self.largest + 1), self.budgets[1:], np.eye(len(self.budgets) - 1)
        between = np.array([np.interp(np.log(whole), np.log(held), row) for row in unit])
        linear = np.array([np.interp(whole, held, row) for row in unit])
        return (
            np.column_stack([accuracy[:, 0], accuracy[:, 1:] @ between]),
            np.column_stack([flops[:, 0], flops[:, 1:] @ linear]),
        )


def sampled(
    name: str,
    investment_flops: float,
    at_once: tuple[Floats, Floats],
    samples: int,
    right: Floats,
    prompt_flops: Floats,
    sample_flops: Floats,
) -> Model:
    """A model that samples until its checker accepts an answer, at most k times.

    `at_once`: solved and FLOPs of its likeliest answer; `right`: how many of a problem's `samples` were; FLOPs: of a
    problem's prompt and of a sample of it. All are [problems]. A search costs its expected number of samples times a
    problem's mean sample: Wald's identity, exact where samples are independent.
    """
    if np.any((right < 0) | (right > samples)) or samples < 1:
        raise ValueError(f"{name}: expected 1 sample or more and 0 to {samples} right ones, got {right}")
    missed = missed_by_each(samples, right)
    drawn = np.cumsum(missed[:, :-1], axis=1)
    return Model(
        name,
        investment_flops,
        tuple(range(samples + 1)),
        np.column_stack([at_once[0], 1.0 - missed[:, 1:]]),
        np.column_stack([at_once[1], prompt_flops[:, None] + sample_flops[:, None] * drawn]),
    )


def missed_by_each(samples: int, right: Floats) -> Floats:
    """[problems, 1 + samples]: the chance that k of the samples, drawn without replacement, hold no right one.

    It is 1 - pass@k (Chen et al. 2021, eq. 1) for all k at once: the k-th misses with (n - c - k + 1) / (n - k + 1).
    """
    before = np.arange(samples)
    still = np.clip((samples - right[:, None] - before) / (samples - before), 0.0, 1.0)
    return np.column_stack([np.ones(len(right)), np.cumprod(still, axis=1)])


def measured(name: str, investment_flops: float, budgets: Sequence[int], solved: Floats, flops: Floats) -> Model:
    """A model whose search was measured at some rising budgets, the columns; the first is 1, the model at once. Such
    a search does not stop at the first right answer, as it knows none."""
    twice = [0, *range(len(budgets))]
    return Model(name, investment_flops, (0, *budgets), solved[:, twice], flops[:, twice])


def resampled(groups: Sequence[str], draws: int, generator: np.random.Generator) -> Floats:
    """How often each problem counts in each draw, [1 + draws, problems].

    Row 0 is the test set itself. In the others as many groups as there are were drawn with replacement, each with all
    its problems: the bootstrap of clusters (Cameron, Gelbach and Miller 2008, *Bootstrap-based improvements for
    inference with clustered errors*, section III). With few groups its percentile intervals are too narrow.
    """
    if not len(groups):
        raise ValueError("a bootstrap needs at least one problem, got none")
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1
    times = generator.multinomial(count, np.full(count, 1.0 / count), size=draws)
    return np.vstack([np.ones(len(member)), times[:, member]]).astype(np.float64)


def resampled_with_seeds(groups: Sequence[str], seeds: int, draws: int, generator: np.random.Generator) -> Floats:
    """As `resampled`, [1 + draws, seeds * problems], of problems that each training seed meets: `groups` of one seed's.

    Groups and seeds are resampled each by itself, and a cell counts as often as both say (Owen 2007, *The pigeonhole
    bootstrap*); of n seeds n - 1 are drawn, as in `flywheel.scaling.replicates`. One seed stays as it is.
    """
    weights = resampled(groups, draws, generator)
    if seeds == 1:
        return weights
    taken = generator.multinomial(seeds - 1, np.full(seeds, 1.0 / seeds), size=draws) * (seeds / (seeds - 1))
    whole = np.concatenate([np.ones((1, seeds)), taken])
    return (whole[:, :, None] * weights[:, None, :]).reshape(1 + draws, -1)
