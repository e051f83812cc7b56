"""filter for a board game: which searched positions become labels, and what they teach.

A position is a label if it was searched in full, is none of the valid or test positions (nor one that a network sees
as the same), and its reward reaches the threshold: how near the search's value came to the outcome of the game, from 0
(the opposite) to 1. Where few cells are empty the exact solver may have the last word: then the value is the true one,
the policy keeps to moves that win, and the reward is 1. Moves that only carried the game on are no candidates.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel.params import Params
from flywheel.problems.hex import FIRST, SECOND, Games, stones_of
from flywheel.problems.hex_positions import canonical
from flywheel.problems.hex_solver import UNKNOWN, WINS, Solver
from flywheel.records import digest, label_id
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import ATTEMPTS, LABEL_PARENTS, LABELS, REJECTED, TARGETS
from storage.tables import TableWriter, read_rows, replace_folder
from tasks.boards.networks import solver_snapshot
from tasks.stage import Hooks, Report, Stamp, fingerprint

_SOURCES = (
    "flywheel.problems", "flywheel.records", "storage.rows", "storage.schemas", "storage.tables", "tasks.boards.filter",
    "tasks.boards.networks",
)  # fmt: skip
_SOLVER_NODES = 10_000
"""Positions that the solver may look at for one; what it does not decide keeps its label."""
_BATCH = 50_000


def run(params: Params, layout: Layout, hooks: Hooks) -> Report:
    """Write the tables `labels`, `label_parents`, `targets` and `rejected` of this generation."""
    section, generation = params.filter, params.generation
    target = layout.labels(generation)
    mark = fingerprint(
        "filter",
        _SOURCES,
        [
            params.seed,
            generation,
            params.problems.model_dump(mode="json"),
            section.model_dump(mode="json", exclude={"window"}),
        ],
        [layout.problems, layout.attempts],
        "",
    )
    stamp = Stamp(layout, generation, "filter", mark, [target])
    if (report := stamp.fresh()) is not None:
        return report
    start = time.monotonic()
    games = {row["attempt_id"]: row for row in read_rows(layout.attempts, ATTEMPTS)}
    for game in games.values():
        game["steps_before"] = sum(mark in "XO" for mark in game["prompt"])
    held_out = {problem.group for problem in read_problems(layout.problems, ["valid", "test"])}
    surprise = _mean_surprise(layout)
    solver = Solver(params.problems.size) if section.relabel else None
    new = layout.tmp / f"labels-{uuid.uuid4().hex[:8]}"
    seen, reasons = 0, Counter[str]()
    with (
        TableWriter(new / "labels", LABELS) as labels,
        TableWriter(new / "label_parents", LABEL_PARENTS) as parents,
        TableWriter(new / "targets", TARGETS) as targets,
        TableWriter(new / "rejected", REJECTED) as rejected,
    ):
        for path in sorted((layout.attempts / "searched").glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH):
                    hooks.should_stop()
                    full = batch.filter(batch.column("full"))
                    seen += full.num_rows
                    found = _Batch(full, games, params)
                    if solver is not None:
                        found.relabel(solver)
                    reason = found.reasons(held_out, section.threshold)
                    reasons.update(one for one in reason if one)
                    rejected.write(found.rejected(reason))
                    keep = np.array([not one for one in reason], np.bool_)
                    rows, lines, what = found.labels(keep, surprise)
                    labels.write(rows)
                    parents.write(lines)
                    targets.write_batches(what.to_batches())
    replace_folder(new, target, layout.tmp)
    report = Report(
        "filter",
        generation,
        seconds=time.monotonic() - start,
        rows_in=seen,
        rows_out=labels.rows,
        notes={"kept": labels.rows, **dict(sorted(reasons.items()))},
    )
    stamp.write(report)
    return report


def _mean_surprise(layout: Layout) -> float:
    """Over the positions searched in full; 0 where there are none or the search changed nothing."""
    total, count = 0.0, 0
    for path in sorted((layout.attempts / "searched").glob("*.parquet")):
        rows = pq.read_table(path, columns=["full", "surprise"], partitioning=None)
        held = rows.column("surprise").to_numpy()[rows.column("full").to_numpy()]
        total, count = total + float(held.sum()), count + len(held)
    return total / count if count else 0.0


class _Batch:
    """Some searched positions, and what they are to teach."""

    def __init__(self, rows: pa.RecordBatch, games: dict[str, dict[str, Any]], params: Params) -> None:
        size, section = params.problems.size, params.filter
        self.params = params
        self.names: list[str] = rows.column("attempt_id").to_pylist()
        self.boards: list[str] = rows.column("board").to_pylist()
        self.plies = rows.column("ply").to_numpy()
        self.movers = rows.column("mover").to_numpy()
        self.surprises = rows.column("surprise").to_numpy()
        policies = rows.column("policy").flatten().to_numpy(zero_copy_only=False)
        actions = size**2 + params.problems.swap
        self.policies: npt.NDArray[np.float32] = policies.reshape(len(self.names), actions).copy()
        self.games = [games[name] for name in self.names]
        winners = np.array([FIRST if game["answer"] == "X" else SECOND for game in self.games])
        outcomes = np.where(winners == self.movers, 1.0, -1.0)
        found = rows.column("value").to_numpy()
        self.rewards = 1.0 - np.abs(found - outcomes) / 2.0
        self.values = (1.0 - section.search_value) * outcomes + section.search_value * found
        self.solved = np.zeros(len(self.names), np.bool_)
        self.stones = stones_of(self.boards, size)

    def relabel(self, solver: Solver) -> None:
        """The exact solver's word on positions with few empty cells, where it has one. Where the swap may still be
        used it has none."""
        section, problems = self.params.filter, self.params.problems
        few = (self.stones == 0).sum(axis=1) <= (section.relabel or 0)
        rows = np.flatnonzero(few & ~(problems.swap & (self.plies <= 1)))
        games = Games.of_stones(self.stones[rows], self.movers[rows], self.plies[rows], problems.size)
        values = solver.solve(games, _SOLVER_NODES).values
        decided = values != UNKNOWN
        self.values[rows[decided]], self.rewards[rows[decided]] = values[decided], 1.0
        self.solved[rows[decided]] = True
        won = np.flatnonzero(values == WINS)
        winning = solver.moves(games.select(won), _SOLVER_NODES) == WINS
        # The limit is each move's own: that a position is won may be known, and of no move that it wins.
        known = winning.any(axis=1)
        won, winning = won[known], winning[known]
        policies = self.policies[rows[won]]
        kept = policies * np.pad(winning, ((0, 0), (0, policies.shape[1] - winning.shape[1])))
        # Where the search gave none of them a share, each is as good.
        lost = kept.sum(axis=1) <= 1e-6
        kept[lost, : winning.shape[1]] = winning[lost]
        self.policies[rows[won]] = kept / kept.sum(axis=1, keepdims=True)

    def reasons(self, held_out: set[str], threshold: float) -> list[str]:
        """Why each is no label; empty where it is one."""
        return [
            "a valid or test position"
            if canonical(board, mover) in held_out
            else "below threshold"
            if reward < threshold
            else ""
            for board, mover, reward in zip(self.boards, self.movers.tolist(), self.rewards.tolist(), strict=True)
        ]

    def rejected(self, reasons: list[str]) -> list[dict[str, Any]]:
        return [
            {"attempt_id": name, "reason": f"ply {ply}: {reason}"}
            for name, ply, reason in zip(self.names, self.plies.tolist(), reasons, strict=True)
            if reason
        ]

    def labels(
        self, keep: npt.NDArray[np.bool_], mean_surprise: float
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], pa.Table]:
        """Rows of `labels` and `label_parents`, and those of `targets`."""
        share = self.params.filter.surprise
        relative = self.surprises / mean_surprise if mean_surprise > 0.0 else np.ones(len(self.surprises))
        weights = 1.0 - share + share * relative
        solver = solver_snapshot()
        rows, lines = [], []
        places = np.flatnonzero(keep)
        for place in places.tolist():
            name, board, game = self.names[place], self.boards[place], self.games[place]
            value, ply = float(self.values[place]), int(self.plies[place])
            taught = hashlib.blake2b(self.policies[place].tobytes(), digest_size=16).hexdigest()
            content = digest("content", "hex", board, int(self.movers[place]), taught, value)
            solved = bool(self.solved[place])
            made_of = [name, solver] if solved else [name]
            label = label_id(made_of, f"ply {ply}", {}, content)
            rows.append(
                {
                    "label_id": label,
                    "content_id": content,
                    "kind": "policy",
                    "problem_id": game["problem_id"],
                    "generation": game["generation"],
                    "teacher": game["teacher"],
                    "searcher": game["searcher"],
                    "reward": float(self.rewards[place]),
                    "reward_source": "solver" if solved else "outcome",
                    "weight": float(weights[place]),
                    "prompt": board,
                    "completion": game["steps"][ply - game["steps_before"]],
                    "prompt_ids": [],
                    "completion_ids": [],
                    "tokenizer": "",
                }
            )
            lines.append({"label_id": label, "parent_id": name, "role": "attempt"})
            if solved:
                lines.append({"label_id": label, "parent_id": solver, "role": "solver"})
        actions = self.policies.shape[1]
        offsets = np.arange(0, len(places) * actions + 1, actions, dtype=np.int32)
        columns = {
            "label_id": [row["label_id"] for row in rows],
            "ply": self.plies[places],
            "board": [self.boards[place] for place in places.tolist()],
            "mover": self.movers[places],
            "value": self.values[places],
            "policy": pa.ListArray.from_arrays(offsets, pa.array(self.policies[places].ravel())),
        }
        return rows, lines, pa.table(columns, schema=TARGETS)
