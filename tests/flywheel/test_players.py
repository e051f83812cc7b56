"""Players of Hex against brute force, against the exact solver, and against each other."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from flywheel.errors import InputError, ModelError
from flywheel.evaluation.arena import play
from flywheel.problems.hex import FIRST, NOBODY, SECOND, Games, parse
from flywheel.problems.hex_solver import LOSES, WINS, Solver, promising
from flywheel.search.board_tree import TreeSearch
from flywheel.search.players import NetworkPlayer, PerfectPlayer, Player, RandomPlayer, SearchPlayer
from flywheel.seeds import generator
from tests.flywheel.board_worlds import keys, network


def positions(size: int, count: int, most: int, seed: int = 0) -> Games:
    """Games after 0 to `most` random moves each, those that last."""
    games = Games(size, count)
    wanted = generator(seed, "plies").integers(0, most + 1, count)
    for ply in range(most):
        noise = generator(seed, "opening", ply).random((count, size**2))
        moved = games.select(np.arange(count))
        moved.play(np.where(games.legal(), noise, -1.0).argmax(axis=1))
        for mine, theirs in ((games.boards, moved.boards), (games.movers, moved.movers),
                             (games.winners, moved.winners), (games.plies, moved.plies)):  # fmt: skip
            mine[wanted > ply] = theirs[wanted > ply]
    return games.select(games.winners == NOBODY)


@cache
def mover_wins(cells: str, size: int) -> bool:
    """By trying everything to the full board."""
    mover = "XO"[cells.count("X") - cells.count("O")]
    if "." not in cells:
        return joined(cells, size, mover)
    return any(not mover_wins(f"{cells[:cell]}{mover}{cells[cell + 1 :]}", size) for cell in empty(cells))


def joined(cells: str, size: int, player: str) -> bool:
    own = {divmod(cell, size) for cell, mark in enumerate(cells) if mark == player}
    own = own if player == "X" else {(column, row) for row, column in own}
    reached = {(row, column) for row, column in own if row == 0}
    while True:
        near = {(r + a, c + b) for r, c in reached for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0), (-1, 1), (1, -1))}
        if not (near & own) - reached:
            return any(row == size - 1 for row, _ in reached)
        reached |= near & own


def empty(cells: str) -> list[int]:
    return [cell for cell, mark in enumerate(cells) if mark == "."]


def best_moves(cells: str, size: int) -> set[int]:
    """Those that win; else those after which the other player has the fewest moves that win."""
    mover = "XO"[cells.count("X") - cells.count("O")]
    other = "XO"[mover == "X"]
    after = {cell: f"{cells[:cell]}{mover}{cells[cell + 1 :]}" for cell in empty(cells)}
    wins = {cell for cell, text in after.items() if not mover_wins(text, size)}
    if wins:
        return wins
    replies = {
        cell: sum(not mover_wins(f"{text[:reply]}{other}{text[reply + 1 :]}", size) for reply in empty(text))
        for cell, text in after.items()
    }
    return {cell for cell, count in replies.items() if count == min(replies.values())}


PLAYERS = {
    "random": RandomPlayer,
    "perfect": lambda: PerfectPlayer(4),
    "network": lambda: NetworkPlayer("network", network, 10.0),
    "search": lambda: SearchPlayer("search", network, TreeSearch(8), 10.0),
    "puct": lambda: SearchPlayer("puct", network, TreeSearch(8, root="puct"), 10.0),
}


@pytest.mark.parametrize("name", PLAYERS)
def test_a_move_is_legal_and_a_function_of_position_and_key(name: str) -> None:
    """Whatever else is asked beside it, in whatever order, and by an object however much used."""
    player: Player = PLAYERS[name]()
    assert player.name == name
    games = positions(4, 60, 8)
    named = keys(len(games))
    before = games.boards.copy()
    together = player.choose(games, named)
    assert games.legal()[np.arange(len(games)), together].all()
    assert (games.boards == before).all()
    order = generator(0, "order").permutation(len(games))
    assert (PLAYERS[name]().choose(games.select(order), named[order]) == together[order]).all()
    alone = [int(player.choose(games.select(np.array([one])), named[one : one + 1])[0]) for one in range(len(games))]
    assert alone == together.tolist()
    player.close()
    assert (player.choose(games, named) == together).all()
    ended = parse(["XO../..../..../....", "XO../XO../XO../X..."])
    assert ended.winners.tolist() == [NOBODY, FIRST]
    with pytest.raises(ValueError, match="is over"):
        player.choose(ended, keys(2))


def test_random_moves_are_all_as_likely_and_the_swap_is_one() -> None:
    games = Games(3, 4000, swap=True)
    games.play(np.full(4000, 4))
    moves = RandomPlayer().choose(games, keys(4000))
    counts = np.bincount(moves, minlength=10)
    assert counts[4] == 0
    assert stats.chisquare(np.delete(counts, 4)).pvalue > 0.001
    assert RandomPlayer().flops == 0.0


def test_the_perfect_player_draws_from_the_winning_moves_or_from_the_best_defence() -> None:
    """All it draws over many keys, on positions of both kinds, is what brute force finds."""
    games = positions(3, 150, 6, seed=3)
    texts = [games.text(game).replace("/", "") for game in range(len(games))]
    lost = [not mover_wins(text, 3) for text in texts]
    assert 20 < sum(lost) < len(games) - 20
    defended = [text for text, is_lost in zip(texts, lost, strict=True) if is_lost]
    assert any(len(best_moves(text, 3)) < len(empty(text)) for text in defended), "so that it matters"
    drawn: list[set[int]] = [set() for _ in texts]
    player = PerfectPlayer(3)
    for seed in range(150):
        for moves, move in zip(drawn, player.choose(games, keys(len(games), seed)).tolist(), strict=True):
            moves.add(move)
    assert drawn == [best_moves(text, 3) for text in texts]


@pytest.mark.parametrize(("size", "plies"), [(4, 7), (5, 13)])
def test_the_best_defence_on_larger_boards(size: int, plies: int) -> None:
    """Against the solver, asked for every reply to every move."""
    solver, player = Solver(size), PerfectPlayer(size)
    games = positions(size, 400, plies, seed=4)
    games = games.select(games.plies >= plies - 3)
    games = games.select(solver.solve(games).values == LOSES)
    assert len(games) > 20
    drawn: list[set[int]] = [set() for _ in range(len(games))]
    for seed in range(100):
        for moves, move in zip(drawn, player.choose(games, keys(len(games), seed)).tolist(), strict=True):
            moves.add(move)
    for game, moves in enumerate(drawn):
        legal = np.flatnonzero(games.legal()[game])
        after = games.select(np.full(len(legal), game))
        after.play(legal)
        replies = (solver.moves(after) == WINS).sum(axis=1)
        assert moves == set(legal[replies == replies.min()].tolist())


def test_what_is_lost_early_is_defended_by_what_the_solver_tries_first() -> None:
    games = parse(["..../..X./..../...."])
    assert Solver(4).solve(games).values[0] == LOSES
    chosen = {int(PerfectPlayer(4, defended_cells=14).choose(games, keys(1, seed))[0]) for seed in range(20)}
    assert chosen == {int(promising(games, 1)[0, 0])}


def test_its_draws_are_all_as_likely() -> None:
    player = PerfectPlayer(3)
    opening = Games(3, 3000)
    counts = np.bincount(player.choose(opening, keys(3000)), minlength=9)
    winning = sorted(best_moves("." * 9, 3))
    assert np.flatnonzero(counts).tolist() == winning
    assert stats.chisquare(counts[winning]).pvalue > 0.001


@pytest.mark.parametrize(("size", "plies"), [(3, 5), (4, 6), (5, 10)])
def test_perfect_against_perfect_is_won_by_whom_the_solver_says(size: int, plies: int) -> None:
    """So each wins exactly half of the games, as every opening is played from both sides."""
    openings = positions(size, 60, plies, seed=size)
    openings = openings.select(openings.plies >= (0 if size < 5 else 6))
    movers_win = Solver(size).solve(openings).values == WINS
    games = play(PerfectPlayer(size, "one"), PerfectPlayer(size, "other"), openings, seed=1)
    for game in games:
        winner_is_first = movers_win[game.opening] == (openings.movers[game.opening] == FIRST)
        assert game.winner == (game.first if winner_is_first else game.second)
    assert sum(game.winner == "one" for game in games) == len(openings) == len(games) / 2


def test_perfect_play_beats_chance() -> None:
    """From the empty board the first player wins for certain, and the second nearly always."""
    games = play(PerfectPlayer(4), RandomPlayer(), Games(4, 50), seed=2)
    assert all(game.winner == "perfect" for game in games if game.first == "perfect")
    assert sum(game.winner == "perfect" for game in games if game.second == "perfect") >= 45


def test_the_perfect_player_refuses_what_it_cannot_play() -> None:
    player = PerfectPlayer(3)
    with pytest.raises(InputError, match="got games of size 3 with the swap rule"):
        player.choose(Games(3, 1, swap=True), keys(1))
    with pytest.raises(InputError, match="got games of size 4 without the swap rule, expected size 3"):
        player.choose(Games(4, 1), keys(1))
    with pytest.raises(InputError, match="board of size 9"):
        PerfectPlayer(9)


def wants(*actions: int) -> object:
    """A network that likes these actions of its view, the first most, and all others not at all."""

    def evaluate(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        assert views.dtype == np.float32
        logits = np.full((len(views), views[0, 0].size), -np.inf, np.float32)
        for rank, action in enumerate(actions):
            logits[:, action] = -rank
        return logits, np.zeros(len(views), np.float32)

    return evaluate


def test_a_network_plays_what_it_likes_most_in_its_own_view() -> None:
    """Row 1, column 0 of a 3x3 view is a2 for who joins top and bottom, and b1 for the other."""
    games = parse(["XO./.../...", "X../.../...", "X../O../...", "XO./X../..."])
    assert games.movers.tolist() == [FIRST, SECOND, FIRST, SECOND]
    player = NetworkPlayer("net", wants(3, 2), 7.0)
    assert player.choose(games, keys(4)).tolist() == [3, 1, 2, 6], "taken cells are passed over"
    assert NetworkPlayer("net", wants(), 7.0).choose(games, keys(4)).tolist() == [2, 3, 1, 6], "the first left"
    assert player.flops == 7.0 * 4


@pytest.mark.parametrize(("wrong", "reason"), [(np.nan, "are no numbers"), (np.inf, "are no numbers"), (None, "shape")])
def test_a_damaged_network_is_said_to_be(wrong: float | None, reason: str) -> None:
    def evaluate(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        logits = np.zeros((len(views), 9 if wrong else 10), np.float32)
        logits[:, 4] = wrong or 0.0
        return logits, np.zeros(len(views), np.float32)

    with pytest.raises(ModelError, match=reason):
        NetworkPlayer("net", evaluate, 1.0).choose(Games(3, 2), keys(2))


def test_a_search_player_plays_what_the_search_finds_and_counts_its_work() -> None:
    games = positions(4, 40, 8)
    search = TreeSearch(16)
    player = SearchPlayer("search", network, search, 3.0)
    found = search.search(games, network, keys(len(games)))
    assert (player.choose(games, keys(len(games))) == found.moves).all()
    assert player.flops == 3.0 * found.evaluations > 0
    strong, weak = SearchPlayer("strong", network, TreeSearch(64), 1.0), NetworkPlayer("weak", network, 1.0)
    won = sum(game.winner == "strong" for game in play(strong, weak, positions(4, 20, 3), seed=3))
    assert won >= 30, "of 40, with a network that knows nothing"
