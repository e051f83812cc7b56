"""Elo ratings of players who met in any pairing, by maximum likelihood, with 95 % intervals.

The model is Bradley and Terry's (1952, *Rank analysis of incomplete block designs*): one beats another with probability
1 / (1 + 10^(-d / 400)), d their difference in Elo. Only who won against whom counts, so that a player who was first
more often than second is right only if colours were equal in every pairing, as `flywheel.evaluation.arena` plays.

The prior is `prior` wins each way for every pair that met: without it a player who never won has no finite rating, and
with it one who lost all n games against the anchor stands at 400 log10(prior / (n + prior)). The likelihood is concave,
so Newton's method with halved steps finds its one maximum.

Intervals are Wald's, from the observed information of the difference to the anchor, the prior's games among it. They
are symmetric, and so only rough for a player who wins or loses nearly all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval

ELO_PER_NAT = 400.0 / math.log(10.0)
_QUANTILE = 1.959963984540054
"""Upper 2.5 % point of the normal distribution."""
_SMALL_STEP = 1e-10
"""Nats; Newton's error is the square of its last step."""
_SMALL_SHIFT = 1e-4
"""Nats, for resampled games: the error is far below the spread of the draws."""
_Counts = npt.NDArray[np.float64]
"""[players, players]: how often the row beat the column, the prior's wins among it."""


def rate(wins: Mapping[tuple[str, str], float], anchor: str, prior: float = 0.5) -> dict[str, Interval]:
    """Elo of every player, the anchor at 0, with a 95 % interval of the difference to it and the number of games.

    `wins` says by (winner, loser) how often that happened; names come back sorted. Raises InputError for counts that
    are none, for players whom no games connect with the anchor, and without a prior for who has no finite rating.
    """
    names, counts = _counted(wins, anchor)
    if not 0.0 <= prior < math.inf:
        raise InputError(f"got a prior of {prior} wins, expected 0 or more, such as 0.5")
    met = (counts + counts.T) > 0
    place = names.index(anchor)
    if apart := [names[player] for player in np.flatnonzero(~_reached(met, place))]:
        raise InputError(
            f"no games connect {', '.join(apart)} with {anchor}, so that their difference cannot be known; "
            "let them play each other, or someone who played both"
        )
    weighed = counts + prior * met
    boundless = ~(_reached(weighed > 0, place) & _reached(weighed.T > 0, place))
    if boundless.any():
        raise InputError(
            f"without a prior {', '.join(names[player] for player in np.flatnonzero(boundless))} would have no finite "
            f"rating: all games between them and the others went one way; set a prior, such as 0.5"
        )
    others = np.flatnonzero(np.arange(len(names)) != place)
    strengths = _most_likely(weighed, others)
    information = _slopes(weighed, strengths)[1][np.ix_(others, others)]
    errors = np.zeros(len(names))
    errors[others] = np.sqrt(np.diag(np.linalg.inv(information)))
    games = counts.sum(axis=0) + counts.sum(axis=1)
    return {
        name: Interval(elo, elo - half, elo + half, round(played))
        for name, elo, half, played in zip(
            names,
            (ELO_PER_NAT * strengths).tolist(),
            (ELO_PER_NAT * _QUANTILE * errors).tolist(),
            games.tolist(),
            strict=True,
        )
    }


def redrawn(
    wins: Mapping[tuple[str, str], npt.NDArray[np.float64]],
    weights: npt.NDArray[np.float64],
    anchor: str,
    prior: float = 0.5,
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Elo as `rate` gives it, for resampled games: the players, sorted, and [draws, players], the anchor at 0.

    `wins` says by (winner, loser) how often that happened from each opening [openings]; `weights` [draws, openings] how
    often a draw takes each opening, for all pairs the same, since games from one opening are alike. Every draw begins
    at the ratings of all games once and takes Newton's steps on the sparse graph of who met whom.
    """
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
    from scipy.sparse.linalg import splu  # type: ignore[import-untyped]

    rated = rate({pair: float(counts.sum()) for pair, counts in wins.items()}, anchor, prior)
    names = list(rated)
    numbers = {name: number for number, name in enumerate(names)}
    pairs = sorted({(min(pair), max(pair)) for pair in wins})
    none = np.zeros(weights.shape[1])
    won, lost = (
        np.stack([wins.get(pair if first else pair[::-1], none) for pair in pairs]) @ weights.T + prior
        for first in (True, False)
    )
    one, other = (np.array([numbers[pair[side]] for pair in pairs]) for side in (0, 1))
    place, start = numbers[anchor], np.array([rated[name].value for name in names]) / ELO_PER_NAT
    free = np.flatnonzero(np.arange(len(names)) != place)
    found = np.empty((len(weights), len(names)))
    for draw in range(len(weights)):
        strengths = start.copy()
        for _ in range(50):
            beats = 1.0 / (1.0 + np.exp(strengths[other] - strengths[one]))
            surplus = won[:, draw] * (1.0 - beats) - lost[:, draw] * beats
            slope = np.bincount(one, surplus, len(names)) - np.bincount(other, surplus, len(names))
            bent = (won[:, draw] + lost[:, draw]) * beats * (1.0 - beats)
            matrix = coo_matrix(
                (
                    np.concatenate([bent, bent, -bent, -bent]),
                    (np.concatenate([one, other, one, other]), np.concatenate([one, other, other, one])),
                )
            ).tocsc()[free][:, free]
            step = splu(matrix).solve(slope[free])
            # A draw may lie far from the start where few games connect two players.
            step *= min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
            strengths[free] += step
            if np.abs(step).max() < _SMALL_SHIFT:
                break
        found[draw] = ELO_PER_NAT * strengths
    return names, found


def expected(rating_difference: float) -> float:
    """The share of games won by a player so many Elo above the other."""
    odds: float = 10.0 ** (-abs(rating_difference) / 400.0)
    return (1.0 if rating_difference >= 0 else odds) / (1.0 + odds)


def _counted(wins: Mapping[tuple[str, str], float], anchor: str) -> tuple[list[str], _Counts]:
    names = sorted({name for pair in wins for name in pair})
    if anchor not in names:
        raise InputError(f"got anchor {anchor!r}, expected one of the players: {', '.join(names) or 'there are none'}")
    numbers = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for (winner, loser), count in wins.items():
        if winner == loser or not 0.0 <= count < math.inf:
            raise InputError(
                f"got {count} wins of {winner} against {loser}, expected a number of 0 or more, of two players"
            )
        counts[numbers[winner], numbers[loser]] = count
    return names, counts


def _reached(steps: npt.NDArray[np.bool_], start: int) -> npt.NDArray[np.bool_]:
    """Which players can be reached from one, where `steps[a, b]` says that one can go from a to b."""
    reached: npt.NDArray[np.bool_] = np.arange(len(steps)) == start
    while True:
        further = reached | steps[reached].any(axis=0)
        if (further == reached).all():
            return reached
        reached = further


def _most_likely(counts: _Counts, free: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Strengths in nats; those not free stay at 0."""
    strengths = np.zeros(len(counts))
    height = _log_likelihood(counts, strengths)
    for _ in range(200):
        slope, information = _slopes(counts, strengths)
        step = np.zeros(len(counts))
        step[free] = np.linalg.solve(information[np.ix_(free, free)], slope[free])
        # Far from the top a whole step may lead down; near it rounding may seem to.
        while (reached := _log_likelihood(counts, strengths + step)) < height - 1e-12 * abs(height):
            step /= 2.0
        strengths, height = strengths + step, reached
        if np.abs(step).max(initial=0.0) < _SMALL_STEP:
            break
    return strengths


def _log_likelihood(counts: _Counts, strengths: npt.NDArray[np.float64]) -> float:
    return -float((counts * np.logaddexp(0.0, strengths[None, :] - strengths[:, None])).sum())


def _slopes(
    counts: _Counts, strengths: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The gradient of the log-likelihood, and the information: minus its second derivatives."""
    loses = np.exp(-np.logaddexp(0.0, strengths[:, None] - strengths[None, :]))
    # Wins times the chance not to have won: near certainty nothing large cancels.
    surprise = counts * loses
    weights = (counts + counts.T) * loses * loses.T
    return surprise.sum(axis=1) - surprise.sum(axis=0), np.diag(weights.sum(axis=1)) - weights
