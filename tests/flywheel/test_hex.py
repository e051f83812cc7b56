"""Hex against a search over the whole board after every move, against OpenSpiel, and against what is known of it."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel.errors import InputError
from flywheel.problems.hex import FIRST, NOBODY, SECOND, Games, cell_of, name_of, parse, place
from flywheel.seeds import generator


def joined(stones: np.ndarray, size: int, player: int) -> bool:
    """Whether the player's stones join the edges: a search from the one edge."""
    own = stones.reshape(size, size) == (1 if player == FIRST else -1)
    own = own if player == FIRST else own.T
    reached = {(0, column) for column in range(size) if own[0, column]}
    waiting = list(reached)
    while waiting:
        row, column = waiting.pop()
        # Mirrored on the long diagonal the neighbours are the same six.
        for there in ((row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column),
                      (row - 1, column + 1), (row + 1, column - 1)):  # fmt: skip
            if min(there) >= 0 and max(there) < size and own[there] and there not in reached:
                reached.add(there)
                waiting.append(there)
    return any(row == size - 1 for row, _ in reached)


def random_moves(games: Games, seed: int) -> np.ndarray:
    legal = games.legal()
    noise = generator(seed, "moves", int(games.plies.max())).random(legal.shape)
    return np.where(legal, noise, -1.0).argmax(axis=1)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 11, 19])
def test_a_game_is_won_when_the_edges_are_joined_and_not_before(size: int, swap: bool) -> None:
    games = Games(size, 60 if size < 12 else 8, swap)
    while (games.winners == NOBODY).any():
        lasted = games.winners == NOBODY
        before, plies = games.boards.copy(), games.plies.copy()
        games.play(random_moves(games, size))
        assert (games.boards[~lasted] == before[~lasted]).all(), "what is over stays as it is"
        assert (games.plies - plies == lasted).all()
        for game in range(len(games)):
            for player in (FIRST, SECOND):
                assert joined(games.stones()[game], size, player) == (games.winners[game] == player)
    counts = np.stack([(games.stones() == 1).sum(axis=1), (games.stones() == -1).sum(axis=1)])
    assert (np.abs(counts[0] - counts[1]) <= 1).all()
    assert not games.legal().any()


@pytest.mark.parametrize("size", [3, 4, 7])
def test_a_full_board_has_exactly_one_winner(size: int) -> None:
    cells = size * size
    for seed in range(200):
        order = generator(seed, "fill").permutation(cells)
        board, scratch = np.zeros(cells, np.int8), np.zeros(cells, np.int16)
        signs = np.where(np.arange(cells) < (cells + 1) // 2, 1, -1)
        won = {int(sign) for cell, sign in zip(order, signs, strict=True) if place(board, size, cell, sign, scratch)}
        assert won == {1 if joined(np.sign(board), size, FIRST) else -1}
        assert joined(np.sign(board), size, FIRST) != joined(np.sign(board), size, SECOND)


@pytest.mark.parametrize("size", [3, 5, 8])
def test_openspiel_agrees(size: int) -> None:
    import pyspiel

    game = pyspiel.load_game("hex", {"board_size": size})
    count = 400
    games, states = Games(size, count), [game.new_initial_state() for _ in range(count)]
    while (games.winners == NOBODY).any():
        legal = games.legal()
        for number, state in enumerate(states):
            assert np.flatnonzero(legal[number]).tolist() == ([] if state.is_terminal() else state.legal_actions())
        moves = random_moves(games, 100 + size)
        for number, state in enumerate(states):
            if not state.is_terminal():
                state.apply_action(int(moves[number]))
        games.play(moves)
    for winner, state in zip(games.winners.tolist(), states, strict=True):
        assert state.returns() == ([1.0, -1.0] if winner == FIRST else [-1.0, 1.0])


def test_a_view_is_the_game_of_the_player_who_joins_top_and_bottom() -> None:
    """Played in its own view, a game of the second player's is one of the first player's, colours exchanged."""
    games = Games(5, 50)
    for _ in range(13):
        games.play(random_moves(games, 3))
    lasting = games.select(games.winners == NOBODY)
    assert len(lasting) > 0
    views, cells = lasting.views(), lasting.cells_of_views()
    for game in range(len(lasting)):
        mover, other = views[game]
        assert (mover.sum() - other.sum()) == (0 if lasting.movers[game] == FIRST else -1)
        legal = lasting.legal()[game][cells[game]].reshape(5, 5)
        assert (legal == ~(mover | other)).all()
        for player, plane in ((lasting.movers[game], mover), (1 - lasting.movers[game], other)):
            own = lasting.stones()[game] == (1 if player == FIRST else -1)
            assert (own[cells[game]].reshape(5, 5) == plane).all()
    wins = Games(5, 1)
    for move in (0, 10, 1, 11, 2, 12, 3, 13):
        wins.play([move])
    wins.play([9])
    action = int(np.flatnonzero(wins.cells_of_views()[0] == 14)[0])
    assert (action // 5, action % 5) == (4, 2), "the last stone of a row is, in its player's view, at the bottom"
    wins.play([14])
    assert wins.winners.tolist() == [SECOND]


def test_the_swap_takes_the_stone_over() -> None:
    games = Games(3, 2, swap=True)
    games.play([1, 1])
    assert games.legal()[:, 9].tolist() == [True, True]
    games.play([9, 0])
    assert [games.text(0), games.text(1)] == [".../O../...", "OX./.../..."]
    again = parse([games.text(0)], swap=True)
    assert (again.movers[0], again.plies[0]) == (FIRST, 2)
    assert not again.legal()[0, 9]
    assert games.views().shape == (2, 3, 3, 3)
    assert games.movers.tolist() == [FIRST, FIRST]
    assert not games.legal()[:, 9].any(), "as the first answer only"
    with pytest.raises(InputError, match="expected an empty cell"):
        games.play([9, 3])


def test_boards_as_text() -> None:
    games = parse([".X./OXO/...", "XXX/OO./...", "..X/OXO/X.."])
    assert [games.text(number) for number in range(3)] == [".X./OXO/...", "XXX/OO./...", "..X/OXO/X.."]
    assert games.movers.tolist() == [FIRST, SECOND, SECOND]
    assert games.winners.tolist() == [NOBODY, NOBODY, FIRST]
    games.play([7, 5, 0])
    assert games.winners.tolist() == [FIRST, SECOND, FIRST]
    assert games.drawing(1).splitlines() == ["   a b c", " 1 X X X", "  2 O O O", "   3 . . ."]
    assert [cell_of(name_of(cell, 11), 11) for cell in range(121)] == list(range(121))
    assert cell_of(" B3 ", 3) == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("..", "a board of size 1"), ("/".join(["." * 20] * 20), "a board of size 20"), ("../...", "2 rows of 2"),
        ("../.x", "2 rows of 2"), ("XX/..", "take turns"), ("O./..", "take turns"),
        ("X.O/X.O/X.O", "after the game was won"),
    ],
)  # fmt: skip
def test_boards_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse([text])


def test_moves_that_are_none() -> None:
    games = Games(3, 3)
    games.play([0, 1, 2])
    for moves in ([0, 0, 0], [3, 9, 3], [3, -1, 3], [3, 3, 9]):
        before = games.boards.copy()
        with pytest.raises(InputError, match="expected an empty cell of\n   a b c"):
            games.play(moves)
        assert (games.boards == before).all(), "all or nothing"
    with pytest.raises(InputError, match="one for each of 3 games"):
        games.play([3])
    for name in ("", "3", "d1", "a0", "a4", "aa", "a-1"):
        with pytest.raises(InputError, match="expected a column a to c"):
            cell_of(name, 3)
