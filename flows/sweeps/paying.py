"""When a sweep's label search has paid for itself: `flows.amortize` over the seeds of each cell together.

A cell's seeds are pooled: each test problem counts once a seed. Intervals resample groups of problems, over all seeds
alike, and training seeds. Two things are the seeds' means and add nothing to their width: the investment, and the price
of a sample, which the table does not hold by problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows import amortize
from flows.amortize import Columns, Measured
from flows.figures import by_queries_file
from flows.series import costs
from flows.sweeps import results
from flywheel.errors import InputError
from flywheel.scaling.ways import resampled_with_seeds
from flywheel.seeds import generator
from storage.tables import replace_bytes


@dataclass(frozen=True, slots=True)
class Paid:
    """A cell's account."""

    family: str
    cell: str
    seeds: int
    document: dict[str, Any]
    """As `flows.amortize.document` gives it."""

    def as_dict(self) -> dict[str, Any]:
        """JSON, without the curves, which follow from the rest."""
        told = {name: value for name, value in self.document.items() if name != "curves"}
        return {"family": self.family, "cell": self.cell, "seeds": self.seeds, **told}


def paid(folder: Path, draws: int) -> list[Paid]:
    """Of every cell that is not held back and whose generation 0 solves anything, in the table's order."""
    rows = results.read(folder).to_pylist()
    groups = {family: list(held.values()) for family, held in results.problems(folder).items()}
    found = []
    for family, cell in dict.fromkeys((row["family"], row["cell"]) for row in rows if not row["held_back"]):
        mine = [row for row in rows if (row["family"], row["cell"]) == (family, cell)]
        held, seeds = _measured(mine, groups[family])
        if held is None:
            continue
        weights = resampled_with_seeds(groups[family], seeds, draws, generator(0, "sweep amortization"))
        try:
            found.append(Paid(family, cell, seeds, amortize.document(held, None, draws, weights)))
        except InputError:
            # Nothing that both reach: there is nothing to weigh.
            continue
    return found


def draw(cells: list[Paid], out: Path) -> Path | None:
    """The figure of one cell, SVG and PNG; None without cells."""
    if not cells:
        return None
    best = shown(cells)
    asked = "Moves" if best.document["board"] else "Queries"
    for kind in ("svg", "png"):
        replace_bytes(out / f"amortization.{kind}", by_queries_file(costs(best.document), asked, kind))
    return out / "amortization.svg"


def shown(cells: list[Paid]) -> Paid:
    """Which cell is drawn: of the last family, the largest board, the one that is right most often at once."""
    last = [each for each in cells if each.family == cells[-1].family]
    return max(last, key=lambda each: float(each.document["rows"][-1]["accuracy"]["value"]))


def _measured(rows: list[dict[str, Any]], groups: list[str]) -> tuple[Measured | None, int]:
    """The generations of the seeds that have come farthest, pooled; and how many seeds those are."""
    by_seed: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {}).setdefault(row["generation"], []).append(row)
    last = max(row["generation"] for row in rows)
    by_seed = {seed: held for seed, held in by_seed.items() if last in held}
    generations = sorted(set.intersection(*(set(held) for held in by_seed.values())))
    if generations[:1] != [0] or len(generations) < 2:
        return None, len(by_seed)
    models = []
    for generation in generations:
        invested = np.mean([_invested(held, generation) for held in by_seed.values()])
        parts = [_columns(held[generation]) for held in by_seed.values()]
        columns: Columns = {
            key: (np.concatenate([part[key][0] for part in parts]), np.concatenate([part[key][1] for part in parts]))
            for key in parts[0]
        }
        models.append(amortize.model_of(f"gen/{generation}", float(invested), columns))
    board = rows[0]["domain"] == "hex"
    held = Measured(models, generations, groups * len(by_seed), len(models) - 1, True, board, not board)
    return held, len(by_seed)


def _invested(held: dict[int, list[dict[str, Any]]], generation: int) -> float:
    """FLOPs since generation 0, and those of its reward model, which is for the search of those after it."""
    if generation == 0:
        return 0.0
    first, row = held[0][0], held[generation][0]
    trained = sum(row[name] - first[name] for name in ("label_flops", "training_flops"))
    return float(trained + row["reward_model_flops"])


def _columns(rows: list[dict[str, Any]]) -> Columns:
    """The table holds mean prices, not each problem's."""
    return {
        (row["metric"], max(row["budget"], 1)): (
            np.array(row["outcomes"], np.float64),
            np.full(len(row["outcomes"]), row["query_flops"]),
        )
        for row in rows
    }
