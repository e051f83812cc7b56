"""What to train and how to answer a number of queries: the cheapest allocation of compute that reaches an accuracy.

    total cost = investment + queries * FLOPs a query        (all in FLOPs)

An allocation is a way to train (size, label-search budget, generations, and what they cost, which the caller's cost
model says); an option is an allocation with one of its runtime budgets. `forecast` asks bootstrap draws of a law
(`flywheel.scaling.uncertainty`) for the accuracy of every option; the choices are then plain enumeration, as a grid of
options is small and their costs are no smooth function.

Not here: search for allocations between those of the grid, and money (FLOPs of training and of queries cost the same).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval
from flywheel.evaluation.metrics import pass_at_k
from flywheel.scaling.law import Extrapolation, Floats
from flywheel.scaling.uncertainty import Draws, new_runs


@dataclass(frozen=True, slots=True)
class Allocation:
    """A way to train, and the prices of answering with what comes of it."""

    label: str
    parameters: float
    search: float
    """Label-search budget, samples a problem."""
    generations: int
    investment_flops: float
    """Of label search and training: the law's axis `training`."""
    query_flops: Mapping[int, float]
    """FLOPs a query, the law's axis `runtime`, by runtime budget (0: greedy, k: k samples)."""

    def point(self, budget: int) -> dict[str, float]:
        """Axes for the law."""
        return {
            "parameters": self.parameters,
            "training": self.investment_flops,
            "runtime": self.query_flops[budget],
            "search": self.search,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """An allocation at one runtime budget, for a number of queries. Costs are FLOPs."""

    allocation: Allocation
    budget: int
    queries: float
    accuracy: Interval
    """Of a new run, with its 95 % predictive interval."""
    query_flops: float
    investment_flops: float
    total_flops: float
    extrapolation: Extrapolation

    @property
    def label(self) -> str:
        """`small, 16 samples`"""
        return f"{self.allocation.label}, {f'{self.budget} samples' if self.budget else 'greedy'}"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No option will do: why, and the one that comes nearest."""

    message: str
    nearest: Plan


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Accuracy of every option."""

    options: tuple[tuple[Allocation, int], ...]
    """Allocation and runtime budget."""
    investments: Floats
    """[options], FLOPs."""
    query_flops: Floats
    """[options]"""
    accuracies: Floats
    """[options], by the law fitted to all the data."""
    drawn: Floats
    """[draws, options], by each draw of the law: its uncertainty alone."""
    runs: Floats
    """[draws, options], of a new run: with its own deviation and noise."""
    extrapolations: tuple[Extrapolation, ...]
    axes: tuple[str, ...]
    """Of the law."""
    ceiling: float

    def totals(self, queries: float) -> Floats:
        """[options], FLOPs."""
        return self.investments + queries * self.query_flops

    def plan(self, at: int, queries: float) -> Plan:
        """The option as a plan."""
        allocation, budget = self.options[at]
        low, high = np.quantile(self.runs[:, at], [0.025, 0.975]).tolist()
        return Plan(
            allocation=allocation,
            budget=budget,
            queries=queries,
            accuracy=Interval(float(self.accuracies[at]), low, high, len(self.runs)),
            query_flops=float(self.query_flops[at]),
            investment_flops=float(self.investments[at]),
            total_flops=float(self.totals(queries)[at]),
            extrapolation=self.extrapolations[at],
        )


def forecast(draws: Draws, allocations: Sequence[Allocation], generator: np.random.Generator) -> Forecast:
    """Ask the law for all allocations at all their runtime budgets. Raises InputError for none."""
    options = tuple((allocation, budget) for allocation in allocations for budget in allocation.query_flops)
    if not options:
        raise InputError("got no allocation with a runtime budget, expected one at least")
    points = [allocation.point(budget) for allocation, budget in options]
    values = np.stack([draws.law.row(point) for point in points])
    return Forecast(
        options=options,
        investments=np.array([allocation.investment_flops for allocation, _ in options]),
        query_flops=np.array([allocation.query_flops[budget] for allocation, budget in options]),
        accuracies=draws.law.accuracies(values),
        drawn=draws.accuracies(values),
        runs=new_runs(draws, values, generator),
        extrapolations=tuple(draws.law.extrapolates(point) for point in points),
        axes=draws.law.axes,
        ceiling=draws.law.ceiling,
    )


def cheapest(outlook: Forecast, queries: float, target: float, confidence: float | None = None) -> Plan | Unreachable:
    """The plan of least total cost whose predicted accuracy reaches the target; of equals, the more accurate.

    With `confidence`, a new run must reach the target in that share of draws: 0.975 asks the lower bound of the 95 %
    predictive interval to reach it.
    """
    _check(queries)
    reached = outlook.accuracies
    if confidence is not None:
        if not 0.0 < confidence < 1.0:
            raise InputError(f"got a confidence of {confidence}, expected a share between 0 and 1, such as 0.975")
        reached = np.quantile(outlook.runs, 1.0 - confidence, axis=0)
    at = _cheapest(outlook.totals(queries), reached, target)
    if at is not None:
        return outlook.plan(at, queries)
    best = int(np.lexsort((outlook.totals(queries), -reached))[0])
    return Unreachable(_obstacle(outlook, best, target, float(reached[best]), confidence), outlook.plan(best, queries))


def best(outlook: Forecast, queries: float, budget_flops: float, tie: float = 0.005) -> Plan | Unreachable:
    """The cheapest plan whose total cost is within the budget and whose predicted accuracy is within `tie` of the
    highest there."""
    _check(queries)
    totals = outlook.totals(queries)
    within = np.flatnonzero(totals <= budget_flops)
    if not len(within):
        least = outlook.plan(int(np.argmin(totals)), queries)
        return Unreachable(
            f"got a budget of {budget_flops:.3g} FLOPs for {queries:.3g} queries, but the cheapest plan, "
            f"{least.label}, takes {least.total_flops:.3g}; raise the budget, or offer smaller allocations",
            least,
        )
    tied = within[outlook.accuracies[within] >= outlook.accuracies[within].max() - tie]
    order = np.lexsort((-outlook.accuracies[tied], totals[tied]))
    return outlook.plan(int(tied[order[0]]), queries)


@dataclass(frozen=True, slots=True)
class Move:
    """The choice under changed circumstances."""

    queries: float
    target: float
    choice: Plan | Unreachable


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How firm a choice of `cheapest` is. Where the plan lies outside the data, `choice.extrapolation` says."""

    choice: Plan
    shares: tuple[tuple[Plan, float], ...]
    """Plans that draws of the law would choose, with the share of draws, the largest first."""
    unreached: float
    """Share of draws by which no option reaches the target."""
    near: tuple[Plan, ...]
    """Plans that reach the target for at most 10 % more than the least cost, the choice first."""
    moves: tuple[Move, ...]
    """Choices for a tenth and ten times the queries, and for targets 0.05 lower and higher."""


def sensitivity(
    outlook: Forecast, queries: float, target: float, confidence: float | None = None
) -> Sensitivity | Unreachable:
    """How the cheapest plan depends on the data, the number of queries, and the target.

    Each draw chooses by its own predictions, without a new run's deviation, which nobody knows when choosing.
    """
    choice = cheapest(outlook, queries, target, confidence)
    if isinstance(choice, Unreachable):
        return choice
    totals = outlook.totals(queries)
    chosen = Counter(_cheapest(totals, drawn, target) for drawn in outlook.drawn)
    count = len(outlook.drawn)
    reached = outlook.accuracies if confidence is None else np.quantile(outlook.runs, 1.0 - confidence, axis=0)
    near = np.flatnonzero((reached >= target) & (totals <= 1.1 * choice.total_flops))
    near = near[np.lexsort((-reached[near], totals[near]))]
    changes = [(queries / 10.0, target), (queries * 10.0, target), (queries, target - 0.05), (queries, target + 0.05)]
    return Sensitivity(
        choice=choice,
        shares=tuple(
            (outlook.plan(at, queries), times / count) for at, times in chosen.most_common() if at is not None
        ),
        unreached=chosen[None] / count,
        near=tuple(outlook.plan(int(at), queries) for at in near),
        moves=tuple(Move(*change, cheapest(outlook, *change, confidence)) for change in changes),
    )


def _check(queries: float) -> None:
    if not 0.0 <= queries < math.inf:
        raise InputError(f"got {queries} queries, expected a number of 0 or more")


def _cheapest(totals: Floats, accuracies: Floats, target: float) -> int | None:
    enough = np.flatnonzero(accuracies >= target)
    if not len(enough):
        return None
    return int(enough[np.lexsort((-accuracies[enough], totals[enough]))[0]])


def _obstacle(outlook: Forecast, at: int, target: float, reached: float, confidence: float | None) -> str:
    """What keeps every option from the target; `at` is the nearest."""
    label = outlook.plan(at, 0.0).label
    if confidence is not None and (held := outlook.accuracies >= target).any():
        return (
            f"no option reaches {target:.3g} with a confidence of {confidence:.3g}: {int(held.sum())} of {len(held)} "
            f"are predicted to, but the surest, {label}, reaches only {reached:.3g} so surely; "
            "measure more seeds and configurations, or ask for less confidence"
        )
    said = f"no option reaches {target:.3g}; the best, {label}, reaches {reached:.3g}"
    if target >= outlook.ceiling:
        return (
            f"{said}: the law's ceiling is {outlook.ceiling:.3g}, which no compute on its axes lifts; lower the target"
        )
    points = [allocation.point(budget) for allocation, budget in outlook.options]
    ends = [axis for axis in outlook.axes if points[at][axis] >= max(point[axis] for point in points)]
    if ends:
        return f"{said}, at the largest {', '.join(ends)} offered; offer larger ones, or lower the target"
    return f"{said}; offer larger allocations, or lower the target"


@dataclass(frozen=True, slots=True)
class LabelYield:
    """What label search of a budget is expected to bring, over all problems."""

    budget: int
    """Samples a problem."""
    solved: float
    """Problems with a right sample."""
    kept: float
    """Right samples kept as labels."""
    flops: float
    """Of prompts, all samples, and training on what is kept."""
    marginal: float
    """Problems newly solved a FLOP, compared with the next smaller budget (with none for the smallest)."""

    @property
    def average(self) -> float:
        """Problems solved a FLOP."""
        return self.solved / self.flops


def label_gain(
    right: Sequence[int],
    samples: int,
    budgets: Sequence[int],
    sample_flops: float,
    prompt_flops: float,
    training_flops_a_label: float,
    per_problem: int,
    least_share: float = 0.1,
) -> tuple[int, list[LabelYield]]:
    """The label-search budget for most label gain a FLOP, and what each budget, rising, is expected to bring.

    `right` has the right samples of each problem, of `samples` drawn; FLOPs are a prompt's, a sample's, and of training
    on one label; at most `per_problem` right samples of a problem are kept. Problems solved are the sum of unbiased
    pass@k, labels kept the sum of the hypergeometric mean of min(right drawn, per_problem).

    The criterion: from the budget that solves most problems a FLOP, raise it while the FLOPs of the next step still
    solve `least_share` as many each. At 1 this is the highest average, where the marginal rate falls below it (Charnov
    1976, *Optimal foraging, the marginal value theorem*): right where unsearched problems are without number. As
    pass@k is concave, that is one sample a problem unless prompts are dear. Here problems are given, so that the
    budget goes on; but not for ever, as the next generation's better model starts again at the steep end.
    """
    grid = sorted(set(budgets))
    if not right or not grid or grid[0] < 1 or grid[-1] > samples or not all(0 <= held <= samples for held in right):
        raise InputError(
            f"got {len(right)} problems of {samples} samples and budgets {grid}, expected problems with 0 to {samples} "
            f"right samples, and budgets from 1 to {samples}"
        )
    if per_problem < 1 or min(sample_flops, prompt_flops, training_flops_a_label) < 0.0 or sample_flops == 0.0:
        raise InputError("expected 1 or more labels a problem, FLOPs of 0 or more, and a sample that costs some")
    counts = Counter(right)
    yields: list[LabelYield] = []
    for budget in grid:
        solved = math.fsum(times * pass_at_k(samples, held, budget) for held, times in counts.items())
        kept = math.fsum(times * _kept(samples, held, budget, per_problem) for held, times in counts.items())
        flops = len(right) * (prompt_flops + budget * sample_flops) + kept * training_flops_a_label
        before = yields[-1] if yields else None
        more, spent = (solved - before.solved, flops - before.flops) if before else (solved, flops)
        yields.append(LabelYield(budget, solved, kept, flops, more / spent))
    chosen = max(range(len(yields)), key=lambda at: yields[at].average)
    least = least_share * yields[chosen].average
    while least > 0.0 and chosen + 1 < len(yields) and yields[chosen + 1].marginal >= least:
        chosen += 1
    return yields[chosen].budget, yields


def _kept(samples: int, right: int, budget: int, most: int) -> float:
    """Mean of min(X, most), X the right ones among `budget` of the samples, drawn without replacement."""
    ways = math.comb(samples, budget)
    return math.fsum(
        min(drawn, most) * (math.comb(right, drawn) * math.comb(samples - right, budget - drawn) / ways)
        for drawn in range(1, min(right, budget) + 1)
    )
