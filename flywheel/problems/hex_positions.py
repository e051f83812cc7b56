"""Hex as a domain: openings to play from, and positions of known value to be judged by.

Training problems are the board as it is after none, one or two moves. Valid and test problems are positions that the
mover wins with some moves and loses with others, by the exact solver, of games between players of mixed strength: each
player of a game makes a random move with a chance of its own, drawn from 0 to 1, and otherwise one that a heuristic
likes. They come after the openings, and positions that look the same to their movers, half a turn apart or not, are
one: which split a position falls into is decided by its canonical form. The problems are the same for every run's seed,
so that runs can be compared.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from flywheel.errors import ConfigError
from flywheel.problems.hex import FIRST, NOBODY, SECOND, Games, cell_of, name_of, parse
from flywheel.problems.hex_solver import LOSES, UNKNOWN, WINS, Solver, promising
from flywheel.records import Problem, Split, digest
from flywheel.seeds import generator

OPENING_PLIES = 2
_GAMES = 256
"""Games that positions are drawn from at a time."""
_MOST_ROUNDS = 200
_EXCHANGED = str.maketrans("XO", "OX")
_LIMITS = {3: 200_000, 4: 200_000, 5: 200_000, 6: 20_000, 7: 2_000, 8: 1_000}
"""Positions that the solver may look at to know one's value, by size; what it does not decide is left out, which on
the larger boards are the early ones."""


class HexPositions:
    """The domain, for boards of one size."""

    name = "hex"
    version = 1

    def __init__(self, size: int, swap: bool, shares: tuple[float, float, float]) -> None:
        self.size = size
        self.swap = swap
        self.shares = shares
        self._solver = Solver(size)

    def problems(self, split: Split, count: int) -> list[Problem]:
        """Up to `count` problems of a split, ordered by id; always the same ones. Raises ConfigError where boards of
        this size do not yield as many positions of known value."""
        if split == "train":
            found = [self._opening(text) for text in self._openings(count)]
        else:
            found = self._positions(split, count)
        return sorted(found, key=lambda problem: problem.problem_id)

    def split_of(self, form: str) -> Split:
        """Which of valid and test a position belongs to, by hash of its canonical form."""
        _, valid, test = self.shares
        where = int(digest("hex", "position", form)[:12], 16) / 16**12
        return "valid" if where * (valid + test) < valid else "test"

    def _openings(self, count: int) -> list[str]:
        """Boards after none, one or two moves: all of them, or the empty one and a draw from the others."""
        empty = Games(self.size, 1, self.swap)
        after_one = Games(self.size, self.size**2, self.swap)
        after_one.play(np.arange(self.size**2))
        texts = [empty.text(0), *(after_one.text(game) for game in range(len(after_one)))]
        pairs = [(one, two) for one, two in itertools.product(range(self.size**2), repeat=2) if one != two]
        after_two = Games(self.size, len(pairs), self.swap)
        for move in zip(*pairs, strict=True):
            after_two.play(np.array(move))
        texts += [after_two.text(game) for game in range(len(after_two))]
        drawn = sorted(texts[1:], key=lambda text: digest("hex", "opening", text))
        return [texts[0], *drawn][:count]

    def _opening(self, text: str) -> Problem:
        mover = SECOND if text.count("X") > text.count("O") else FIRST
        return self._problem(text, canonical(text, mover), "train", difficulty=1.0, reference=None)

    def _positions(self, split: Split, count: int) -> list[Problem]:
        found = dict[str, Problem]()
        for round_ in range(_MOST_ROUNDS):
            games = _mixed_games(self.size, round_)
            forms = [canonical(games.text(game), int(games.movers[game])) for game in range(len(games))]
            keep = [game for game, form in enumerate(forms) if self.split_of(form) == split]
            games = games.select(np.array(keep, np.int64))
            games = games.select(self._solver.solve(games, _LIMITS[self.size]).values == WINS)
            worth = self._solver.moves(games, _LIMITS[self.size])
            for game in range(len(games)):
                text, legal = games.text(game), np.flatnonzero(games.legal()[game, : self.size**2])
                known = worth[game, legal]
                form = canonical(text, int(games.movers[game]))
                if form in found or (known == UNKNOWN).any() or not ({WINS, LOSES} <= set(known.tolist())):
                    continue
                winning = [name_of(int(move), self.size) for move in legal[known == WINS]]
                found[form] = self._problem(text, form, split, float((known == LOSES).mean()), " ".join(winning))
                if len(found) == count:
                    return list(found.values())
        raise ConfigError(
            [
                f"problems.{split}: got {count}, but boards of {self.size} cells a side yielded {len(found)} positions "
                "of known value that can be lost and won; ask for fewer"
            ]
        )

    def _problem(self, text: str, form: str, split: Split, difficulty: float, reference: str | None) -> Problem:
        payload = {"size": self.size, "swap": self.swap, "board": text}
        return Problem(
            problem_id=digest("problem", self.name, self.version, payload),
            domain=self.name,
            domain_version=self.version,
            split=split,
            difficulty=difficulty,
            group=form,
            payload=payload,
            reference=reference,
        )


@lru_cache(maxsize=4)
def load(size: int, swap: bool, shares: tuple[float, float, float], counts: tuple[int, int, int]) -> list[Problem]:
    """The problems of all splits (train, valid, test), so many of each; kept, as solving takes seconds."""
    domain = HexPositions(size, swap, shares)
    splits: tuple[Split, ...] = ("train", "valid", "test")
    wanted = [(split, count) for split, count in zip(splits, counts, strict=True) if count]
    return [problem for split, count in wanted for problem in domain.problems(split, count)]


def canonical(text: str, mover: int) -> str:
    """One name for all positions that a network sees as the same, before or after a half turn: the board as if X were
    to move."""
    if mover == SECOND:
        text = "/".join("".join(column) for column in zip(*text.split("/"), strict=True)).translate(_EXCHANGED)
    return min(text, text[::-1])


def games_of(problems: list[Problem], size: int, swap: bool) -> Games:
    """The problems' boards."""
    if not problems:
        return Games(size, 0, swap)
    return parse([problem.payload["board"] for problem in problems], swap)


def winning_moves(problem: Problem) -> set[int]:
    """Cells where the mover keeps the win, of a problem whose reference says so."""
    return {cell_of(name, problem.payload["size"]) for name in (problem.reference or "").split()}


def _mixed_games(size: int, round_: int) -> Games:
    """One position of each of some games; a game's players are of strengths of their own. Without the swap, which no
    position after the openings knows of."""
    draws = generator(0, "hex", "positions", size, round_)
    games = Games(size, _GAMES)
    careless = draws.random((_GAMES, 2))
    stop = draws.integers(OPENING_PLIES + 1, size * size, size=_GAMES)
    taken: list[Games] = []
    while len(games):
        moves = _likely(games, draws)
        chance = draws.random(len(games))
        for game in np.flatnonzero(chance < careless[np.arange(len(games)), games.movers]):
            moves[game] = draws.choice(np.flatnonzero(games.legal()[game]))
        games.play(moves)
        lasts = games.winners == NOBODY
        here = lasts & (games.plies == stop)
        taken.append(games.select(here))
        on = lasts & ~here
        games, careless, stop = games.select(on), careless[on], stop[on]
    return _joined(taken, size)


def _likely(games: Games, draws: np.random.Generator) -> npt.NDArray[np.int64]:
    """What the solver would try first, from one of its two best."""
    ranked = promising(games, 2)
    second = (draws.random(len(games)) < 0.3) & (ranked[:, 1] >= 0)
    return np.where(second, ranked[:, 1], ranked[:, 0])


def _joined(parts: list[Games], size: int) -> Games:
    joined = Games(size, 0)
    joined.boards = np.concatenate([part.boards for part in parts])
    joined.movers = np.concatenate([part.movers for part in parts])
    joined.winners = np.concatenate([part.winners for part in parts])
    joined.plies = np.concatenate([part.plies for part in parts])
    return joined
