"""Matches of Hex: every opening is played from both sides, so that no player has the better colour more often.

A game is a function of the two players, the opening, and keys drawn from (seed, opening's number, side, ply): how many
games are played side by side changes nothing. Matches of an outside engine are played one game at a time. An engine
that is at fault (see `flywheel.search.gtp`) loses that game, and is started anew for the next; one that is at fault in
three games in a row ends the match, as its results would say nothing of its play.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel.errors import EngineError, InputError
from flywheel.problems.hex import NOBODY, Games
from flywheel.search.gtp import Engine, EngineResigned
from flywheel.search.players import Player
from flywheel.seeds import numbered_streams

FORFEITS_IN_A_ROW = 3
"""Games an engine may lose by a fault, one after the other, before the match ends."""
RESIGNED = "resigned"


@dataclass(frozen=True, slots=True)
class Game:
    """A game that was played to its end."""

    opening: int
    """Its number among the openings."""
    first: str
    second: str
    """Who joined top and bottom, and who left and right."""
    winner: str
    plies: int
    """Moves in all, the opening's among them."""
    moves: tuple[int, ...]
    """Those after the opening."""
    forfeit: str | None = None
    """How the loser lost, if not on the board: RESIGNED, or what its engine did."""

    @property
    def loser(self) -> str:
        return self.second if self.winner == self.first else self.first


def play(one: Player, other: Player, openings: Games, seed: int, batch: int = 512) -> list[Game]:
    """Two games an opening, first the one in which `one` is the first player; `batch` bounds how many are played side
    by side, for memory. Raises InputError for players of one name, for openings that are over, and for what a player
    does not play; EngineError after three forfeits in a row."""
    return list(play_each(one, other, openings, seed, batch))


def play_each(one: Player, other: Player, openings: Games, seed: int, batch: int = 512) -> Iterator[Game]:
    """As `play`, each game when it is known, so that a match that ends early leaves what it has."""
    if one.name == other.name:
        raise InputError(f"got two players named {one.name!r}; give them different names")
    if ended := np.flatnonzero(openings.winners != NOBODY).tolist():
        raise InputError(f"got opening {ended[0]}, which is over:\n{openings.drawing(ended[0])}\nleave it out")
    if batch < 1:
        raise InputError(f"got a batch of {batch} games, expected 1 or more")
    if isinstance(one, Engine) or isinstance(other, Engine):
        batch = 1  # It gains nothing by more, and a fault is to be one game's.
    return _played((one, other), openings, seed, batch)


def tally(games: Sequence[Game]) -> dict[tuple[str, str], int]:
    """By (winner, loser) how often that happened, for `flywheel.evaluation.ratings.rate`."""
    return dict(Counter((game.winner, game.loser) for game in games))


def _played(players: tuple[Player, Player], openings: Games, seed: int, batch: int) -> Iterator[Game]:
    in_a_row = {player.name: 0 for player in players}
    for start in range(0, 2 * len(openings), batch):
        numbers = np.arange(start, min(start + batch, 2 * len(openings)))
        for game in _together(players, openings, numbers, seed):
            yield game
            at_fault = game.loser if game.forfeit not in (None, RESIGNED) else None
            for name in in_a_row:
                in_a_row[name] = in_a_row[name] + 1 if name == at_fault else 0
            if at_fault and in_a_row[at_fault] >= FORFEITS_IN_A_ROW:
                raise EngineError(
                    f"{at_fault} lost {FORFEITS_IN_A_ROW} games in a row by its own fault, expected an engine that "
                    f"plays; mend it and play again. The last: {game.forfeit}"
                )


def _together(
    players: tuple[Player, Player], openings: Games, numbers: npt.NDArray[np.int64], seed: int
) -> Iterator[Game]:
    """Game 2k is opening k with the first of the players as first player; 2k + 1 with the other."""
    games, sides = openings.select(numbers // 2), numbers % 2
    keys = np.array(
        [numbered_streams(seed, "arena", number // 2, number % 2, numbers=range(games.actions + 1))
         for number in numbers.tolist()], np.uint64,
    )  # fmt: skip
    moves: list[list[int]] = [[] for _ in numbers]
    loser, forfeit = -1, None
    while forfeit is None and (lasting := games.winners == NOBODY).any():
        chosen = np.full(len(games), -1, np.int64)
        for number, player in enumerate(players):
            asked = np.flatnonzero(lasting & (games.movers ^ sides == number))
            if len(asked):
                try:
                    chosen[asked] = player.choose(games.select(asked), keys[asked, games.plies[asked]])
                except EngineError as error:
                    if len(games) > 1:
                        raise
                    loser, forfeit = number, RESIGNED if isinstance(error, EngineResigned) else str(error)
        if forfeit is None:
            games.play(chosen)
            for game in np.flatnonzero(lasting).tolist():
                moves[game].append(int(chosen[game]))
    for game, number in enumerate(numbers.tolist()):
        side = number % 2
        # On side 0 the first player, FIRST, is players[0]; on side 1 it is players[1].
        winner = players[int(games.winners[game]) ^ side if forfeit is None else 1 - loser].name
        plies, made = int(games.plies[game]), tuple(moves[game])
        yield Game(number // 2, players[side].name, players[1 - side].name, winner, plies, made, forfeit)
