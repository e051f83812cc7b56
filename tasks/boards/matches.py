"""Matches of a generation: who meets whom, what comes of it, and whether the student takes over.

Elo is from this generation's games alone: with perfect play at 0 where the exact solver can play, else with the
champion before it at its own last rating, and generation 0's network at 0. The report rates all generations together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flywheel.compute import Cost
from flywheel.evaluation import arena, intervals, ratings
from flywheel.evaluation.arena import Game
from flywheel.models import board_net
from flywheel.params import Params
from flywheel.problems.hex import name_of
from flywheel.problems.hex_positions import games_of
from flywheel.records import Problem, digest
from flywheel.search.players import NetworkPlayer, PerfectPlayer, Player, RandomPlayer, SearchPlayer
from flywheel.seeds import stream
from storage.layout import Layout
from storage.rows import read_problems
from tasks.boards import networks
from tasks.stage import by_model

LARGEST_PERFECT = 5
"""The largest board on which the solver plays whole games at once."""
PERFECT, RANDOM = "perfect", "random"


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two players who are to meet; names as in `name`."""

    one: str
    other: str


def name(generation: int, budget: int | None = None) -> str:
    """How a player is called: `gen/7` the network alone, `gen/7@64` with that many simulations a move."""
    return f"gen/{generation}" + (f"@{budget}" if budget else "")


def plays_perfectly(params: Params) -> bool:
    """Whether there is perfect play for the params' boards."""
    return params.problems.size <= LARGEST_PERFECT and not params.problems.swap


def play(params: Params, layout: Layout, pairing: Pairing) -> tuple[list[dict[str, Any]], dict[str, Cost]]:
    """Rows of `matches` of one pairing, and what they took, by model: a perfect player is a solver, a random one
    nothing, and neither takes FLOPs."""
    openings = read_problems(layout.problems, ["train"])
    openings = sorted(openings, key=lambda p: digest("match", p.problem_id))[: params.evaluate.openings]
    names = pairing.one, pairing.other
    players = _player(params, layout, pairing.one), _player(params, layout, pairing.other)
    seed = stream(params.seed, "match", pairing.one, pairing.other)
    played = arena.play(*players, games_of(openings, params.problems.size, params.problems.swap), seed)
    rows = [match_row(params.generation, openings[game.opening], game, params.problems.size) for game in played]
    worked = [
        (networks.load(params, _folder(params, layout, name)).snapshot, Cost(policy=player.flops))
        for name, player in zip(names, players, strict=True)
        if name not in {PERFECT, RANDOM}
    ]
    return rows, by_model(*worked)


def match_row(generation: int, opening: Problem, game: Game, size: int) -> dict[str, Any]:
    """A game as a row of `matches`."""
    return {
        "match_id": digest("match", generation, opening.problem_id, game.first, game.second),
        "generation": generation,
        "problem_id": opening.problem_id,
        "first": game.first,
        "second": game.second,
        "winner": game.winner,
        "plies": game.plies,
        "moves": " ".join(name_of(move, size) for move in game.moves),
        "forfeit": game.forfeit,
    }


def _player(params: Params, layout: Layout, who: str) -> Player:
    if who == PERFECT:
        return _perfect(params.problems.size)
    if who == RANDOM:
        return RandomPlayer()
    budget = who.partition("@")[2]
    net = networks.load(params, _folder(params, layout, who))
    evaluate = board_net.evaluator(net)
    if not budget:
        return NetworkPlayer(who, evaluate, net.shape.flops)
    return SearchPlayer(who, evaluate, networks.playing(params, int(budget)), net.shape.flops)


def _folder(params: Params, layout: Layout, who: str) -> Path:
    """Where the network of a player lies."""
    generation = who.removeprefix("gen/").partition("@")[0]
    return layout.student if int(generation) == params.generation else layout.parent


@lru_cache(maxsize=1)
def _perfect(size: int) -> PerfectPlayer:
    """Kept: what it found out serves the next match."""
    return PerfectPlayer(size)


def pairings(params: Params, champion: int | None) -> list[Pairing]:
    """Who meets whom, so that every player is connected with the anchor."""
    alone, searching = name(params.generation), name(params.generation, params.evaluate.match_budget)
    met = [Pairing(searching, alone), Pairing(alone, RANDOM)]
    if plays_perfectly(params):
        met += [Pairing(alone, PERFECT), Pairing(searching, PERFECT)]
    if champion is not None:
        met += [
            Pairing(alone, name(champion)),
            Pairing(searching, name(champion, params.evaluate.match_budget)),
        ]
    return met


def rated(params: Params, matches: Sequence[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """Elo of this generation's matches: {"greedy", "search@64": {value, low, high, count}}."""
    counts: dict[tuple[str, str], float] = {}
    for row in matches:
        loser = row["second"] if row["winner"] == row["first"] else row["first"]
        counts[row["winner"], loser] = counts.get((row["winner"], loser), 0.0) + 1.0
    players = {player for pair in counts for player in pair}
    anchor, stands_at = name(params.generation), 0.0
    if PERFECT in players:
        anchor = PERFECT
    elif before["generation"] is not None:
        anchor = name(before["generation"])
        stands_at = before["metrics"]["elo"]["greedy"]["value"]
    found = ratings.rate(counts, anchor)
    budget = params.evaluate.match_budget
    asked = {"greedy": name(params.generation), f"search@{budget}": name(params.generation, budget), RANDOM: RANDOM}
    return {
        key: {
            **found[player].as_dict(),
            **{bound: getattr(found[player], bound) + stands_at for bound in ("value", "low", "high")},
        }
        for key, player in asked.items()
    }


def takes_over(
    params: Params, matches: list[dict[str, Any]], champion: int | None
) -> tuple[bool, dict[str, Any] | None, str]:
    """Whether the student is champion from here on, its share of the searched games against the one before, and why."""
    if champion is None:
        return True, None, "the first student"
    mine, theirs = (name(number, params.evaluate.match_budget) for number in (params.generation, champion))
    games = [row for row in matches if {row["first"], row["second"]} == {mine, theirs}]
    won = intervals.share([float(row["winner"] == mine) for row in games], [row["problem_id"] for row in games])
    gate = params.evaluate.gate
    if gate is None:
        return True, won.as_dict(), "every student takes over (evaluate.gate is off)"
    words = f"won {won.value:.1%} of {won.count} games against the champion, {gate:.1%} asked for"
    return won.value >= gate, won.as_dict(), words
