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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from flywheel.errors import InputError, ModelError
from flywheel.problems.hex import NOBODY, Games
from flywheel.search import board_steps
from flywheel.search.board_steps import Rule
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
    lines: npt.NDArray[np.int16]
    """[games, moves]: the move to play and from there on, of both players, the one visited most, as far as the tree
    goes; -1 beyond."""
    evaluations: int
    """Positions shown to the network."""


@dataclass(frozen=True, slots=True)
class TreeSearch:
    """How to search. Raises ValueError for settings that cannot be."""

    simulations: int
    """A game, if not told otherwise; the root's own evaluation comes on top."""
    root: Literal["gumbel", "puct"] = "gumbel"
    considered: int = 16
    """gumbel: moves that the root draws at most."""
    gumbel_scale: float = 1.0
    """gumbel: how much of the noise there is; with 0 the likeliest moves are considered, as one plays to win."""
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
    parallel: int = 1
    """Leaves of a game that are shown to the network at once, which is quicker for few games. Each but the first is
    looked for as if those on their way were lost (virtual loss; Chaslot et al. 2008, *Parallel Monte-Carlo tree
    search*), so that the tree is another one, and a little worse by as many simulations."""
    batch: int | None = None
    """Games searched side by side, if not all. Some 256 trees fit a processor's cache and are searched faster on it
    than more; a GPU wants many."""
    threads: int = 1
    """Batches searched at once, all games being shared out evenly where `batch` is not set. The network is then called
    from as many threads at a time, each of which waits for its own answer alone."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("simulations", "considered", "parallel", "batch", "threads")}
        if bad := {name: count for name, count in counts.items() if count is not None and count < 1}:
            raise ValueError(f"got {', '.join(f'{name}={count}' for name, count in bad.items())}; expected 1 or more")
        if self.root not in {"gumbel", "puct"}:
            raise ValueError(f"got root={self.root!r}, expected gumbel or puct")
        if not 0.0 <= self.noise_share <= 1.0 or (self.noise_alpha is not None and not self.noise_alpha > 0.0):
            raise ValueError(
                f"got noise_share={self.noise_share}, noise_alpha={self.noise_alpha}; expected 0 to 1, and above 0"
            )
        if min(self.value_scale, self.visit_offset, self.exploration, self.gumbel_scale) < 0.0:
            raise ValueError(
                f"got value_scale={self.value_scale}, visit_offset={self.visit_offset}, "
                f"exploration={self.exploration}, gumbel_scale={self.gumbel_scale}; expected 0 or more"
            )

    def search(
        self,
        games: Games,
        evaluate: Evaluate,
        keys: npt.NDArray[np.uint64],
        budgets: npt.NDArray[np.int64] | None = None,
    ) -> Found:
        """Search all games; none may be over. `keys` name each game's noise, `budgets` its simulations. Raises
        ModelError where the network answers with what is no number, or not with one answer a position, and InputError
        where the trees do not fit into memory."""
        if (games.winners != NOBODY).any():
            raise ValueError("got a game that is over; nothing is left to search for")
        limits = np.full(len(games), self.simulations, np.int64) if budgets is None else np.asarray(budgets, np.int64)
        if len(keys) != len(games) or len(limits) != len(games) or (limits < 1).any():
            raise ValueError(f"expected a key and a budget of 1 or more for each of {len(games)} games")
        batch = self.batch or max(1, math.ceil(len(games) / self.threads))
        self._check_room(min(len(games), batch * self.threads), int(limits.max(initial=0)) + 1, games)
        if len(games) <= batch:
            return self._search(games, evaluate, keys, limits)
        numbers = np.split(np.arange(len(games)), range(batch, len(games), batch))

        def one(part: npt.NDArray[np.int64]) -> Found:
            return self._search(games.select(part), evaluate, keys[part], limits[part])

        if self.threads == 1:
            parts = [one(part) for part in numbers]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                parts = list(pool.map(one, numbers))
        joined = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Found)
            if field.name != "evaluations"
        }
        return Found(**joined, evaluations=sum(part.evaluations for part in parts))

    def _search(
        self, games: Games, evaluate: Evaluate, keys: npt.NDArray[np.uint64], limits: npt.NDArray[np.int64]
    ) -> Found:
        rule = Rule(self.root == "gumbel", self.value_scale, self.visit_offset, self.exploration, self.solve,
                    self.parallel > 1)  # fmt: skip
        longest, count = int(limits.max(initial=0)), len(games)
        tree = board_steps.lay_out(count, longest + 1, games.size**2, games.actions, self.parallel)
        mirrored = board_steps.mirror(games.size, games.actions)
        views = np.empty((count * self.parallel, 2 + games.swap, games.size, games.size), np.float32)
        flat = views.reshape(len(views), 2 + games.swap, games.size**2)
        board_steps.plant(tree, games.boards, games.movers, games.plies)
        waiting = board_steps.show(tree, mirrored, flat)
        logits, values = _ask(evaluate, views[:waiting], games.actions)
        board_steps.root(tree, mirrored, logits, values)
        priors, evaluations = tree.shares.astype(np.float32), waiting
        considered = np.minimum((tree.bases > board_steps.LOW).sum(axis=1), self.considered)
        if rule.gumbel:
            board_steps.shake(tree, self._noise(games, keys))
        elif self.noise_share:
            board_steps.mix(tree, self._noise(games, keys), self.noise_share)
        budgets_held, kinds = np.unique(limits, return_inverse=True)
        schedules = np.stack([_schedule(self.considered, int(held), longest) for held in budgets_held] or [_NONE])
        decay = np.exp(-(self.visit_offset + np.arange(longest + 2)) * self.value_scale)
        plan = (limits, schedules, np.stack([kinds, considered], axis=1), decay, rule, mirrored, games.size)
        while waiting := board_steps.advance(tree, *plan, logits, values, flat):
            logits, values = _ask(evaluate, views[:waiting], games.actions)
            evaluations += waiting
        moves, policies = np.empty(count, np.int64), np.zeros((count, games.actions), np.float32)
        visits = np.zeros((count, games.actions), np.int32)
        board_steps.conclude(tree, rule, moves, policies, visits)
        lines = np.full((count, games.actions), -1, np.int16)
        board_steps.follow(tree, moves, lines)
        roots = tree.nodes[:, 0]
        return Found(moves, policies, priors, roots["value"].astype(np.float32), visits, roots["proven"].copy(), lines,
                     evaluations)  # fmt: skip

    def _check_room(self, count: int, most: int, games: Games) -> None:
        """Raises InputError where so many trees do not fit into memory."""
        needed, free = board_steps.bytes_needed(count, most, games.size**2, games.actions, self.parallel), _free_bytes()
        if free is not None and needed > free:
            raise InputError(
                f"{count} games of {most - 1} simulations on a board of size {games.size} take "
                f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free; "
                "search fewer games at once, or by fewer simulations"
            )

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


def _ask(
    evaluate: Evaluate, views: npt.NDArray[np.float32], actions: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the network says of these positions. Raises ModelError where it is not one answer a position, in numbers."""
    if not len(views):
        return np.empty((0, actions), np.float32), np.empty(0, np.float32)
    logits, values = evaluate(views)
    if logits.shape != (len(views), actions) or values.shape != (len(views),):
        raise ModelError(
            f"the network answered with logits of shape {logits.shape} and values of shape {values.shape}, "
            f"expected {(len(views), actions)} and {(len(views),)}"
        )
    logits, values = np.ascontiguousarray(logits, np.float32), np.ascontiguousarray(values, np.float32)
    if not board_steps.sound(logits, values):
        raise ModelError("the network answered with logits or values that are no numbers; its weights are damaged")
    return logits, values


def _free_bytes() -> int | None:
    """Memory that can be had without swapping, as Linux says; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


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
