"""What a way to train and to answer costs, by the rows of a sweep: FLOPs of a generation, FLOPs of a query.

    log10 FLOPs of a stage in generation g = start(g) + p * log10 parameters + s * log10 samples a problem

for label search, training and reward models, each by least squares over the runs that were not held back; generation 0,
which searches no labels, has a power of parameters of its own. A start for each generation takes in what the table does
not say, such as legs that search more problems or a window that grows. Known limits: no generation beyond those
measured, and one recipe: other epochs or problems cost otherwise.

A query's price is the table's mean by size and budget: between sizes linear on logarithms, beyond them in proportion to
parameters, between budgets linear, as k samples cost prompt + k * sample. It is the full price of all k samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.errors import InputError
from flywheel.scaling.law import Floats

STAGES = ("label_flops", "training_flops", "reward_model_flops")


@dataclass(frozen=True, slots=True, eq=False)
class StageCost:
    """One stage's power law."""

    starts: dict[int, float]
    """log10 FLOPs by generation, at one parameter and one sample; a generation that spends none is not there."""
    first_parameters: float
    """Power of the parameters in generation 0."""
    parameters: float
    """Power of the parameters in later ones."""
    samples: float
    """Power of the samples a problem in later ones."""

    def flops(self, parameters: float, samples: float, generation: int) -> float:
        """Of one generation."""
        if generation not in self.starts:
            return 0.0
        size, search = math.log10(parameters), math.log10(samples)
        more = self.parameters * size + self.samples * search if generation else self.first_parameters * size
        return float(10.0 ** (self.starts[generation] + more))


@dataclass(frozen=True, slots=True, eq=False)
class CostModel:
    """Fitted to a sweep."""

    stages: dict[str, StageCost]
    generations: int
    """The last one that was measured."""
    sizes: Floats
    """Parameters whose queries were priced, rising."""
    budgets: tuple[int, ...]
    """Runtime budgets that were priced; 0 is greedy."""
    prices: Floats
    """[sizes, budgets], FLOPs a query."""
    error: float
    """Root mean square of the natural logarithm of fitted over measured investment, over runs and their generations
    from 1 on: 0.05 is about 5 %."""
    held_back_error: float | None
    """The same of runs held back; None without any."""

    def investment(self, parameters: float, samples: float, generations: int) -> float:
        """FLOPs of everything up to a generation. Raises InputError for one that was not measured."""
        if not 0 <= generations <= self.generations:
            raise InputError(f"got {generations} generations, expected 0 to {self.generations}, as many as were run")
        return math.fsum(
            stage.flops(parameters, samples, generation)
            for stage in self.stages.values()
            for generation in range(generations + 1)
        )

    def query(self, parameters: float, budget: int) -> float:
        """FLOPs of a query: greedy at 0, else the full price of so many samples. Raises InputError beyond the largest
        budget priced."""
        sampled = [at for at, held in enumerate(self.budgets) if held > 0]
        if budget and not (sampled and self.budgets[sampled[0]] <= budget <= self.budgets[-1]):
            raise InputError(f"got a budget of {budget} samples, expected one between those of {list(self.budgets)}")
        sizes = np.log10(self.sizes)
        size = float(np.clip(math.log10(parameters), sizes[0], sizes[-1]))
        by_budget = np.array([10.0 ** np.interp(size, sizes, np.log10(column)) for column in self.prices.T])
        by_budget *= parameters / 10.0**size
        if not budget:
            return float(by_budget[self.budgets.index(0)])
        return float(np.interp(budget, [self.budgets[at] for at in sampled], by_budget[sampled]))


def fit_costs(rows: Sequence[dict[str, Any]], budgets: Sequence[int]) -> CostModel:
    """Fit to a `TextTable`'s rows; `budgets` are those to price. Raises InputError where they hold no run to fit."""
    runs: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["control"] is None and row["metric"] == "greedy":
            runs.setdefault((row["cell"], row["seed"]), {})[row["generation"]] = row
    whole = [run for run in runs.values() if sorted(run) == list(range(len(run))) and len(run) > 1]
    known = [run for run in whole if not run[0]["held_back"]]
    if not known:
        raise InputError("the table holds no run from generation 0 to 1 or later that was not held back")
    stages = {name: _stage(name, known) for name in STAGES}
    priced = [
        row
        for row in rows
        if row["control"] is None and not row["held_back"] and row["generation"] >= 1
        and (row["metric"] == "greedy" or (row["metric"] == "pass" and row["budget"] in budgets))
    ]  # fmt: skip
    sizes = sorted({row["parameters"] for row in priced})
    found = sorted({row["budget"] for row in priced})
    prices = np.array([[_mean_price(priced, size, budget) for budget in found] for size in sizes])
    model = CostModel(
        stages, max(max(run) for run in known), np.array(sizes, np.float64), tuple(found), prices, 0.0, None
    )
    held = [run for run in whole if run[0]["held_back"]]
    return CostModel(
        stages, model.generations, model.sizes, model.budgets, prices, _error(model, known),
        _error(model, held) if held else None,
    )  # fmt: skip


def _stage(name: str, runs: Sequence[dict[int, dict[str, Any]]]) -> StageCost:
    points = []
    for run in runs:
        for generation, row in run.items():
            flops = row[name] - (run[generation - 1][name] if generation else 0.0)
            if flops > 0.0:
                points.append((generation, math.log10(row["parameters"]), math.log10(row["label_budget"]), flops))
    generations = sorted({point[0] for point in points})
    columns = [[float(point[0] == generation) for point in points] for generation in generations]
    powers = [
        [size * (generation == 0) for generation, size, _, _ in points],
        [size * (generation > 0) for generation, size, _, _ in points],
        [search * (generation > 0) for generation, _, search, _ in points],
    ]
    # What does not vary has no power of its own: it is in the starts.
    spans = [
        [size for generation, size, _, _ in points if generation == 0],
        [size for generation, size, _, _ in points if generation > 0],
        [search for generation, _, search, _ in points if generation > 0],
    ]
    used = [number for number, span in enumerate(spans) if span and max(span) - min(span) > 1e-9]
    if not points:
        return StageCost({}, 0.0, 0.0, 0.0)
    design = np.array([*columns, *(powers[number] for number in used)]).T
    solved = np.linalg.lstsq(design, np.log10([point[3] for point in points]), rcond=None)[0].tolist()
    power = [0.0, 0.0, 0.0]
    for number, value in zip(used, solved[len(generations) :], strict=True):
        power[number] = value
    return StageCost(dict(zip(generations, solved, strict=False)), *power)


def _mean_price(rows: Sequence[dict[str, Any]], size: int, budget: int) -> float:
    found = [row["query_flops"] for row in rows if row["parameters"] == size and row["budget"] == budget]
    if not found:
        raise InputError(f"no model of {size} parameters was measured with a runtime budget of {budget}")
    return math.fsum(found) / len(found)


def _error(model: CostModel, runs: Sequence[dict[int, dict[str, Any]]]) -> float:
    logs = [
        math.log(model.investment(row["parameters"], row["label_budget"], generation) / row["invested"])
        for run in runs
        for generation, row in run.items()
        if 0 < generation <= model.generations
    ]
    return math.sqrt(math.fsum(value**2 for value in logs) / len(logs))
