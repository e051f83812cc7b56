"""Self-play: games by the rules, what was searched in them, and what each game's draws depend on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from flywheel.problems.hex import FIRST, NOBODY, Games
from flywheel.search import self_play
from flywheel.search.board_tree import TreeSearch
from flywheel.search.self_play import Casting, Played
from flywheel.seeds import numbered_streams, uniform


def network(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Some function of each view alone, row by row."""
    flat = views.reshape(len(views), -1).astype(np.float64)
    cells = views.shape[2] * views.shape[3]
    mixed = np.sin(flat @ np.arange(1.0, flat.shape[1] + 1.0)[:, None] * np.arange(1.0, cells + 1.0) + 0.3)
    logits = np.concatenate([mixed, np.zeros((len(views), views.shape[1] - 2))], axis=1)
    return logits.astype(np.float32), np.tanh(mixed.mean(axis=1)).astype(np.float32)


def keys(count: int, seed: int = 0) -> npt.NDArray[np.uint64]:
    return np.array(numbered_streams(seed, "game", numbers=range(count)), np.uint64)


def played(games: Games, casting: Casting, simulations: int = 16, seed: int = 0) -> Played:
    return self_play.play(games, network, TreeSearch(simulations), casting, keys(len(games), seed))


@pytest.mark.parametrize("swap", [False, True])
def test_what_was_searched_are_the_positions_of_the_games(swap: bool) -> None:
    openings = Games(4, 12, swap)
    openings.play([3] * 6 + [7] * 6)
    found = played(openings, Casting(1.0, 4))
    at = found.positions
    again = openings.select(np.arange(12))
    for game in range(12):
        rows = np.flatnonzero(at.games == game)
        assert at.plies[rows].tolist() == list(range(1, 1 + len(rows)))
        line = again.select(np.array([game]))
        for row in rows:
            assert line.winners[0] == NOBODY
            assert (line.stones()[0] == at.boards[row]).all()
            assert (line.movers[0], line.plies[0]) == (at.movers[row], at.plies[row])
            assert (at.policies[row][~line.legal()[0]] == 0.0).all()
            assert at.policies[row].sum() == pytest.approx(1.0, abs=1e-5)
            line.play([at.moves[row]])
        assert line.winners[0] == found.winners[game] != NOBODY
    assert (openings.plies == 1).all(), "the openings stay as they were"


def test_a_game_is_the_same_whatever_is_played_beside_it() -> None:
    together = played(Games(4, 10), Casting(1.0, 6, full_share=0.5, fast_simulations=4)).positions
    for game in (0, 7):
        alone = self_play.play(
            Games(4, 1), network, TreeSearch(16), Casting(1.0, 6, 0.5, 4), keys(10)[game : game + 1]
        ).positions
        rows = together.games == game
        assert alone.moves.tolist() == together.moves[rows].tolist()
        assert (alone.policies == together.policies[rows]).all()
        assert alone.full.tolist() == together.full[rows].tolist()


def test_games_of_other_keys_differ_and_plies_draw_anew() -> None:
    at = played(Games(5, 64), Casting(1.0, 30)).positions
    firsts = at.moves[at.plies == 0]
    assert len(set(firsts.tolist())) > 3
    lines = {tuple(at.moves[at.games == game].tolist()) for game in range(64)}
    assert len(lines) == 64


def test_playout_cap_gives_a_share_of_the_moves_all_simulations() -> None:
    at = played(Games(5, 96), Casting(1.0, 30, full_share=0.25, fast_simulations=4)).positions
    assert set(at.simulations[at.full].tolist()) == {16}
    assert set(at.simulations[~at.full].tolist()) == {4}
    # 95 % of such shares lie within two standard errors.
    assert abs(at.full.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(at.full))
    assert at.full[at.plies == 0].mean() < 0.6 < at.full.mean() * 4, "every ply is drawn for itself"


def test_drawn_moves_follow_the_policy_to_the_power_of_one_over_the_temperature() -> None:
    policy = np.array([[0.5, 0.0, 0.3, 0.2]], np.float32)
    chance = (np.arange(4000) + 0.5) / 4000
    for temperature, wanted in ((1.0, [0.5, 0.0, 0.3, 0.2]), (0.5, [25 / 38, 0.0, 9 / 38, 4 / 38])):
        moves = self_play._drawn(np.repeat(policy, 4000, axis=0), temperature, chance)
        shares = np.bincount(moves, minlength=4) / 4000
        assert shares == pytest.approx(wanted, abs=1e-3)
    never = self_play._drawn(policy, 1.0, np.array([1.0 - 2.0**-53]))
    assert never[0] == 3


def test_after_the_sampled_plies_the_move_is_the_search_s_own() -> None:
    search, names = TreeSearch(16), keys(20)
    at = self_play.play(Games(4, 20), network, search, Casting(1.0, 0), names).positions
    start = at.plies == 0
    found = search.search(Games(4, 20), network, self_play._keys_at(names, np.zeros(20, np.int16), self_play._SEARCH))
    assert at.moves[start].tolist() == found.moves.tolist()
    assert (at.policies[start] == found.policies).all()


def test_the_search_s_noise_says_nothing_of_the_other_draws() -> None:
    """Neither of which moves get all simulations nor of which move is drawn. Of 8000 games a correlation by chance is
    below 0.05."""
    names, plies = keys(8000), np.full(8000, 3, np.int16)
    others = [uniform(self_play._keys_at(names, plies, what), 0) for what in (self_play._CAP, self_play._DRAW)]
    searched = self_play._keys_at(names, plies, self_play._SEARCH)
    columns = [*others, *(uniform(searched, action) for action in range(30))]
    between = np.corrcoef(np.stack(columns)) - np.eye(32)
    assert np.abs(between).max() < 0.05


def test_surprise_is_the_divergence_from_what_the_network_said() -> None:
    search, names = TreeSearch(16), keys(6)
    at = self_play.play(Games(4, 6), network, search, Casting(1.0, 0), names).positions
    logits, _ = network(Games(4, 6).views().astype(np.float32))
    prior = np.exp(logits[0].astype(np.float64)) / np.exp(logits[0].astype(np.float64)).sum()
    for row in np.flatnonzero(at.plies == 0):
        policy = at.policies[row].astype(np.float64)
        held = policy > 0
        assert at.surprises[row] == pytest.approx((policy[held] * np.log(policy[held] / prior[held])).sum(), abs=1e-4)


def test_games_that_are_over_are_left_as_they_are() -> None:
    games = Games(2, 1)
    for move in (0, 1, 2):
        games.play([move])
    assert games.winners[0] == FIRST
    found = played(games, Casting(1.0, 4))
    assert (found.winners.tolist(), len(found.positions.games), found.evaluations) == ([FIRST], 0, 0)
