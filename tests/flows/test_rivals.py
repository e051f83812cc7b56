"""The sweep that puts a plan to the test: rivals of the same cost, drawn without a look at any accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.sweeps import definition, planning, rivals
from flywheel.errors import InputError
from flywheel.scaling.planner import Plan
from tests.flows import text_worlds

QUERIES = 1e4


@pytest.fixture(scope="module")
def outlook(tmp_path_factory: pytest.TempPathFactory) -> planning.Outlook:
    return look(tmp_path_factory.mktemp("world"))


def look(folder: Path, lowered: float = 0.0) -> planning.Outlook:
    """A world under the name of the shipped sweep whose cells it has; some right answers taken away on request."""

    def change(row: dict[str, Any]) -> None:
        row["sweep"] = "countdown"
        if lowered:
            row["outcomes"] = [value * (number > lowered) for number, value in enumerate(row["outcomes"])]

    return planning.look(text_worlds.write(folder, text_worlds.rows(), change), draws=60)


BUDGET = 2e13


def plan_of(outlook: planning.Outlook) -> Plan:
    found = planning.advise(outlook, planning.Question(QUERIES, budget_flops=BUDGET)).choice
    assert isinstance(found, Plan)
    return found


def test_the_contest_is_a_sweep_of_allocations_that_cost_as_much(outlook: planning.Outlook, tmp_path: Path) -> None:
    plan = plan_of(outlook)
    values = rivals.contest(outlook, plan, QUERIES, 5, 3, BUDGET)
    path = tmp_path / "contest.yaml"
    path.write_text(definition.as_yaml(values), encoding="utf-8")
    _, sweep = definition.load(str(path))
    runs = list(sweep.runs())
    cells = list(dict.fromkeys(run.cell for run in runs))
    assert cells.count("plan") == 1
    assert len(cells) == 6
    assert sweep.contest is not None
    by_label = {allocation.label: allocation for allocation, _ in outlook.forecast.options}
    for run in runs:
        budget = sweep.contest.answers.get(run.cell, 0)
        allocation = plan.allocation if run.cell == "plan" else by_label[run.cell]
        total = allocation.investment_flops + QUERIES * allocation.query_flops[budget]
        if run.cell != "plan":
            assert total == pytest.approx(BUDGET, rel=rivals.WITHIN + 1e-9)
        params = run.params(len(run.legs) - 1)
        assert run.generations == allocation.generations
        assert params.generate.samples == allocation.search
        assert text_worlds.PARAMETERS[params.model.hidden_size] == allocation.parameters
        assert not budget or budget in params.evaluate.budgets
    assert plan.budget == sweep.contest.answers.get("plan", 0)
    # Seeds that the table has not seen.
    assert not {run.seed for run in runs} & set(definition.load("countdown")[1].seeds)
    assert len(sweep.seeds) == 3
    # A size and a search once: fewer generations of the same would be a part of the same runs.
    trained = {cell: (by_label[cell].parameters, by_label[cell].search) for cell in cells if cell != "plan"}
    trained["plan"] = plan.allocation.parameters, plan.allocation.search
    assert len(set(trained.values())) == 6


def test_rivals_hang_on_the_seed_and_on_no_accuracy(outlook: planning.Outlook, tmp_path: Path) -> None:
    plan = plan_of(outlook)
    drawn = rivals.contest(outlook, plan, QUERIES, 5, seed=3)
    assert rivals.contest(outlook, plan, QUERIES, 5, seed=3) == drawn
    assert any(rivals.contest(outlook, plan, QUERIES, 5, seed=seed) != drawn for seed in (4, 5, 6))
    worse = look(tmp_path, lowered=60)
    assert worse.forecast.accuracies.max() < outlook.forecast.accuracies.max() - 0.1
    assert rivals.contest(worse, plan, QUERIES, 5, seed=3) == drawn


def test_what_cannot_be_contested_is_said(outlook: planning.Outlook, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ask for fewer rivals"):
        rivals.contest(outlook, plan_of(outlook), QUERIES, 500, seed=0)
    other = planning.look(text_worlds.write(tmp_path, text_worlds.rows()), draws=60)
    with pytest.raises(InputError, match="sweep world is not among the shipped ones"):
        rivals.contest(other, plan_of(other), QUERIES, 5, seed=0)
