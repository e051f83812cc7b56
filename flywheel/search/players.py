"""Who plays Hex: by chance, perfectly, by a network's first thought, or by search.

A player sees positions and keys and answers with moves. All its randomness comes from the keys, so that a game is a
function of its opening and its keys whatever is played beside it (a network's arithmetic may still depend, in its last
bits, on how many positions it is shown together). An outside engine is a player too: `flywheel.search.gtp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flywheel.errors import InputError, ModelError
from flywheel.problems.hex import NOBODY, Games
from flywheel.problems.hex_solver import LOSES, Solver, promising
from flywheel.search.board_tree import Evaluate, TreeSearch
from flywheel.seeds import uniform

_REMEMBERED = 200_000
"""Positions of which the perfect player keeps its moves; about 60 MB on 5x5."""
_TOGETHER = 64
"""Positions whose replies to moves it looks at together; 8x8 has 4032 of them a position."""


class Player(Protocol):
    """Someone who plays; the name is told in results, and two players of a match need different ones."""

    @property
    def name(self) -> str: ...

    @property
    def flops(self) -> float:
        """Forward work of its network so far; 0 where there is none."""
        ...

    def choose(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """[games]: a legal move for each game, none of which is over. `keys` [games] name each game's noise at this
        ply. The games stay as they are."""
        ...

    def close(self) -> None:
        """Give back what it holds, such as a process. It may be asked again."""
        ...


@dataclass(frozen=True, slots=True)
class RandomPlayer:
    """Any legal move, the swap among them, each as likely."""

    name: str = "random"
    flops: float = 0.0

    def choose(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        return _drawn(games.legal(), keys)

    def close(self) -> None:
        pass


class PerfectPlayer:
    """Wins what is won, with any of the winning moves, each as likely. What is lost it defends: it makes, by lot among
    equals, a move that leaves the other player the fewest winning replies, and while many cells are empty, where that
    would take seconds, the move that the solver would try first.

    Exact, and as slow as the solver: on 5x5 a move takes some ten milliseconds, and fewer once positions like it were
    seen; on 6x6 one of the first may take minutes. There is no swap rule. Not for several threads at once.
    """

    flops: float = 0.0

    def __init__(self, size: int, name: str = "perfect", defended_cells: int = 20) -> None:
        """`defended_cells`: with more empty cells the replies are not counted. Raises InputError for a size that the
        solver does not know."""
        self.name = name
        self._defended_cells = defended_cells
        self._solver = Solver(size)
        self._known: dict[bytes, npt.NDArray[np.int8]] = {}
        """By stones and mover, a number a cell: 1 to be drawn from, -1 not, 0 not known yet."""

    def choose(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Raises InputError for the swap rule and for another size."""
        if games.swap or games.size != self._solver.size:
            rule = "with" if games.swap else "without"
            raise InputError(
                f"got games of size {games.size} {rule} the swap rule, expected size {self._solver.size} without; "
                f"make a player for that size, and games without swap"
            )
        _refuse_ended(games)
        names = [b"%d" % mover + stones.tobytes() for mover, stones in zip(games.movers, games.stones(), strict=True)]
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        fresh = list({name: game for game, name in enumerate(names) if name not in self._known}.values())
        for start in range(0, len(fresh), _TOGETHER):
            part = fresh[start : start + _TOGETHER]
            for game, known in zip(part, self._looked_at(games.select(np.array(part))), strict=True):
                self._known[names[game]] = known
        return self._drawn(games, [self._known[name] for name in names], keys)

    def _looked_at(self, games: Games) -> npt.NDArray[np.int8]:
        solved = self._solver.solve(games)
        known = np.where(games.legal(), 0, -1).astype(np.int8)
        lost = np.flatnonzero(solved.values == LOSES)
        many = (games.boards[lost] == 0).sum(axis=1) > self._defended_cells
        early, lost = lost[many], lost[~many]
        known[early] = -1
        known[early, promising(games.select(early), 1)[:, 0]] = 1
        known[lost] = np.where(_defence(self._solver, games.select(lost), solved.carriers[lost]), 1, -1)
        return known

    def _drawn(
        self, games: Games, known: list[npt.NDArray[np.int8]], keys: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        """Of moves tried in an order drawn at random, the first that wins is any of those that win; so that few are
        looked at. What is found out is written to `known`."""
        moves = np.zeros(len(games), np.int64)
        order = uniform(keys[:, None], np.arange(games.size**2)[None, :])
        left = np.arange(len(games))
        while len(left):
            state = np.array([known[game] for game in left])
            moves[left] = np.where(state >= 0, order[left], -1.0).argmax(axis=1)
            left = left[state[np.arange(len(left)), moves[left]] == 0]
            after = games.select(left)
            after.play(moves[left])
            solved = self._solver.solve(after)
            for game, value, carrier in zip(left.tolist(), solved.values.tolist(), solved.carriers, strict=True):
                if value == LOSES:
                    known[game][moves[game]] = 1
                else:
                    # What does not touch the carrier of the refutation is refuted by it too.
                    known[game][~carrier] = -1
        return moves

    def close(self) -> None:
        self._known.clear()


def _defence(solver: Solver, games: Games, carriers: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[games, cells]: of games that the mover loses, the moves that leave the other player the fewest winning replies.
    `carriers` are those of the other player's win.

    Few of the replies are looked at: a move outside the carrier leaves all of them winning; a reply outside the carrier
    of the win over another reply loses too; one that wins does so as well after any move outside its carrier; and a
    move that leaves more than the fewest is done with.
    """
    empty, cells = games.legal(), np.arange(games.size**2)
    pairs = empty[:, :, None] & empty[:, None, :] & (cells[:, None] != cells)
    inside = carriers[:, :, None]
    wins, unknown = pairs & ~inside, pairs & inside
    often = np.zeros(empty.shape)
    """How often a reply won, less how often it did not: it will be alike after other moves."""
    while True:
        counts, left = wins.sum(axis=2), unknown.sum(axis=2)
        fewest = np.where(empty & (left == 0), counts, len(cells)).min(axis=1, initial=len(cells))[:, None]
        unknown &= (counts <= fewest)[:, :, None]
        rows = np.flatnonzero(unknown.any(axis=(1, 2)))
        if not len(rows):
            best: npt.NDArray[np.bool_] = empty & (counts == fewest)
            return best
        # The move that may soonest be known to leave few, and the reply that is likeliest to win.
        promise = -(counts[rows] * len(cells) + left[rows])
        moves = np.where(unknown[rows].any(axis=2), promise, promise.min() - 1).argmax(axis=1)
        replies = np.where(unknown[rows, moves], often[rows], -np.inf).argmax(axis=1)
        after = games.select(rows)
        after.play(moves)
        after.play(replies)
        solved = solver.solve(after)
        won = solved.values == LOSES
        often[rows, replies] += np.where(won, 1, -1)
        unknown[rows, moves, replies] = False
        unknown[rows[~won], moves[~won]] &= solved.carriers[~won]
        which, other_moves = np.nonzero(~solved.carriers[won])
        wins[rows[won][which], other_moves, replies[won][which]] = True
        wins &= pairs
        unknown &= ~wins


class NetworkPlayer:
    """The legal move that a network likes most, without search and without chance."""

    def __init__(self, name: str, evaluate: Evaluate, flops_a_position: float) -> None:
        """`flops_a_position`: of one forward pass."""
        self.name = name
        self.flops = 0.0
        self._evaluate = evaluate
        self._flops_a_position = flops_a_position

    def choose(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Raises ModelError where the network answers with what is no number, or not with one row a position."""
        _refuse_ended(games)
        logits = self._evaluate(games.views().astype(np.float32))[0]
        self.flops += self._flops_a_position * len(games)
        if logits.shape != (len(games), games.actions):
            raise ModelError(
                f"the network answered with logits of shape {logits.shape}, expected {(len(games), games.actions)}"
            )
        if np.isnan(logits).any() or (logits == np.inf).any():
            raise ModelError("the network answered with logits that are no numbers; its weights are damaged")
        cells = games.cells_of_views()
        legal = np.take_along_axis(games.legal(), cells, axis=1)
        # A network may rule out every move that is left; one must be made all the same.
        liked = np.where(legal, np.maximum(logits, np.finfo(np.float32).min), -np.inf).argmax(axis=1)
        chosen: npt.NDArray[np.int64] = cells[np.arange(len(games)), liked]
        return chosen

    def close(self) -> None:
        pass


class SearchPlayer:
    """The move that a tree search finds with a network."""

    def __init__(self, name: str, evaluate: Evaluate, search: TreeSearch, flops_a_position: float) -> None:
        """`flops_a_position`: of one forward pass."""
        self.name = name
        self.flops = 0.0
        self._evaluate = evaluate
        self._search = search
        self._flops_a_position = flops_a_position

    def choose(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Raises as `TreeSearch.search`."""
        found = self._search.search(games, self._evaluate, keys)
        self.flops += self._flops_a_position * found.evaluations
        return found.moves

    def close(self) -> None:
        pass


def _drawn(allowed: npt.NDArray[np.bool_], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """[games]: one of the allowed moves of each game, each as likely."""
    counts = allowed.sum(axis=1)
    if (counts == 0).any():
        raise ValueError("got a game that is over; no move is left")
    ranks = (uniform(keys, 0) * counts).astype(np.int64)
    moves: npt.NDArray[np.int64] = (allowed.cumsum(axis=1) > ranks[:, None]).argmax(axis=1)
    return moves


def _refuse_ended(games: Games) -> None:
    if (games.winners != NOBODY).any():
        raise ValueError("got a game that is over; no move is left")
