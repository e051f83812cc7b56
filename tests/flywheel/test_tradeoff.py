"""The trade-off's plane on players that follow Jones's, his frontier by brute force, and what cannot be fitted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.errors import InputError
from flywheel.scaling.tradeoff import (
    Tradeoff,
    TradeoffPoints,
    fit_tradeoff,
    resample_tradeoff_seeds,
    tradeoff_intervals,
    tradeoff_pairs,
)

SLOPE, ELO_SLOPE, OFFSET = -1.2, 0.004, 29.0
LEVELS = (-1250.0, -1000.0, -750.0, -500.0, -250.0)


def points(rows: list[tuple[str, int, int, int, float, float, float]]) -> TradeoffPoints:
    """(run, seed, snapshot, budget, log10 training FLOPs, log10 test FLOPs, Elo)"""
    runs, seeds, snapshots, budgets, log_train, log_test, elo = (np.array(column) for column in zip(*rows, strict=True))
    return TradeoffPoints(runs, seeds, snapshots, budgets, 10.0**log_train, 10.0**log_test, elo)


def world(
    generator: np.random.Generator, noise: float, num_seeds: int = 5, budget_step: float = 2.0, networks: int = 3
) -> TradeoffPoints:
    """Networks of 9x9, snapshots and budgets of search; seeds and games are off by `noise` Elo each."""
    rows = []
    for network in range(networks):
        for seed in range(num_seeds):
            luck = generator.normal(0.0, noise)
            for snapshot, x in enumerate(np.arange(13.0, 16.0, 0.13) + 0.31 * network):
                for step in range(int(9.0 / np.log2(budget_step)) + 1):
                    y = 7.2 + 0.43 * network + step * np.log10(budget_step)
                    elo = min(0.0, (y - SLOPE * x - OFFSET) / ELO_SLOPE)
                    rated = elo + (luck + generator.normal(0.0, noise)) * (elo < 0.0)
                    rows.append((f"network{network}", seed, snapshot, step, x, y, rated))
    return points(rows)


def coefficients(fitted: Tradeoff) -> list[float]:
    return [fitted.slope, fitted.elo_slope, fitted.offset]


def test_budgets_in_small_steps_give_the_constants_back() -> None:
    fitted = fit_tradeoff(world(np.random.default_rng(0), noise=0.0, num_seeds=1, budget_step=1.05, networks=1), LEVELS)
    # The least budget is reached by a snapshot with up to 0.13 decades more training than would do.
    assert fitted.slope == pytest.approx(SLOPE, rel=0.015)
    assert fitted.elo_slope == pytest.approx(ELO_SLOPE, rel=0.01)
    assert fitted.offset == pytest.approx(OFFSET, abs=0.3)
    assert fitted.exchange == pytest.approx(15.8, rel=0.04)
    assert fitted.root_mean_square < 0.02
    assert fitted.within == pytest.approx(fitted.slope, rel=0.01)
    assert fitted.exchange_within == pytest.approx(15.8, rel=0.04)


def test_noisy_players_give_the_constants_back() -> None:
    fits = np.array(
        [coefficients(fit_tradeoff(world(np.random.default_rng(seed), 20.0), LEVELS)) for seed in range(20)]
    )
    # The standard errors of these means are about 0.002, 0.00001 and 0.03; steps of budgets leave some percent.
    assert fits.mean(axis=0) == pytest.approx([SLOPE, ELO_SLOPE, OFFSET], rel=0.03)


def test_residuals_are_those_of_the_plane_and_least() -> None:
    fitted = fit_tradeoff(world(np.random.default_rng(3), noise=30.0), LEVELS)
    design = np.stack([np.log10(fitted.pairs.train_flops), fitted.pairs.levels, np.ones(len(fitted.residuals))])
    plane = np.array(coefficients(fitted))
    assert fitted.residuals == pytest.approx(np.log10(fitted.pairs.test_flops) - plane @ design)
    # Orthogonal to every regressor: no other plane has smaller squares.
    assert design @ fitted.residuals == pytest.approx(np.zeros(3), abs=1e-6)
    assert fitted.root_mean_square == pytest.approx(np.sqrt((fitted.residuals**2).mean()))


def test_the_slope_within_levels_is_that_of_a_regression_with_an_offset_each() -> None:
    fitted = fit_tradeoff(world(np.random.default_rng(3), noise=30.0, budget_step=4.0), LEVELS)
    levels = np.unique(fitted.pairs.levels)
    dummies = (fitted.pairs.levels[:, None] == levels).astype(float)
    design = np.column_stack([np.log10(fitted.pairs.train_flops), dummies])
    assert fitted.within == pytest.approx(np.linalg.lstsq(design, np.log10(fitted.pairs.test_flops))[0][0])
    assert fitted.within == pytest.approx(SLOPE, rel=0.1)


def test_where_strength_bends_only_the_slope_within_levels_stays() -> None:
    """Elo squeezed towards perfect play: at every level the exchange is the same, from level to level it is not."""
    plane = world(np.random.default_rng(0), noise=0.0, num_seeds=1, budget_step=4.0)
    bent = dataclasses.replace(plane, elo=-1250.0 * (plane.elo / -1250.0) ** 3)
    found = fit_tradeoff(bent, LEVELS)
    assert found.within == pytest.approx(SLOPE, rel=0.05)
    assert abs(found.slope - SLOPE) > 2 * abs(found.within - SLOPE)


def test_pairs_are_the_least_test_flops_of_so_much_training() -> None:
    given = world(np.random.default_rng(4), noise=50.0, num_seeds=2)
    rows = []
    for run in np.unique(given.runs):
        for snapshot in np.unique(given.snapshots):
            for budget in np.unique(given.budgets):
                same = (given.runs == run) & (given.snapshots == snapshot) & (given.budgets == budget)
                rows.append((given.train_flops[same][0], given.test_flops[same][0], given.elo[same].mean()))
    got = tradeoff_pairs(given, LEVELS)
    assert np.unique(got.levels).tolist() == list(LEVELS)
    for level in LEVELS:
        expected: list[tuple[float, float]] = []
        for train in sorted({row[0] for row in rows}):
            reaching = [test for trained, test, elo in rows if trained <= train and elo > level]
            if reaching:
                expected.append((train, min(reaching)))
        floor = min(test for _, test in expected)
        expected = [pair for number, pair in enumerate(expected) if all(test > floor for _, test in expected[:number])]
        here = got.levels == level
        pairs = list(zip(got.train_flops[here].tolist(), got.test_flops[here].tolist(), strict=True))
        assert np.log10(pairs) == pytest.approx(np.log10(expected))


def test_a_drawing_of_one_level() -> None:
    """Players stronger than -500 are o, weaker ones x; pairs are P, and the repetition of the floor is none.

    test 4 |  x  P  o  o  o
         2 |  x  x  P  P  o
         1 |  x  x  x  x  P  o
    train     1  2  3  4  5  6
    """
    needed = {1: 8, 2: 4, 3: 2, 4: 2, 5: 1, 6: 1}
    given = points([
        ("run", 0, train, test, np.log10(train), np.log10(test), -400.0 if test >= needed[train] else -600.0)
        for train in needed
        for test in (1, 2, 4)
    ])  # fmt: skip
    got = tradeoff_pairs(given, (-500.0,))
    assert got.train_flops.tolist() == pytest.approx([2, 3, 4, 5])
    assert got.test_flops.tolist() == pytest.approx([4, 2, 2, 1])


def test_levels_that_say_nothing_have_no_pairs() -> None:
    """-3000 the least of all reaches, and at 100 nobody is."""
    given = world(np.random.default_rng(0), noise=0.0, num_seeds=1)
    assert np.unique(tradeoff_pairs(given, (-3000.0, -500.0, 100.0)).levels).tolist() == [-500.0]
    assert coefficients(fit_tradeoff(given, (-3000.0, *LEVELS, 100.0))) == coefficients(fit_tradeoff(given, LEVELS))


def test_a_lucky_seed_counts_with_the_others_of_its_configuration() -> None:
    even = world(np.random.default_rng(0), noise=0.0, num_seeds=1)
    lucky, unlucky = (
        dataclasses.replace(even, seeds=even.seeds + seed, elo=even.elo + luck)
        for seed, luck in ((1, 300.0), (2, -300.0))
    )
    names = [field.name for field in dataclasses.fields(even)]
    both = TradeoffPoints(*(np.concatenate([getattr(part, name) for part in (lucky, unlucky)]) for name in names))
    assert coefficients(fit_tradeoff(both, LEVELS)) == pytest.approx(coefficients(fit_tradeoff(even, LEVELS)))


def test_the_intervals_cover_what_the_players_without_luck_give() -> None:
    """At 95 % fewer than 16 of 20 come by chance once in 300 times, at 60 % nineteen times in twenty."""
    truth = coefficients(fit_tradeoff(world(np.random.default_rng(0), noise=0.0, num_seeds=1), LEVELS))
    covered, slopes, widths = np.zeros(3), [], []
    for seed in range(20):
        generator = np.random.default_rng(100 + seed)
        given = world(generator, noise=25.0)
        fitted = fit_tradeoff(given, LEVELS)
        got = tradeoff_intervals(fitted, (resample_tradeoff_seeds(given, generator) for _ in range(25)), LEVELS)
        found = (got.slope, got.elo_slope, got.offset)
        covered += [one.low <= value <= one.high for one, value in zip(found, truth, strict=True)]
        slopes.append(fitted.slope)
        widths.append(got.slope.high - got.slope.low)
    assert (covered >= 16).all(), covered
    assert 0.6 < np.mean(widths) / (3.92 * np.std(slopes)) < 1.7


def test_draws_without_a_slope_are_left_out_and_counted() -> None:
    given = world(np.random.default_rng(0), noise=10.0)
    short = given.take(np.flatnonzero((given.runs == "network0") & (given.snapshots < 3)))
    fitted = fit_tradeoff(given, LEVELS)
    got = tradeoff_intervals(fitted, [given, short, given], LEVELS)
    assert (got.unidentified, got.slope.count) == (1, 2)
    assert got.exchange.low == got.exchange.high == pytest.approx(fitted.exchange)
    with pytest.raises(InputError, match="got 1 draws whose fit is identified"):
        tradeoff_intervals(fitted, [short, given], LEVELS)


def test_what_cannot_tell_a_slope_is_refused() -> None:
    given = world(np.random.default_rng(0), noise=0.0, num_seeds=1)
    with pytest.raises(InputError, match=r"for 1 of 2 levels .* ask for levels inside the range of the Elo, -\d+ to 0"):
        fit_tradeoff(given, (-500.0, 50.0))
    with pytest.raises(InputError, match=r"for 0 of 1 levels of Elo \(none\)"):
        fit_tradeoff(given, (50.0,))
    early = given.take(np.flatnonzero((given.runs == "network0") & (given.snapshots < 3)))
    with pytest.raises(InputError, match=r"too short a range of training compute .* add earlier snapshots"):
        fit_tradeoff(early, LEVELS)


def test_points_that_cannot_be_are_refused() -> None:
    given = world(np.random.default_rng(0), noise=0.0, num_seeds=1)
    with pytest.raises(InputError, match=r"got test_flops -.* in row 0, expected above 0 and finite"):
        dataclasses.replace(given, test_flops=-given.test_flops)
    with pytest.raises(InputError, match="expected one row of each for every point"):
        given.take(np.zeros((1, 1), dtype=np.int64))
