"""A sweep's arena plays what its files lack: seeds, cells, openings may be added, and what is not asked for stays out.

Players move by chance, so that no registry is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import progress
from flows.progress import Tracker
from flows.sweeps import arena, definition, running
from flows.sweeps.definition import Arena, Run
from flywheel.errors import FlywheelError
from flywheel.search.players import RandomPlayer
from storage.layout import Layout

SECTION = Arena(budgets=(0, 4), openings=3)


def a_run(cell: str, seed: int, generations: int = 1) -> Run:
    return Run("f", cell, seed, False, "hex-3", (definition.Leg(generations=generations),), {"seed": seed})


class Strangers:
    """Players that move by chance; who is asked for is written down, and may be one who plays no more."""

    def __init__(self, fails: str = "") -> None:
        self.asked: list[tuple[str, str]] = []
        self._names: list[str] = []
        self._fails = fails

    def __getitem__(self, who: str) -> RandomPlayer:
        if self._fails and who.startswith(self._fails):
            raise FlywheelError(f"killed at {who}")
        self._names.append(who)
        if len(self._names) % 2 == 0:
            self.asked.append((self._names[-2], who))
        return RandomPlayer(who)


def play(runs: list[Run], out: Path, section: Arena = SECTION) -> list[tuple[str, str]]:
    """Play what is missing of all; the pairings that were played."""
    players = Strangers()
    for run in runs:
        arena.play(run, runs, out, section, players)
    return players.asked


def gathered(runs: list[Run], out: Path, section: Arena = SECTION) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = arena.gathered([runs], out, section).to_pylist()
    return rows


def asked(runs: list[Run], section: Arena = SECTION) -> list[tuple[str, str]]:
    return list(arena.pairings(runs, section.budgets, perfect=True))


def every_game(pairs: list[tuple[str, str]], openings: int) -> set[tuple[str, str, int]]:
    return {
        (*sides, opening)
        for one, other in pairs
        for sides in ((one, other), (other, one))
        for opening in range(openings)
    }


def key(game: dict[str, Any]) -> tuple[str, str, int]:
    return game["first"], game["second"], game["opening"]


@pytest.mark.parametrize("added", [[a_run("a", 1)], [a_run("b", 0)], [a_run("b", 0), a_run("a", 1), a_run("b", 1)]])
def test_added_runs_meet_the_old_ones_and_what_is_played_is_not_played_again(tmp_path: Path, added: list[Run]) -> None:
    old, both = [a_run("a", 0)], sorted([a_run("a", 0), *added], key=lambda run: run.seed)
    assert play(old, tmp_path / "grown") == asked(old)
    before = gathered(old, tmp_path / "grown")
    new = play(both, tmp_path / "grown")
    assert set(new) == set(asked(both)) - set(asked(old))
    assert any(one.startswith("f-a-seed-0/") for one, _ in new)
    games = gathered(both, tmp_path / "grown")
    assert len(games) == len({key(game) for game in games})
    assert {key(game) for game in games} == every_game(asked(both), 3)
    assert all(game in games for game in before)
    assert play(both, tmp_path / "grown") == []
    # As if all had been played at once.
    play(both, tmp_path / "at-once")
    assert gathered(both, tmp_path / "at-once") == games


def test_other_openings_are_played_anew_and_never_mixed(tmp_path: Path) -> None:
    runs = [a_run("a", 0), a_run("a", 1)]
    play(runs, tmp_path)
    more = SECTION.model_copy(update={"openings": 5})
    assert play(runs, tmp_path, more) == asked(runs)
    assert {key(game) for game in gathered(runs, tmp_path, more)} == every_game(asked(runs), 5)
    play(runs, tmp_path / "at-once", more)
    assert gathered(runs, tmp_path, more) == gathered(runs, tmp_path / "at-once", more)
    play(runs, tmp_path, SECTION)
    assert {key(game) for game in gathered(runs, tmp_path)} == every_game(asked(runs), 3)


def test_what_is_not_asked_for_is_left_out_and_kept(tmp_path: Path) -> None:
    runs = [a_run("a", 0), a_run("a", 1)]
    play(runs, tmp_path)
    alone = SECTION.model_copy(update={"budgets": (0,)})
    assert play(runs, tmp_path, alone) == []
    assert {key(game) for game in gathered(runs, tmp_path, alone)} == every_game(asked(runs, alone), 3)
    assert play(runs, tmp_path) == []


def test_a_game_does_not_hang_on_who_else_plays_or_in_which_order(tmp_path: Path) -> None:
    runs = [a_run(cell, seed) for seed in (0, 1) for cell in ("a", "b")]
    play(runs, tmp_path / "one")
    for run in reversed(runs):
        arena.play(run, runs, tmp_path / "several", SECTION, Strangers())
    assert gathered(runs, tmp_path / "one") == gathered(runs, tmp_path / "several")


def test_a_run_whose_games_were_cut_off_has_none_and_keeps_those_of_before(tmp_path: Path) -> None:
    old, both = [a_run("a", 0)], [a_run("a", 0), a_run("a", 1)]
    play(old, tmp_path)
    path = tmp_path / "arena" / "f-a-seed-0.parquet"
    held = path.read_bytes()
    with pytest.raises(FlywheelError, match="killed at f-a-seed-1/gen/0"):
        arena.play(both[0], both, tmp_path, SECTION, Strangers(fails="f-a-seed-1"))
    assert path.read_bytes() == held
    assert set(play(both, tmp_path)) == set(asked(both)) - set(asked(old))


def test_games_of_whole_seeds_count_while_another_seed_is_still_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = definition.Sweep.model_validate({
        "preset": "hex-3", "seeds": [0, 1, 2], "arena": {"budgets": [0, 4], "openings": 3},
        "families": {"f": {"cells": {"a": {}, "b": {}}, "legs": [{"generations": 1}]}},
    })  # fmt: skip
    whole = [run for run in sweep.runs() if run.seed < 2]
    play(whole, tmp_path)
    late = {"f-b-seed-2": 0}
    monkeypatch.setattr(running, "done", lambda out, run: late.get(run.name, run.generations))
    count = arena.play_all.fn("known", str(tmp_path), sweep.model_dump(mode="json"))
    assert count == len(every_game(asked(whole), 3))
    assert pq.read_table(tmp_path / "games.parquet").to_pylist() == gathered(whole, tmp_path)


def test_games_of_a_run_that_is_gone_are_forgotten(tmp_path: Path) -> None:
    runs = [a_run("a", 0), a_run("a", 1), a_run("b", 0)]
    play(runs, tmp_path)
    arena.forget(tmp_path, [runs[1]])
    lacking = {pair for run in runs for pair in arena.missing(run, runs, tmp_path, SECTION)}
    gone = {pair for pair in asked(runs) if any(who.startswith(f"{runs[1].name}/") for who in pair)}
    assert lacking == gone
    assert 0 < len(gone) < len(asked(runs))


def test_the_flow_removes_what_a_kill_left_and_closes_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = definition.Sweep.model_validate({
        "preset": "hex-3", "seeds": [0, 1], "arena": {"budgets": [0, 4], "openings": 3},
        "families": {"f": {"cells": {"a": {}}, "legs": [{"generations": 1}]}},
    })  # fmt: skip
    runs = list(sweep.runs())
    monkeypatch.setattr(running, "done", lambda out, run: run.generations)
    play(runs, tmp_path)
    left = tmp_path / "arena" / ".0a1b2c3d" / "student-1"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"x")
    (tmp_path / "arena" / ".f-a-seed-0.parquet.0a1b").write_bytes(b"x")
    Tracker(Layout(tmp_path)).step(progress.Step(1, "arena"))
    count = arena.play_all.fn("known", str(tmp_path), sweep.model_dump(mode="json"))
    assert sorted(path.name for path in (tmp_path / "arena").iterdir()) == [f"{run.name}.parquet" for run in runs]
    assert progress.read(Layout(tmp_path)) is None
    assert pq.read_table(tmp_path / "games.parquet").to_pylist() == gathered(runs, tmp_path)
    assert count == len(every_game(asked(runs), 3))
