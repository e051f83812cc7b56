"""train for a board game: the student learns the window's targets, warm from the champion or anew from random weights.

It alone decides which labels of the window are learned, and writes down what each student learned from (`trained_on`).
Generation 0 is the network as it was drawn.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel.errors import InputError
from flywheel.learning import board_training
from flywheel.learning.board_training import Examples
from flywheel.models import board_net
from flywheel.models.board_net import BoardNet
from flywheel.models.language import device_for
from flywheel.params import Params
from flywheel.problems.hex import stones_of
from flywheel.seeds import stream
from storage.cache import object_path
from storage.layout import Layout
from storage.schemas import SNAPSHOTS, TRAINED_ON
from storage.tables import TableWriter, replace_folder
from tasks.boards import networks
from tasks.stage import Hooks, Report, Spent, Stamp, by_model, fingerprint, numerics, use_threads

_SOURCES = (
    "flywheel.compute", "flywheel.learning.board_training", "flywheel.learning.examples", "flywheel.models.board_net",
    "flywheel.problems.hex", "flywheel.seeds", "storage.schemas", "storage.tables", "tasks.boards.train",
    "tasks.boards.networks",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Window:
    """The labels that are learned, and what they teach, in one order: oldest first."""

    label_ids: list[str]
    generations: list[int]
    """Which generation each label is of."""
    examples: Examples
    left_out: int
    """Labels older than the window's law reaches."""


def make_base(params: Params, folder: Path) -> str:
    """Generation 0's network in `folder`; its snapshot digest."""
    return board_net.create(networks.shape_of(params), stream(params.seed, "base"), folder)


def run(params: Params, layout: Layout, hooks: Hooks) -> Report:
    """Write the model folder `student` and the tables `snapshots` and `trained_on`."""
    generation, from_base = params.generation, params.train.start == "base" and params.generation > 0
    mark = fingerprint(
        "train",
        _SOURCES,
        [
            params.seed,
            generation,
            params.problems.model_dump(mode="json"),
            params.train.model_dump(),
            params.model.model_dump() if from_base else None,
        ],
        [
            layout.parent,
            layout.labels(generation) / "labels",
            layout.labels(generation) / "targets",
            layout.lineage / "window.json",
        ],
        numerics(params.execution, alone=True),
    )
    stamp = Stamp(layout, generation, "train", mark, [layout.student, layout.training])
    if (report := stamp.fresh()) is not None:
        return report
    start = time.monotonic()
    use_threads(params.execution, alone=True)
    net = _start(params, layout, from_base)
    window = read_window(params, layout, net)
    if not window.label_ids and generation > 0:
        raise InputError(
            f"generation {generation} has no label to train on: the filter kept none, and the window holds no older "
            "ones; look at why with the table `rejected`, then lower filter.threshold or play more games"
        )
    work = layout.work(generation) / f"train-{mark}"
    spent = Spent(work / "seconds")
    training = board_training.train(
        net.model,
        net.shape,
        window.examples,
        params.train,
        seed=stream(params.seed, generation, "train"),
        work=work,
        checkpoint_seconds=params.execution.checkpoint_seconds,
        progress=spent.telling(hooks.progress),
        should_stop=hooks.should_stop,
    )
    elsewhere = spent.beyond()
    snapshot = _write(params, layout, net, window, training)
    shutil.rmtree(work, ignore_errors=True)
    losses = {"policy_loss": training.policy_loss, "value_loss": training.value_loss}
    report = Report(
        "train",
        generation,
        cost=training.cost,
        models=by_model((snapshot, training.cost)),
        seconds=time.monotonic() - start + elsewhere,
        rows_in=len(window.label_ids) + window.left_out,
        rows_out=len(window.label_ids),
        numerics=numerics(params.execution, alone=True),
        notes={
            "labels": len(window.label_ids),
            "epochs": training.epochs,
            **{name: round(loss, 4) for name, loss in losses.items() if math.isfinite(loss)},
            "snapshot": snapshot[:12],
        },
    )
    stamp.write(report)
    return report


def _start(params: Params, layout: Layout, from_base: bool) -> BoardNet:
    """The network to start from; never one that is searched with at the same time."""
    device = device_for(params.execution.device)
    if not from_base:
        net = board_net.load(layout.parent, device)
    else:
        folder = layout.tmp / f"base-{uuid.uuid4().hex[:8]}"
        make_base(params, folder)
        net = board_net.load(folder, device)
        shutil.rmtree(folder)
    board_net.require(net.shape, params.problems.size, params.problems.swap, str(layout.parent))
    return net


def read_window(params: Params, layout: Layout, net: BoardNet) -> Window:
    """The window's labels without those of excluded models, the newest that its law lets through
    (`train.window_law`)."""
    window = json.loads((layout.lineage / "window.json").read_text(encoding="utf-8"))
    files: list[tuple[Path, Path]] = []
    for generation in window["generations"]:
        for labels, targets in zip(generation["files"], generation["targets"], strict=True):
            files.append((object_path(layout.root, labels["md5"]), object_path(layout.root, targets["md5"])))
    own = layout.labels(params.generation)
    files += zip(sorted((own / "labels").glob("*.parquet")), sorted((own / "targets").glob("*.parquet")), strict=True)
    excluded = pa.array(window.get("excluded", []), pa.string())
    clean = [_of_others(labels, excluded) for labels, _ in files]
    counts = [len(rows) for rows in clean]
    skip = sum(counts) - law(sum(counts), params.train.window_law)
    names: list[str] = []
    generations: list[int] = []
    parts: list[Examples] = []
    left_out = skip
    for rows, (labels, targets) in zip(clean, files, strict=True):
        if skip >= len(rows):
            skip -= len(rows)
            continue
        of, what = (
            pq.read_table(path, columns=columns, partitioning=None).take(pa.array(rows[skip:]))
            for path, columns in ((labels, ["label_id", "generation", "weight"]), (targets, None))
        )
        skip = 0
        # Written row by row together.
        assert of.column("label_id").equals(what.column("label_id")), f"{labels} and {targets} are not of one order"
        names += of.column("label_id").to_pylist()
        generations += of.column("generation").to_pylist()
        parts.append(_examples(what, of.column("weight").to_numpy(), net))
    return Window(names, generations, _joined(parts, net), left_out)


def _of_others(labels: Path, excluded: pa.Array) -> npt.NDArray[np.int64]:
    """Numbers of the rows whose teacher is not among `excluded`."""
    if not len(excluded):
        return np.arange(pq.read_metadata(labels).num_rows)
    teachers = pq.read_table(labels, columns=["teacher"], partitioning=None).column("teacher")
    return np.flatnonzero(~pc.is_in(teachers, value_set=excluded).to_numpy())


def law(labels: int, scale: int | None) -> int:
    """How many of so many labels are learned: KataGo's power law (Wu 2019, section 3.1; the constants are the
    program's own), c (1 + 0.4 ((n / c)^0.75 - 1) / 0.75)."""
    if scale is None or labels <= scale:
        return labels
    return int(scale * (1.0 + 0.4 * ((labels / scale) ** 0.75 - 1.0) / 0.75))


def _examples(rows: pa.Table, weights: npt.NDArray[np.float64], net: BoardNet) -> Examples:
    policies = rows.column("policy").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return board_training.examples_of(
        stones_of(rows.column("board").to_pylist(), net.shape.size),
        rows.column("mover").to_numpy().astype(np.int8),
        rows.column("ply").to_numpy().astype(np.int16),
        policies.reshape(rows.num_rows, -1).astype(np.float32),
        rows.column("value").to_numpy().astype(np.float32),
        weights.astype(np.float32),
        net.shape,
    )


def _joined(parts: list[Examples], net: BoardNet) -> Examples:
    shape = net.shape
    none = Examples(
        np.zeros((0, shape.planes * shape.cells), np.int8),
        np.zeros((0, shape.actions), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
    )
    held = [none, *parts]
    return Examples(
        np.concatenate([part.views for part in held]),
        np.concatenate([part.policies for part in held]),
        np.concatenate([part.values for part in held]),
        np.concatenate([part.weights for part in held]),
    )


def _write(params: Params, layout: Layout, net: BoardNet, window: Window, training: board_training.Training) -> str:
    """Put student and tables in place; the student's digest."""
    student = layout.tmp / f"student-{uuid.uuid4().hex[:8]}"
    snapshot = board_net.save(net.model, net.shape, student)
    tables = layout.tmp / f"training-{uuid.uuid4().hex[:8]}"
    row: dict[str, Any] = {
        "snapshot": snapshot,
        "role": "policy",
        "generation": params.generation,
        "initialised_from": net.snapshot,
        "params_digest": params.digest(),
        "parameters": net.parameters,
        "training_flops": training.cost.training + training.cost.padding,
        "verified": True,
    }
    with TableWriter(tables / "snapshots", SNAPSHOTS) as writer:
        writer.write([row])
    with TableWriter(tables / "trained_on", TRAINED_ON) as writer:
        count = len(window.label_ids)
        writer.write_batches(
            pa.table(
                {
                    "snapshot": pa.array([snapshot]).take(pa.array(np.zeros(count, np.int64))),
                    "label_id": window.label_ids,
                    "generation": window.generations,
                    "weight": window.examples.weights.astype(np.float64),
                    "epochs": np.full(count, training.epochs),
                },
                schema=TRAINED_ON,
            ).to_batches()
        )
    replace_folder(student, layout.student, layout.tmp)
    replace_folder(tables, layout.training, layout.tmp)
    return snapshot
