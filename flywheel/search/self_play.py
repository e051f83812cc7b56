"""Games of Hex that a network plays against itself, each move found by search; all games of a batch move together.

What a search of the root finds is what is to be learned: the improved policy and, by the end of the game, who won. A
game's draws are functions of its key and the ply, so that a game is the same whatever is played beside it, but for the
last bits of a network that is asked about other batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel.problems.hex import NOBODY, Games
from flywheel.search.board_tree import Evaluate, TreeSearch
from flywheel.seeds import uniform

_SEARCH, _CAP, _DRAW = 1, 2, 3
"""What a ply's keys are for: each has its own, as a search draws many numbers from the one it is given."""


@dataclass(frozen=True, slots=True)
class Casting:
    """How moves are made from what the search found."""

    temperature: float
    sampled_plies: int
    """In the first so many plies the move is drawn from policy^(1 / temperature); later it is the search's own."""
    full_share: float = 1.0
    fast_simulations: int = 1
    """Playout cap randomisation (Wu 2019, *Accelerating self-play learning in Go*, section 3.1)."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Every position that was searched, game by game and in each game ply by ply: arrays [positions, ...]."""

    games: npt.NDArray[np.int64]
    """Which game."""
    boards: npt.NDArray[np.int8]
    """[positions, cells]: 1 the first player's stones, -1 the second's, 0 empty."""
    movers: npt.NDArray[np.int8]
    plies: npt.NDArray[np.int16]
    moves: npt.NDArray[np.int64]
    """What was played there."""
    policies: npt.NDArray[np.float32]
    """[positions, actions]: what the search found, in the game's own order of moves."""
    values: npt.NDArray[np.float32]
    """What the search found, the mover's."""
    surprises: npt.NDArray[np.float32]
    """Kullback-Leibler divergence of the search's policy from the network's, nats."""
    simulations: npt.NDArray[np.int64]
    full: npt.NDArray[np.bool_]
    """Searched with all simulations, and so to be learned from."""


@dataclass(frozen=True, slots=True)
class Played:
    """Games that are over, and what was searched in them."""

    winners: npt.NDArray[np.int8]
    """[games]: FIRST or SECOND."""
    positions: Positions
    evaluations: int
    """Positions shown to the network."""


def play(
    openings: Games,
    evaluate: Evaluate,
    search: TreeSearch,
    casting: Casting,
    keys: npt.NDArray[np.uint64],
    should_stop: Callable[[], None] = lambda: None,
) -> Played:
    """Play every game from its opening to its end. `keys` name each game's draws."""
    games = openings.select(np.arange(len(openings)))
    alive = np.flatnonzero(games.winners == NOBODY)
    plies: list[Positions] = []
    evaluations = 0
    while len(alive):
        should_stop()
        at = games.select(alive)
        full = uniform(_keys_at(keys[alive], at.plies, _CAP), 0) < casting.full_share
        budgets = np.where(full, search.simulations, min(casting.fast_simulations, search.simulations)).astype(np.int64)
        found = search.search(at, evaluate, _keys_at(keys[alive], at.plies, _SEARCH), budgets)
        evaluations += found.evaluations
        drawn = _drawn(found.policies, casting.temperature, uniform(_keys_at(keys[alive], at.plies, _DRAW), 0))
        moves = np.where(at.plies < casting.sampled_plies, drawn, found.moves)
        plies.append(
            Positions(
                alive,
                at.stones(),
                at.movers,
                at.plies,
                moves,
                found.policies,
                found.values,
                _divergence(found.policies, found.priors),
                budgets,
                full,
            )
        )
        everywhere = np.zeros(len(games), np.int64)
        everywhere[alive] = moves
        games.play(everywhere)
        alive = np.flatnonzero(games.winners == NOBODY)
    return Played(games.winners, _by_game(plies, games), evaluations)


def _keys_at(keys: npt.NDArray[np.uint64], plies: npt.NDArray[np.int16], what: int) -> npt.NDArray[np.uint64]:
    """A key for each game at its ply, for one use."""
    drawn = uniform(keys, 4 * plies.astype(np.int64) + what)
    return (drawn * 2.0**53).astype(np.uint64) ^ keys


def _drawn(
    policies: npt.NDArray[np.float32], temperature: float, chance: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """A move of each policy to the power 1 / temperature."""
    weights = (policies / policies.max(axis=1, keepdims=True)).astype(np.float64) ** (1.0 / temperature)
    upto = weights.cumsum(axis=1)
    moves = (upto <= chance[:, None] * upto[:, -1:]).sum(axis=1)
    # Past the last move there is none: rounding must not lead there.
    last = policies.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0.0, axis=1)
    found: npt.NDArray[np.int64] = np.minimum(moves, last).astype(np.int64)
    return found


def _divergence(policies: npt.NDArray[np.float32], priors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policies > 0.0, policies * np.log(policies / np.maximum(priors, 1e-30)), 0.0)
    found: npt.NDArray[np.float32] = np.maximum(terms.sum(axis=1), 0.0).astype(np.float32)
    return found


def _by_game(plies: list[Positions], games: Games) -> Positions:
    if not plies:
        none = np.zeros(0, np.int64)
        return Positions(
            none, np.zeros((0, games.size**2), np.int8), np.zeros(0, np.int8), np.zeros(0, np.int16), none,
            np.zeros((0, games.actions), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32), none,
            np.zeros(0, np.bool_),
        )  # fmt: skip
    columns = [np.concatenate([getattr(ply, name) for ply in plies]) for name in Positions.__dataclass_fields__]
    # Within a game plies came in their order.
    order = np.argsort(columns[0], kind="stable")
    return Positions(*(column[order] for column in columns))
