"""Hex as a domain: openings, and positions whose winning moves a plain minimax confirms."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from flywheel.errors import ConfigError
from flywheel.problems.hex import FIRST, NOBODY, SECOND, Games
from flywheel.problems.hex_positions import OPENING_PLIES, HexPositions, canonical, games_of, winning_moves

SHARES = (0.6, 0.12, 0.28)


def joined(cells: str, size: int, mark: str) -> bool:
    """Whether a player's stones join its edges, by walking from one of them."""
    lines = [cells[row * size : (row + 1) * size] for row in range(size)]
    at = {(r, c) for r, c in itertools.product(range(size), repeat=2) if lines[r][c] == mark}
    reached = {(r, c) for r, c in at if (r if mark == "X" else c) == 0}
    while True:
        further = {
            (r + dr, c + dc)
            for r, c in reached
            for dr, dc in ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, 1), (1, -1))
            if (r + dr, c + dc) in at
        }
        if further <= reached:
            return any((r if mark == "X" else c) == size - 1 for r, c in reached)
        reached |= further


@cache
def wins(cells: str, size: int, mover: str) -> bool:
    """Plain minimax."""
    other = "O" if mover == "X" else "X"
    if joined(cells, size, other):
        return False
    return any(
        not wins(cells[:cell] + mover + cells[cell + 1 :], size, other)
        for cell in range(size * size)
        if cells[cell] == "."
    )


@pytest.mark.parametrize("split", ["valid", "test"])
def test_positions_are_won_by_just_the_moves_that_the_reference_names(split: str) -> None:
    problems = HexPositions(3, False, SHARES).problems(split, 24)  # type: ignore[arg-type]
    assert len(problems) == 24
    for problem in problems:
        cells = problem.payload["board"].replace("/", "")
        mover, other = ("X", "O") if cells.count("X") == cells.count("O") else ("O", "X")
        empty = [cell for cell in range(9) if cells[cell] == "."]
        winning = {cell for cell in empty if not wins(cells[:cell] + mover + cells[cell + 1 :], 3, other)}
        assert winning_moves(problem) == winning
        assert 0 < len(winning) < len(empty), "there must be something to lose"
        assert problem.difficulty == pytest.approx(1 - len(winning) / len(empty))


def test_splits_share_no_position_nor_one_after_half_a_turn_nor_an_opening() -> None:
    domain = HexPositions(4, False, SHARES)
    by_split = {"valid": domain.problems("valid", 60), "test": domain.problems("test", 60)}
    forms = {split: {problem.group for problem in problems} for split, problems in by_split.items()}
    assert not forms["valid"] & forms["test"]
    for split, problems in by_split.items():
        assert len(forms[split]) == len(problems) == 60
        for problem in problems:
            text = problem.payload["board"]
            mover = FIRST if text.count("X") == text.count("O") else SECOND
            assert problem.group == canonical(text, mover) == canonical(text[::-1], mover)
            assert sum(mark != "." for mark in text.replace("/", "")) > OPENING_PLIES


def test_positions_that_networks_see_as_the_same_have_one_name_and_no_others() -> None:
    """By the views that they are shown, on boards with and without the swap behind them."""
    draws, named = np.random.default_rng(5), dict[str, set[bytes]]()
    games = Games(3, 4000, swap=True)
    for _ in range(5):
        for game in range(len(games)):
            if games.winners[game] == NOBODY and games.plies[game] > 1:
                view = games.select(np.array([game])).views()[0, :2]
                seen = min(view.tobytes(), view[:, ::-1, ::-1].tobytes())
                named.setdefault(canonical(games.text(game), int(games.movers[game])), set()).add(seen)
        legal = games.legal()
        games.play([draws.choice(np.flatnonzero(row)) if row.any() else -1 for row in legal])
    assert all(len(views) == 1 for views in named.values())
    assert len({next(iter(views)) for views in named.values()}) == len(named) > 100


def test_openings_are_all_boards_of_at_most_two_moves_and_always_the_same() -> None:
    domain = HexPositions(3, False, SHARES)
    everything = domain.problems("train", 10_000)
    assert len(everything) == len({p.problem_id for p in everything}) == 1 + 9 + 9 * 8
    stones = [sum(mark != "." for mark in p.payload["board"].replace("/", "")) for p in everything]
    assert {count: stones.count(count) for count in set(stones)} == {0: 1, 1: 9, 2: 72}
    few = domain.problems("train", 5)
    assert few == HexPositions(3, False, SHARES).problems("train", 5)
    assert [p.problem_id for p in few] == sorted(p.problem_id for p in few)
    assert any(p.payload["board"] == ".../.../..." for p in few)
    games = games_of(everything, 3, False)
    assert games.plies.tolist() == stones


def test_more_positions_than_there_are_is_said() -> None:
    with pytest.raises(ConfigError, match=r"problems\.valid: got 5000, but boards of 3 cells a side yielded"):
        HexPositions(3, False, SHARES).problems("valid", 5000)
