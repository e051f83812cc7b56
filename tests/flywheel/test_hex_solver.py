"""The exact solver of Hex against plain minimax, against what is known of small boards, and against OpenSpiel's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from flywheel.errors import InputError
from flywheel.problems.hex import FIRST, NOBODY, SECOND, Games, parse
from flywheel.problems.hex_solver import LOSES, UNKNOWN, WINS, Solver
from flywheel.seeds import generator


@cache
def minimax(cells: str, size: int, mover: str) -> int:
    """1 if the mover wins. By trying everything; who has joined the edges is looked for anew on each full board."""
    if "." not in cells:
        return 1 if joined(cells, size, "X") == (mover == "X") else -1
    other = "O" if mover == "X" else "X"
    moves = (f"{cells[:cell]}{mover}{cells[cell + 1 :]}" for cell, mark in enumerate(cells) if mark == ".")
    return 1 if any(minimax(after, size, other) == -1 for after in moves) else -1


def joined(cells: str, size: int, player: str) -> bool:
    own = {divmod(cell, size) for cell, mark in enumerate(cells) if mark == player}
    own = own if player == "X" else {(column, row) for row, column in own}
    reached = {(row, column) for row, column in own if row == 0}
    while True:
        near = {(r + a, c + b) for r, c in reached for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0), (-1, 1), (1, -1))}
        if not (near & own) - reached:
            return any(row == size - 1 for row, _ in reached)
        reached |= near & own


def positions(size: int, empty: int, count: int, seed: int) -> Iterator[Games]:
    """Games of random moves, cut where so many cells are empty, those that last."""
    for number in range(count):
        games, order = Games(size, 1), generator(seed, size, number).permutation(size**2)
        for move in order[: size**2 - empty]:
            games.play([move])
        if games.winners[0] == NOBODY:
            yield games


def value(games: Games) -> int:
    return minimax(games.text(0).replace("/", ""), games.size, "XO"[games.movers[0]])


@pytest.mark.parametrize(
    ("size", "winning"),
    [(2, ".W/W."), (3, "..W/WWW/W.."), (4, "...W/..W./.W../W..."), (5, "....W/.WWWW/.WWW./WWWW./W....")],
)  # fmt: skip
def test_winning_openings(size: int, winning: str) -> None:
    found = Solver(size).moves(Games(size, 1))[0]
    assert "/".join("".join(".W"[int(one == WINS)] for one in row) for row in found.reshape(size, size)) == winning
    assert (found == found[::-1]).all(), "a half turn changes nothing"


def test_every_position_of_3x3_against_minimax() -> None:
    solver, seen = Solver(3), 0
    for marks in itertools.product(".XO", repeat=9):
        cells = "".join(marks)
        if cells.count("X") - cells.count("O") not in (0, 1) or joined(cells, 3, "X") or joined(cells, 3, "O"):
            continue
        games = parse(["/".join((cells[:3], cells[3:6], cells[6:]))])
        assert solver.solve(games).values[0] == value(games), cells
        seen += 1
    assert seen > 2000


@pytest.mark.parametrize(("size", "empty"), [(4, 9), (5, 9), (7, 8), (8, 8)])
def test_late_positions_against_minimax_and_their_carriers(size: int, empty: int) -> None:
    """A win stands when everything outside its carrier is the other player's."""
    solver, seen, outside_of_some = Solver(size, megabytes=1), set(), 0
    for games in positions(size, empty, 40, 1):
        solved, expected = solver.solve(games), value(games)
        assert solved.values.tolist() == [expected]
        mover = "XO"[games.movers[0]]
        loser = "O" if (mover == "X") == (expected == 1) else "X"
        cells = games.text(0).replace("/", "")
        outside = [mark == "." and not inside for mark, inside in zip(cells, solved.carriers[0], strict=True)]
        assert not any(inside and mark != "." for mark, inside in zip(cells, solved.carriers[0], strict=True))
        filled = "".join(loser if out else mark for mark, out in zip(cells, outside, strict=True))
        assert minimax(filled, size, mover) == expected
        outside_of_some += any(outside)
        seen.add(expected)
    assert seen == {-1, 1}
    assert outside_of_some > 10


def test_a_table_too_small_for_all_says_the_same() -> None:
    games = Games(4, 16)
    games.play(np.arange(16))
    small, large = Solver(4, megabytes=0), Solver(4)
    assert small.solve(games).values.tolist() == large.solve(games).values.tolist()
    assert large.solve(games).nodes < small.solve(games).nodes, "what was found out serves later"


def test_a_limit_leaves_it_open_and_a_later_call_closes_it() -> None:
    solver, games = Solver(5), Games(5, 1)
    assert solver.solve(games, limit=50).values.tolist() == [UNKNOWN]
    assert solver.solve(games, limit=50).nodes == 50
    assert solver.solve(games).values.tolist() == [WINS]
    assert solver.solve(games, limit=1).values.tolist() == [WINS]
    assert solver.solve(games, limit=0).values.tolist() == [UNKNOWN]


def test_games_that_are_over_and_moves_that_are_none() -> None:
    solver, games = Solver(3), parse(["XOO/X../X..", "OOO/X../XX.", "X.O/XO./..."])
    assert games.winners.tolist() == [FIRST, SECOND, NOBODY]
    assert solver.solve(games).values.tolist() == [LOSES, LOSES, WINS]
    moves = solver.moves(games)
    assert (moves[:2] == LOSES).all()
    assert moves[2].reshape(3, 3).tolist() == [[-1, -1, -1], [-1, -1, -1], [1, -1, -1]]
    with pytest.raises(ValueError, match="games of size 3, expected 4"):
        Solver(4).solve(games)
    with pytest.raises(InputError, match="of size 9, expected 2 to 8"):
        Solver(9)


def test_a_game_in_which_a_stone_was_taken_over_is_the_other_one_mirrored() -> None:
    """The same stones can then stand there with the other player to move: the table must know them apart."""
    solver = Solver(4)
    for opening in range(16):
        plain, swapped = Games(4, 1), Games(4, 1, swap=True)
        plain.play([opening])
        swapped.play([opening])
        swapped.play([16])
        for move in generator(opening, "moves").permutation(16):
            assert solver.solve(swapped).values.tolist() == solver.solve(plain).values.tolist()
            if plain.legal()[0, move]:
                plain.play([move])
                swapped.play([move % 4 * 4 + move // 4])


def test_openspiels_tree_search_comes_to_the_same() -> None:
    import pyspiel
    from open_spiel.python.algorithms import mcts

    game = pyspiel.load_game("hex", {"board_size": 3})
    found = Solver(3).moves(Games(3, 1))[0]
    for opening in range(9):
        state = game.new_initial_state()
        state.apply_action(opening)
        noise = np.random.RandomState(opening)
        bot = mcts.MCTSBot(game, 2.0, 20_000, mcts.RandomRolloutEvaluator(1, noise), solve=True, random_state=noise)
        # Outcomes are told for the player who moved to the node: here the first, who has opened.
        assert bot.mcts_search(state).best_child().outcome is not None
        best = bot.mcts_search(state).best_child()
        assert best.outcome[0] == (1.0 if found[opening] == WINS else -1.0)
