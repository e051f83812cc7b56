"""Fits to a sweep's table whose law is known: exchange rates, predictions of cells held back, gains, and controls."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from flows import controls
from flows.sweeps import definition, text_fits, text_rates
from flows.sweeps.definition import Leg, Run
from flows.sweeps.results import PROBLEMS, RESULTS, control_rows
from flows.sweeps.text_calibration import calibrate
from flows.sweeps.text_fits import TextFits, candidates
from flows.sweeps.text_gains import search_of
from flows.sweeps.text_rates import Rate
from flywheel.errors import ConfigError, InputError
from flywheel.evaluation.intervals import Interval
from flywheel.evaluation.metrics import pass_at_k
from flywheel.scaling.law import Cells, Law, Spread
from flywheel.scaling.uncertainty import Draws
from storage.tables import write_table
from tests.flows import text_worlds as world

TRUE_RATES = {
    (give, get): world.SLOPES[give] / world.SLOPES[get]
    for give, get in (("training", "runtime"), ("training", "parameters"), ("runtime", "parameters"),
                      ("parameters", "training"), ("parameters", "runtime"))
}  # fmt: skip


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    return world.rows()


@pytest.fixture(scope="module")
def fits(made: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> TextFits:
    rows = deepcopy(made)
    last = [row for row in rows if row["metric"] == "greedy" and row["generation"] == world.GENERATIONS]
    rows += [world.control(row, "no-search", 0.1) for row in last if row["cell"] == "w64-s4"]
    return text_fits.fit(world.write(tmp_path_factory.mktemp("world"), rows), draws=100)


def test_exchange_rates_are_recovered(fits: TextFits) -> None:
    # A larger model that is trained as much more: both slopes together.
    known = TRUE_RATES | {
        (text_rates.SCALE, "runtime"): (world.SLOPES["parameters"] + world.SLOPES["training"]) / world.SLOPES["runtime"]
    }
    told = [rate for rate in fits.rates if (rate.give, rate.get) in known]
    assert {(rate.give, rate.get) for rate in told} == {*known}
    assert len({rate.accuracy for rate in told}) >= 3
    for rate in told:
        true = known[rate.give, rate.get]
        assert rate.decades.low <= true <= rate.decades.high, rate.words
        assert rate.decades.value == pytest.approx(true, rel=0.3)
    assert len([rate for rate in told if not rate.outside]) >= 0.6 * len(told)


def test_without_noise_the_rates_are_exact(tmp_path: Path) -> None:
    table = text_fits.read(world.write(tmp_path, world.rows(deviation=0.0, seeds=1)))
    cells = text_fits.fit_law(table, 50, 0)
    point = dict(zip(cells.law.axes, (10.0**cells.law.centres).tolist(), strict=True))
    for (give, get), true in TRUE_RATES.items():
        assert cells.law.exchange(point, give, get) == pytest.approx(true, rel=0.03)
    assert cells.law.root_mean_square < 1.5 / world.PROBLEM_COUNT


def test_luck_of_a_shared_beginning_is_drawn_once(tmp_path: Path) -> None:
    """Runs that begin with one model are lucky together: label search is then compared within pairs, sizes are not."""
    widths: dict[tuple[str, ...], list[float]] = {}
    covered = []
    for seed in range(4):
        rows = world.rows(deviation=0.4, seed=seed, shared=True)
        apart = [row | {"snapshot": f"{row['run']}/{row['generation']}"} for row in rows]
        for name, made in (("shared", rows), ("apart", apart)):
            table = text_fits.read(world.write(tmp_path / f"{name}{seed}", made))
            fitted = text_fits.fit_law(table, 100, 0)
            assert fitted.draws is not None
            drawn = dict(zip(fitted.terms, fitted.draws.coefficients.T, strict=True))
            for axis in ("search", "parameters"):
                low, high = np.quantile(drawn[(axis,)], (0.025, 0.975)).tolist()
                widths.setdefault((name, axis), []).append(high - low)
                if (name, axis) == ("shared", "search"):
                    covered.append(low <= 0.0 <= high)
            beginnings = {row["cell"]: row["beginning"] for row in table.rows}
            assert len(set(beginnings.values())) == (5 if name == "shared" else 8)
            assert (beginnings["w64-s16"] == "w64-s4") == (name == "shared")
    assert np.mean(widths["shared", "search"]) < 0.5 * np.mean(widths["apart", "search"])
    assert np.mean(widths["shared", "parameters"]) > 1.1 * np.mean(widths["apart", "parameters"])
    assert sum(covered) >= 3, "label search matters by what it costs alone"


def test_cells_held_back_are_foretold(fits: TextFits) -> None:
    told = fits.calibration
    assert told is not None
    assert {each.configuration for each in told.configurations} == {"w48-s8", "w96-s8"}
    # Greedy and three budgets of pass@k from 4 on, five generations, three seeds.
    assert len(told.rows) == 2 * 4 * world.GENERATIONS * 3
    assert told.coverage >= 0.8
    assert told.mean_absolute_error < 0.04
    assert told.coverage == np.mean([row.predicted.low <= row.measured <= row.predicted.high for row in told.rows])


def test_what_is_held_back_changes_no_fit(made: list[dict[str, Any]], fits: TextFits, tmp_path: Path) -> None:
    rows = deepcopy(made)
    for row in rows:
        if row["held_back"]:
            row["outcomes"] = (
                [1.0 - value for value in row["outcomes"]] if row["metric"] != "right" else row["outcomes"]
            )
            row["query_flops"] *= 3.0
            row["label_flops"] *= 7.0
    other = text_fits.fit(world.write(tmp_path, rows), draws=100)
    assert (other.terms, other.scores, other.rates) == (fits.terms, fits.scores, fits.rates)
    assert other.draws is not None
    assert fits.draws is not None
    np.testing.assert_array_equal(other.law.coefficients, fits.law.coefficients)
    np.testing.assert_array_equal(other.draws.coefficients, fits.draws.coefficients)
    assert other.calibration is not None
    assert other.calibration.coverage < 0.5


def test_coverage_and_error_by_hand() -> None:
    """Draws that span 0.4 to 0.6: of four cells measured at 0.5, 0.5, 0.9 and 0.1 two are inside."""
    spread = Spread(0.0, 10.0, 0.0, 100.0)
    law = Law(("runtime",), ((),), np.zeros(1), np.zeros(1), 0.0, 1.0, np.array([[0.0], [1.0]]), np.zeros(2), spread)
    edge = math.log(0.6 / 0.4)
    draws = Draws(law, np.linspace(-edge, edge, 101)[:, None], np.zeros(101), np.ones(101))
    outcomes = np.repeat([[0.5], [0.5], [0.9], [0.1]], 4, axis=1)
    values = np.array([[1.0, 5.0], [10.0, 5.0], [1.0, 5.0], [1000.0, 5.0]])
    cells = Cells(("runtime", "search"), values, ("a", "a", "a", "b"), (0, 0, 1, 0), outcomes, tuple("0123"))
    told = calibrate(draws, cells, [1, 1, 1, 2], [0, 4, 0, 0], np.random.default_rng(0))
    assert [row.inside for row in told.rows] == [True, True, False, False]
    assert [row.outside for row in told.rows] == [False, False, False, True]
    assert told.coverage == 0.5
    assert told.mean_absolute_error == pytest.approx(0.2)
    assert told.bias == pytest.approx(0.0)
    a, b = told.configurations
    assert (a.cells, a.coverage, a.measured) == (3, pytest.approx(2 / 3), pytest.approx(1.9 / 3))
    assert (b.cells, b.mean_absolute_error) == (1, pytest.approx(0.4))


def test_axes_and_terms_follow_the_data(tmp_path: Path) -> None:
    cells = ((32, 4), (64, 4), (128, 4))
    table = text_fits.read(world.write(tmp_path, world.rows(cells, seeds=2)))
    fitted = text_fits.fit_law(table, 50, 0)
    assert fitted.cells.axes == ("parameters", "training", "runtime")
    assert "search" in fitted.reasons
    sets = candidates(fitted.cells)
    assert all(set(less) < set(more) for less, more in itertools.pairwise(sets))
    assert ("parameters", "parameters") in sets[-1]
    two = fitted.cells.only(fitted.cells.values[:, 0] != world.PARAMETERS[64])
    assert ("parameters", "parameters") not in candidates(two)[-1]


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    found = text_fits.fit(world.write(tmp_path, world.rows(((32, 4), (64, 4)), seeds=1)), draws=50)
    assert {"search", "terms", "intervals", "calibration", "controls"} <= set(found.reasons)
    assert found.draws is None
    assert found.calibration is None
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("value", "outside", "words"),
    [
        (math.nan, False, "not known"),
        (math.inf, False, "no runtime is worth"),
        (1.5, True, "1.50 [1.00, 2.00] decades of runtime (10 of 50 draws do not tell; beyond the data)"),
    ],
)
def test_a_rate_says_what_is_not_known(value: float, outside: bool, words: str) -> None:
    assert words in Rate(0.3, "training", "runtime", Interval(value, 1.0, 2.0, 40), 50, "training", outside).words


def test_gains_by_hand(fits: TextFits, made: list[dict[str, Any]]) -> None:
    (gain,) = [gain for gain in fits.gains if (gain.cell, gain.generation) == ("w64-s16", 2)]
    greedy = {
        (row["seed"], row["generation"]): row["value"]
        for row in made
        if row["cell"] == "w64-s16" and row["metric"] == "greedy"
    }
    steps = [greedy[seed, 2] - greedy[seed, 1] for seed in range(3)]
    spent = [world.invested(world.PARAMETERS[64], 16, generation) for generation in range(3)]
    assert gain.step.value == pytest.approx(np.mean(steps))
    assert gain.step.high - gain.step.value == pytest.approx(4.3027 * np.std(steps, ddof=1) / math.sqrt(3), rel=1e-4)
    assert gain.step_flops == pytest.approx(spent[2] - spent[1])
    assert gain.per_1e12.value == pytest.approx(np.mean(steps) * 1e12 / (spent[2] - spent[1]))
    assert gain.per_decade.value == pytest.approx(np.mean(steps) / math.log10(spent[2] / spent[1]))
    assert gain.total_flops == pytest.approx(spent[2] - spent[0])
    for instead in gain.instead:
        query = world.price(world.PARAMETERS[64], 0) + (spent[2] - spent[0]) / instead.queries
        assert instead.query_flops == pytest.approx(query)
    assert gain.instead[0].beyond
    gained = [instead.gain.value for instead in gain.instead]
    assert gained == sorted(gained, reverse=True)


def test_the_search_to_compare_with_stops_at_the_first_right_answer(made: list[dict[str, Any]]) -> None:
    rows = [row | {"invested": 0.0} for row in made if row["cell"] == "w32-s4" and row["seed"] == 0]
    model = search_of({(row["generation"], row["metric"], row["budget"]): row for row in rows})
    assert model is not None
    (right,) = [row["outcomes"] for row in rows if (row["generation"], row["metric"]) == (0, "right")]
    size, k = world.PARAMETERS[32], 7
    chances = [[pass_at_k(world.SAMPLES, int(held), at) for at in range(1, k + 1)] for held in right]
    assert model.solved[:, k].mean() == pytest.approx(np.mean([row[-1] for row in chances]))
    drawn = np.mean([1.0 + sum(1.0 - chance for chance in row[:-1]) for row in chances])
    assert model.flops[:, k].mean() == pytest.approx(2.0 * size * (10 + 8 * drawn))


def test_a_control_is_compared_by_seed(fits: TextFits, made: list[dict[str, Any]]) -> None:
    (against,) = fits.controls
    last = [
        row["value"]
        for row in made
        if (row["cell"], row["metric"], row["generation"]) == ("w64-s4", "greedy", world.GENERATIONS)
    ]
    assert (against.cell, against.control, against.seeds) == ("w64-s4", "no-search", 3)
    assert against.difference.value == pytest.approx(np.mean(last) - 0.1)
    assert against.ahead == sum(value > 0.1 for value in last)
    assert against.control_flops == pytest.approx(against.student_flops)
    assert "controls" not in fits.reasons
    assert json.loads(json.dumps(fits.as_dict(), allow_nan=False))["controls"][0]["control"] == "no-search"


def test_rows_of_controls(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    rows = [row for row in made if row["cell"] == "w32-s4" and row["seed"] == 1]
    groups = {f"{number:04d}": f"hand {number // 3}" for number in range(world.PROBLEM_COUNT)}
    outcomes = {problem: float(problem < "0100") for problem in reversed(groups)}
    share = {"value": 1 / 3, "low": 0.3, "high": 0.4, "count": world.PROBLEM_COUNT}
    held = {"seed": 1, "snapshot": "s", "seconds": 2.0, "outcomes": outcomes}
    trained = held | {"generation": world.GENERATIONS, "flops": 5e12, "test": {"greedy": share}}
    tuned = held | {"generation": 0, "flops": 0.0, "test": {"best@4": share}}
    for name, document in (("no-search", trained), ("tuned-search", tuned)):
        (tmp_path / f"{name}-seed-1.json").write_text(json.dumps(document))
    run = Run("three", "w32-s4", 1, False, "smoke", (Leg(generations=5),), {}, ("no-search", "ceiling", "tuned-search"))
    found = control_rows(run, tmp_path, rows, groups)
    pa.Table.from_pylist(found, schema=RESULTS)
    first, second = found
    assert (first["cell"], first["metric"], first["budget"], first["generation"]) == (
        "w32-s4+no-search", "greedy", 0, world.GENERATIONS,
    )  # fmt: skip
    assert (first["label_flops"], first["training_flops"], first["snapshot"]) == (0.0, 5e12, "s")
    assert first["outcomes"] == [1.0] * 100 + [0.0] * (world.PROBLEM_COUNT - 100)
    assert (second["cell"], second["metric"], second["budget"], second["generation"]) == (
        "w32-s4+tuned-search", "best", 4, 0,
    )  # fmt: skip
    assert second["query_flops"] == world.price(world.PARAMETERS[32], 4)


SWEEP = """
preset: {preset}
seeds: [0]
families:
  tiny: {{cells: {{a: {{}}}}, legs: [{{generations: 1}}], controls: [{controls}]}}
"""


def test_controls_of_a_sweep_are_known_ones_and_no_part_of_its_recipes(tmp_path: Path) -> None:
    def loaded(preset: str, controls: str) -> Run:
        path = tmp_path / "sweep.yaml"
        path.write_text(SWEEP.format(preset=preset, controls=controls))
        return next(definition.load(str(path))[1].runs())

    with_control = loaded("smoke", "no-search")
    assert with_control.controls == ("no-search",)
    assert with_control.digest() == loaded("smoke", "").digest()
    with pytest.raises(ConfigError, match=r"controls.0: got 'none-such'.*'no-search'"):
        loaded("smoke", "none-such")
    with pytest.raises(InputError, match="domain hex"):
        loaded("hex-3", "no-search")
    assert get_args(definition.ControlName) == controls.NAMES


def test_definitions_load_before_prefect(tmp_path: Path) -> None:
    # Prefect reads its settings when it is imported: the address of the server, how much it logs.
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.format(preset="smoke", controls="no-search"))
    script = (
        "import sys; from flows.sweeps import definition; definition.load(sys.argv[1]); print('prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def no_tables(folder: Path) -> None:
    pass


def only_hex(folder: Path) -> None:
    rows = world.rows(((32, 4),), seeds=1)
    world.write(folder, rows, lambda row: row.update(domain="hex"))


def two_families(folder: Path) -> None:
    rows = world.rows(((32, 4),), seeds=2)
    world.write(folder, rows, lambda row: row.update(family="three" if row["seed"] else "four"))


def all_held_back(folder: Path) -> None:
    world.write(folder, world.rows(((48, 8),), seeds=1))


def other_problems(folder: Path) -> None:
    world.write(folder, world.rows(((32, 4), (64, 4)), seeds=1))
    listed = [{"family": "three", "problem_id": "0", "group": "hand 0"}]
    write_table(folder / "problems.parquet", pa.Table.from_pylist(listed, schema=PROBLEMS))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_tables, "holds no results.parquet"),
        (only_hex, "no rows of questions"),
        (two_families, "expected one of four, three"),
        (all_held_back, "no cell to fit"),
        (other_problems, "other problems"),
    ],
)
def test_tables_that_cannot_be_fitted(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=words):
        text_fits.fit(tmp_path, draws=50)
