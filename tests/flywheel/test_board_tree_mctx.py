"""Gumbel search against mctx: what it finds on the same positions, with the same network and noise, and its schedules.

The numbers are mctx 0.0.71's (jax 0.10.2, pgx 2.6.0), as `data/mctx_golden.py` wrote them down.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flywheel.problems.hex import Games, parse
from flywheel.search import board_tree
from flywheel.search.board_tree import TreeSearch, _schedule

GOLDEN = json.loads((Path(__file__).parent / "data" / "mctx_golden.json").read_text())


def network(size: int) -> Callable[[npt.NDArray[np.float32]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """The one of `data/mctx_golden.py`, on our views."""
    rows, columns = np.meshgrid(np.arange(2 * size * size), np.arange(size * size + 1), indexing="ij")
    mixed = (rows * 7919 + columns * 104729 + rows * columns * 1299709 + 12345) % 65521
    table = ((mixed - 32760) / 32768).astype(np.float32)

    def evaluate(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        flat = views.reshape(len(views), -1)
        return flat @ table[:, :-1], np.clip(flat @ table[:, -1] / 4, -1.0, 1.0)

    return evaluate


@pytest.mark.parametrize(
    "golden", GOLDEN, ids=lambda golden: f"{golden['size']}-{golden['simulations']}-{golden['considered']}"
)
def test_the_search_is_that_of_mctx(golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    games, noise = parse(golden["boards"]), np.array(golden["noise"])
    monkeypatch.setattr(TreeSearch, "_noise", lambda *_: noise)
    search = TreeSearch(golden["simulations"], considered=golden["considered"], solve=False)
    found = search.search(games, network(golden["size"]), np.zeros(len(games), np.uint64))
    assert found.visits.tolist() == golden["visits"]
    assert found.moves.tolist() == golden["moves"]
    assert found.values == pytest.approx(np.array(golden["values"]), abs=2e-6)
    assert found.policies == pytest.approx(np.array(golden["policies"]), abs=1e-5)


def test_the_golden_positions_differ() -> None:
    """Among them openings and ends, either player's turn, and trees that come to won games."""
    for golden in GOLDEN:
        games = parse(golden["boards"])
        assert len(set(golden["boards"])) >= 4
        assert len(np.unique(games.legal().sum(axis=1))) >= 3
        assert set(games.movers.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("considered", "simulations", "expected"),
    [
        (16, 64, [0] * 16 + [1] * 8 + [2] * 8 + [3] * 4 + [4] * 4 + [5] * 4 + [6] * 4
         + [visits for visits in range(7, 15) for _ in range(2)]),
        (16, 16, [0] * 16), (16, 2, [0, 0]), (8, 8, [0] * 8), (4, 8, [0, 0, 0, 0, 1, 1, 2, 2]),
        (3, 10, [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]), (2, 5, [0, 0, 1, 1, 2]), (1, 4, [0, 1, 2, 3]),
        (7, 24, [0] * 7 + [1] * 3 + [2] * 3 + [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]),
        (5, 20, [0] * 5 + [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]),
    ],
)  # fmt: skip
def test_halving_is_that_of_mctx(considered: int, simulations: int, expected: list[int]) -> None:
    """`get_sequence_of_considered_visits` of mctx. A game of a smaller budget has the same in a wider table."""
    assert _schedule(considered, simulations, simulations)[considered].tolist() == expected
    assert _schedule(16, simulations, 99)[considered, :simulations].tolist() == expected


@pytest.mark.parametrize(("considered", "simulations"), [(16, 64), (4, 8), (8, 48), (2, 9)])
def test_a_root_is_visited_as_its_schedule_says(considered: int, simulations: int) -> None:
    """What a move has been visited when it is next taken, whatever the values: on the empty board of 5x5."""
    schedule = _schedule(considered, simulations, simulations)[considered]
    taken = np.zeros((20, 25), np.int64)
    games, names = Games(5, 20), np.arange(20, dtype=np.uint64)
    for budget in range(1, simulations + 1):
        # The schedule of the whole budget, cut short.
        search = TreeSearch(budget, considered=considered, solve=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(board_tree, "_schedule", lambda most, held, room: _schedule(most, simulations, simulations))
            visits = search.search(games, network(5), names).visits
        steps = visits - taken
        assert (steps.sum(axis=1) == 1).all()
        assert (taken[steps == 1] == schedule[budget - 1]).all()
        taken = visits
