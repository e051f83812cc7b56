"""A person plays Hex against a snapshot in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flywheel.errors import InputError
from flywheel.problems.hex import FIRST, NOBODY, Games, cell_of, name_of
from flywheel.search.board_tree import TreeSearch

HELP = "a cell such as b2; `swap` where that is a rule, as the first answer; `back` takes your last move back; `quit`"


def play(
    size: int,
    swap: bool,
    evaluate: Any,
    search: TreeSearch | None,
    person: int,
    ask: Callable[[str], str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Play one game; {"winner": "you" | "model" | None, "moves": [...], "board": ...}. `person` is FIRST or SECOND;
    without `search` the network plays at once. `ask` gives a line, and raises EOFError where there are no more."""
    games, moves = Games(size, 1, swap), list[int]()
    say(f"You are {'X, joining top and bottom' if person == FIRST else 'O, joining left and right'}. Enter {HELP}.")
    while games.winners[0] == NOBODY:
        if games.movers[0] == person:
            say(games.drawing(0))
            try:
                line = ask("your move: ").strip().lower()
            except EOFError:
                line = "quit"
            if line in {"quit", "q", "exit"}:
                break
            if line == "back":
                # Yours and the answer to it.
                moves = moves[: max(len(moves) - 2, person)]
                games = _replayed(size, swap, moves)
                continue
            try:
                move = _read(line, games)
            except InputError as error:
                say(f"{error}; enter {HELP}")
                continue
            games.play([move])
        else:
            move, words = _answer(games, evaluate, search)
            games.play([move])
            say(f"the model plays {name_of(move, size)}{words}")
        moves.append(move)
    say(games.drawing(0))
    winner = int(games.winners[0])
    who = None if winner == NOBODY else "you" if winner == person else "model"
    say({"you": "You win.", "model": "The model wins.", None: "The game was left."}[who])
    return {"winner": who, "moves": [name_of(move, size) for move in moves], "board": games.text(0)}


def _answer(games: Games, evaluate: Any, search: TreeSearch | None) -> tuple[int, str]:
    from flywheel.search.players import NetworkPlayer

    keys = np.zeros(1, np.uint64)  # One who plays to win makes no noise.
    if search is None:
        return int(NetworkPlayer("model", evaluate, 0.0).choose(games, keys)[0]), ""
    found = search.search(games, evaluate, keys)
    if found.proven[0]:
        return int(found.moves[0]), " (a win is proven)" if found.proven[0] > 0 else " (a loss is proven)"
    return int(found.moves[0]), f" (it expects to win {50 * (1 + float(found.values[0])):.0f} % of such games)"


def _read(line: str, games: Games) -> int:
    """A legal move. Raises InputError."""
    if line == "swap":
        if not games.swap or games.plies[0] != 1:
            raise InputError("got swap, which is allowed as the first answer where it is a rule")
        return games.size**2
    cell = cell_of(line, games.size)
    if games.boards[0, cell] != 0:
        raise InputError(f"{line} is taken")
    return cell


def _replayed(size: int, swap: bool, moves: list[int]) -> Games:
    games = Games(size, 1, swap)
    for move in moves:
        games.play([move])
    return games
