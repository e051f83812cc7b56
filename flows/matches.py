"""A tournament: everyone against everyone, each opening from both sides, and the ratings that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows import board_players
from flywheel.errors import EngineError, InputError
from flywheel.evaluation import arena, intervals, ratings
from flywheel.problems.hex_positions import games_of
from flywheel.seeds import stream

if TYPE_CHECKING:
    from storage.registry import Registry


def tournament(
    opened: Registry, names: list[str], openings: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """{"pairs": [...], "ratings": [...], "games": [...]}. Perfect play stands at 0 where it takes part, else the first
    of the names. A match that an engine ends counts with the games it has."""
    if len(names) < 2:
        raise InputError(f"got {len(names)} player, expected two or more: {board_players.KINDS}")
    params = board_players.recipe_of(opened)
    drawn = board_players.openings_of(params, openings, seed)
    boards = games_of(drawn, params.problems.size, params.problems.swap)
    games: list[arena.Game] = []
    pairs = []
    with board_players.players(opened, names) as players:
        for one, other in itertools.combinations(players, 2):
            say(f"{one.name} against {other.name}: {2 * len(drawn)} games")
            played: list[arena.Game] = []
            ended = None
            try:
                played += arena.play_each(one, other, boards, stream(seed, "arena", one.name, other.name))
            except EngineError as error:
                ended = str(error)
                say(f"the match ended early: {ended}")
            games += played
            pairs.append(_pair(one.name, other.name, played, ended))
    counts = {pair: float(count) for pair, count in arena.tally(games).items()}
    rated = ratings.rate(counts, "perfect" if "perfect" in names else names[0]) if counts else {}
    rows = [
        {"player": name, "elo": found.value, "low": found.low, "high": found.high, "games": found.count}
        for name, found in sorted(rated.items(), key=lambda item: -item[1].value)
    ]
    texts = [
        {
            "opening": drawn[game.opening].payload["board"], "first": game.first, "second": game.second,
            "winner": game.winner, "plies": game.plies, "forfeit": game.forfeit,
        }
        for game in games
    ]  # fmt: skip
    return {"pairs": pairs, "ratings": rows, "games": texts}


def _pair(one: str, other: str, games: list[arena.Game], ended: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"player": one, "against": other, "games": len(games)}
    if games:
        won = intervals.share([float(g.winner == one) for g in games], [str(g.opening) for g in games])
        row |= {
            "won": sum(game.winner == one for game in games),
            "won as first": sum(game.winner == one == game.first for game in games),
            "share": won.value, "low": won.low, "high": won.high,
            "forfeits": sum(game.forfeit not in (None, arena.RESIGNED) for game in games),
        }  # fmt: skip
    return {**row, **({"ended": ended} if ended else {})}
