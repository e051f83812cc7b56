"""Hex: the snapshots of a family of runs play each other, sparsely, and are rated together.

A player is a snapshot with a runtime budget. It meets its neighbours: the next snapshot of its run at the same budget,
the same snapshot at the next budget, and the snapshot of the same generation of the next cell and of the next seed.
The last snapshots meet perfect play where the exact solver plays. So the number of games grows with the number of
players, not with its square.

Games are kept by the run whose players lead a pairing, `OUT/arena/<run>.parquet`: each pairing with all its openings.
What a file lacks is played, so that a seed or a cell may be added, and openings be changed; what is asked for no longer
stays there, and is left out of `games.parquet`. A pairing is played by itself, so that its games are the same whatever
else is played, in however many processes: `python -m flows.sweeps.arena OUT DEFINITION RUN...` is one.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows import board_players, stop
from flows.apart import run_module
from flows.progress import Tracker
from flows.sweeps import running
from flows.sweeps.definition import Arena, Run, Sweep
from flywheel.errors import FlywheelError, joined
from flywheel.evaluation import arena
from flywheel.models import board_net
from flywheel.problems.hex_positions import games_of
from flywheel.search.players import NetworkPlayer, PerfectPlayer, Player, SearchPlayer
from flywheel.seeds import stream
from storage.layout import Layout
from storage.registry import Registry
from storage.tables import write_table
from tasks.boards import matches, networks

GAMES = pa.schema(
    [
        ("family", pa.string()), ("first", pa.string()), ("second", pa.string()), ("opening", pa.int64()),
        ("first_won", pa.bool_()), ("plies", pa.int64()),
    ]
)  # fmt: skip
"""Players as in `name`, or `perfect`. `opening` is its number among the family's openings, the same for all."""
PERFECT = matches.PERFECT
_SEED = 0
"""Of the openings and of the games: the same for every sweep."""
_Held = dict[frozenset[str], list[dict[str, Any]]]
"""Games by who meets whom."""


class Named(Protocol):
    """Players by name."""

    def __getitem__(self, who: str) -> Player: ...


def name(run: str, generation: int, budget: int) -> str:
    """How a player is called: `5x5-w64-seed-0/gen/7@16`, or without `@` for the network alone."""
    return f"{run}/{matches.name(generation, budget or None)}"


def pairings(runs: list[Run], budgets: tuple[int, ...], perfect: bool) -> Iterator[tuple[str, str]]:
    """Who meets whom in a family, whose runs are these."""
    cells, seeds = list(dict.fromkeys(run.cell for run in runs)), list(dict.fromkeys(run.seed for run in runs))
    by_place = {(run.cell, run.seed): run for run in runs}
    for run in runs:
        beside = [
            by_place.get((cell, seed))
            for cell, seed in (
                *((after, run.seed) for cell, after in itertools.pairwise(cells) if cell == run.cell),
                *((run.cell, after) for seed, after in itertools.pairwise(seeds) if seed == run.seed),
            )
        ]
        for generation in range(run.generations + 1):
            for budget in budgets:
                if generation < run.generations:
                    yield name(run.name, generation, budget), name(run.name, generation + 1, budget)
                for other in beside:
                    if other is not None:
                        yield name(run.name, generation, budget), name(other.name, generation, budget)
            for less, more in itertools.pairwise(budgets):
                yield name(run.name, generation, less), name(run.name, generation, more)
        if perfect:
            for budget in (budgets[0], budgets[-1]):
                yield name(run.name, run.generations, budget), PERFECT


@flow(name="sweep arena", flow_run_name="arena of {sweep}", validate_parameters=False)
def play_all(sweep: str, out: str, definition: dict[str, Any], jobs: int = 2) -> int:
    """Play what is missing of each family, in `jobs` processes, and write `games.parquet`; how many games there are.

    Seeds of which a run is still to be made wait for it; the others' games are played and count. Raises what failed,
    once the games of all other families are written.
    """
    del sweep
    root, wanted = Path(out), Sweep.model_validate(definition)
    assert wanted.arena is not None, "a sweep without an arena has no games"
    with closing(Tracker(Layout(root))) as tracker:
        clear(root)
        families: list[list[Run]] = []
        for runs in wanted.by_family():
            ready = running.ready(root, runs)
            if len(ready) < len(runs):
                waiting = sorted({run.seed for run in runs} - {run.seed for run in ready})
                tracker.note(f"arena {runs[0].family}: runs of seed {', '.join(map(str, waiting))} to be made")
            if ready:
                families.append(ready)
        failed = _play_apart(families, root, wanted, jobs, tracker)
        whole = [runs for runs in families if not any(missing(run, runs, root, wanted.arena) for run in runs)]
        games = gathered(whole, root, wanted.arena)
        write_table(root / "games.parquet", games)
    if failed:
        raise joined(failed)
    return int(games.num_rows)


def forget(out: Path, gone: Sequence[Run]) -> None:
    """Drop the games of runs that have no generation any more: made anew, they may have other networks."""
    names = {run.name for run in gone}
    for path in (out / "arena").glob("*.parquet"):
        held = list(itertools.chain.from_iterable(_read(path).values()))
        kept = [row for row in held if not names & {row[side].partition("/gen/")[0] for side in ("first", "second")}]
        if len(kept) < len(held):
            write_table(path, pa.Table.from_pylist(kept, schema=GAMES))


def clear(out: Path) -> None:
    """Remove what a process that was killed left: copies of models, and files half written."""
    for left in (out / "arena").glob(".*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _play_apart(
    families: list[list[Run]], out: Path, wanted: Sweep, jobs: int, tracker: Tracker
) -> list[FlywheelError]:
    """Processes that each play every so manieth run of a family that lacks games, as imports and models are paid for
    once in each; what failed. Raises Interrupted."""
    assert wanted.arena is not None
    definition = json.dumps(wanted.model_dump(mode="json"))
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=jobs)
    with pool as runner, stop.at_termination():
        futures: list[PrefectFuture[Any]] = []
        for runs in families:
            lacking = [run.name for run in runs if missing(run, runs, out, wanted.arena)]
            for part in range(min(jobs, len(lacking))):
                arguments = {"names": lacking[part::jobs], "out": out, "definition": definition, "tracker": tracker}
                futures.append(runner.submit(several_runs_play, arguments))
        wait(futures)
        return running.failures(futures)


@task(name="games", task_run_name="games of {names}", cache_policy=NO_CACHE)
def several_runs_play(names: list[str], out: Path, definition: str, tracker: Any) -> None:
    """The missing games of some runs of a family, in a process of their own."""
    stop.check()
    start = time.monotonic()
    run_module(
        "flows.sweeps.arena", str(out), definition, *names,
        root=out, environment={**os.environ, "OMP_NUM_THREADS": "1"}, what=f"games of {', '.join(names)}",
    )  # fmt: skip
    tracker.note(f"games of {', '.join(names)}: {time.monotonic() - start:.0f} s")


def main(out: Path, wanted: Sweep, names: Sequence[str]) -> None:
    """Play what is missing of these runs, which are of one family; a run's games are kept once all are played."""
    assert wanted.arena is not None
    every = list(wanted.runs())
    (family,) = {run.family for run in every if run.name in names}
    runs = running.ready(out, [run for run in every if run.family == family])
    with stop.on_signals(), _Players(out, runs) as players:
        for run in runs:
            if run.name in names:
                play(run, runs, out, wanted.arena, players)


def led(run: Run, runs: list[Run], section: Arena) -> list[tuple[str, str]]:
    """The pairings that a run's players lead."""
    perfect = matches.plays_perfectly(run.params(0))
    return [pair for pair in pairings(runs, section.budgets, perfect) if pair[0].startswith(f"{run.name}/")]


def missing(run: Run, runs: list[Run], out: Path, section: Arena) -> list[tuple[str, str]]:
    """Those of them that the run's file lacks, or has from another number of openings."""
    held, count = _read(_path(out, run)), 2 * len(board_players.openings_of(run.params(0), section.openings, _SEED))
    return [pair for pair in led(run, runs, section) if len(held.get(frozenset(pair), [])) != count]


def play(run: Run, runs: list[Run], out: Path, section: Arena, players: Named) -> None:
    """Play what is missing of the pairings that one run's players lead, and write the run's file anew."""
    params = run.params(0)
    openings = board_players.openings_of(params, section.openings, _SEED)
    boards = games_of(openings, params.problems.size, params.problems.swap)
    if not (lacking := missing(run, runs, out, section)):
        return
    held = _read(_path(out, run))
    for one, other in lacking:
        stop.check()
        held[frozenset((one, other))] = [
            {
                "family": run.family, "first": game.first, "second": game.second, "opening": game.opening,
                "first_won": game.winner == game.first, "plies": game.plies,
            }
            for game in arena.play(players[one], players[other], boards, stream(_SEED, "sweep", one, other))
        ]  # fmt: skip
    rows = list(itertools.chain.from_iterable(held.values()))
    write_table(_path(out, run), pa.Table.from_pylist(rows, schema=GAMES))


def gathered(families: list[list[Run]], out: Path, section: Arena) -> pa.Table:
    """The games that are asked for, by run and pairing, of families that have played."""
    rows: list[dict[str, Any]] = []
    for runs in families:
        for run in runs:
            held = _read(_path(out, run))
            rows += itertools.chain.from_iterable(held[frozenset(pair)] for pair in led(run, runs, section))
    return pa.Table.from_pylist(rows, schema=GAMES)


def _read(path: Path) -> _Held:
    held: _Held = {}
    if path.exists():
        for row in pq.read_table(path, schema=GAMES).to_pylist():
            held.setdefault(frozenset((row["first"], row["second"])), []).append(row)
    return held


def _path(out: Path, run: Run) -> Path:
    return out / "arena" / f"{run.name}.parquet"


class _Players:
    """Players by name, each snapshot read once from its registry."""

    def __init__(self, out: Path, runs: list[Run]) -> None:
        self._out, self._runs = out, {run.name: run for run in runs}
        self._scratch = out / "arena" / f".{uuid.uuid4().hex[:8]}"
        self._made: dict[str, Player] = {}
        self._networks: dict[tuple[str, int], Any] = {}

    def __enter__(self) -> _Players:
        self._scratch.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __getitem__(self, who: str) -> Player:
        if who not in self._made:
            self._made[who] = self._make(who)
        return self._made[who]

    def _make(self, who: str) -> Player:
        run_name, _, rest = who.partition("/gen/")
        if who == PERFECT:
            return PerfectPlayer(next(iter(self._runs.values())).params(0).problems.size)
        run, (generation, _, budget) = self._runs[run_name], rest.partition("@")
        params = run.params(0)
        place = run_name, int(generation)
        if place not in self._networks:
            registry = Registry.open(running.folder(self._out, run))
            net = board_players.network(registry, params, int(generation), self._scratch)
            self._networks[place] = board_net.evaluator(net), net.shape.flops
        evaluate, flops = self._networks[place]
        if not budget:
            return NetworkPlayer(who, evaluate, flops)
        return SearchPlayer(who, evaluate, networks.playing(params, int(budget)), flops)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Sweep.model_validate_json(sys.argv[2]), sys.argv[3:])
    except FlywheelError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
