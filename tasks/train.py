"""train: the student learns from the window's labels. It alone decides window and dedupe across generations, and
writes down what each model learned from (`trained_on`).

Generation 0 trains on the seed labels until its valid loss stops falling; later generations make a fixed number of
passes, warm from the champion or restarted from the base, and may then learn from pairs of right and wrong answers.
"""

from __future__ import annotations

import math
import shutil
import time
import uuid
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flywheel.compute import Cost
from flywheel.errors import InputError
from flywheel.learning import launch, lora, preference, supervised
from flywheel.learning.examples import EpochOrder, Examples, training_flops
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.params import Params
from flywheel.seeds import stream
from storage.layout import Layout
from storage.schemas import SNAPSHOTS, TRAINED_ON
from storage.tables import TableWriter, replace_folder
from tasks import models
from tasks.stage import Hooks, Report, Spent, Stamp, by_model, fingerprint, main, numerics, use_threads
from tasks.window import Window, preferences, read_window, valid_examples

_SOURCES = (
    "flywheel.compute", "flywheel.learning", "flywheel.models", "flywheel.problems", "flywheel.records",
    "flywheel.search.unit", "flywheel.seeds", "storage.rows", "storage.schemas", "storage.tables",
    "tasks.models", "tasks.train",
    "tasks.window",
)  # fmt: skip


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """Write the model folder `student` and the tables `snapshots` and `trained_on`."""
    if params.problems.domain == "hex":
        from tasks.boards import train as boards

        return boards.run(params, layout, hooks)
    generation = params.generation
    start_from_base = params.train.start == "base" and generation > 0
    learns_pairs = params.train.preference != "none" and generation > 0
    _require_extras(params)
    mark = fingerprint(
        "train",
        _SOURCES,
        [
            params.seed,
            generation,
            params.problems.model_dump(mode="json"),
            params.train.model_dump(),
            params.model.model_dump() if start_from_base else None,
            (params.filter.threshold, params.filter.per_problem) if learns_pairs else None,
            params.execution.training_processes,
            [version(name) for name, used in (("peft", params.train.method == "lora"), ("trl", learns_pairs)) if used],
        ],
        [
            layout.problems,
            layout.parent,
            layout.labels(generation) / "labels",
            layout.lineage / "window.json",
            *([layout.attempts] if learns_pairs else []),
        ],
        numerics(params.execution, alone=True),
    )
    stamp = Stamp(layout, generation, "train", mark, [layout.student, layout.training])
    if (report := stamp.fresh()) is not None:
        return report
    start = time.monotonic()
    use_threads(params.execution, alone=True)
    models.forget()
    start_model = _start_model(params, layout, start_from_base)
    window = read_window(params, layout, start_model)
    if not window.label_ids and not (generation == 0 and params.seed_labels.problems == 0):
        raise InputError(
            f"generation {generation} has no label to train on: the filter kept none, and the window holds no older "
            "ones; look at why with the table `rejected`, then lower filter.threshold, widen filter.window, or search "
            "with more generate.samples or problems"
        )
    work = layout.work(generation) / f"train-{mark}"
    work.mkdir(parents=True, exist_ok=True)
    training, elsewhere = _train(params, layout, start_model, window, work, hooks)
    snapshot = _write(params, layout, start_model, window, training)
    shutil.rmtree(work, ignore_errors=True)
    report = Report(
        "train",
        generation,
        cost=training.cost,
        models=by_model((snapshot, training.cost)),
        seconds=time.monotonic() - start + elsewhere,
        rows_in=len(window.label_ids) + window.repeated,
        rows_out=len(window.label_ids),
        numerics=numerics(params.execution, alone=True),
        notes={
            "labels": len(window.label_ids),
            "epochs": round(training.epochs, 2),
            **({"valid_loss": round(training.valid_loss, 4)} if training.steps else {}),
            "snapshot": snapshot[:12],
        },
    )
    stamp.write(report)
    return report


def _require_extras(params: Params) -> None:
    """Raise ConfigError for a missing extra before anything is read."""
    if params.train.method == "lora":
        lora.require()
    if params.train.preference == "dpo":
        preference.require()


def _train(
    params: Params, layout: Layout, start_model: LanguageModel, window: Window, work: Path, hooks: Hooks
) -> tuple[supervised.Training, float]:
    """Train in place. Without seed labels generation 0 is the base as it is. Also the seconds that other processes and
    earlier lives of this training took."""
    if not window.label_ids:
        return supervised.Training(epochs=0.0, steps=0, valid_loss=math.nan, valid_losses=(), cost=Cost()), 0.0
    seed = stream(params.seed, params.generation, "train")
    how: dict[str, Any] = {
        "fill": start_model.fill_id,
        "checkpoint_seconds": params.execution.checkpoint_seconds,
        "should_stop": hooks.should_stop,
    }
    processes, spent = params.execution.training_processes, Spent(work / "seconds")
    training = launch.train(
        start_model.model,
        window.examples,
        valid_examples(params, layout, start_model),
        params.train,
        processes=processes,
        seed=seed,
        work=work / "labels",
        until_stale=params.generation == 0,
        epochs=_passes(params, window.examples, start_model),
        progress=spent.telling(hooks.progress),
        **how,
    )
    elsewhere = spent.beyond(processes)
    if params.train.preference == "none" or params.generation == 0:
        return training, elsewhere
    # Seconds of its own, as one process alone learns from pairs.
    spent = Spent(work / "seconds-pairs")
    pairs = preferences(params, layout, start_model)
    if not pairs:
        return training, elsewhere
    preferred = preference.train(
        start_model.model,
        start_model.tokenizer,
        pairs,
        params.train,
        seed=seed,
        work=work / "pairs",
        progress=spent.telling(hooks.progress),
        **how,
    )
    both = replace(training, steps=training.steps + preferred.steps, cost=training.cost + preferred.cost)
    return both, elsewhere + spent.beyond()


def _passes(params: Params, examples: Examples, model: LanguageModel) -> int | None:
    """Whole passes that `train.flops` pays for, one at least and `epochs` at most; None where it says nothing."""
    if params.train.flops is None or params.generation == 0:
        return None
    order = EpochOrder(len(examples), 0)
    useful, padding, _ = training_flops(examples.lengths, order, 1, params.train.batch_size, model.shape)
    return min(params.train.epochs, max(1, int(params.train.flops / (useful + padding))))


def _start_model(params: Params, layout: Layout, from_base: bool) -> LanguageModel:
    """The weights to start from, in float32."""
    device = language.device_for(params.execution.device)
    if not from_base:
        return language.load(layout.parent, device, dtype="float32")
    folder = layout.tmp / f"base-{uuid.uuid4().hex[:8]}"
    make_base(params, folder)
    loaded = language.load(folder, device, dtype="float32")
    shutil.rmtree(folder)
    return loaded


def make_base(params: Params, folder: Path) -> str:
    """Generation 0's base model in `folder`; returns its snapshot digest."""
    if params.problems.domain == "hex":
        from tasks.boards import train as boards

        return boards.make_base(params, folder)
    domain = models.domain_of(params.problems)
    return language.create(params.model, domain.vocabulary(), domain.corpus(), stream(params.seed, "base"), folder)


def _write(params: Params, layout: Layout, model: LanguageModel, window: Window, training: supervised.Training) -> str:
    """Put student and tables in place; returns the student's digest."""
    from flywheel.models.checkpoints import weights_digest

    student = layout.tmp / f"student-{uuid.uuid4().hex[:8]}"
    language.save(model.model, model.tokenizer, student)
    snapshot = weights_digest(student)
    tables = layout.tmp / f"training-{uuid.uuid4().hex[:8]}"
    with TableWriter(tables / "snapshots", SNAPSHOTS) as writer:
        writer.write(
            [
                {
                    "snapshot": snapshot,
                    "role": "policy",
                    "generation": params.generation,
                    "initialised_from": model.snapshot,
                    "params_digest": params.digest(),
                    "parameters": model.parameters,
                    "training_flops": training.cost.training + training.cost.padding,
                    "verified": True,
                }
            ]
        )
    with TableWriter(tables / "trained_on", TRAINED_ON) as writer:
        columns = (window.label_ids, window.generations, window.weights, window.times)
        for label, generation, weight, count in zip(*columns, strict=True):
            if count:
                learned = {"snapshot": snapshot, "label_id": label, "generation": generation, "weight": weight}
                writer.write([{**learned, "epochs": training.epochs * count}])
    replace_folder(student, layout.student, layout.tmp)
    replace_folder(tables, layout.training, layout.tmp)
    return snapshot


if __name__ == "__main__":
    raise SystemExit(main(run))
