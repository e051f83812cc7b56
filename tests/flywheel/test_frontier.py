"""The frontier's law on worlds that follow Jones's, against another optimiser, and what cannot be fitted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from flywheel.errors import InputError
from flywheel.scaling.frontier import (
    Floats,
    Frontier,
    Points,
    fit_frontier,
    frontier_intervals,
    frontier_points,
    percentiles,
    resample_seeds,
    seed_rows,
)
from flywheel.scaling.uncertainty import interval_of

SLOPE, SIZE_SLOPE, OFFSET = 510.0, -430.0, -4400.0
PLATEAU_SLOPE, PLATEAU_OFFSET = -270.0, 570.0


def law(size: Floats, log_flops: Floats) -> Floats:
    plateau = PLATEAU_SLOPE * size + PLATEAU_OFFSET
    return np.minimum(0.0, np.maximum(plateau, SLOPE * log_flops + SIZE_SLOPE * size + OFFSET))


def points(rows: list[tuple[int, str, int, int, float, float]]) -> Points:
    """(size, run, seed, snapshot, log10 FLOPs, Elo)"""
    sizes, runs, seeds, snapshots, log_flops, elo = zip(*rows, strict=True)
    return Points(
        np.array(sizes),
        np.array(runs),
        np.array(seeds),
        np.array(snapshots),
        10.0 ** np.array(log_flops),
        np.array(elo),
    )


def on_law(sizes: tuple[int, ...], decades: Floats) -> Points:
    """One run with one seed on each size, without noise."""
    return points([
        (size, "run", 0, snapshot, x, float(law(np.float64(size), x)))
        for size in sizes
        for snapshot, x in enumerate(decades)
    ])  # fmt: skip


def together(*parts: Points) -> Points:
    names = [field.name for field in dataclasses.fields(Points)]
    return Points(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def world(generator: np.random.Generator, noise: float, num_seeds: int = 4) -> Points:
    """5x5 to 7x7; networks that each touch the law where they are best; seeds and games are off by `noise` Elo each."""
    rows = []
    for size in (5, 6, 7):
        for best in np.arange(9.0, 16.0):
            for seed in range(num_seeds):
                luck = generator.normal(0.0, noise)
                for snapshot, x in enumerate(np.arange(best - 0.75, best + 0.8, 0.25)):
                    below = 20.0 * (x - best) ** 2
                    elo = float(law(np.float64(size), x)) - below + luck + generator.normal(0.0, noise)
                    rows.append((size, f"width{best:.0f}", seed, snapshot, x + generator.normal(0.0, 0.01), elo))
    return points(rows)


def coefficients(fitted: Frontier) -> list[float | None]:
    return [fitted.slope, fitted.size_slope, fitted.offset, fitted.plateau_slope, fitted.plateau_offset]


def test_points_on_the_law_give_its_constants_back() -> None:
    fitted = fit_frontier(on_law((3, 4, 5, 6, 7, 8, 9), np.arange(8.0, 18.0, 0.2)))
    assert coefficients(fitted) == pytest.approx([SLOPE, SIZE_SLOPE, OFFSET, PLATEAU_SLOPE, PLATEAU_OFFSET], rel=1e-6)
    assert fitted.compute_factor == pytest.approx(6.97, abs=0.01)
    assert fitted.root_mean_square < 1e-6
    assert fitted.plateau_sizes == (3, 4, 5, 6, 7, 8, 9)
    # At 9x9 the incline goes from the plateau's end, 12.57, to saturation, 16.1.
    assert fitted.decades[9] == pytest.approx(3.4, abs=0.01)
    size, flops = np.array([5.0, 5.0, 9.0, 7.0]), 10.0 ** np.array([9.0, 17.0, 15.0, 13.5])
    assert fitted.predict(size, flops) == pytest.approx(law(size, np.log10(flops)), abs=1e-6)


def test_noisy_worlds_give_the_slopes_back() -> None:
    fits = [fit_frontier(world(np.random.default_rng(seed), noise=15.0)) for seed in range(20)]
    # The standard error of a fit is about 9 Elo a decade, of a mean over 20 about 2; the frontier bends by that much.
    assert np.mean([fitted.slope for fitted in fits]) == pytest.approx(SLOPE, abs=10.0)
    assert np.mean([fitted.size_slope for fitted in fits]) == pytest.approx(SIZE_SLOPE, abs=10.0)
    assert np.mean([fitted.compute_factor for fitted in fits]) == pytest.approx(10 ** (430 / 510), rel=0.03)
    assert np.mean([fitted.plateau_slope for fitted in fits]) == pytest.approx(PLATEAU_SLOPE, abs=6.0)


def test_the_frontier_is_the_best_mean_for_at_most_so_much() -> None:
    given = world(np.random.default_rng(5), noise=60.0)
    envelope = frontier_points(given)
    for size in (5, 6, 7):
        means = {}
        for run in np.unique(given.runs):
            for snapshot in np.unique(given.snapshots):
                rows = (given.sizes == size) & (given.runs == run) & (given.snapshots == snapshot)
                means[run, snapshot] = np.log10(given.flops[rows]).mean(), given.elo[rows].mean()
        here = envelope.sizes == size
        assert (np.diff(envelope.flops[here]) > 0).all()
        assert (np.diff(envelope.elo[here]) > 0).all()
        for cost, _ in means.values():
            reached = envelope.elo[here & (np.log10(envelope.flops) <= cost + 1e-9)]
            assert reached.max() == pytest.approx(max(elo for flops, elo in means.values() if flops <= cost))
        for run, snapshot, flops in zip(
            envelope.runs[here], envelope.snapshots[here], envelope.flops[here], strict=True
        ):
            assert np.log10(flops) == pytest.approx(means[run, snapshot][0])


def test_a_lucky_seed_counts_with_the_others_of_its_configuration() -> None:
    even = on_law((5, 6, 7), np.arange(9.0, 14.0, 0.25))
    lucky, unlucky = (
        dataclasses.replace(even, seeds=even.seeds + seed, elo=even.elo + luck)
        for seed, luck in ((1, 300.0), (2, -300.0))
    )
    both = together(lucky, unlucky)
    assert coefficients(fit_frontier(both)) == pytest.approx(coefficients(fit_frontier(even)))


def test_saturated_points_do_not_move_the_slope() -> None:
    rising = on_law((5, 6, 7), np.arange(8.0, 13.6, 0.1))
    saturated = points([
        (size, "large", 0, snapshot, 14.5 + 0.1 * snapshot, -45.0 + snapshot)
        for size in (5, 6, 7)
        for snapshot in range(40)
    ])  # fmt: skip
    both = together(rising, saturated)
    fitted = fit_frontier(both)
    assert fitted.slope == pytest.approx(SLOPE, rel=1e-6)
    assert coefficients(fitted) == pytest.approx(coefficients(fit_frontier(rising)), rel=1e-9)
    assert not fitted.used[fitted.points.elo >= -50.0].any()
    assert fitted.used[fitted.points.elo < -50.0].all()
    assert np.isnan(fitted.residuals[~fitted.used]).all()
    # They would have, had they been let in.
    assert fit_frontier(both, saturation=None).slope < SLOPE - 100.0


def test_play_that_bends_over_near_perfection_leaves_the_slope() -> None:
    """Above -200 Elo the world halves its distance to perfect play every 0.4 decades, instead of reaching it."""
    rows = []
    for size in (5, 6, 7):
        bend = (-200.0 - OFFSET - SIZE_SLOPE * size) / SLOPE
        for snapshot, x in enumerate(np.arange(8.0, 17.0, 0.1)):
            bent = -200.0 * 0.5 ** ((x - bend) / 0.4)
            rows.append((size, "run", 0, snapshot, x, bent if x > bend else float(law(np.float64(size), x))))
    assert fit_frontier(points(rows), saturation=-200.0).slope == pytest.approx(SLOPE, rel=1e-6)
    assert fit_frontier(points(rows)).slope == pytest.approx(SLOPE, rel=0.15)
    assert fit_frontier(points(rows), saturation=None).slope < 0.6 * SLOPE


@pytest.mark.parametrize("seed", range(6))
def test_no_other_optimiser_finds_smaller_squares(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fitted = fit_frontier(world(generator, noise=(5.0, 20.0, 50.0)[seed % 3], num_seeds=2))
    size, flops, elo = (values[fitted.used] for values in (fitted.points.sizes, fitted.points.flops, fitted.points.elo))

    def errors(at: Floats) -> Floats:
        rising = at[0] * np.log10(flops) + at[1] * size + at[2]
        return np.asarray(np.maximum(at[3] * size + at[4], rising) - elo)

    least = np.inf
    for _ in range(40):
        low, high = (0.0, -900.0, -9000.0, -600.0, -500.0), (900.0, 0.0, 0.0, 0.0, 1500.0)
        start = generator.uniform(low, high)
        start[2] -= errors(start).mean()
        least = min(least, 2.0 * optimize.least_squares(errors, start, x_scale=(100, 100, 1000, 100, 500)).cost)
    assert (fitted.residuals[fitted.used] ** 2).sum() <= least * (1.0 + 1e-6)
    model = optimize.curve_fit(
        lambda _, *at: errors(np.array(at)) + elo,
        np.arange(len(elo)),
        elo,
        [value or 0.0 for value in coefficients(fitted)],
    )[0]
    assert model.tolist() == pytest.approx(coefficients(fitted), rel=1e-4)


def test_the_intervals_cover_the_law_and_are_no_wider_than_they_need_be() -> None:
    """At 95 % fewer than 16 of 20 come by chance once in 300 times, at 60 % nineteen times in twenty."""
    covered, slopes, widths = np.zeros(3), [], []
    for seed in range(20):
        generator = np.random.default_rng(100 + seed)
        given = world(generator, noise=15.0)
        fitted = fit_frontier(given)
        got = frontier_intervals(fitted, (resample_seeds(given, generator) for _ in range(25)))
        assert got.unidentified == 0
        assert got.slope.count == 25
        truths = (SLOPE, SIZE_SLOPE, 10 ** (430 / 510))
        found = (got.slope, got.size_slope, got.compute_factor)
        covered += [one.low <= truth <= one.high for one, truth in zip(found, truths, strict=True)]
        slopes.append(fitted.slope)
        widths.append(got.slope.high - got.slope.low)
    assert (covered >= 16).all(), covered
    assert 0.6 < np.mean(widths) / (3.92 * np.std(slopes)) < 1.7


def test_draws_without_a_slope_are_left_out_and_counted() -> None:
    given = world(np.random.default_rng(0), noise=10.0)
    one_size = given.take(np.flatnonzero(given.sizes == 6))
    fitted = fit_frontier(given)
    got = frontier_intervals(fitted, [given, one_size, given, one_size, one_size])
    assert (got.unidentified, got.slope.count) == (3, 2)
    assert got.slope.low == got.slope.high == pytest.approx(fitted.slope)
    with pytest.raises(InputError, match="got 1 draws whose fit is identified, expected two or more"):
        frontier_intervals(fitted, [given, one_size])


def test_a_frontier_that_starts_on_the_incline_has_no_plateau() -> None:
    fitted = fit_frontier(on_law((5, 6, 7), np.array([12.6, 12.8, 13.0, 13.2, 13.4])))
    assert coefficients(fitted) == [pytest.approx(SLOPE), pytest.approx(SIZE_SLOPE), pytest.approx(OFFSET), None, None]
    assert fitted.predict(5, 1e10) == pytest.approx(SLOPE * 10.0 + SIZE_SLOPE * 5.0 + OFFSET)


def test_one_size_on_the_plateau_has_its_height_and_no_line() -> None:
    rows = [
        (5, "run", 0, number, x, float(law(np.float64(5), x))) for number, x in enumerate(np.arange(9.0, 12.6, 0.2))
    ]
    rows += [
        (7, "run", 0, number, x, float(law(np.float64(7), x))) for number, x in enumerate(np.arange(12.5, 14.0, 0.2))
    ]
    fitted = fit_frontier(points(rows))
    assert (fitted.plateau_slope, fitted.plateau_sizes) == (None, (5,))
    assert fitted.plateau_offset == pytest.approx(5 * PLATEAU_SLOPE + PLATEAU_OFFSET)
    assert fitted.slope == pytest.approx(SLOPE)
    assert fitted.predict([5, 7], 1e9).tolist() == pytest.approx([-780.0, SLOPE * 9.0 + SIZE_SLOPE * 7.0 + OFFSET])
    assert frontier_intervals(fitted, [points(rows)] * 2).plateau_slope is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (on_law((6,), np.arange(9.0, 13.0, 0.2)), r"of 1 board sizes .* add runs of another size"),
        (on_law((3, 4), np.arange(15.0, 17.0, 0.2)), r"below saturation of 0 board sizes \(no points\)"),
        (on_law((5, 6, 7), np.arange(12.7, 13.1, 0.1)), r"too short a range below saturation .* add earlier snapshots"),
        (on_law((5, 6, 7), np.arange(8.0, 9.0, 0.1)), r"too short a range .* longer runs"),
    ],
)  # fmt: skip
def test_what_cannot_tell_a_slope_is_refused(given: Points, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_frontier(given)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_many_untrained_networks_is_no_incline(seed: int) -> None:
    generator = np.random.default_rng(seed)
    level = on_law((7, 8, 9), np.arange(8.0, 11.0, 0.05))
    with pytest.raises(InputError, match="too short a range"):
        fit_frontier(dataclasses.replace(level, elo=level.elo + generator.normal(0.0, 20.0, len(level.elo))))


def test_points_that_cannot_be_are_refused() -> None:
    good = on_law((5, 6), np.arange(9.0, 13.0, 0.5))
    with pytest.raises(InputError, match=r"got flops 0.0 in row 0, expected above 0 and finite; leave the row out"):
        dataclasses.replace(good, flops=good.flops * 0.0)
    with pytest.raises(InputError, match=r"got elo nan in row 0, expected finite"):
        dataclasses.replace(good, elo=good.elo * np.nan)
    with pytest.raises(InputError, match=r"seeds \(3,\).* expected one row of each for every point"):
        dataclasses.replace(good, seeds=good.seeds[:3])


def test_seeds_are_drawn_whole_and_within_their_configuration() -> None:
    given = world(np.random.default_rng(1), noise=1.0, num_seeds=3)
    drawn = resample_seeds(given, np.random.default_rng(2))
    assert len(drawn.elo) == len(given.elo) * 2 // 3
    for size in (5, 6, 7):
        for run in np.unique(given.runs):
            here = (drawn.sizes == size) & (drawn.runs == run)
            for seed in np.unique(drawn.seeds[here]):
                times = np.bincount(drawn.snapshots[here & (drawn.seeds == seed)])
                assert (times == times[0]).all()
    again = resample_seeds(given, np.random.default_rng(2))
    assert (drawn.elo == again.elo).all()


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_a_mean_over_drawn_seeds_varies_as_means_over_seeds_do(num_seeds: int) -> None:
    generator = np.random.default_rng(num_seeds)
    elo = generator.normal(0.0, 100.0, num_seeds)
    means = []
    for _ in range(1500):
        means.append(elo[seed_rows([np.zeros(num_seeds)], np.arange(num_seeds), generator)].mean())
    # The standard error of the estimated variance is about 4 %.
    assert np.var(means) == pytest.approx(np.var(elo, ddof=1) / num_seeds, rel=0.15)


def test_one_seed_everywhere_tells_nothing_of_seeds() -> None:
    given = on_law((5, 6), np.arange(9.0, 13.0, 0.5))
    with pytest.raises(InputError, match="train some configurations with two seeds or more"):
        resample_seeds(given, np.random.default_rng(0))


def test_percentiles_are_those_of_the_draws() -> None:
    got = percentiles(3.0, [float(number) for number in range(1001)])
    assert (got.value, got.low, got.high, got.count) == (3.0, 25.0, 975.0, 1001)


@pytest.mark.parametrize("infinite", [0, 1, 3, 40])
def test_percentiles_bear_infinite_draws_and_are_those_of_the_other_intervals(infinite: int) -> None:
    """A slope near 0 makes the compute factor infinite in some draws."""
    drawn = [*np.random.default_rng(0).normal(5.0, 2.0, 100 - infinite).tolist(), *[np.inf] * infinite]
    got = percentiles(5.0, drawn)
    assert got == interval_of(5.0, np.array(drawn))
    assert [got.low, got.high] == [sorted(drawn)[2], sorted(drawn)[97]]
    assert np.isinf(got.high) == (infinite >= 3)
