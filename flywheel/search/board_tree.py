"""Tree search over many games of Hex at once: one compiled program, one call of the network a simulation.

A simulation walks from every game's root to a new position, all positions are shown to the network together, and what
it says goes back up. Values are the mover's, so that a step up changes the sign. What is known exactly is not averaged:
a position is *proven* won when a move leads to a proven loss of the other player's, and lost when every move leads to a
proven win; a proven position has that value, and a move that is proven to lose is taken only where all do.

    gumbel   the root draws some moves without replacement, and halves them by turns by what the search finds
             (sequential halving); below it visits follow the improved policy (Danihelka et al. 2022, *Policy
             improvement by planning with Gumbel*, algorithm 1, eqs. 8, 11, 14, 33). Learns from few simulations.
    puct     Q + c P sqrt(N) / (1 + n) everywhere, Dirichlet noise at the root (Silver et al. 2018, *AlphaZero*)

Games share nothing but the network's batch: a game's search is a function of its position, key and budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from flywheel.errors import ModelError
from flywheel.problems.hex import NOBODY, Games
from flywheel.search import board_steps
from flywheel.search.board_steps import Nodes, Rule
from flywheel.seeds import generator, uniform

Evaluate = Callable[[npt.NDArray[np.float32]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""From views [positions, planes, size, size] (see `Games.views`) to logits [positions, actions], in the order of the
view's cells, and values [positions] in -1..1: what the mover may expect."""
_NONE = np.zeros((1, 0), np.int32)
"""The schedule where there is no game."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, a row a game. Moves are the game's own, not the view's."""

    moves: npt.NDArray[np.int64]
    """The move to play."""
    policies: npt.NDArray[np.float32]
    """[games, actions]: what to learn: the improved policy, or for puct the shares of the visits."""
    priors: npt.NDArray[np.float32]
    """[games, actions]: what the network alone would play, without noise."""
    values: npt.NDArray[np.float32]
    """[games]: the root's mean value, or 1 or -1 where it is proven; the mover's."""
    visits: npt.NDArray[np.int32]
    """[games, actions]: of the root's moves."""
    proven: npt.NDArray[np.int8]
    """[games]: 1 the mover wins, -1 loses, 0 not known."""
    evaluations: int
    """Positions shown to the network."""


@dataclass(frozen=True, slots=True)
class TreeSearch:
    """How to search. Raises ValueError for settings that cannot be."""

    simulations: int
    """A game, if not told otherwise; the root's own evaluation comes on top."""
    root: Literal["gumbel", "puct"] = "gumbel"
    considered: int = 16
    gumbel_scale: float = 1.0
    """gumbel: how much of the noise there is; with 0 the likeliest moves are considered, as one plays to win."""
    """gumbel: moves that the root draws at most."""
    value_scale: float = 0.1
    visit_offset: float = 50.0
    """gumbel: values weigh (offset + most visits) * scale, eq. 8 (c_scale, c_visit)."""
    exploration: float = 1.25
    """puct: c, held constant (AlphaZero's grows with the logarithm of the visits)."""
    noise_share: float = 0.25
    noise_alpha: float | None = None
    """puct: the root's priors are mixed with a draw from Dirichlet(alpha), 10 / actions by default; share 0 is none."""
    solve: bool = True
    """Prove what can be proven; without it a won position is one of value 1 that is visited like any other."""

    def __post_init__(self) -> None:
        if self.simulations < 1 or self.considered < 1:
            raise ValueError(f"got simulations={self.simulations}, considered={self.considered}; expected 1 or more")
        if self.root not in {"gumbel", "puct"}:
            raise ValueError(f"got root={self.root!r}, expected gumbel or puct")
        if not 0.0 <= self.noise_share <= 1.0 or (self.noise_alpha is not None and not self.noise_alpha > 0.0):
            raise ValueError(
                f"got noise_share={self.noise_share}, noise_alpha={self.noise_alpha}; expected 0 to 1, and above 0"
            )
        if min(self.value_scale, self.visit_offset, self.exploration) < 0.0:
            raise ValueError(
                f"got value_scale={self.value_scale}, visit_offset={self.visit_offset}, "
                f"exploration={self.exploration}; expected 0 or more"
            )

    def search(
        self,
        games: Games,
        evaluate: Evaluate,
        keys: npt.NDArray[np.uint64],
        budgets: npt.NDArray[np.int64] | None = None,
    ) -> Found:
        """Search all games; none may be over. `keys` name each game's noise, `budgets` its simulations. Raises
        ModelError where the network answers with what is no number, or not with one answer a position."""
        if (games.winners != NOBODY).any():
            raise ValueError("got a game that is over; nothing is left to search for")
        limits = np.full(len(games), self.simulations, np.int64) if budgets is None else np.asarray(budgets, np.int64)
        if len(keys) != len(games) or len(limits) != len(games) or (limits < 1).any():
            raise ValueError(f"expected a key and a budget of 1 or more for each of {len(games)} games")
        rule = Rule(self.root == "gumbel", self.considered, self.value_scale, self.visit_offset, self.exploration,
                    self.solve)  # fmt: skip
        longest = int(limits.max(initial=0))
        tree = board_steps.nodes(len(games), longest + 1, games.size**2, games.actions)
        tree.boards[:, 0], tree.movers[:, 0], tree.plies[:, 0] = games.boards, games.movers, games.plies
        views = np.zeros((len(games), 2 + games.swap, games.size, games.size), np.float32)
        everyone, roots = np.arange(len(games)), np.zeros(len(games), np.int64)
        board_steps.show(tree, everyone, roots, games.size, views)
        evaluations = _learn(tree, everyone, roots, games.size, views, evaluate)
        board_steps.ascend(tree, everyone, roots, rule)
        priors = (tree.priors[:, 0] / tree.priors[:, 0].sum(axis=1, keepdims=True)).astype(np.float32)
        noise = self._noise(games, keys)
        if not rule.gumbel and self.noise_share:
            board_steps.mix(tree, noise, self.noise_share)
        budgets_held, which = np.unique(limits, return_inverse=True)
        schedules = np.stack([_schedule(self.considered, int(held), longest) for held in budgets_held] or [_NONE])
        for simulation in range(longest):
            rows = np.flatnonzero((limits > simulation) & (tree.proven[:, 0] == 0))
            if not len(rows):
                break
            leaves = np.empty(len(rows), np.int64)
            board_steps.descend(
                tree, rows, schedules[which[rows], :, simulation], noise, rule, games.size, views, leaves
            )
            fresh = (tree.visits[rows, leaves] == 0) & ~tree.over[rows, leaves]
            evaluations += _learn(tree, rows[fresh], leaves[fresh], games.size, views, evaluate)
            board_steps.ascend(tree, rows, leaves, rule)
        moves, policies = np.empty(len(games), np.int64), np.zeros((len(games), games.actions), np.float32)
        visits = np.zeros((len(games), games.actions), np.int32)
        board_steps.conclude(tree, noise, rule, moves, policies, visits)
        proven = tree.proven[:, 0].copy()
        values = np.where(proven != 0, proven, tree.values[:, 0]).astype(np.float32)
        return Found(moves, policies, priors, values, visits, proven, evaluations)

    def _noise(self, games: Games, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        """[games, actions]: Gumbel(0, 1), or a draw from the Dirichlet distribution over the legal moves."""
        if self.root == "gumbel":
            drawn = uniform(keys[:, None], np.arange(games.actions)[None, :])
            noise: npt.NDArray[np.float64] = -np.log(-np.log(np.maximum(drawn, 2.0**-53)))
            return self.gumbel_scale * noise
        alpha = self.noise_alpha or 10.0 / games.actions
        found = np.zeros((len(games), games.actions))
        if self.noise_share:
            for game, (key, legal) in enumerate(zip(keys.tolist(), games.legal(), strict=True)):
                found[game, legal] = generator(key, "dirichlet").dirichlet(np.full(int(legal.sum()), alpha))
        return found


def _learn(
    tree: Nodes,
    rows: npt.NDArray[np.int64],
    leaves: npt.NDArray[np.int64],
    size: int,
    views: npt.NDArray[np.float32],
    evaluate: Evaluate,
) -> int:
    """Show these leaves to the network and keep what it says. Returns how many they are."""
    if len(rows):
        logits, values = evaluate(views[rows])
        actions = tree.logits.shape[2]
        if logits.shape != (len(rows), actions) or values.shape != (len(rows),):
            raise ModelError(
                f"the network answered with logits of shape {logits.shape} and values of shape {values.shape}, "
                f"expected {(len(rows), actions)} and {(len(rows),)}"
            )
        if np.isnan(logits).any() or (logits == np.inf).any() or not np.isfinite(values).all():
            raise ModelError("the network answered with logits or values that are no numbers; its weights are damaged")
        board_steps.keep(tree, rows, leaves, size, logits, values)
    return len(rows)


@lru_cache(maxsize=64)
def _schedule(considered: int, simulations: int, room: int) -> npt.NDArray[np.int32]:
    """[moves considered + 1, room]: how often the moves in question have been visited when a simulation begins, for
    sequential halving of so many moves over so many simulations (algorithm 1, as mctx lays it out)."""
    table = np.zeros((considered + 1, room), np.int32)
    for moves in range(considered + 1):
        if moves <= 1:
            table[moves, :simulations] = np.arange(simulations)
            continue
        rounds = math.ceil(math.log2(moves))
        sequence: list[int] = []
        visits, left = [0] * moves, moves
        while len(sequence) < simulations:
            for _ in range(max(1, simulations // (rounds * left))):
                sequence += visits[:left]
                for place in range(left):
                    visits[place] += 1
            left = max(2, left // 2)
        table[moves, :simulations] = sequence[:simulations]
    return table
