"""The search to beat, at its best: generation 0's best-of-N by the exact check, at the temperature that does best on
valid."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flywheel.evaluation import intervals, metrics
from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params
from flywheel.records import Problem
from flywheel.rewards.exact import Exact
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run, Sampling
from storage.layout import Layout
from storage.rows import read_problems
from tasks import models
from tasks.stage import Hooks

NAME = "tuned-search"
TEMPERATURES = (0.6, 0.8, 1.0, 1.2)
_UNIT = 32


def run(params: Params, layout: Layout, student: Path, hooks: Hooks = Hooks()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Measure the model in `student`: {"temperature", "valid": by temperature, "test", "outcomes"}."""
    start = time.monotonic()
    sampler = models.load_sampler(str(student), weights_digest(student), params.execution)
    budget = params.generate.samples
    key = metrics.metric_key("best", budget)
    valid, test = read_problems(layout.problems, ["valid"]), read_problems(layout.problems, ["test"])
    total = len(valid) * len(TEMPERATURES) + len(test)
    done = 0

    def solved(problems: list[Problem], temperature: float) -> dict[str, float]:
        nonlocal done
        domain = models.domain_of(params.problems)
        searcher = BestOfN(budget, Sampling(temperature), params.generate.max_new_tokens)
        found = {}
        for first in range(0, len(problems), _UNIT):
            unit = problems[first : first + _UNIT]
            rows, _ = searcher.search(
                unit, domain, sampler, Exact(domain), Run(params.seed, 0, "evaluate"), should_stop=hooks.should_stop
            )
            for problem, attempts in zip(unit, rows, strict=True):
                found[problem.problem_id] = float(any(attempt.reward == 1.0 for attempt in attempts))
            done += len(unit)
            hooks.progress(done, total)
        return found

    def share(problems: list[Problem], outcomes: dict[str, float]) -> dict[str, Any]:
        values = [outcomes[problem.problem_id] for problem in problems]
        return intervals.share(values, [problem.group for problem in problems]).as_dict()

    by_temperature = {temperature: share(valid, solved(valid, temperature)) for temperature in TEMPERATURES}
    best = max(TEMPERATURES, key=lambda temperature: by_temperature[temperature]["value"])
    outcomes = solved(test, best)
    return {
        "name": NAME,
        "seed": params.seed,
        "generation": 0,
        "snapshot": sampler.snapshot,
        "temperature": best,
        "valid": {f"{key} at temperature {t}": by_temperature[t] for t in TEMPERATURES},
        "test": {key: share(test, outcomes)},
        "flops": 0.0,
        "seconds": round(time.monotonic() - start, 1),
        "outcomes": outcomes,
    }
