"""Ways to spend the same compute, beside each other: the last generation of each cell of a sweep, and its controls.

The cells of a contest are to cost about the same in all, label search, training and the queries it names, and each is
held against the reference, paired by seed and test problem. Rank 1 is the cell with the highest mean; regret is what a
cell stays behind it. Intervals resample groups of test problems and training seeds: they are those of new runs; with
three seeds they are somewhat too narrow where runs differ much. In each draw some cell is the best: its share of draws
is told, and what regret cells that are all as good would show, as the highest of noisy means is too high by chance.
Cells answer at once, or with as many samples and a checker as the contest says, at the full price of them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.sweeps import results
from flows.sweeps.definition import Contest
from flows.sweeps.markdown import points, table
from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval
from flywheel.scaling.ways import Floats, resampled_with_seeds
from flywheel.seeds import generator


@dataclass(frozen=True, slots=True)
class Contender:
    """A cell, or a control of one, over its seeds. Accuracy is of answers at once, on test."""

    name: str
    budget: int
    """Samples a query; 0 is the answer at once."""
    seeds: int
    label_flops: float
    """Mean over seeds, as all FLOPs here."""
    training_flops: float
    """Reward models among it."""
    queries_flops: float
    """Of all queries."""
    accuracy: Interval
    by_seed: tuple[float, ...]
    difference: Interval | None
    """The reference's accuracy less this one's; None for the reference."""
    rank: int
    regret: float
    best: float
    """Share of draws in which it has the highest mean."""

    @property
    def flops(self) -> float:
        """What it took in all, evaluation apart."""
        return self.label_flops + self.training_flops + self.queries_flops


@dataclass(frozen=True, slots=True)
class Held:
    """A contest's contenders, by rank."""

    reference: str
    queries: float
    contenders: tuple[Contender, ...]
    chance_regret: float
    """What a cell would stay behind the highest mean, on average, were all equally good; at most, as the bootstrap
    counts what a seed and a problem do together up to three times (Owen 2007)."""

    @property
    def unequal(self) -> float:
        """The most that a contender's FLOPs are off the reference's, as a share."""
        held = next(each.flops for each in self.contenders if each.name == self.reference)
        return max(abs(each.flops / held - 1.0) for each in self.contenders)


def held(folder: Path, section: Contest, draws: int) -> Held:
    """The contest of a sweep's table. Raises InputError where runs are not yet done, and where cells were tested on
    other problems."""
    last: dict[str, dict[int, dict[str, Any]]] = {}
    for row in results.read(folder).to_pylist():
        budget = section.answers.get(row["cell"], 0)
        before = last.setdefault(row["cell"], {}).get(row["seed"])
        # The tuned search is a control that answers as it does.
        asked_so = row["metric"] == "best" or (row["metric"], row["budget"]) == (
            ("pass", budget) if budget else ("greedy", 0)
        )
        if asked_so and (before is None or row["generation"] >= before["generation"]):
            last[row["cell"]][row["seed"]] = row
    if not (wanted := results.asked(folder)):
        raise InputError(f"{folder} does not say which runs its contest has; make its tables anew: flywheel sweep")
    if section.reference not in last:
        raise InputError(f"{folder} has no results of {section.reference}, which its contest compares with")
    missing = [
        f"{cell} with seed {seed}"
        for (cell, seed), generations in wanted.items()
        if last.get(cell, {}).get(seed, {}).get("generation") != generations
    ]
    if missing:
        named = f"{', '.join(missing[:3])}{' and others' if missing[3:] else ''}"
        raise InputError(
            f"{len(missing)} of the {len(wanted)} runs and controls of {folder} are not done, {named}: let the sweep "
            "go on"
        )
    reference, seeds = section.reference, sorted({seed for _, seed in wanted})
    tested = results.problems(folder)
    families = {by_seed[seeds[0]]["family"] for by_seed in last.values()}
    problems = tested[min(families)]
    if any([*tested[family]] != [*problems] for family in families):
        raise InputError(f"the families of {folder} were tested on different problems; give them the same")
    outcomes = {name: np.array([row[seed]["outcomes"] for seed in seeds], np.float64) for name, row in last.items()}
    weights = resampled_with_seeds([*problems.values()], len(seeds), draws, generator(0, "contest"))
    means = {name: weights @ values.ravel() / weights.sum(axis=1) for name, values in outcomes.items()}
    ranked = sorted(means, key=lambda name: -means[name][0])
    best = means[ranked[0]][0]
    drawn = np.stack([means[name][1:] for name in ranked])
    firsts = np.bincount(drawn.argmax(axis=0), minlength=len(ranked)) / drawn.shape[1]
    centred = drawn - drawn.mean(axis=1, keepdims=True)
    contenders = []
    for rank, name in enumerate(ranked, 1):
        here = [last[name][seed] for seed in seeds]
        contenders.append(
            Contender(
                name,
                here[0]["budget"],
                len(seeds),
                _mean(here, "label_flops"),
                _mean(here, "training_flops") + _mean(here, "reward_model_flops"),
                section.queries * _mean(here, "query_flops") if section.queries else 0.0,
                _interval(means[name], outcomes[name].size),
                tuple(outcomes[name].mean(axis=1).tolist()),
                None if name == reference else _interval(means[reference] - means[name], outcomes[name].size),
                rank,
                float(best - means[name][0]),
                float(firsts[rank - 1]),
            )
        )
    return Held(reference, section.queries, tuple(contenders), float(centred.max(axis=0).mean()))


def _interval(drawn: Floats, count: int) -> Interval:
    low, high = np.quantile(drawn[1:], (0.025, 0.975)).tolist()
    return Interval(float(drawn[0]), low, high, count)


def page(found: Held) -> str:
    """Markdown."""
    asked = [f"of {found.queries:,.0f} queries"] if found.queries else []
    rows = [
        [f"{each.rank}", f"**{each.name}**" if each.name == found.reference else each.name,
         f"{each.budget} samples" if each.budget else "at once",
         f"{each.label_flops:.3g}", f"{each.training_flops:.3g}", *([f"{each.queries_flops:.3g}"] if asked else []),
         f"{each.flops:.3g}", f"{each.accuracy.value:.1%}", f"{each.accuracy.low:.1%} to {each.accuracy.high:.1%}",
         " ".join(f"{100 * one:.1f}" for one in each.by_seed),
         "" if each.difference is None else points(each.difference), f"{100 * each.regret:.1f}", f"{each.best:.0%}"]
        for each in found.contenders
    ]  # fmt: skip
    head = ["rank", "cell", "answers", "FLOPs of label search", "of training", *asked, "in all", "solved on test",
            "95 %", "by seed", f"{found.reference} less this, points", "regret, points", "best in draws"]  # fmt: skip
    return (
        table(head, rows)
        + f"\n\nFLOPs in all are at most {found.unequal:.0%} off those of {found.reference}. Intervals resample "
        f"groups of test problems and training seeds. Were all equally good, a cell would show up to "
        f"{100 * found.chance_regret:.1f} points of regret by chance."
    )


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))
