"""Plans from a table whose law and costs are known, against enumeration; a plan's file and what a run makes of it."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.running import make
from flows.sweeps import definition, plan_file, plan_words, planning, text_fits
from flows.sweeps.cost_model import fit_costs
from flows.sweeps.plan_file import Orders
from flows.sweeps.planning import Outlook, Question
from flywheel import params as parameters
from flywheel.errors import InputError
from flywheel.params import Params
from flywheel.scaling.law import Extrapolation
from flywheel.scaling.planner import Plan, Unreachable
from storage import recipes
from tests.flows import text_worlds as world

BUDGETS = (0, 4, 8, 16, 32, 64)
ORDERS = Orders("countdown", "three", 3, 8, 64, 4, "countdown", {"model.hidden_size": 64})


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    return world.rows(seeds=2)


@pytest.fixture(scope="module")
def folder(made: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write(tmp_path_factory.mktemp("world"), made)


@pytest.fixture(scope="module")
def outlook(folder: Path) -> Outlook:
    return planning.look(folder, draws=60)


def options(outlook: Outlook, queries: float) -> list[tuple[float, float, str, int]]:
    """Total cost, accuracy, label and runtime budget of all there is, costs by the world's own formulas."""
    found = []
    for width, parameters_ in world.PARAMETERS.items():
        for samples in (4, 8, 16):
            for generation in range(1, world.GENERATIONS + 1):
                invested = world.invested(parameters_, samples, generation)
                for budget in BUDGETS:
                    price = world.price(parameters_, budget)
                    point = {"parameters": parameters_, "training": invested, "runtime": price, "search": samples}
                    accuracy = outlook.fitted.law.predict(point)
                    found.append((invested + queries * price, accuracy, f"w{width}-s{samples}-g{generation}", budget))
    return found


def test_the_cost_model_is_the_worlds(outlook: Outlook) -> None:
    costs = outlook.costs
    for width, samples, generations in ((32, 4, 1), (48, 8, 3), (96, 16, 5)):
        size = world.PARAMETERS[width]
        assert costs.investment(size, samples, generations) == pytest.approx(
            world.invested(size, samples, generations), rel=1e-6
        )
        for budget in BUDGETS:
            assert costs.query(size, budget) == pytest.approx(world.price(size, budget), rel=1e-9)
    assert costs.query(2 * world.PARAMETERS[128], 4) == pytest.approx(2 * world.price(world.PARAMETERS[128], 4))
    assert costs.error < 1e-6
    assert costs.held_back_error is not None
    assert costs.held_back_error < 1e-6


def test_errors_of_the_cost_model_are_those_of_the_runs(made: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = deepcopy(made)
    for row in rows:
        if row["held_back"]:
            row["label_flops"] *= math.e
            row["training_flops"] *= math.e
    costs = fit_costs(text_fits.read(world.write(tmp_path, rows)).rows, (4, 16, 64))
    assert costs.held_back_error == pytest.approx(1.0)
    assert costs.error < 1e-6
    with pytest.raises(InputError, match="got 6 generations, expected 0 to 5"):
        costs.investment(1e5, 4, 6)
    for budget in (2, 128):
        with pytest.raises(InputError, match=f"got a budget of {budget} samples"):
            costs.query(1e5, budget)


@pytest.mark.parametrize(("queries", "target"), [(1e3, 0.5), (1e5, 0.7), (1e7, 0.7), (1e6, 0.85)])
def test_the_cheapest_plan_is_that_of_enumeration(outlook: Outlook, queries: float, target: float) -> None:
    advice = planning.advise(outlook, Question(queries, target=target))
    assert isinstance(advice.choice, Plan)
    reached = [option for option in options(outlook, queries) if option[1] >= target]
    total, accuracy, label, budget = min(reached)
    assert (advice.choice.allocation.label, advice.choice.budget) == (label, budget)
    assert advice.choice.total_flops == pytest.approx(total)
    assert advice.choice.accuracy.value == pytest.approx(accuracy)
    held = advice.choice.allocation
    true = world.accuracy(held.parameters, held.investment_flops, advice.choice.query_flops)
    assert true == pytest.approx(target, abs=0.06)
    assert sum(share for _, share in advice.shares) + advice.unreached == pytest.approx(1.0)
    assert advice.near[0].label == advice.choice.label
    assert all(plan.total_flops <= 1.1 * total for plan in advice.near)


@pytest.mark.parametrize(("queries", "budget"), [(1e4, 1e13), (1e6, 1e14)])
def test_the_best_plan_within_a_budget_is_that_of_enumeration(outlook: Outlook, queries: float, budget: float) -> None:
    advice = planning.advise(outlook, Question(queries, budget_flops=budget))
    assert isinstance(advice.choice, Plan)
    affordable = [option for option in options(outlook, queries) if option[0] <= budget]
    assert advice.choice.total_flops <= budget
    top = max(accuracy for _, accuracy, _, _ in affordable)
    # Of what is nearly as good as the best the cheapest is taken.
    tied = [option for option in affordable if option[1] >= top - planning.TIE]
    assert advice.choice.total_flops == pytest.approx(min(tied)[0])
    assert {plan.label for plan in advice.near} == {
        f"{label}, {f'{budget} samples' if budget else 'greedy'}" for _, _, label, budget in tied
    }
    assert sum(share for _, share in advice.shares) == pytest.approx(1.0)
    assert advice.moves[0][0] == f"{queries / 10:.3g} queries, budget {budget:.3g}"


def test_what_is_held_back_moves_no_plan(made: list[dict[str, Any]], outlook: Outlook, tmp_path: Path) -> None:
    rows = deepcopy(made)
    for row in rows:
        if row["held_back"]:
            row["outcomes"] = [0.0 for _ in row["outcomes"]]
            row["query_flops"] *= 5.0
            row["training_flops"] *= 5.0
    other = planning.look(world.write(tmp_path, rows), draws=60)
    np.testing.assert_array_equal(other.forecast.runs, outlook.forecast.runs)
    np.testing.assert_array_equal(other.forecast.investments, outlook.forecast.investments)


def test_what_cannot_be_had_is_said_with_the_nearest(outlook: Outlook) -> None:
    for question, words in (
        (Question(1e6, target=0.99), "no option reaches 0.99"),
        (Question(1e6, budget_flops=1e6), "the cheapest plan, w32-s4-g1, greedy"),
        (Question(1e6, target=0.86, confidence=0.999), "with a confidence of 0.999"),
    ):
        advice = planning.advise(outlook, question)
        assert isinstance(advice.choice, Unreachable)
        assert words in plan_words.sentence(advice)
        document = plan_words.document(outlook, advice)
        assert document["plan"] is None
        assert document["nearest"]["label"] == advice.choice.nearest.label
        json.dumps(document, allow_nan=False)


def test_beyond_the_data_is_said(outlook: Outlook) -> None:
    inside = planning.advise(outlook, Question(1e5, target=0.7))
    assert any("lies within the data" in line for line in plan_words.remarks(outlook, inside))
    far = replace(outlook.forecast.plan(0, 1e5), extrapolation=Extrapolation({"training": 0.5}, 0.5, 0.3))
    advice = replace(inside, choice=far)
    assert plan_words.remarks(outlook, advice)[-1].startswith("BEYOND THE DATA: w32-s4-g1, greedy")
    assert "training by +0.50 decades" in plan_words.remarks(outlook, advice)[-1]
    assert plan_words.rows_of([plan_words.shown(advice)])[0]["beyond the data"] == "yes"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "give either --target"),
        ({"target": 0.5, "budget_flops": 1e12}, "give either --target"),
        ({"target": 1.5}, "got a target of 1.5"),
        ({"budget_flops": -1.0}, "got a budget of -1"),
        ({"budget_flops": 1e12, "confidence": 0.9}, "leave it out"),
        ({"target": 0.5, "queries": -1.0}, "got -1 queries"),
    ],
)
def test_questions_that_make_no_sense(values: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Question(**{"queries": 1e6, **values})


def test_a_table_without_intervals_plans_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allows no intervals"):
        planning.look(world.write(tmp_path, world.rows(((32, 4), (64, 4)), seeds=1)), draws=50)


def test_a_plan_is_written_read_and_put_into_effect(
    outlook: Outlook, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    advice = planning.advise(outlook, Question(1e6, target=0.8))
    assert isinstance(advice.choice, Plan)
    unknown = plan_file.orders(advice.choice, outlook.table, tmp_path)
    assert unknown.preset is None
    with pytest.raises(InputError, match="does not say how the models of sweep world were made"):
        unknown.overrides_for_new()
    # A table alone, of a sweep that is shipped.
    rows = [row | {"sweep": "countdown"} for row in made if row["cell"] == "w128-s4"]
    table = text_fits.read(world.write(tmp_path, rows))
    orders = plan_file.orders(advice.choice, table, tmp_path)
    assert (orders.hidden_size, orders.preset) == (128, "countdown")
    plan_file.write(tmp_path / "plan.json", plan_words.document(outlook, advice), orders)
    assert plan_file.read(tmp_path / "plan.json") == orders
    made_new = recipes.recipe("countdown", orders.overrides_for_new())
    run = next(run for run in definition.load("countdown")[1].runs() if run.cell == "w128-s4")
    wanted = run.params(len(run.legs) - 1)
    samples = made_new.generate.samples
    assert samples == int(advice.choice.allocation.search)
    generate = wanted.generate.model_copy(update={"samples": samples})
    assert made_new.model_copy(update={"execution": wanted.execution}) == wanted.model_copy(
        update={"generate": generate}
    )
    for name in ("model.hidden_size", "model.intermediate_size", "train.learning_rate"):
        assert name in orders.recipe
    with pytest.raises(InputError, match="began with countdown"):
        orders.overrides_for_new("smoke")


def test_a_registry_takes_over_what_can_change_between_generations() -> None:
    held = parameters.parse({})
    ORDERS.require(held)
    assert [ORDERS.left(head) for head in (None, 0, 2, 3, 7)] == [3, 3, 1, 0, 0]
    wider = held.model_copy(update={"model": held.model.model_copy(update={"hidden_size": 32})})
    with pytest.raises(InputError, match="for a model 64 wide, 4 layers deep, the registry has a model 32 wide"):
        ORDERS.require(wider)
    pretrained: Params = held.model_copy(update={"model": held.model.model_copy(update={"base": "some/model"})})
    with pytest.raises(InputError, match="the registry has the model some/model"):
        ORDERS.require(pretrained)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"orders": {"sweep": "x"}}'])
def test_what_is_no_plan_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"there is no file|is no plan"):
        plan_file.read(path)


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    out, registry = tmp_path / "plan.json", tmp_path / "registry"

    def called(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments)])

    asked = ("plan", "--from", folder, "--queries", "1e6", "--draws", "50")
    said = called(*asked, "--target", "0.7", "--out", out)
    assert said.exit_code == 0
    assert said.stdout.startswith("For 1,000,000 queries at an accuracy of 0.7: train ")
    assert "lies within the data" in said.stdout
    assert plan_file.read(out).sweep == "world"
    nothing = called(*asked, "--target", "0.99", "--out", tmp_path / "none.json", "--json")
    assert nothing.exit_code == 1
    assert json.loads(nothing.stdout)["sentence"].startswith("No plan: no option reaches 0.99")
    assert not (tmp_path / "none.json").exists()
    for arguments in (
        asked,
        (*asked, "--target", "0.7", "--budget", "1e12"),
        (*asked, "--target", "0.7", "--from", tmp_path),
    ):
        assert isinstance(called(*arguments).exception, InputError)
    make(registry, "smoke", [])
    plan_file.write(out, {}, ORDERS)
    refused = called("run", "--registry", registry, "--plan", out).exception
    assert isinstance(refused, InputError)
    assert "the registry has a model 32 wide" in str(refused)
