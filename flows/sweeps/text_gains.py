"""What a generation gains, by its greedy answers, and what the same FLOPs would have bought otherwise.

    step           accuracy(g) - accuracy(g - 1), a decade and a 10^12 FLOPs of what was invested
    search instead C = what was invested since generation 0. Q queries to generation 0, each with the FLOPs of the
                   student's greedy answer and C / Q more, cost in all what the student and its Q answers do. That many
                   FLOPs a query buy samples until a checker accepts one (`flywheel.scaling.ways`), at the expected
                   price; between two whole budgets queries are mixed, and where not even one sample is paid for
                   generation 0 answers greedily
    control        the newest generation less `<cell>+<control>`: as much spent on training alone (`no-search`, the seed
                   labels; `ceiling`, the solver's), or generation 0's search at its best temperature (`tuned-search`)

Means over seeds, with Student's t over them: how runs differ, on these test problems. One seed has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.evaluation import intervals
from flywheel.evaluation.intervals import Interval
from flywheel.scaling import ways

QUERIES = (1e3, 1e4, 1e5, 1e6)
"""Over which what was invested is spread, where search is bought instead."""
_Run = dict[tuple[int, str, int], dict[str, Any]]
"""(generation, metric, budget) -> row."""


@dataclass(frozen=True, slots=True)
class Instead:
    """Search with generation 0 for what the generations since took."""

    queries: float
    query_flops: float
    """Mean over seeds."""
    gain: Interval
    """Accuracy more than generation 0's greedy answers."""
    beyond: bool
    """The FLOPs would pay for more samples than were measured, in some seed: the gain is that of the most."""


@dataclass(frozen=True, slots=True)
class Gain:
    """A generation of a cell, over its seeds. Accuracies are of greedy answers on test."""

    cell: str
    held_back: bool
    generation: int
    seeds: int
    accuracy: Interval
    step: Interval
    """Accuracy gained over the generation before."""
    step_flops: float
    """Invested for it; mean over seeds."""
    per_decade: Interval
    """`step` a decade of invested FLOPs."""
    per_1e12: Interval
    """`step` a 10^12 FLOPs."""
    total: Interval
    """Accuracy gained since generation 0."""
    total_flops: float
    """Invested for it; mean over seeds."""
    instead: tuple[Instead, ...]


@dataclass(frozen=True, slots=True)
class Against:
    """The newest generation of a cell beside a control, over the seeds that have both."""

    cell: str
    control: str
    seeds: int
    control_accuracy: Interval
    control_budget: int
    """Samples a query, of the tuned search; 0 for an answer at once."""
    control_flops: float
    """Invested; mean over seeds. The tuned search has those of generation 0."""
    student_accuracy: Interval
    """Of greedy answers."""
    student_flops: float
    difference: Interval
    """The student's greedy accuracy less the control's."""
    ahead: int
    """Seeds in which it is above 0."""


def gains(rows: Sequence[dict[str, Any]]) -> tuple[Gain, ...]:
    """Each generation after 0 of each cell; `rows` are a `TextTable`'s."""
    found = []
    for cell, runs in _by_cell(rows).items():
        last = max(generation for run in runs for generation, metric, _ in run if metric == "greedy")
        for generation in range(1, last + 1):
            keys = [(0, "greedy", 0), (generation - 1, "greedy", 0), (generation, "greedy", 0)]
            whole = [run for run in runs if all(key in run for key in keys)]
            if whole:
                found.append(_gain(cell, generation, whole))
    return tuple(found)


def against_controls(rows: Sequence[dict[str, Any]]) -> tuple[Against, ...]:
    """Each control of each cell that was run."""
    found = []
    students = {(row["cell"], row["seed"], row["generation"]): row for row in rows if _greedy(row)}
    newest: dict[tuple[str, int], int] = {}
    for cell, seed, generation in students:
        newest[cell, seed] = max(generation, newest.get((cell, seed), 0))
    controls: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["control"] is not None and (row["cell"], row["seed"]) in newest:
            controls.setdefault((row["cell"], row["control"]), []).append(row)
    for (cell, control), held in controls.items():
        mine = [students[cell, row["seed"], newest[cell, row["seed"]]] for row in held]
        differences = [one["value"] - other["value"] for one, other in zip(mine, held, strict=True)]
        found.append(
            Against(
                cell,
                control,
                len(held),
                _mean([row["value"] for row in held]),
                held[0]["budget"],
                _average([row["invested"] for row in held]),
                _mean([row["value"] for row in mine]),
                _average([row["invested"] for row in mine]),
                _mean(differences),
                sum(difference > 0 for difference in differences),
            )
        )
    return tuple(found)


def _greedy(row: dict[str, Any]) -> bool:
    return row["control"] is None and row["metric"] == "greedy"


def _by_cell(rows: Sequence[dict[str, Any]]) -> dict[str, list[_Run]]:
    runs: dict[tuple[str, int], _Run] = {}
    for row in rows:
        if row["control"] is None:
            key = row["generation"], row["metric"], row["budget"]
            runs.setdefault((row["cell"], row["seed"]), {})[key] = row
    cells: dict[str, list[_Run]] = {}
    for (cell, _), run in runs.items():
        cells.setdefault(cell, []).append(run)
    return cells


def _gain(cell: str, generation: int, runs: list[_Run]) -> Gain:
    first, before, now = ([run[at, "greedy", 0] for run in runs] for at in (0, generation - 1, generation))
    steps = [row["value"] - other["value"] for row, other in zip(now, before, strict=True)]
    spent = [row["invested"] - other["invested"] for row, other in zip(now, before, strict=True)]
    decades = [math.log10(row["invested"] / other["invested"]) for row, other in zip(now, before, strict=True)]
    totals = [row["invested"] - other["invested"] for row, other in zip(now, first, strict=True)]
    return Gain(
        cell=cell,
        held_back=now[0]["held_back"],
        generation=generation,
        seeds=len(runs),
        accuracy=_mean([row["value"] for row in now]),
        step=_mean(steps),
        step_flops=_average(spent),
        per_decade=_mean([step / more for step, more in zip(steps, decades, strict=True)]),
        per_1e12=_mean([1e12 * step / more for step, more in zip(steps, spent, strict=True)]),
        total=_mean([row["value"] - other["value"] for row, other in zip(now, first, strict=True)]),
        total_flops=_average(totals),
        instead=tuple(found for queries in QUERIES if (found := _instead(runs, now, totals, queries)) is not None),
    )


def _instead(runs: list[_Run], now: list[dict[str, Any]], totals: list[float], queries: float) -> Instead | None:
    """None where no search of generation 0 was measured."""
    offered, gained, beyond = [], [], False
    for run, student, total in zip(runs, now, totals, strict=True):
        model = search_of(run)
        if model is None:
            return None
        flops = student["query_flops"] + total / queries
        accuracy, price = (part.mean(axis=0) for part in (model.solved, model.flops))
        searched = float(np.interp(flops, price[1:], accuracy[1:])) if flops >= price[1] else 0.0
        offered.append(flops)
        gained.append(max(searched, float(accuracy[0])) - float(accuracy[0]))
        beyond |= flops > price[-1]
    return Instead(queries, _average(offered), _mean(gained), bool(beyond))


def search_of(run: _Run, generation: int = 0) -> ways.Model | None:
    """A generation's search with a checker; None where its samples were not counted. FLOPs are the table's means, so
    that problems which take longer and are solved less often count as the others."""
    greedy = run.get((generation, "greedy", 0))
    counted = [row for (at, metric, _), row in run.items() if (at, metric) == (generation, "right")]
    passes = [row for (at, metric, _), row in run.items() if (at, metric) == (generation, "pass")]
    if greedy is None or not counted:
        return None
    samples, right = counted[0]["budget"], np.array(counted[0]["outcomes"], np.float64)
    whole, fewer = counted[0]["query_flops"], [row for row in passes if row["budget"] < samples]
    if not fewer:
        return None
    # The price of k samples is prompt + k * sample; two budgets give the two unknowns.
    part = min(fewer, key=lambda row: int(row["budget"]))
    sample = (whole - part["query_flops"]) / (samples - part["budget"])
    each = np.ones(len(right))
    return ways.sampled(
        greedy["run"],
        greedy["invested"],
        (np.array(greedy["outcomes"], np.float64), greedy["query_flops"] * each),
        samples,
        right,
        (whole - samples * sample) * each,
        sample * each,
    )


def _mean(values: list[float]) -> Interval:
    return intervals.mean(values, [str(seed) for seed in range(len(values))])


def _average(values: list[float]) -> float:
    return math.fsum(values) / len(values)
