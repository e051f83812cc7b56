"""Who wins a position of Hex, exactly: depth-first search with a table of known positions and must-play regions.

A player who wins does so inside some empty cells, the *carrier* of the win: whatever else is filled with the other
player's stones, the win stands. So a move that does not touch the carrier of the answer that refuted another move is
refuted by that answer too, and need not be looked at (Hayward et al. 2003, *Solving 7x7 Hex: virtual connections and
game-state reduction*):

    mover looks at a:  refuted, carrier {b, c, d}     the mover must play b, c or d
    mover looks at c:  refuted, carrier {a, b}        the mover must play b
    mover looks at b:  wins, carrier C                the mover wins with carrier C + {b}; if not: the other player wins
                                                      with the union of all these carriers

A cell with which a player would join the edges at once is played, or must be by the other; two of them decide. A
position and its half turn are one. Boards are sets of cells in 64 bits, so size 8 is the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import int64, njit, uint64

from flywheel.problems.hex import FIRST, NOBODY, Games, check_size

LARGEST = 8
WINS, LOSES, UNKNOWN = 1, -1, 0
_U = np.uint64
_Table = npt.NDArray[np.uint64]
"""[slots, 4]: the first player's stones, the second's, the winner's carrier, and a mark: 0 an empty slot, else
1 + whether the mover wins + 2 * whose turn it is."""


@dataclass(frozen=True, slots=True)
class Solved:
    """Positions solved."""

    values: npt.NDArray[np.int8]
    """[games]: WINS, LOSES (for the player whose turn it is), or UNKNOWN where the limit came first. A game that is
    over was won by the other player."""
    carriers: npt.NDArray[np.bool_]
    """[games, cells]: empty cells inside which the winner wins, whoever has the others; of no meaning where UNKNOWN."""
    nodes: int
    """Positions looked at."""


class Solver:
    """Positions of one size. What was found out serves later calls."""

    def __init__(self, size: int, megabytes: int = 128) -> None:
        """`megabytes` bounds the table; the number of slots is a power of two. Raises InputError for another size."""
        check_size(size, LARGEST)
        self.size = size
        slots = 1 << max(10, (megabytes * 2**20 // 32).bit_length() - 1)
        self._table: _Table = np.zeros((slots, 4), np.uint64)
        self._shape = _geometry(size)
        self._rank = _ranks(size)

    def solve(self, games: Games, limit: int | None = None) -> Solved:
        """The value of every game. `limit` bounds the positions looked at for each game. The swap is no part of it: a
        game in which it may still be used is solved as if it were not."""
        if games.size != self.size:
            raise ValueError(f"got games of size {games.size}, expected {self.size}")
        stones = games.stones()
        values, carriers, nodes = _solve_all(
            _packed(stones > 0), _packed(stones < 0), games.movers, games.winners,
            self.size, self._shape, self._rank, self._table, -1 if limit is None else limit,
        )  # fmt: skip
        cells = np.arange(self.size**2, dtype=np.uint64)
        return Solved(values, (carriers[:, None] >> cells & _U(1)).astype(bool), int(nodes))

    def moves(self, games: Games, limit: int | None = None) -> npt.NDArray[np.int8]:
        """[games, cells]: what the mover makes of each move: WINS, LOSES or UNKNOWN; LOSES too where it is illegal."""
        cells = self.size**2
        found = np.full((len(games), cells), LOSES, np.int8)
        rows, moves = np.nonzero(games.legal()[:, :cells])
        after = games.select(rows)
        after.play(moves)
        found[rows, moves] = -self.solve(after, limit).values
        return found


def promising(games: Games, count: int) -> npt.NDArray[np.int64]:
    """[games, count]: the moves that a solver would try first, of games that last; -1 where there are fewer."""
    stones = games.stones()
    ranked: npt.NDArray[np.int64] = _first_tried(
        _packed(stones > 0), _packed(stones < 0), games.movers, games.size, _geometry(games.size), _ranks(games.size),
        count,
    )  # fmt: skip
    return ranked


def _packed(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """[games, cells] as a set of cells in 64 bits a game."""
    powers = _U(1) << np.arange(cells.shape[1], dtype=np.uint64)
    packed: npt.NDArray[np.uint64] = np.where(cells, powers, _U(0)).sum(axis=1, dtype=np.uint64)
    return packed


def _geometry(size: int) -> npt.NDArray[np.uint64]:
    """All cells; those with a cell to their right, to their left; the four edges: top, bottom, left, right."""
    cells = np.arange(size**2).reshape(size, size)

    def packed(chosen: npt.NDArray[np.int64]) -> int:
        return sum(1 << int(cell) for cell in chosen.ravel())

    edges = (cells[0], cells[-1], cells[:, 0], cells[:, -1])
    return np.array([packed(part) for part in (cells, cells[:, :-1], cells[:, 1:], *edges)], np.uint64)


def _ranks(size: int) -> npt.NDArray[np.int64]:
    """Of cells alike in all else the most central is tried first."""
    away = np.abs(2 * np.arange(size) - size + 1)
    return (2 * size - (away[:, None] + away[None, :])).ravel().astype(np.int64)


@njit(uint64(uint64, int64, uint64[:]), cache=True, nogil=True)
def _grown(cells, size, shape):
    """These cells and their neighbours."""
    row, one = _U(size), _U(1)
    has_right, has_left = cells & shape[1], cells & shape[2]
    around = has_right << one | has_left >> one | cells << row | cells >> row
    return (cells | around | has_right >> (row - one) | has_left << (row - one)) & shape[0]


@njit(uint64(uint64, uint64, int64, uint64[:]), cache=True, nogil=True)
def _group(seeds, stones, size, shape):
    """The stones joined to those among the seeds."""
    reached = seeds & stones
    while True:
        further = _grown(reached, size, shape) & stones
        if further == reached:
            return reached
        reached = further


@njit(uint64(uint64, uint64, uint64, uint64, int64, uint64[:]), cache=True, nogil=True)
def _joining(stones, empty, near, far, size, shape):
    """Empty cells that would join a player's edges at once."""
    here = near | _grown(_group(near, stones, size, shape), size, shape)
    there = far | _grown(_group(far, stones, size, shape), size, shape)
    return here & there & empty


@njit(int64(uint64, uint64, uint64, uint64, int64, uint64[:]), cache=True, nogil=True)
def _distance(stones, empty, near, far, size, shape):
    """Fewest cells that a player would have to fill to join the edges; more than any board's where that cannot be."""
    reached = _group(near, stones, size, shape)
    edge = (near | _grown(reached, size, shape)) & empty
    for filled in range(1, size * size + 1):
        if not edge:
            break
        reached |= edge | _group(_grown(edge, size, shape), stones, size, shape)
        if reached & far:
            return filled
        edge = _grown(reached, size, shape) & empty & ~reached
    return size * size + 1


@njit(int64(uint64), cache=True, nogil=True)
def _count(cells):
    """How many cells (Warren 2012, *Hacker's Delight*, fig. 5-2)."""
    cells = cells - (cells >> _U(1) & _U(0x5555555555555555))
    cells = (cells & _U(0x3333333333333333)) + (cells >> _U(2) & _U(0x3333333333333333))
    cells = cells + (cells >> _U(4)) & _U(0x0F0F0F0F0F0F0F0F)
    return int64(cells * _U(0x0101010101010101) >> _U(56))


@njit(uint64(uint64, int64), cache=True, nogil=True)
def _turned(cells, size):
    """After a half turn of the board: the bits in reverse (Warren, fig. 7-1)."""
    for shift, mask in (
        (_U(1), _U(0x5555555555555555)),
        (_U(2), _U(0x3333333333333333)),
        (_U(4), _U(0x0F0F0F0F0F0F0F0F)),
        (_U(8), _U(0x00FF00FF00FF00FF)),
        (_U(16), _U(0x0000FFFF0000FFFF)),
        (_U(32), _U(0x00000000FFFFFFFF)),
    ):
        cells = cells >> shift & mask | (cells & mask) << shift
    return cells >> _U(64 - size * size)


@njit(uint64(uint64, uint64), cache=True, nogil=True)
def _hash(first, second):
    """SplitMix64's finaliser over a sum of products."""
    mixed = first * _U(0x9E3779B97F4A7C15) ^ (second + _U(1)) * _U(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> _U(30)) * _U(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> _U(27)) * _U(0x94D049BB133111EB)
    return mixed ^ mixed >> _U(31)


@njit(cache=True, nogil=True)
def _ordered(first, second, mover, must, size, shape, rank, moves):
    """Write the moves to `moves`, the most promising first: those after which the mover lacks few cells and the other
    player many."""
    empty = shape[0] & ~(first | second)
    mine, theirs = (first, second) if mover == FIRST else (second, first)
    scores, count, left = np.empty(64, np.int64), 0, must
    while left:
        move = left & (~left + _U(1))
        left &= ~move
        gain = _distance(theirs, empty & ~move, shape[5 - 2 * mover], shape[6 - 2 * mover], size, shape)
        gain -= _distance(mine | move, empty & ~move, shape[3 + 2 * mover], shape[4 + 2 * mover], size, shape)
        score = 64 * gain + rank[_count(move - _U(1))]
        place = count
        while place > 0 and scores[place - 1] < score:
            scores[place], moves[place] = scores[place - 1], moves[place - 1]
            place -= 1
        scores[place], moves[place] = score, move
        count += 1


@njit(cache=True, nogil=True)
def _slot(first, second, size, table):
    """(slot of a position in the table, its stones as they stand there, whether that is after a half turn)."""
    turned_first, turned_second = _turned(first, size), _turned(second, size)
    turn = turned_first < first or (turned_first == first and turned_second < second)
    if turn:
        first, second = turned_first, turned_second
    return int64(_hash(first, second) & _U(len(table) - 1)), first, second, turn


@njit(cache=True, nogil=True)
def _solve(root_first, root_second, root_mover, size, shape, rank, table, limit):
    """(value for the mover, the winner's carrier, positions looked at) of a position that nobody has won. Below 0 is no
    limit."""
    # A frame a ply. (A recursive function could not be cached by numba.)
    deepest = size * size + 1
    firsts, seconds, must = np.empty(deepest, np.uint64), np.empty(deepest, np.uint64), np.empty(deepest, np.uint64)
    carriers, moves = np.empty(deepest, np.uint64), np.empty((deepest, 64), np.uint64)
    tried = np.empty(deepest, np.int64)
    firsts[0], seconds[0] = root_first, root_second
    depth, nodes = 0, 0
    while True:
        # A position is entered.
        first, second, mover = firsts[depth], seconds[depth], (root_mover + depth) % 2
        if limit >= 0 and nodes >= limit:
            return UNKNOWN, _U(0), nodes
        nodes += 1
        empty = shape[0] & ~(first | second)
        mine, theirs = (first, second) if mover == FIRST else (second, first)
        value, carrier = UNKNOWN, _U(0)
        now = _joining(mine, empty, shape[3 + 2 * mover], shape[4 + 2 * mover], size, shape)
        threats = _joining(theirs, empty, shape[5 - 2 * mover], shape[6 - 2 * mover], size, shape)
        if now:
            value, carrier = WINS, now & (~now + _U(1))
        elif threats & (threats - _U(1)):
            one = threats & (~threats + _U(1))
            rest = threats & ~one
            value, carrier = LOSES, one | rest & (~rest + _U(1))
        else:
            slot, key_first, key_second, turn = _slot(first, second, size, table)
            mark = table[slot, 3]
            same = table[slot, 0] == key_first and table[slot, 1] == key_second
            if same and mark + _U(1) >> _U(1) == _U(mover + 1):
                value = LOSES if mark & _U(1) else WINS
                carrier = _turned(table[slot, 2], size) if turn else table[slot, 2]
        if value == UNKNOWN:
            must[depth], carriers[depth], tried[depth] = threats if threats else empty, threats, 0
            _ordered(first, second, mover, must[depth], size, shape, rank, moves[depth])
        else:
            # What is known goes up, as far as it decides anything.
            while True:
                depth -= 1
                if depth < 0:
                    return value, carrier, nodes
                move = moves[depth, tried[depth]]
                if value == LOSES:
                    value, carrier = WINS, carrier | move
                else:
                    must[depth] &= carrier
                    carriers[depth] |= carrier
                    if must[depth]:
                        break
                    value, carrier = LOSES, carriers[depth]
                mover = (root_mover + depth) % 2
                slot, key_first, key_second, turn = _slot(firsts[depth], seconds[depth], size, table)
                table[slot, 0], table[slot, 1] = key_first, key_second
                table[slot, 2] = _turned(carrier, size) if turn else carrier
                table[slot, 3] = _U(1 + (value == WINS) + 2 * mover)
            mover = (root_mover + depth) % 2
        while not moves[depth, tried[depth]] & must[depth]:
            tried[depth] += 1
        move = moves[depth, tried[depth]]
        firsts[depth + 1] = firsts[depth] | move if mover == FIRST else firsts[depth]
        seconds[depth + 1] = seconds[depth] if mover == FIRST else seconds[depth] | move
        depth += 1


@njit(cache=True, nogil=True)
def _solve_all(firsts, seconds, movers, winners, size, shape, rank, table, limit):
    values, carriers = np.empty(len(firsts), np.int8), np.zeros(len(firsts), np.uint64)
    nodes = 0
    for game in range(len(firsts)):
        if winners[game] != NOBODY:
            values[game] = LOSES
            continue
        values[game], carriers[game], looked_at = _solve(
            firsts[game], seconds[game], int64(movers[game]), size, shape, rank, table, limit
        )
        nodes += looked_at
    return values, carriers, nodes


@njit(cache=True, nogil=True)
def _first_tried(firsts, seconds, movers, size, shape, rank, count):
    found, moves = np.full((len(firsts), count), -1, np.int64), np.zeros(64, np.uint64)
    for game in range(len(firsts)):
        empty = shape[0] & ~(firsts[game] | seconds[game])
        _ordered(firsts[game], seconds[game], int64(movers[game]), empty, size, shape, rank, moves)
        for place in range(min(count, _count(empty))):
            found[game, place] = _count(moves[place] - _U(1))
    return found
