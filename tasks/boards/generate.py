"""generate for a board game: the teacher plays itself from the openings that were drawn, each move found by search.

An attempt is a game. Its reward is 1 where the player who moves first from the opening on won it. Beside the table
`attempts` stands `searched`, a row for each position in which a move was looked for. Generation 0 has learned nothing
and plays nothing.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel.compute import Cost
from flywheel.models import board_net
from flywheel.params import Params
from flywheel.problems.hex import FIRST, name_of, texts_of
from flywheel.problems.hex_positions import games_of
from flywheel.records import Attempt, Problem, attempt_ids
from flywheel.search import self_play
from flywheel.search.self_play import Casting, Played
from flywheel.seeds import numbered_streams
from storage.layout import Layout
from storage.rows import attempt_rows
from storage.schemas import ATTEMPTS, SEARCHED
from storage.tables import TableWriter, replace_folder, write_table
from tasks import models
from tasks.boards import networks
from tasks.curriculum import chosen
from tasks.stage import (
    Hooks,
    Report,
    Stamp,
    Units,
    by_model,
    cost_facts,
    cost_of,
    fingerprint,
    models_of,
    my_units,
    numerics,
    shard_report,
)

_SOURCES = (
    "flywheel.compute", "flywheel.models.board_net", "flywheel.problems", "flywheel.records", "flywheel.search",
    "flywheel.seeds", "storage.rows", "storage.schemas", "storage.tables", "tasks.boards", "tasks.curriculum",
)  # fmt: skip


def run_shard(params: Params, layout: Layout, shard: int, shards: int, hooks: Hooks) -> Report:
    """Do one shard's units, those that are not done yet."""
    units, work = _open(params, layout)
    mine = my_units(len(units), shard, shards)

    def play(number: int) -> None:
        start = time.monotonic()
        games, searched, worked = _play(params, layout, units[number], hooks)
        # Before the games' own table, whose name appearing is what makes the unit done.
        write_table(_searched(work, number), searched)
        won = sum(game.reward or 0.0 for game in games)
        fact = {**cost_facts(worked), "seconds": time.monotonic() - start, "won": won, "count": len(games)}
        work.write(number, attempt_rows(games), ATTEMPTS, fact)

    facts = work.each(mine, [len(unit) for unit in units], hooks, play)
    rows_in, rows_out = sum(len(units[number]) for number in mine), sum(fact["count"] for fact in facts)
    return shard_report("generate", params.generation, shard, shards, facts, rows_in, rows_out)


def finish(params: Params, layout: Layout) -> Report:
    """Join the units, in their order, into the tables `attempts` and `searched`."""
    start = time.monotonic()
    units, work = _open(params, layout)
    stamp = Stamp(layout, params.generation, "generate", work.folder.name, [layout.attempts])
    if (report := stamp.fresh()) is not None:
        return report
    work.require(len(units))
    new = layout.tmp / f"attempts-{uuid.uuid4().hex[:8]}"
    with TableWriter(new, ATTEMPTS) as games, TableWriter(new / "searched", SEARCHED) as searched:
        for number in range(len(units)):
            for writer, path in ((games, work.table(number)), (searched, _searched(work, number))):
                with pq.ParquetFile(path) as file:
                    writer.write_batches(file.iter_batches())
    replace_folder(new, layout.attempts, layout.tmp)
    facts = [work.facts(number) for number in range(len(units))]
    report = Report(
        "generate",
        params.generation,
        cost=cost_of(facts),
        models=models_of(facts),
        seconds=sum(fact["seconds"] for fact in facts) + time.monotonic() - start,
        rows_in=sum(len(unit) for unit in units),
        rows_out=games.rows,
        numerics=numerics(params.execution),
        notes={"games": games.rows, "positions": searched.rows, "won by who moved first": sum(f["won"] for f in facts)},
    )
    stamp.write(report)
    return report


def _open(params: Params, layout: Layout) -> tuple[list[list[Problem]], Units]:
    problems = chosen(params, layout) if params.generation > 0 else []
    size = params.generate.unit
    sections = [
        params.seed, params.generation, params.generate.model_dump(), params.problems.model_dump(mode="json"),
    ]  # fmt: skip
    inputs = [layout.problems, layout.parent, layout.lineage / "teacher.json"]
    mark = fingerprint("generate", _SOURCES, sections, inputs, numerics(params.execution))
    work = Units(layout, params.generation, "generate", mark)
    return [problems[start : start + size] for start in range(0, len(problems), size)], work


def _searched(work: Units, number: int) -> Path:
    return work.folder / f"searched-{number:05d}.parquet"


def _play(
    params: Params, layout: Layout, problems: list[Problem], hooks: Hooks
) -> tuple[list[Attempt], pa.Table, dict[str, Cost]]:
    """A unit: `samples` games of each opening, all at once; the games, their positions, and what they took by model."""
    section, named = params.generate, models.teacher(layout)
    folder = layout.parent if named["kind"] == "champion" else Path(named["source"])
    net = networks.load(params, folder, named["snapshot"])
    openings = games_of(
        [p for p in problems for _ in range(section.samples)], params.problems.size, params.problems.swap
    )
    keys = [
        key
        for problem in problems
        for key in numbered_streams(
            params.seed, params.generation, "self-play", problem.problem_id, numbers=range(section.samples)
        )
    ]
    played = self_play.play(
        openings,
        board_net.evaluator(net),
        networks.searching(params),
        Casting(section.temperature, section.sampled_plies, section.full_share, section.fast_simulations),
        np.array(keys, np.uint64),
        hooks.should_stop,
    )
    flops = played.evaluations * net.shape.flops
    search_params = section.model_dump(
        include={"simulations", "considered", "exploration", "noise_share", "full_share", "fast_simulations",
                 "sampled_plies", "temperature"}
    )  # fmt: skip
    ids = [
        name
        for problem in problems
        for name in attempt_ids(
            problem.problem_id, params.generation, net.snapshot, section.searcher, search_params, params.seed,
            section.samples,
        )
    ]  # fmt: skip
    games = _attempts(params, problems, openings.movers, played, ids, net.snapshot, search_params, flops)
    worked = by_model((net.snapshot, Cost(policy=flops, tokens=len(played.positions.games))))
    return games, _table(played, ids, params.problems.size), worked


def _attempts(
    params: Params, problems: list[Problem], movers: npt.NDArray[np.int8], played: Played, ids: list[str],
    snapshot: str, search_params: dict[str, Any], flops: float,
) -> list[Attempt]:  # fmt: skip
    """The games. What a unit's searches took is divided among them by their simulations."""
    section, size, at = params.generate, params.problems.size, played.positions
    starts = np.searchsorted(at.games, np.arange(len(ids) + 1))
    simulated = np.concatenate([[0], np.cumsum(at.simulations)])
    found = []
    for game, name in enumerate(ids):
        problem, index = problems[game // section.samples], game % section.samples
        first, last = int(starts[game]), int(starts[game + 1])
        steps = tuple(name_of(move, size) for move in at.moves[first:last].tolist())
        share = float(simulated[last] - simulated[first]) / float(simulated[-1])
        found.append(
            Attempt(
                attempt_id=name,
                problem_id=problem.problem_id,
                generation=params.generation,
                teacher=snapshot,
                searcher=section.searcher,
                search_params=search_params,
                seed=params.seed,
                index=index,
                prompt=problem.payload["board"],
                prompt_ids=(),
                output=" ".join(steps),
                token_ids=(),
                tokenizer="",
                steps=steps,
                stop_reason="finished",
                status="judged",
                answer="X" if played.winners[game] == FIRST else "O",
                reward=float(played.winners[game] == movers[game]),
                reward_source="exact",
                step_rewards=(),
                flops_policy=flops * share,
                flops_reward=0.0,
                tokens=last - first,
            )
        )
    return found


def _table(played: Played, ids: list[str], size: int) -> pa.Table:
    """Rows of `searched`."""
    at = played.positions
    actions = at.policies.shape[1]
    offsets = np.arange(0, len(at.games) * actions + 1, actions, dtype=np.int32)
    columns = {
        "attempt_id": pa.array(ids, pa.string()).take(pa.array(at.games)),
        "ply": at.plies.astype(np.int64),
        "board": texts_of(at.boards, size),
        "mover": at.movers.astype(np.int64),
        "move": at.moves,
        "simulations": at.simulations,
        "full": at.full,
        "value": at.values.astype(np.float64),
        "surprise": at.surprises.astype(np.float64),
        "policy": pa.ListArray.from_arrays(offsets, pa.array(at.policies.ravel())),
    }
    return pa.table(columns, schema=SEARCHED)
