"""A law of accuracy on worlds whose law is known: exact, then with problems, seeds and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.special import expit, logit, ndtri

from flywheel.errors import InputError
from flywheel.scaling.law import Cells, Floats, Law, Spread, Term, fit
from flywheel.scaling.selection import choose_terms
from flywheel.scaling.uncertainty import Draws, bootstrap, new_runs, predictive

AXES = ("parameters", "training", "runtime")
LINEAR: tuple[Term, ...] = ((), ("parameters",), ("training",), ("runtime",))
CROSSED: tuple[Term, ...] = (*LINEAR, ("parameters", "training"))
BENT: tuple[Term, ...] = (*CROSSED, ("training", "training"))
TRUTH: dict[Term, float] = {(): -0.3, ("parameters",): 0.9, ("training",): 0.8, ("runtime",): 0.6}
CENTRE = np.array([7.0, 16.5, 9.5])
"""Of the world's law, log10; a fit has its own."""
POINT = {"parameters": 1e7, "training": 1e16, "runtime": 1e9}


def grid(sizes: int, seeds: int, snapshots: int, budgets: int) -> tuple[Floats, list[str], list[int]]:
    """Runs of sizes 10^6 to 10^8, trained for three decades, each size later than the one before."""
    values, configurations, numbers = [], [], []
    for size in np.logspace(6, 8, sizes):
        for seed in range(seeds):
            for training in np.logspace(0, 3, snapshots):
                for budget in np.logspace(0, 2, budgets):
                    values.append((size, 1e8 * size * training, 100 * size * budget))
                    configurations.append(f"{size:.3g}")
                    numbers.append(seed)
    return np.array(values), configurations, numbers


def logits(values: Floats, law: Mapping[Term, float], centre: Floats = CENTRE) -> Floats:
    centred = np.log10(values) - centre
    parts = [
        coefficient * np.prod([centred[:, AXES.index(axis)] for axis in term], axis=0)
        for term, coefficient in law.items()
    ]
    return np.asarray(sum(parts))


def exact(law: Mapping[Term, float], floor: float, ceiling: float, sizes: int = 4) -> Cells:
    """Every problem is as hard as the mean, and outcomes are chances."""
    values, configurations, seeds = grid(sizes, 1, 5, 3)
    accuracies = floor + (ceiling - floor) * expit(logits(values, law))
    outcomes = np.repeat(accuracies[:, None], 10, axis=1)
    return Cells(AXES, values, tuple(configurations), tuple(seeds), outcomes, tuple("0123456789"))


def noisy(
    generator: np.random.Generator,
    law: Mapping[Term, float] = TRUTH,
    seeds: int = 3,
    deviation: float = 0.3,
    problems: int = 150,
    sizes: int = 5,
) -> Cells:
    """Each run's logit is shifted; a problem is right where its ease, 0.8 of its variance shared by all cells, is
    enough, so that the mean over all problems there could be is the law's."""
    values, configurations, numbers = grid(sizes, seeds, 4, 3)
    runs = list(zip(configurations, numbers, strict=True))
    shifts = {run: generator.normal(0.0, deviation) for run in dict.fromkeys(runs)}
    accuracies = 0.02 + 0.95 * expit(logits(values, law) + np.array([shifts[run] for run in runs]))
    ease = math.sqrt(0.8) * generator.normal(size=problems)
    ease = ease + math.sqrt(0.2) * generator.normal(size=(len(values), problems))
    outcomes = (ease < ndtri(accuracies)[:, None]).astype(float)
    return Cells(AXES, values, tuple(configurations), tuple(numbers), outcomes, tuple(map(str, range(problems))))


def drawn_law(coefficients: Sequence[float], terms: Sequence[Term] = BENT, runs: float = 0.0) -> Law:
    """A law made by hand, floor 0.1 and ceiling 0.9, measured at the corners of a cube of two decades."""
    corners = CENTRE + np.array(np.meshgrid(*[(-1.0, 1.0)] * 3)).reshape(3, -1).T
    spread = Spread(runs, 10.0, 0.0, 100.0)
    return Law(AXES, tuple(terms), CENTRE, np.array(coefficients), 0.1, 0.9, corners, np.zeros(8), spread)


def test_an_exact_world_is_recovered() -> None:
    law = TRUTH | {("parameters", "training"): -0.15, ("training", "training"): -0.1}
    fitted = fit(exact(law, 0.03, 0.92), BENT)
    assert (fitted.floor, fitted.ceiling) == pytest.approx((0.03, 0.92), abs=1e-3)
    assert fitted.root_mean_square < 1e-4
    # The same law about the fit's own centre: derivatives at that centre.
    step = fitted.centres - CENTRE
    slopes = fitted.slopes(dict(zip(AXES, 10.0**fitted.centres, strict=True)))
    assert slopes["training"] == pytest.approx(0.8 - 0.15 * step[0] - 0.2 * step[1], abs=0.01)
    assert slopes["runtime"] == pytest.approx(0.6, abs=0.01)
    by_term = dict(zip(BENT, fitted.coefficients.tolist(), strict=True))
    assert by_term[("parameters", "training")] == pytest.approx(-0.15, abs=0.01)
    assert by_term[("training", "training")] == pytest.approx(-0.1, abs=0.01)


def test_exchange_rates_are_recovered_from_noisy_worlds() -> None:
    """A decade of training is worth 0.8 / 0.6 of runtime and 0.8 / 0.9 of size; floor and ceiling within noise."""
    laws = [fit(noisy(np.random.default_rng(seed)), LINEAR) for seed in range(12)]
    for get, rate in (("runtime", 0.8 / 0.6), ("parameters", 0.8 / 0.9)):
        rates = [law.exchange_at(0.5, POINT, "training", "training", get) for law in laws]
        assert np.median(rates) == pytest.approx(rate, rel=0.1)
    assert np.mean([law.floor for law in laws]) == pytest.approx(0.02, abs=0.02)
    assert np.mean([law.ceiling for law in laws]) == pytest.approx(0.97, abs=0.03)


def test_the_fit_is_the_least_squares_of_scipy() -> None:
    cells = noisy(np.random.default_rng(5))
    law = fit(cells, CROSSED)
    accuracies = cells.accuracies
    fitted = accuracies - law.residuals
    roots = 1.0 / np.sqrt(fitted * (1.0 - fitted) / law.spread.problems + 0.01**2)
    terms = dict.fromkeys(CROSSED, 0.0)

    def errors(theta: Floats) -> Floats:
        predicted = logits(cells.values, dict(zip(terms, theta[:-2], strict=True)), law.centres)
        return np.asarray(roots * (theta[-2] + (theta[-1] - theta[-2]) * expit(predicted) - accuracies))

    low, high = [-9.0] * 5 + [0.0, accuracies.max()], [9.0] * 5 + [accuracies.min() + 1e-9, 1.0 + 1e-9]
    reference = least_squares(errors, [0.0] * 5 + [1e-9, 1.0], bounds=(low, high), x_scale="jac")
    assert float((errors(np.array([*law.coefficients, law.floor, law.ceiling])) ** 2).sum()) <= (
        2.0 * reference.cost * (1.0 + 2e-3)
    )


def test_slopes_are_derivatives() -> None:
    law = drawn_law([0.2, 0.9, 0.8, 0.6, -0.3, -0.2])
    for axis, slope in law.slopes(POINT).items():
        ends = [law.predict(POINT | {axis: POINT[axis] * 10.0**step}) for step in (1e-4, -1e-4)]
        up, down = (math.log((end - law.floor) / (law.ceiling - end)) for end in ends)
        assert slope == pytest.approx((up - down) / 2e-4, rel=1e-5)


def test_the_exchange_rate_keeps_accuracy() -> None:
    """Walking a little along the line of equal accuracy, less training is made good by so much runtime."""
    law = drawn_law([0.2, 0.9, 0.8, 0.6, -0.3, -0.2])
    start = law.at_accuracy(0.55, POINT, "training")
    assert start is not None
    assert law.predict(start) == pytest.approx(0.55)
    less = start | {"training": start["training"] * 10.0**-1e-4}
    end = law.at_accuracy(0.55, less, "runtime")
    assert end is not None
    rate = math.log10(end["runtime"] / start["runtime"]) / 1e-4
    assert law.exchange(start, "training", "runtime") == pytest.approx(rate, rel=1e-3)
    assert law.exchange_at(0.55, POINT, "training", "training", "runtime") == pytest.approx(rate, rel=1e-3)


def test_no_point_of_equal_accuracy() -> None:
    law = drawn_law([0.0, 0.9, 0.8, 0.6, 0.0, -0.2])
    assert law.at_accuracy(0.95, POINT, "runtime") is None, "above the ceiling"
    assert law.at_accuracy(0.1, POINT, "runtime") is None, "the floor itself"
    assert law.at_accuracy(0.899999, POINT, "training") is None, "above the parabola's top"
    found = law.at_accuracy(0.5, POINT, "training")
    assert found is not None
    assert law.slopes(found)["training"] > 0.0
    falling = drawn_law([0.0, 0.9, 0.8, -0.6], LINEAR)
    assert falling.at_accuracy(0.5, POINT, "runtime") is None, "only where accuracy rises"
    assert math.isnan(falling.exchange_at(0.95, POINT, "training", "training", "parameters"))
    assert falling.exchange(POINT, "training", "runtime") == math.inf
    assert math.isnan(falling.exchange(POINT, "runtime", "runtime"))


def test_points_are_checked() -> None:
    law = drawn_law([0.0, 0.9, 0.8, 0.6], LINEAR)
    with pytest.raises(InputError, match="no positive number for runtime"):
        law.predict({"parameters": 1e7, "training": 1e16, "runtime": 0.0})
    with pytest.raises(InputError, match="got search, expected axes"):
        law.exchange(POINT, "search", "runtime")


def test_extrapolation_is_said() -> None:
    law = drawn_law([0.0, 0.9, 0.8, 0.6], LINEAR)
    centre = dict(zip(AXES, 10.0**CENTRE, strict=True))
    within = law.extrapolates(centre)
    assert (within.beyond, within.outside) == ({}, False)
    assert within.distance == pytest.approx(math.sqrt(3.0))
    far = law.extrapolates(centre | {"parameters": 10.0 ** (CENTRE[0] + 1.5), "runtime": 10.0 ** (CENTRE[2] - 3.0)})
    assert far.outside
    assert far.beyond == pytest.approx({"parameters": 0.5, "runtime": -2.0})
    assert law.ranges["training"] == pytest.approx((10**15.5, 10**17.5))


def test_an_empty_corner_is_outside_though_no_axis_is() -> None:
    """Runs along the diagonal of size and training: the smallest size at the largest training is nowhere near."""
    cells = exact(TRUTH, 0.0, 1.0, sizes=6)
    law = fit(cells, LINEAR)
    size, training, runtime = cells.values[0, 0], cells.values[-1, 1], cells.values[:, 2].mean()
    corner = law.extrapolates({"parameters": size, "training": training, "runtime": runtime})
    assert corner.beyond == {}
    assert corner.outside


@pytest.mark.parametrize(
    ("change", "terms", "message"),
    [
        (lambda cells: replace(cells, values=cells.values * [[1, 1, 0]] + [[0, 0, 7]]), LINEAR, "the same runtime"),
        (lambda cells: cells.only(np.arange(len(cells.seeds)) % 13 == 0), CROSSED, "5 cells for 5 coefficients"),
        (lambda cells: replace(cells, values=cells.values[:, [0, 0, 2]]), LINEAR, "cannot tell these terms apart"),
        (lambda cells: replace(cells, outcomes=np.full(cells.outcomes.shape, 0.5)), LINEAR, "no effect can be seen"),
        (lambda cells: cells, (*LINEAR, ("search",)), "got terms of search"),
    ],
)
def test_what_the_data_cannot_tell_is_refused(change, terms, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        fit(change(exact(TRUTH, 0.0, 1.0)), terms)


def test_cells_are_checked() -> None:
    cells = exact(TRUTH, 0.0, 1.0)
    with pytest.raises(InputError, match="not all positive"):
        replace(cells, values=-cells.values)
    with pytest.raises(InputError, match="not all in 0"):
        replace(cells, outcomes=cells.outcomes + 1.0)
    with pytest.raises(InputError, match="expected"):
        replace(cells, seeds=(1,))


def test_copies_of_problems_add_no_certainty() -> None:
    cells = noisy(np.random.default_rng(1))
    thrice = replace(cells, outcomes=np.repeat(cells.outcomes, 3, axis=1), groups=tuple(np.repeat(cells.groups, 3)))
    once, again = fit(cells, LINEAR), fit(thrice, LINEAR)
    assert once.spread.problems == pytest.approx(149.0)
    assert again.spread.problems == pytest.approx(149.0)
    assert again.coefficients == pytest.approx(once.coefficients)


def test_the_difference_between_runs_is_estimated() -> None:
    for deviation in (0.0, 0.3, 0.6):
        found = [fit(noisy(np.random.default_rng(seed), deviation=deviation), LINEAR).spread.runs for seed in range(15)]
        assert math.sqrt(np.mean(np.square(found))) == pytest.approx(deviation, abs=0.07)


def test_bootstrap_intervals_cover_the_truth() -> None:
    """Coefficients of axes and two exchange rates, 24 worlds: 120 intervals, somewhat dependent."""
    covered = []
    for seed in range(24):
        generator = np.random.default_rng(1000 + seed)
        draws = bootstrap(noisy(generator), LINEAR, 80, generator)
        for at, term in list(enumerate(LINEAR))[1:]:
            found = draws.interval(lambda law, at=at: float(law.coefficients[at]))  # type: ignore[misc]
            covered.append(found.low <= TRUTH[term] <= found.high)
        rates = [(get, TRUTH[("training",)] / TRUTH[(get,)]) for get in ("runtime", "parameters")]
        for get, rate in rates:
            found = draws.interval(lambda law, get=get: law.exchange(POINT, "training", get))  # type: ignore[misc]
            covered.append(found.low <= rate <= found.high)
    assert 0.87 <= np.mean(covered) <= 0.99


def test_two_seeds_show_their_whole_variance() -> None:
    """Of n configurations, each with two runs 2 d of logit apart, the mean has the standard error d / sqrt(n). Drawing
    2 of 2 runs would show 0.7 of it, as the variance within the sample is half of that between runs."""
    once = exact(TRUTH, 0.0, 1.0, sizes=8)
    values, seeds = np.tile(once.values, (2, 1)), np.repeat((0, 1), len(once.seeds))
    risen = expit(logits(values, TRUTH) + 0.1 * (2.0 * seeds - 1.0))
    outcomes = np.repeat(risen[:, None], len(once.groups), axis=1)
    cells = Cells(AXES, values, once.configurations * 2, tuple(seeds.tolist()), outcomes, once.groups)
    draws = bootstrap(cells, LINEAR, 400, np.random.default_rng(0), resample_problems=False)
    means = logit(draws.accuracies(once.values)).mean(axis=1)
    assert means.std() == pytest.approx(0.1 / math.sqrt(8), rel=0.15)


def test_a_single_seed_still_shows_the_variance_between_runs() -> None:
    sizes, deviations = [], []
    for seed in range(60):
        generator = np.random.default_rng(3000 + seed)
        draws = bootstrap(noisy(generator, seeds=1, deviation=0.5, sizes=8), LINEAR, 20, generator)
        sizes.append(draws.law.coefficients[1])
        deviations.append(draws.coefficients[:, 1].std())
    assert math.sqrt(np.mean(np.square(deviations))) / np.std(sizes) == pytest.approx(1.0, abs=0.25)


def test_predictive_intervals_cover_held_back_configurations() -> None:
    """Intervals without the difference between runs must fail."""
    shares: dict[str, list[float]] = {"whole": [], "without runs": []}
    for seed in range(25):
        generator = np.random.default_rng(4000 + seed)
        cells = noisy(generator, deviation=0.4)
        out = np.array(cells.configurations) == sorted(set(cells.configurations))[seed % 5]
        draws = bootstrap(cells.only(~out), LINEAR, 80, generator, resample_problems=False)
        blind = replace(draws, law=replace(draws.law, spread=replace(draws.law.spread, runs=0.0)))
        for name, used in (("whole", draws), ("without runs", blind)):
            low, high = np.quantile(new_runs(used, cells.values[out], generator), [0.025, 0.975], axis=0)
            shares[name].append(float(np.mean((low <= cells.accuracies[out]) & (cells.accuracies[out] <= high))))
    assert 0.90 <= np.mean(shares["whole"]) <= 0.995
    assert np.mean(shares["without runs"]) < 0.80


def test_too_few_runs_to_know_their_deviation() -> None:
    """Three runs of one seed each, and intercept, size and its square between them."""
    cells = noisy(np.random.default_rng(11), seeds=1, sizes=3)
    terms = (*LINEAR, ("parameters", "parameters"))
    law = fit(cells, terms)
    assert law.spread.freedom < 1.0
    with pytest.raises(InputError, match="train more seeds"):
        bootstrap(cells, terms, 5, np.random.default_rng(0))
    draws = Draws(law, law.coefficients[None], np.array([law.floor]), np.array([law.ceiling]))
    with pytest.raises(InputError, match="train more seeds"):
        predictive(draws, POINT, np.random.default_rng(0))


def test_one_point_is_predicted_as_many_are() -> None:
    generator = np.random.default_rng(6)
    draws = bootstrap(noisy(generator), LINEAR, 200, generator)
    got = predictive(draws, POINT, np.random.default_rng(0))
    row = draws.law.row(POINT)[None]
    drawn = new_runs(draws, row, np.random.default_rng(0))[:, 0]
    assert (got.value, got.count) == (draws.law.predict(POINT), 200)
    assert 0.01 <= np.mean(drawn < got.low) <= 0.03
    certain = draws.interval(lambda law: law.predict(POINT))
    assert got.high - got.low > 1.3 * (certain.high - certain.low)
    assert [law.predict(POINT) for law in draws.laws()] == pytest.approx(draws.accuracies(row)[:, 0])


def test_a_seed_repeats_the_bootstrap() -> None:
    cells = noisy(np.random.default_rng(7))
    first, second = (bootstrap(cells, LINEAR, 5, np.random.default_rng(3)) for _ in range(2))
    assert (first.coefficients == second.coefficients).all()


def test_intervals_bear_infinite_and_missing_draws() -> None:
    law = drawn_law([0.0, 0.9, 0.8, 0.6], LINEAR)
    coefficients = np.array([[0.0, 0.9, 0.8, slope] for slope in (0.6, 0.5, -0.1)])
    draws = Draws(law, coefficients, np.full(3, 0.1), np.array([0.9, 0.9, 0.5]))
    rate = draws.interval(lambda law: law.exchange(POINT, "training", "runtime"))
    assert (rate.value, rate.low, rate.high, rate.count) == (pytest.approx(4 / 3), pytest.approx(4 / 3), math.inf, 3)
    at = draws.interval(lambda law: law.exchange_at(0.6, POINT, "training", "training", "runtime"))
    assert at.count == 2, "a ceiling of 0.5 never reaches 0.6"


def test_terms_are_chosen_by_configurations_left_out() -> None:
    """The true interaction is found, a superfluous bend is not, and a set that cannot be fitted says so."""
    law = TRUTH | {("parameters", "training"): -0.4}
    cells = noisy(np.random.default_rng(8), law, deviation=0.1, sizes=6)
    unfit = (*LINEAR, *(("parameters",) * power for power in range(2, 7)))
    chosen, scores = choose_terms(cells, [LINEAR, CROSSED, BENT, unfit])
    assert chosen == CROSSED
    assert scores[0].error > 2.0 * scores[1].error
    assert scores[3].error == math.inf
    assert "cannot tell" in (scores[3].problem or "")
    chosen, _ = choose_terms(noisy(np.random.default_rng(9)), [CROSSED, LINEAR, BENT])
    assert chosen == LINEAR


def test_too_few_configurations_to_leave_one_out() -> None:
    with pytest.raises(InputError, match="got 2 configurations"):
        choose_terms(exact(TRUTH, 0.0, 1.0, sizes=2), [LINEAR])
    with pytest.raises(InputError, match="no set of terms"):
        choose_terms(exact(TRUTH, 0.0, 1.0, sizes=3), [[*LINEAR, ("parameters",) * 2]])
