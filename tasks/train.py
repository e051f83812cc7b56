"""train: the student learns from the window's labels. It alone decides window and dedupe across generations, and
writes down what each model learned from (`trained_on`).

Generation 0 trains on the seed labels until its valid loss stops falling; later generations make a fixed number of
passes, warm from the champion or restarted from the base. Labels sampled with the student's own tokenizer are learned
by their own token ids; labels of a teacher with another tokenizer are encoded anew from their text.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flywheel.errors import InputError
from flywheel.learning import supervised
from flywheel.learning.examples import Examples
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.params import Params
from flywheel.problems import domain as domains
from flywheel.seeds import stream
from storage.cache import object_path
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import LABELS, SNAPSHOTS, TRAINED_ON
from storage.tables import TableWriter, read_batches, replace_folder
from tasks import models
from tasks.stage import Hooks, Report, Stamp, fingerprint, main, numerics, use_threads

_SOURCES = (
    "flywheel.compute", "flywheel.learning", "flywheel.models", "flywheel.problems", "flywheel.records",
    "flywheel.seeds", "storage.rows", "storage.schemas", "storage.tables", "tasks.train",
)  # fmt: skip
_COLUMNS = ["label_id", "content_id", "weight", "prompt", "completion", "prompt_ids", "completion_ids", "tokenizer"]


@dataclass(frozen=True, slots=True)
class _Window:
    """What a student learns from: examples, and the labels they are, in one order."""

    examples: Examples
    label_ids: list[str]
    weights: list[float]
    repeated: int
    """Labels left out since an older one teaches the same."""


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """Write the model folder `student` and the tables `snapshots` and `trained_on`."""
    generation = params.generation
    start_from_base = params.train.start == "base" and generation > 0
    mark = fingerprint(
        "train",
        _SOURCES,
        [params.seed, generation, params.train.model_dump(), params.model.model_dump() if start_from_base else None],
        [layout.problems, layout.parent, layout.labels(generation) / "labels", layout.lineage / "window.json"],
        numerics(params.execution, alone=True),
    )
    stamp = Stamp(layout, generation, "train", mark, [layout.student, layout.training])
    if (report := stamp.fresh()) is not None:
        return report
    start = time.monotonic()
    use_threads(params.execution, alone=True)
    models.forget()
    start_model = _start_model(params, layout, start_from_base)
    window = _window(params, layout, start_model)
    if not window.label_ids:
        raise InputError(
            f"generation {generation} has no label to train on: the filter kept none, and the window holds no older "
            "ones; look at why with the table `rejected`, then lower filter.threshold, widen filter.window, or search "
            "with more generate.samples or problems"
        )
    work = layout.work(generation) / f"train-{mark}"
    work.mkdir(parents=True, exist_ok=True)
    training = supervised.train(
        start_model.model,
        window.examples,
        valid_examples(params, layout, start_model),
        params.train,
        seed=stream(params.seed, generation, "train"),
        fill=start_model.fill_id,
        work=work,
        until_stale=generation == 0,
        checkpoint_seconds=params.execution.checkpoint_seconds,
        progress=hooks.progress,
        should_stop=hooks.should_stop,
    )
    snapshot = _write(params, layout, start_model, window, training)
    shutil.rmtree(work, ignore_errors=True)
    report = Report(
        "train",
        generation,
        cost=training.cost,
        seconds=time.monotonic() - start,
        rows_in=len(window.label_ids) + window.repeated,
        rows_out=len(window.label_ids),
        numerics=numerics(params.execution, alone=True),
        notes={
            "labels": len(window.label_ids),
            "epochs": round(training.epochs, 2),
            "valid_loss": round(training.valid_loss, 4),
            "snapshot": snapshot[:12],
        },
    )
    stamp.write(report)
    return report


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
    domain = domains.load(params.problems)
    return language.create(params.model, domain.vocabulary(), stream(params.seed, "base"), folder)


def _window(params: Params, layout: Layout, model: LanguageModel) -> _Window:
    seen: set[str] = set()
    label_ids: list[str] = []
    weights: list[float] = []
    repeated = 0
    training = {problem.problem_id for problem in read_problems(layout.problems, ["train"])}

    def triples() -> Iterator[tuple[list[int], list[int], float]]:
        nonlocal repeated
        for row in _labels(params, layout):
            assert row["problem_id"] in training, f"label {row['label_id']} is of a problem outside the training split"
            if params.train.dedupe and row["content_id"] in seen:
                repeated += 1
                continue
            seen.add(row["content_id"])
            label_ids.append(row["label_id"])
            weights.append(row["weight"])
            if row["tokenizer"] == model.tokenizer_id:
                yield row["prompt_ids"], row["completion_ids"], row["weight"]
            else:
                yield model.encode_prompt(row["prompt"]), model.encode_answer(row["completion"]), row["weight"]

    examples = Examples(triples())
    return _Window(examples, label_ids, weights, repeated)


def _labels(params: Params, layout: Layout) -> Iterator[dict[str, Any]]:
    """Rows of the window's labels: older generations from the cache, oldest first, then this generation's own."""
    columns = [*_COLUMNS, "problem_id"]
    window = json.loads((layout.lineage / "window.json").read_text(encoding="utf-8"))
    for generation in window["generations"]:
        for entry in generation["files"]:
            with pq.ParquetFile(object_path(layout.root, entry["md5"])) as file:
                for batch in file.iter_batches(columns=columns):
                    yield from batch.to_pylist()
    for batch in read_batches(layout.labels(params.generation) / "labels", LABELS, columns):
        yield from batch.to_pylist()


def valid_examples(params: Params, layout: Layout, model: LanguageModel) -> Examples:
    """Reference answers of the valid problems."""
    domain = domains.load(params.problems)
    return Examples(
        (model.encode_prompt(domain.prompt(problem)), model.encode_answer(problem.reference), 1.0)
        for problem in read_problems(layout.problems, ["valid"])
        if problem.reference is not None
    )


def _write(params: Params, layout: Layout, model: LanguageModel, window: _Window, training: supervised.Training) -> str:
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
        for label, weight in zip(window.label_ids, window.weights, strict=True):
            writer.write([{"snapshot": snapshot, "label_id": label, "weight": weight, "epochs": training.epochs}])
    replace_folder(student, layout.student, layout.tmp)
    replace_folder(tables, layout.training, layout.tmp)
    return snapshot


if __name__ == "__main__":
    raise SystemExit(main(run))
