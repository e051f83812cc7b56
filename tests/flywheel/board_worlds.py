"""What tests of searches and players on boards share: networks that are functions of a view alone, positions, keys."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flywheel.problems.hex import NOBODY, Games
from flywheel.seeds import generator, numbered_streams

Answer = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def network(views: npt.NDArray[np.float32]) -> Answer:
    """Logits and a value that look random, now and then nearly sure of a move. No action for a swap."""
    logits, values = [], []
    for view in views:
        drawn = generator(0, "network", view.astype(int).ravel().tolist())
        logits.append(drawn.normal(scale=drawn.choice([1.0, 5.0]), size=view[0].size))
        values.append(math.tanh(drawn.normal()))
    return np.array(logits, np.float32), np.array(values, np.float32)


def knows_nothing(views: npt.NDArray[np.float32]) -> Answer:
    return np.zeros((len(views), views[0, 0].size), np.float32), np.zeros(len(views), np.float32)


def positions(size: int, count: int, plies: int) -> Games:
    """Games after so many random moves, those that last."""
    games = Games(size, count)
    for ply in range(plies):
        noise = generator(size, "opening", ply).random((count, size**2))
        games.play(np.where(games.legal(), noise, -1.0).argmax(axis=1))
    return games.select(games.winners == NOBODY)


def keys(count: int, seed: int = 1) -> npt.NDArray[np.uint64]:
    return np.array(numbered_streams(seed, "key", numbers=range(count)), np.uint64)
