"""Fits to a sweep of Hex: Elo of every snapshot, the compute frontier over board sizes, and the trade-off on each.

A board's ratings stand on perfect play where the solver plays, and else on a trained player (`_strongest`). How far
that one is from perfection nobody knows: if it is x Elo short, all points of its board lie x too high, and -50, where
the fit stops, is 50 below that player. So there are two fits where they differ: to all boards, and to those with
perfect play; and the former once more with such boards set lower.

Held-back cells are rated and enter no fit. A configuration is a family and a cell. Intervals come from draws that
resample the openings of the games (the same in all pairings), rate anew, and resample the training seeds of every
configuration: they cover games and training runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from flows.sweeps import arena, results
from flows.sweeps.hex_document import as_dict as as_dict
from flywheel.errors import InputError
from flywheel.evaluation import ratings
from flywheel.scaling import frontier, tradeoff
from flywheel.scaling.frontier import Frontier, FrontierIntervals, Points
from flywheel.scaling.tradeoff import Tradeoff, TradeoffIntervals, TradeoffPoints
from flywheel.seeds import generator

LEVELS = tuple(float(level) for level in range(-1500, 0, 100))
"""Elo at which training is weighed against search: closer than Jones's 250 apart, as small boards span less."""
ALL, SOLVED = "all boards", "boards with perfect play"
"""What a frontier is fitted to."""
LOWERED = (50.0, 100.0)
"""By how many Elo boards without perfect play are set lower, to see what hangs on it."""
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rated:
    """The players of one board, a row each: a snapshot with a budget of simulations a move (0: none)."""

    family: str
    size: int
    anchor: str
    """Who stands at 0 Elo."""
    rows: list[dict[str, Any]]
    """player, run, cell, seed, held_back, generation, budget, snapshot, parameters, hidden_size, layers, label_flops,
    train_flops (label search and training), test_flops (a move)."""
    elo: _Floats
    """[1 + draws, players]: by all games, then by those of resampled openings."""
    games: int

    @property
    def solved(self) -> bool:
        """Whether 0 Elo is perfect play."""
        return self.anchor == arena.PERFECT

    def select(self, budget: int | None = None) -> npt.NDArray[np.int64]:
        """Players that trained and are not held back, of one budget or of all."""
        return np.array(
            [
                k
                for k, row in enumerate(self.rows)
                if row["generation"] > 0 and not row["held_back"] and budget in (None, row["budget"])
            ],
            np.int64,
        )


@dataclass(frozen=True, slots=True)
class FittedFrontier:
    """The frontier of players with one budget of simulations a move."""

    budget: int
    boards: str
    """ALL or SOLVED."""
    law: Frontier
    intervals: FrontierIntervals | None


@dataclass(frozen=True, slots=True)
class Variant:
    """The frontier fitted with one choice made otherwise: does the slope hang on it?"""

    budget: int
    boards: str
    name: str
    slope: float
    compute_factor: float
    used: int
    """Points."""


@dataclass(frozen=True, slots=True)
class TradeoffVariant:
    """A board's trade-off fitted to fewer players: does the slope hang on who plays?"""

    size: int
    name: str
    slope: float
    within: float
    pairs: int


@dataclass(frozen=True, slots=True)
class HexFits:
    """What a sweep of Hex says; a fit that the data cannot identify is left out, and `reasons` says why, by name."""

    rated: list[Rated]
    frontiers: list[FittedFrontier]
    """By budget, and then SOLVED first, where two boards or more have perfect play and others do not."""
    variants: list[Variant]
    tradeoffs: dict[int, tuple[Tradeoff, TradeoffIntervals | None]]
    """By board size."""
    tradeoff_variants: list[TradeoffVariant]
    reasons: dict[str, str]

    @property
    def budgets(self) -> list[int]:
        """Of all players."""
        return sorted({row["budget"] for each in self.rated for row in each.rows})

    def frontiers_at(self, budget: int) -> list[FittedFrontier]:
        """Those of one budget, the one to be relied on first."""
        return [each for each in self.frontiers if each.budget == budget]


def fit(folder: Path, draws: int = 200, seed: int = 0) -> HexFits:
    """Fits to the tables in a folder. Raises InputError where they hold no games, and for two families of one size."""
    rows = [row for row in results.read(folder).drop_columns(["outcomes"]).to_pylist() if row["domain"] == "hex"]
    path = folder / "games.parquet"
    games = pq.read_table(path, schema=arena.GAMES).to_pylist() if path.exists() else []
    if not rows or not games:
        raise InputError(
            f"{folder} holds no games of Hex; the sweep's file needs `arena:`, with budgets and openings, and "
            "`flywheel sweep` plays them once all runs of a board and a seed are made"
        )
    rated = [
        _rated(
            family,
            size,
            [row for row in rows if row["family"] == family],
            [game for game in games if game["family"] == family],
            draws,
            seed,
        )
        for size, family in _boards(rows, {game["family"] for game in games})
    ]
    fits = HexFits(rated, [], [], {}, [], {})
    unplayed = {(row["size"], row["family"]) for row in rows} - {(each.size, each.family) for each in rated}
    for size, family in sorted(unplayed):
        fits.reasons[f"{family}, {size}x{size}"] = "no games yet: they are played once all runs of a seed are made"
    solved = [each for each in rated if each.solved]
    sets = {SOLVED: solved, ALL: rated} if 2 <= len(solved) < len(rated) else {ALL: rated}
    for budget in fits.budgets:
        for boards, chosen in sets.items():
            _fit_frontier(fits, boards, chosen, budget, draws, seed)
            fits.variants.extend(_variants(boards, chosen, budget))
    for each in rated:
        _fit_tradeoff(fits, each, draws, seed)
        fits.tradeoff_variants.extend(_tradeoff_variants(each))
    return fits


def _boards(rows: list[dict[str, Any]], played: set[str]) -> list[tuple[int, str]]:
    """Size and family of those that have played, by size. Raises InputError for two of one size."""
    boards = sorted({(row["size"], row["family"]) for row in rows if row["family"] in played})
    for (size, one), (next_size, other) in itertools.pairwise(boards):
        if size == next_size:
            raise InputError(
                f"got families {one} and {other}, both of {size}x{size} boards, expected one a size, as their players "
                "never meet; make their configurations cells of one family, or give each a sweep of its own"
            )
    return boards


def _fit_frontier(fits: HexFits, boards: str, rated: list[Rated], budget: int, draws: int, seed: int) -> None:
    name = f"frontier of {boards} with {budget} simulations a move"
    random, points = generator(seed, "frontier", budget), [_points(rated, budget, d) for d in range(1 + draws)]
    try:
        fitted = frontier.fit_frontier(points[0])
    except InputError as error:
        fits.reasons[name] = str(error)
        return
    found = None
    try:
        drawn = (frontier.resample_seeds(each, random) for each in points[1:])
        found = frontier.frontier_intervals(fitted, drawn)
    except InputError as error:
        fits.reasons[f"intervals of the {name}"] = str(error)
    fits.frontiers.append(FittedFrontier(budget, boards, fitted, found))


def _fit_tradeoff(fits: HexFits, each: Rated, draws: int, seed: int) -> None:
    random, name = generator(seed, "tradeoff", each.size), f"trade-off on {each.size}x{each.size}"
    try:
        line = tradeoff.fit_tradeoff(_tradeoff_points(each, 0), LEVELS)
    except InputError as error:
        fits.reasons[name] = str(error)
        return
    try:
        drawn = (tradeoff.resample_tradeoff_seeds(_tradeoff_points(each, 1 + draw), random) for draw in range(draws))
        fits.tradeoffs[each.size] = line, tradeoff.tradeoff_intervals(line, drawn, LEVELS)
    except InputError as error:
        fits.tradeoffs[each.size] = line, None
        fits.reasons[f"intervals of the {name}"] = str(error)


def _tradeoff_variants(each: Rated) -> list[TradeoffVariant]:
    """What the slopes would be with fewer players; those that identify none are left out."""
    points = _tradeoff_points(each, 0)
    budgets = np.unique(points.budgets)
    sizes = np.array([each.rows[k]["parameters"] for k in each.select()])
    choices = {
        "as above": np.ones(len(sizes), np.bool_),
        "without the network alone": points.budgets > 0,
        "without the largest network": sizes < sizes.max(initial=0),
        "every other budget": np.isin(points.budgets, budgets[::2]),
    }
    found = []
    for name, keep in choices.items():
        if not keep.any():
            continue
        try:
            line = tradeoff.fit_tradeoff(points.take(np.flatnonzero(keep)), LEVELS)
        except InputError:
            continue
        found.append(TradeoffVariant(each.size, name, line.slope, line.within, len(line.residuals)))
    return found


@dataclass(frozen=True, slots=True)
class _Choice:
    """How the points of a variant are made."""

    name: str
    rated: Sequence[Rated]
    saturation: float = frontier.SATURATION
    flops: str = "train_flops"
    lowered: float = 0.0
    network: tuple[int, int] | None = None
    """Width and layers: this one alone."""


def _variants(boards: str, rated: list[Rated], budget: int) -> list[Variant]:
    """What the slope would be by other choices; those that identify none are left out."""
    choices = [
        _Choice("as above", rated),
        _Choice("below -100 Elo", rated, saturation=-100.0),
        _Choice("below -200 Elo", rated, saturation=-200.0),
        _Choice("label search alone counted as training", rated, flops="label_flops"),
    ]
    if not all(each.solved for each in rated):
        choices += [
            _Choice(f"boards without perfect play {lowered:.0f} Elo lower", rated, lowered=lowered)
            for lowered in LOWERED
        ]
    if boards == ALL or all(each.solved for each in rated):
        choices += [
            _Choice(f"{one.size}x{one.size} and {other.size}x{other.size} alone", (one, other))
            for one, other in itertools.pairwise(rated)
        ]
        for width, layers in sorted(set.union(*map(_networks, rated))):
            having = [each for each in rated if (width, layers) in _networks(each)]
            where = " and ".join(f"{each.size}x{each.size}" for each in having)
            name = f"{where} alone, one network: {width} wide, {layers} layers"
            choices.append(_Choice(name, having, network=(width, layers)))
    found = []
    for choice in choices:
        points = _points(choice.rated, budget, 0, choice.flops, choice.lowered, choice.network)
        try:
            fitted = frontier.fit_frontier(points, choice.saturation)
        except InputError:
            continue
        used = int(fitted.used.sum())
        found.append(Variant(budget, boards, choice.name, fitted.slope, fitted.compute_factor, used))
    return found


def _networks(each: Rated) -> set[tuple[int, int]]:
    """Width and layers of those that are not held back."""
    return {(row["hidden_size"], row["layers"]) for row in each.rows if not row["held_back"]}


def _rated(
    family: str, size: int, rows: list[dict[str, Any]], played: list[dict[str, Any]], draws: int, seed: int
) -> Rated:
    """Ratings of one family's players, which are the rows of `results` that searched or answered at once."""
    openings = 1 + max(game["opening"] for game in played)
    wins: dict[tuple[str, str], _Floats] = {}
    for game in played:
        pair = (game["first"], game["second"]) if game["first_won"] else (game["second"], game["first"])
        wins.setdefault(pair, np.zeros(openings))[game["opening"]] += 1.0
    players = {name for pair in wins for name in pair}
    held = {}
    for row in rows:
        name = arena.name(row["run"], row["generation"], row["budget"])
        if name in players:
            held[name] = {
                "player": name, "run": row["run"], "cell": row["cell"], "seed": row["seed"],
                "held_back": row["held_back"], "generation": row["generation"], "budget": row["budget"],
                "snapshot": row["snapshot"], "parameters": row["parameters"],
                "hidden_size": row["hidden_size"], "layers": row["layers"],
                "label_flops": row["label_flops"], "train_flops": row["label_flops"] + row["training_flops"],
                "test_flops": row["query_flops"],
            }  # fmt: skip
    anchor = arena.PERFECT if arena.PERFECT in players else _strongest(held)
    weights = np.concatenate(
        [
            np.ones((1, openings)),
            generator(seed, "openings", size).multinomial(openings, np.full(openings, 1.0 / openings), size=draws),
        ]
    )
    names, elo = ratings.redrawn(wins, weights, anchor)
    place = {name: number for number, name in enumerate(names)}
    return Rated(family, size, anchor, list(held.values()), elo[:, [place[name] for name in held]], len(played))


def _strongest(held: dict[str, dict[str, Any]]) -> str:
    """Who stands at 0 where no solver plays: of the cells that are not held back the last snapshot of the largest
    network, with the largest budget, of the first seed."""
    return max(
        held,
        key=lambda name: (
            not held[name]["held_back"],
            held[name]["parameters"],
            held[name]["budget"],
            -held[name]["seed"],
            held[name]["generation"],
        ),
    )


def _points(
    rated: Sequence[Rated],
    budget: int,
    draw: int,
    flops: str = "train_flops",
    lowered: float = 0.0,
    network: tuple[int, int] | None = None,
) -> Points:
    """`lowered`: by how many Elo boards without perfect play are; `network`: this one alone."""
    chosen = [
        (each, k)
        for each in rated
        for k in each.select(budget).tolist()
        if network in (None, (each.rows[k]["hidden_size"], each.rows[k]["layers"]))
    ]
    rows = [each.rows[k] for each, k in chosen]
    return Points(
        np.array([each.size for each, _ in chosen], np.int64),
        np.array([f"{each.family}/{each.rows[k]['cell']}" for each, k in chosen]),
        np.array([row["seed"] for row in rows], np.int64),
        np.array([row["generation"] for row in rows], np.int64),
        np.array([row[flops] for row in rows]),
        np.array([each.elo[draw, k] - (0.0 if each.solved else lowered) for each, k in chosen]),
    )


def _tradeoff_points(each: Rated, draw: int) -> TradeoffPoints:
    chosen = each.select()
    rows = [each.rows[k] for k in chosen]
    return TradeoffPoints(
        np.array([f"{each.family}/{row['cell']}" for row in rows]),
        np.array([row["seed"] for row in rows], np.int64),
        np.array([row["generation"] for row in rows], np.int64),
        np.array([row["budget"] for row in rows], np.int64),
        np.array([row["train_flops"] for row in rows]),
        np.array([row["test_flops"] for row in rows]),
        each.elo[draw, chosen],
    )
