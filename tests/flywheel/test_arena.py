"""Matches replayed by the rules, with players who do as they are told, and with engines that break down."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flywheel.errors import EngineError, InputError
from flywheel.evaluation.arena import RESIGNED, Game, play, play_each, tally
from flywheel.evaluation.ratings import rate
from flywheel.problems.hex import FIRST, NOBODY, SECOND, Games, parse
from flywheel.search.board_tree import TreeSearch
from flywheel.search.gtp import Engine
from flywheel.search.players import PerfectPlayer, RandomPlayer, SearchPlayer

OPENINGS = [".../.../...", "X../.../...", "XO./.../...", ".../.X./...", ".../.../...", "..O/.X./..X"]


@dataclass
class Told:
    """Plays the first or the last empty cell, and writes down what it is asked."""

    name: str
    last: bool = False
    flops: float = 0.0
    asked: list[tuple[int, str, int]] = field(default_factory=list)
    """Whose turn it was, on which board, with which key."""

    def choose(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        for game in range(len(games)):
            assert games.winners[game] == NOBODY
            self.asked.append((int(games.movers[game]), games.text(game), int(keys[game])))
        legal = games.legal()
        moves = legal.shape[1] - 1 - legal[:, ::-1].argmax(axis=1) if self.last else legal.argmax(axis=1)
        games.play(moves)  # what it does with its games is its own affair
        return moves

    def close(self) -> None:
        raise AssertionError("who opened it closes it")


def nothing_known(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return np.zeros((len(views), views[0, 0].size), np.float32), np.zeros(len(views), np.float32)


def replayed(openings: Games, game: Game) -> Games:
    board = openings.select(np.array([game.opening]))
    for move in game.moves:
        assert board.winners[0] == NOBODY
        board.play([move])
    return board


def test_every_opening_is_played_from_both_sides_to_its_end() -> None:
    openings = parse(OPENINGS)
    games = play(Told("low"), Told("high", last=True), openings, seed=1)
    assert [(game.opening, game.first, game.second) for game in games] == [
        (opening, *names) for opening in range(6) for names in (("low", "high"), ("high", "low"))
    ]
    for game in games:
        board = replayed(openings, game)
        assert {FIRST: game.first, SECOND: game.second}[int(board.winners[0])] == game.winner
        assert game.plies == board.plies[0]
        assert game.forfeit is None
        mover = int(openings.movers[game.opening])
        before = openings.select(np.array([game.opening]))
        for move in game.moves:
            legal = np.flatnonzero(before.legal()[0])
            name = game.second if mover == SECOND else game.first
            assert move == (legal[0] if name == "low" else legal[-1]), "whose turn it was made the move"
            before.play([move])
            mover = 1 - mover
    assert games[0].moves == (0, 8, 1, 7, 2, 6), "a row of the second player's"
    assert openings.text(0) == ".../.../...", "openings are not changed"


def test_the_keys_are_of_opening_side_and_ply() -> None:
    """No two of a match are the same, of equal openings neither; another seed has others, another batch the same."""

    def keys(seed: int, batch: int) -> Counter[tuple[int, str, int]]:
        players = Told("low"), Told("high", last=True)
        play(*players, parse(OPENINGS), seed, batch)
        return Counter(players[0].asked + players[1].asked)

    asked = keys(1, 512)
    assert len({key for _, _, key in asked}) == sum(asked.values()) > 50
    assert not {key for _, _, key in asked} & {key for _, _, key in keys(2, 512)}
    for batch in (1, 5, 12):
        assert keys(1, batch) == asked


@pytest.mark.parametrize("swap", [False, True])
def test_results_do_not_depend_on_the_batch(swap: bool) -> None:
    openings = Games(3, 20, swap)
    openings.play(np.arange(20) % 9)
    one, other = RandomPlayer("a"), RandomPlayer("b")
    games = play(one, other, openings, seed=4)
    assert len(set(games)) == 40
    assert len({game.moves for game in games if game.opening in (0, 9, 18)}) > 1, "one opening, six games"
    assert any(9 in game.moves for game in games) == swap
    for batch in (1, 3, 39):
        assert play(one, other, openings, seed=4, batch=batch) == games
    assert play(one, other, openings, seed=5) != games
    assert play(one, other, openings.select(np.arange(4)), seed=4) == games[:8]
    first, second = (SearchPlayer(name, nothing_known, TreeSearch(8), 1.0) for name in "ab")
    plain = parse(OPENINGS)
    assert play(first, second, plain, seed=4, batch=1) == play(first, second, plain, seed=4)


def test_a_tally_of_games_is_rated() -> None:
    """Chance, then a search with a network that knows nothing, then perfect play."""
    openings = Games(4, 16)
    openings.play(np.arange(16))
    search = SearchPlayer("search", nothing_known, TreeSearch(64), 1.0)
    games = play(RandomPlayer(), search, openings, 1) + play(search, PerfectPlayer(4), openings, 1)
    wins = tally(games)
    assert sum(wins.values()) == 64
    assert wins["search", "random"] == sum(game.winner == "search" and "random" in (game.first, game.second)
                                           for game in games)  # fmt: skip
    assert all({game.winner, game.loser} == {game.first, game.second} for game in games)
    elo = rate(wins, "perfect")
    assert elo["random"].value < elo["search"].value < elo["search"].high < elo["perfect"].value == 0.0
    assert [elo[name].count for name in ("random", "search", "perfect")] == [32, 64, 32]


def test_matches_that_cannot_be() -> None:
    with pytest.raises(InputError, match="two players named 'low'"):
        play_each(Told("low"), Told("low"), Games(3, 1), 1)
    with pytest.raises(InputError, match="got opening 1, which is over:\n   a b c"):
        play_each(Told("low"), Told("high"), parse(["X../.../...", "XO./XO./X.."]), 1)
    with pytest.raises(InputError, match="a batch of 0 games"):
        play_each(Told("low"), Told("high"), Games(3, 1), 1, batch=0)
    assert play(Told("low"), Told("high"), Games(3, 0), 1) == []


ENGINE = """
import os, sys
folder, plan = sys.argv[1], sys.argv[2].split(",")
log = open(folder + "/starts", "a")
print("start", file=log, flush=True)
stones, games = [], folder + "/games"
for line in sys.stdin:
    words = line.split()
    if words[0] == "clear_board":
        stones = []
    elif words[0] == "play":
        stones.append(words[2])
    elif words[0] == "genmove":
        # A game begins with one stone or none; the plan has a word a game.
        count = len(open(games).read()) if os.path.exists(games) else 0
        if len(stones) < 2:
            open(games, "a").write(".")
            count += 1
        what = plan[(count - 1) % len(plan)] if len(stones) >= 2 else "plays"
        if what == "dies":
            os._exit(1)
        free = [a + b for b in "123" for a in "abc" if a + b not in stones]
        move = {"plays": free[0], "cheats": stones[0] if stones else "", "resigns": "resign"}[what]
        print("=", move, end="\\n\\n", flush=True)
        continue
    print("=", end="\\n\\n", flush=True)
"""


def engine(tmp_path: Path, *plan: str) -> Engine:
    """Plays the first empty cell, but does at its second move of its n-th game what the n-th word of the plan says."""
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    return Engine([sys.executable, "-I", "-S", str(script), str(tmp_path), ",".join(plan)], 3, name="engine")


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text().splitlines())


def test_an_engine_plays_as_any_player_would(tmp_path: Path) -> None:
    openings = Games(3, 2)
    with engine(tmp_path, "plays") as player:
        games = play(player, Told("high", last=True), openings, seed=1)
    assert games == [
        Game(**{**as_dict(game), "first": renamed(game.first), "second": renamed(game.second),
                "winner": renamed(game.winner)})
        for game in play(Told("low"), Told("high", last=True), openings, seed=1)
    ]  # fmt: skip
    assert starts(tmp_path) == 1


def as_dict(game: Game) -> dict[str, object]:
    return {name: getattr(game, name) for name in Game.__slots__}


def renamed(name: str) -> str:
    return {"low": "engine"}.get(name, name)


def test_a_fault_costs_the_game_and_the_match_goes_on(tmp_path: Path) -> None:
    """Two faults in a row, a good game, and two again; of two players the other is never to blame."""
    with engine(tmp_path, "dies", "cheats", "plays", "cheats", "dies", "plays") as player:
        games = play(player, Told("high", last=True), Games(3, 3), seed=1)
    assert [bool(game.forfeit) for game in games] == [True, True, False, True, True, False]
    for game in games:
        if game.forfeit:
            assert (game.winner, game.loser) == ("high", "engine")
            assert ("exit code 1" in game.forfeit) != ("which is taken" in game.forfeit)
            assert len(game.moves) == game.plies == (2 if game.first == "engine" else 3), "those that were made"
    assert starts(tmp_path) == 5, "one more after each fault"


def test_an_engine_that_resigns_loses_without_fault(tmp_path: Path) -> None:
    with engine(tmp_path, "resigns") as player:
        games = play(Told("high", last=True), player, Games(3, 4), seed=1)
    assert [(game.forfeit, game.winner) for game in games] == [(RESIGNED, "high")] * 8
    assert starts(tmp_path) == 1


def test_three_faults_in_a_row_end_the_match_and_what_was_played_is_kept(tmp_path: Path) -> None:
    kept: list[Game] = []
    with engine(tmp_path, "plays", "dies", "cheats", "dies", "plays") as player:
        each = play_each(player, Told("high", last=True), Games(3, 10), seed=1)
        with pytest.raises(EngineError, match=r"engine lost 3 games in a row by its own fault.*: .*exit code 1"):
            kept.extend(each)
    assert [(game.opening, bool(game.forfeit)) for game in kept] == [(0, False), (0, True), (1, True), (1, True)]


def test_an_engine_that_is_not_there_ends_the_match() -> None:
    player = Engine("flywheel-has-no-such-engine", 3)
    with pytest.raises(EngineError, match="could not be started"):
        play(Told("low"), player, Games(3, 5), seed=1)
