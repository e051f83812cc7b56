"""The rules of Hex, for many games at once.

    X joins top and bottom and moves first, O joins left and right:

    . X .             the neighbours of (r, c) are (r, c-1), (r, c+1), (r-1, c), (r+1, c), (r-1, c+1), (r+1, c-1):
     O X O            each row stands half a cell to the right of the one above
      . . .

Stones never move, and a full board has exactly one winner. A stone knows whether its group touches one of its player's
two edges, so that a move is seen to win when it joins a group of either: the work of a whole game is proportional to
its stones, as no stone learns that twice (the idea of boardlaw, Jones 2021).

Cells are numbered row by row. With the swap rule the second player may, as the first answer, take the first stone
over: it becomes a stone of the second player's, mirrored on the long diagonal, which is the same position with the
colours exchanged. That action is number size * size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from flywheel.errors import InputError

SMALLEST, LARGEST = 2, 19
NOBODY, FIRST, SECOND = -1, 0, 1
Board = npt.NDArray[np.int8]
"""Cells of one game: 0 empty; a stone of the first player's above 0, of the second's below. Its size says what its
group touches: 1 neither edge, 2 the near one (top; left), 3 the far one (bottom; right)."""
_OVER = -1
"""As a move: none, the game is over."""


@njit(cache=True, nogil=True)
def place(board: Board, size: int, cell: int, sign: int, scratch: npt.NDArray[np.int16]) -> bool:
    """Put a stone (sign 1: the first player's, -1: the second's) on an empty cell; whether it wins. `scratch` has room
    for every cell."""
    row, column = cell // size, cell % size
    line = row if sign > 0 else column
    near, far = line == 0, line == size - 1
    for direction in range(6):
        other = _neighbour(row, column, size, direction)
        if other >= 0 and board[other] * sign > 1:
            near |= board[other] * sign == 2
            far |= board[other] * sign == 3
    board[cell] = sign * (2 if near else 3 if far else 1)
    if near and far:
        return True
    if near or far:
        _tell(board, size, cell, sign, scratch)
    return False


@njit(cache=True, nogil=True)
def _neighbour(row: int, column: int, size: int, direction: int) -> int:
    """-1 where the board ends."""
    if direction == 0:
        column -= 1
    elif direction == 1:
        column += 1
    elif direction == 2:
        row -= 1
    elif direction == 3:
        row += 1
    elif direction == 4:
        row, column = row - 1, column + 1
    else:
        row, column = row + 1, column - 1
    if 0 <= row < size and 0 <= column < size:
        return row * size + column
    return -1


@njit(cache=True, nogil=True)
def _tell(board: Board, size: int, cell: int, sign: int, scratch: npt.NDArray[np.int16]) -> None:
    """What a stone's group touches, to those of its group that did not know."""
    waiting = 1
    scratch[0] = cell
    while waiting:
        waiting -= 1
        told = scratch[waiting]
        for direction in range(6):
            other = _neighbour(told // size, told % size, size, direction)
            if other >= 0 and board[other] == sign:
                board[other] = board[cell]
                scratch[waiting] = other
                waiting += 1


@njit(cache=True, nogil=True)
def make(board: Board, size: int, move: int, mover: int, scratch: npt.NDArray[np.int16]) -> bool:
    """A legal move, the swap among them; whether it wins."""
    cell = move
    if move == size * size:
        for taken in range(size * size):
            if board[taken] != 0:
                cell = taken % size * size + taken // size
                board[taken] = 0
                break
    return place(board, size, cell, 1 - 2 * mover, scratch)


@njit(cache=True, nogil=True)
def _make_all(
    boards: npt.NDArray[np.int8],
    size: int,
    movers: npt.NDArray[np.int8],
    winners: npt.NDArray[np.int8],
    plies: npt.NDArray[np.int16],
    moves: npt.NDArray[np.int64],
) -> None:
    """Legal moves, or _OVER."""
    scratch = np.empty(size * size, np.int16)
    for game in range(len(moves)):
        if moves[game] == _OVER:
            continue
        if make(boards[game], size, moves[game], movers[game], scratch):
            winners[game] = movers[game]
        movers[game] = 1 - movers[game]
        plies[game] += 1


@njit(cache=True, nogil=True)
def _place_all(
    boards: npt.NDArray[np.int8], size: int, stones: npt.NDArray[np.int8], winners: npt.NDArray[np.int8]
) -> None:
    scratch = np.empty(size * size, np.int16)
    for game in range(len(stones)):
        for cell in range(size * size):
            sign = stones[game, cell]
            if sign != 0 and place(boards[game], size, cell, sign, scratch):
                winners[game] = FIRST if sign > 0 else SECOND


class Games:
    """Games side by side, changed in place by `play`; all of one size."""

    def __init__(self, size: int, count: int, swap: bool = False) -> None:
        """New games. Raises InputError for a size that is none."""
        check_size(size)
        self.size = size
        self.swap = swap
        self.boards: npt.NDArray[np.int8] = np.zeros((count, size * size), np.int8)
        """A `Board` a game."""
        self.movers: npt.NDArray[np.int8] = np.zeros(count, np.int8)
        """Whose turn it is, FIRST or SECOND; of no meaning once a game is over."""
        self.winners: npt.NDArray[np.int8] = np.full(count, NOBODY, np.int8)
        """FIRST, SECOND, or NOBODY while a game lasts."""
        self.plies: npt.NDArray[np.int16] = np.zeros(count, np.int16)
        """Moves made."""

    def __len__(self) -> int:
        return len(self.boards)

    @property
    def actions(self) -> int:
        """How many numbers of moves there are: the cells, and the swap where that is a rule."""
        return self.size * self.size + self.swap

    def legal(self) -> npt.NDArray[np.bool_]:
        """[games, actions]: the empty cells of games that last, and the swap as the first answer."""
        lasts = self.winners == NOBODY
        legal = np.zeros((len(self), self.actions), np.bool_)
        legal[:, : self.size * self.size] = (self.boards == 0) & lasts[:, None]
        if self.swap:
            legal[:, -1] = self.plies == 1
        return legal

    def play(self, moves: npt.ArrayLike) -> None:
        """One move in every game that lasts; what stands there for the others is passed over. Raises InputError, with
        nothing played, where a move is illegal."""
        wanted = np.asarray(moves, np.int64)
        if wanted.shape != (len(self),):
            raise InputError(f"got moves of shape {wanted.shape}, expected one for each of {len(self)} games")
        lasts = self.winners == NOBODY
        inside = (wanted >= 0) & (wanted < self.actions)
        allowed = inside & self.legal()[np.arange(len(self)), np.where(inside, wanted, 0)]
        if bad := np.flatnonzero(lasts & ~allowed).tolist():
            game = bad[0]
            raise InputError(
                f"got move {wanted[game]} in game {game}, expected an empty cell of\n{self.drawing(game)}"
                + ("\nor the swap, as the first answer" if self.swap else "")
            )
        _make_all(self.boards, self.size, self.movers, self.winners, self.plies, np.where(lasts, wanted, _OVER))

    def select(self, games: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Games:
        """A copy of some games, by number or by mask."""
        chosen = Games(self.size, 0, self.swap)
        chosen.boards, chosen.movers = self.boards[games], self.movers[games]
        chosen.winners, chosen.plies = self.winners[games], self.plies[games]
        return chosen

    @classmethod
    def of_stones(
        cls, stones: npt.NDArray[np.int8], movers: npt.NDArray[np.int8], plies: npt.NDArray[np.int16], size: int,
        swap: bool = False,
    ) -> Games:  # fmt: skip
        """Games from stones [games, cells] as `stones` gives them; not checked, as they come from games."""
        games = cls(size, len(stones), swap)
        _place_all(games.boards, size, np.ascontiguousarray(stones), games.winners)
        games.movers, games.plies = movers.astype(np.int8), plies.astype(np.int16)
        return games

    def stones(self) -> npt.NDArray[np.int8]:
        """[games, cells]: 1 the first player's, -1 the second's, 0 empty."""
        return np.sign(self.boards)

    def views(self) -> npt.NDArray[np.bool_]:
        """[games, planes, size, size]: the mover's stones and the other player's, as if the mover were to join top and
        bottom: for the second player the board is mirrored on the long diagonal. See `cells_of_views`. With the swap
        rule a third plane says whether it may be used now."""
        stones = self.stones().reshape(-1, self.size, self.size)
        second = (self.movers == SECOND)[:, None, None]
        seen = np.where(second, -stones.transpose(0, 2, 1), stones)
        planes = [seen > 0, seen < 0]
        if self.swap:
            planes.append(np.broadcast_to((self.plies == 1)[:, None, None], seen.shape))
        return np.stack(planes, axis=1)

    def cells_of_views(self) -> npt.NDArray[np.int64]:
        """[games, actions]: the move that each action of a game's view stands for."""
        straight = np.arange(self.actions)
        mirrored = straight.copy()
        mirrored[: self.size * self.size] = straight[: self.size * self.size].reshape(self.size, self.size).T.ravel()
        return np.where((self.movers == SECOND)[:, None], mirrored, straight)

    def text(self, game: int) -> str:
        """A board in one line, `.X./OXO/...`; `parse` reads it."""
        return texts_of(self.stones()[game : game + 1], self.size)[0]

    def drawing(self, game: int) -> str:
        """A board as one looks at it, with letters for columns and numbers for rows."""
        lines = ["   " + " ".join(_letter(column) for column in range(self.size))]
        for row, cells in enumerate(self.text(game).split("/")):
            lines.append(f"{' ' * row}{row + 1:2d} {' '.join(cells)}")
        return "\n".join(lines)


def texts_of(stones: npt.NDArray[np.int8], size: int) -> list[str]:
    """Boards in one line each, from stones [games, cells]."""
    marks = np.frombuffer(b"O.X", np.uint8)[stones.astype(np.int64) + 1].reshape(-1, size, size)
    ends = np.full((len(marks), size, 1), ord("/"), np.uint8)
    lines = np.concatenate([marks, ends], axis=2).reshape(len(marks), -1)[:, :-1]
    return [line.tobytes().decode("ascii") for line in lines]


def stones_of(texts: Sequence[str], size: int) -> npt.NDArray[np.int8]:
    """[games, cells]: what `texts_of` was given."""
    if not len(texts):
        return np.zeros((0, size * size), np.int8)
    lines = np.frombuffer("".join(texts).encode("ascii"), np.uint8).reshape(len(texts), -1)
    values = np.zeros(256, np.int8)
    values[ord("X")], values[ord("O")] = 1, -1
    return values[lines[:, np.arange(lines.shape[1]) % (size + 1) != size]]


def parse(texts: Sequence[str], swap: bool = False) -> Games:
    """Games from boards in one line each, all of one size. Whose turn it is follows from the stones: with the swap rule
    one O more than X says that a stone was taken over and X is to move; of equally many it is taken that none was.
    Raises InputError for what is no board, for stones that do not take turns, and for a move after the game was won."""
    rows = [text.split("/") for text in texts]
    size = len(rows[0]) if rows else SMALLEST
    games = Games(size, len(texts), swap)
    scratch = np.empty(size * size, np.int16)
    for game, (text, lines) in enumerate(zip(texts, rows, strict=True)):
        if len(lines) != size or any(len(line) != size or set(line) - set("XO.") for line in lines):
            raise InputError(f"got board {text!r}, expected {size} rows of {size} cells, X, O or '.', apart by '/'")
        cells = "".join(lines)
        first, second = cells.count("X"), cells.count("O")
        if first - second not in ((-1, 0, 1) if swap else (0, 1)):
            raise InputError(f"got board {text!r} with {first} X and {second} O; they take turns, and X begins")
        taken_over = second > first
        games.plies[game] = first + second + taken_over
        games.movers[game] = FIRST if taken_over else first - second
        for cell, mark in enumerate(cells):
            if mark != "." and place(games.boards[game], size, cell, 1 if mark == "X" else -1, scratch):
                games.winners[game] = FIRST if mark == "X" else SECOND
        if games.winners[game] == games.movers[game]:
            raise InputError(f"got board {text!r}, where a move was made after the game was won")
    return games


def cell_of(name: str, size: int) -> int:
    """The number of a cell by its name on a drawing, `b3`: column, then row. Raises InputError."""
    letter, number = name.strip().lower()[:1], name.strip()[1:]
    column, row = ord(letter or " ") - ord("a"), int(number) - 1 if number.isdecimal() else -1
    if not (0 <= column < size and 0 <= row < size):
        raise InputError(
            f"got cell {name.strip()!r}, expected a column a to {_letter(size - 1)} and a row 1 to {size}, such as b2"
        )
    return row * size + column


def name_of(move: int, size: int) -> str:
    """A move's name: its cell's on a drawing, or `swap`."""
    if move == size * size:
        return "swap"
    cell = move
    return f"{_letter(cell % size)}{cell // size + 1}"


def check_size(size: int, largest: int = LARGEST) -> None:
    """Raise InputError for a size of board that is none."""
    if not SMALLEST <= size <= largest:
        raise InputError(f"got a board of size {size}, expected {SMALLEST} to {largest}")


def _letter(column: int) -> str:
    return chr(ord("a") + column)
