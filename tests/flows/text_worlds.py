"""A sweep's tables made from a known law: what a fit or a plan should find in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import expit

from flows.sweeps.results import PROBLEMS, RESULTS
from flywheel.evaluation import intervals
from storage.tables import write_table

SLOPES = {"parameters": 0.9, "training": 1.2, "runtime": 0.6}
"""Of the logit, a decade. Label search matters by what it costs alone."""
CENTRES = {"parameters": 5.0, "training": 12.5, "runtime": 7.0}
CEILING = 0.9
PROBLEM_COUNT = 300
GENERATIONS = 5
SAMPLES = 64
PARAMETERS = {32: 5.2e4, 48: 1.15e5, 64: 2.0e5, 96: 4.5e5, 128: 8.0e5}
CELLS = ((32, 4), (32, 16), (64, 4), (64, 16), (128, 4), (128, 16), (48, 8), (96, 8))
HELD_BACK = {(48, 8), (96, 8)}


def accuracy(parameters: float, training: float, runtime: float, shift: float = 0.0) -> float:
    """By the law of the world."""
    point = {"parameters": parameters, "training": training, "runtime": runtime}
    logit = sum(slope * (math.log10(point[axis]) - CENTRES[axis]) for axis, slope in SLOPES.items())
    return CEILING * float(expit(logit + shift))


def label_step(parameters: float, samples: int, generation: int) -> float:
    """FLOPs of label search in a generation: the first two search half as many problems."""
    return (750 if generation <= 2 else 1500) * samples * 16.0 * parameters


def training_step(parameters: float, samples: int, generation: int) -> float:
    """FLOPs of training in a generation; more samples find more labels."""
    return 4e6 * parameters * (1 + generation) * samples**0.2


def invested(parameters: float, samples: int, generation: int) -> float:
    """FLOPs up to a generation."""
    steps = (
        label_step(parameters, samples, g) + training_step(parameters, samples, g) for g in range(1, generation + 1)
    )
    return 4e6 * parameters + math.fsum(steps)


def price(parameters: float, budget: int) -> float:
    """FLOPs a query: a prompt and k samples; a greedy answer is one sample."""
    return 2.0 * parameters * (10 + 8 * max(1, budget))


def rows(
    cells: Sequence[tuple[int, int]] = CELLS,
    seeds: int = 3,
    deviation: float = 0.1,
    seed: int = 0,
    shared: bool = False,
) -> list[dict[str, Any]]:
    """Of `RESULTS`. Runs differ by a shift of the logit; a problem is right where its rank is below the accuracy. Where
    `shared`, runs of one size and seed begin with the same model, and the shift is that model's."""
    generator = np.random.default_rng(seed)
    ranks = generator.permutation((np.arange(PROBLEM_COUNT) + 0.5) / PROBLEM_COUNT)
    groups = [f"hand {number // 3}" for number in range(PROBLEM_COUNT)]
    found: list[dict[str, Any]] = []
    begun: dict[str, float] = {}
    for width, samples in cells:
        parameters = PARAMETERS[width]
        for number in range(seeds):
            beginning = f"w{width}-seed-{number}" if shared else f"w{width}-s{samples}-seed-{number}"
            shift = begun.setdefault(beginning, float(generator.normal(0.0, deviation)))
            for generation in range(GENERATIONS + 1):
                labels = math.fsum(label_step(parameters, samples, g) for g in range(1, generation + 1))
                training = invested(parameters, samples, generation)
                common: dict[str, Any] = dict.fromkeys(RESULTS.names)
                common |= {
                    "sweep": "world", "family": "three", "cell": f"w{width}-s{samples}", "seed": number,
                    "held_back": (width, samples) in HELD_BACK, "domain": "countdown",
                    "run": f"three-w{width}-s{samples}-seed-{number}", "generation": generation,
                    "tag": f"gen/{generation}", "tag_object": "0", "code_revision": "0",
                    "snapshot": f"{beginning}/0" if generation == 0 else f"w{width}-s{samples}-{number}/{generation}",
                    "parameters": int(parameters), "hidden_size": width, "layers": 4, "label_budget": samples,
                    "label_flops": labels, "training_flops": training - labels, "reward_model_flops": 0.0,
                    "evaluation_flops": 0.0, "useful_flops": training, "seconds": 1.0,
                }  # fmt: skip
                single = accuracy(parameters, training, price(parameters, 1), shift)
                for metric, budget in (("greedy", 0), ("pass", 1), ("pass", 4), ("pass", 16), ("pass", 64)):
                    chance = accuracy(parameters, training, price(parameters, budget), shift)
                    found.append(common | _measured(metric, budget, (ranks < chance).astype(float).tolist(), groups)
                                 | {"query_flops": price(parameters, budget)})  # fmt: skip
                right = np.round(SAMPLES * np.clip(single + 0.5 - ranks, 0.0, 1.0)).tolist()
                found.append(common | _measured("right", SAMPLES, right, groups)
                             | {"query_flops": price(parameters, SAMPLES)})  # fmt: skip
    return found


def control(beside: dict[str, Any], name: str, share: float) -> dict[str, Any]:
    """A row of a control that solved the first `share` of the problems."""
    solved = [float(at < share * PROBLEM_COUNT) for at in range(PROBLEM_COUNT)]
    own = {"cell": f"{beside['cell']}+{name}", "label_flops": 0.0, "training_flops": beside["useful_flops"]}
    groups = [f"hand {number // 3}" for number in range(PROBLEM_COUNT)]
    return beside | own | _measured("greedy", 0, solved, groups)


def write(folder: Path, made: list[dict[str, Any]], change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Both tables, each row changed first; the folder."""
    if change is not None:
        for row in made:
            change(row)
    write_table(folder / "results.parquet", pa.Table.from_pylist(made, schema=RESULTS))
    listed = [
        {"family": "three", "problem_id": f"{number:04d}", "group": f"hand {number // 3}"}
        for number in range(PROBLEM_COUNT)
    ]
    write_table(folder / "problems.parquet", pa.Table.from_pylist(listed, schema=PROBLEMS))
    return folder


def _measured(metric: str, budget: int, outcomes: list[float], groups: list[str]) -> dict[str, Any]:
    shares = [value / budget for value in outcomes] if metric == "right" else outcomes
    return intervals.share(shares, groups).as_dict() | {"metric": metric, "budget": budget, "outcomes": outcomes}
