"""Controls: what the same compute buys without the flywheel's search, and what perfect labels would.

    no-search   the seed labels alone, learned from the base with all the FLOPs that the flywheel spent on search and
                training. Told by the better, on valid, of its last weights and of generation 0's (which stopped early).
    ceiling     the solver's labels for every training problem, as many a problem as the filter keeps, with as many
                FLOPs; the better on valid of the last weights and of a training stopped by the valid loss.

A control writes no labels and no model to the registry, only its figures.
"""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from flywheel.evaluation import intervals, metrics
from flywheel.learning import supervised
from flywheel.learning.examples import EpochOrder, Examples, training_flops
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.models.language import LanguageModel
from flywheel.params import Params
from flywheel.search import unit
from flywheel.seeds import stream
from storage.layout import Layout
from storage.rows import read_problems
from tasks import evaluate, models, train
from tasks.curriculum import chosen
from tasks.stage import Hooks, use_threads
from tasks.window import valid_examples

NAMES = ("no-search", "ceiling")


def run(name: str, params: Params, layout: Layout, budget_flops: float, hooks: Hooks = Hooks()) -> dict[str, Any]:  # noqa: B008
    """Train and measure one control with about `budget_flops` executed FLOPs; {"name", "seed", "test", "valid", ...}.

    The budget is met to within one epoch. `outcomes` holds the greedy result of each test problem, for pairing.
    """
    start = time.monotonic()
    use_threads(params.execution, alone=True)
    models.forget()
    scratch = layout.tmp / f"control-{uuid.uuid4().hex[:8]}"
    base = scratch / "base"
    train.make_base(params, base)
    device = language.device_for(params.execution.device)
    problems = read_problems(layout.problems, ["valid", "test"])
    candidates: list[dict[str, Any]] = []
    for until_stale in (False, True):
        student = language.load(base, device, dtype="float32")
        examples = _examples(name, params, layout, student)
        training = supervised.train(
            student.model,
            examples,
            valid_examples(params, layout, student),
            params.train,
            seed=stream(params.seed, "control", name, until_stale),
            fill=student.fill_id,
            work=_made(scratch / f"work-{until_stale}"),
            until_stale=until_stale,
            epochs=_epochs(examples, params, student, budget_flops),
            checkpoint_seconds=3600.0,
            progress=hooks.progress,
            should_stop=hooks.should_stop,
        )
        folder = scratch / f"student-{until_stale}"
        language.save(student.model, student.tokenizer, folder)
        sampler = models.load_sampler(str(folder), weights_digest(folder), params.execution)
        rows = evaluate.greedy_rows(params, sampler, problems, hooks)
        candidates.append(
            {
                "stopped": "by the valid loss" if until_stale else "at the FLOPs of the flywheel",
                "snapshot": sampler.snapshot,
                "epochs": training.epochs,
                "flops": training.cost.training + training.cost.padding,
                "labels": len(examples),
                **{split: _share(rows, split) for split in ("valid", "test")},
                "outcomes": {r["problem_id"]: r["value"] for r in rows if r["split"] == "test"},
            }
        )
    shutil.rmtree(scratch, ignore_errors=True)
    best = max(candidates, key=lambda candidate: candidate["valid"]["greedy"]["value"])
    return {
        "name": name,
        "seed": params.seed,
        "generation": params.generation,
        "budget_flops": budget_flops,
        "seconds": round(time.monotonic() - start, 1),
        **best,
        "others": [
            {key: value for key, value in candidate.items() if key != "outcomes"}
            for candidate in candidates
            if candidate is not best
        ],
    }


def _examples(name: str, params: Params, layout: Layout, model: LanguageModel) -> Examples:
    domain = models.domain_of(params.problems)
    if name == "no-search":
        problems = chosen(params.for_generation(0, None), layout)
        count = params.seed_labels.per_problem
    else:
        problems = read_problems(layout.problems, ["train"])
        count = params.filter.per_problem or 16
    return Examples(
        (unit.ask(problem, domain, model).prompt_ids, model.encode_answer(solution), 1.0)
        for problem in problems
        for solution in domain.solutions(problem, count)
    )


def _epochs(examples: Examples, params: Params, model: LanguageModel, budget_flops: float) -> int:
    """Whole epochs that the budget pays for, one at least."""
    order = EpochOrder(len(examples), 0)
    useful, padding, _ = training_flops(examples.lengths, order, 1, params.train.batch_size, model.shape)
    return max(1, round(budget_flops / (useful + padding)))


def _share(rows: list[dict[str, Any]], split: str) -> dict[str, Any]:
    mine = [row for row in rows if row["split"] == split]
    interval = intervals.share([row["value"] for row in mine], [row["group"] for row in mine])
    return {metrics.metric_key("greedy", 1): interval.as_dict()}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
