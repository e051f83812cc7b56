"""Learned rewards, a user's reward, and the studies of searchers and rewards, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.flows.command import flywheel, flywheel_json

pytestmark = pytest.mark.slow
SMALL = [f"--set=supervise.{change}" for change in ("problems=20", "epochs=1")]
LEARNED = ("--set=reward.name=process", "--set=generate.searcher=beam", "--set=filter.threshold=0.05")


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generations 0 and 1, the second searched by a beam with the reward model that the first trained."""
    registry = tmp_path_factory.mktemp("guided") / "registry"
    flywheel("run", "--preset", "smoke", "--registry", registry, "-n", "1", "--set", "supervise.enabled=true", *SMALL,
             *LEARNED)  # fmt: skip
    return registry


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same generation 0 with an outcome model, which then judges generation 1."""
    registry = tmp_path_factory.mktemp("twin") / "registry"
    flywheel("run", "--preset", "smoke", "--registry", registry, "-n", "1", "--set=supervise.enabled=true", *SMALL,
             "--set=supervise.estimate=outcome", "--set=reward.name=outcome",
             "--set=filter.threshold=0.05")  # fmt: skip
    return registry


def test_an_outcome_model_judges_the_next_generation(twin: Path) -> None:
    first = json.loads((twin / "lineage" / "0000.json").read_text())
    sql = "SELECT DISTINCT reward_source FROM attempts WHERE generation = 1"
    assert flywheel_json("query", sql, "--registry", twin) == [
        {"reward_source": f"outcome({first['reward_model']['snapshot'][:12]})"}
    ]
    sql = "SELECT DISTINCT step, index FROM rollouts"
    assert flywheel_json("query", sql, "--registry", twin) == [{"step": 0, "index": 0}], "attempts, no completions"


def test_a_reward_model_judges_the_next_generation(guided: Path) -> None:
    first, second = (json.loads((guided / "lineage" / f"000{n}.json").read_text()) for n in (0, 1))
    assert second["judge"]["snapshot"] == first["reward_model"]["snapshot"]
    rows = flywheel_json("query", "SELECT DISTINCT searcher, reward_source FROM attempts WHERE generation = 1",
                         "--registry", guided)  # fmt: skip
    assert rows == [{"searcher": "beam", "reward_source": f"process({first['reward_model']['snapshot'][:12]}, last)"}]
    (cost,) = flywheel_json(
        "query", "SELECT sum(flops_policy) AS policy, sum(flops_training) AS training FROM ledger "
        "WHERE stage = 'supervise' AND shard = '' AND generation = 1", "--registry", guided,
    )  # fmt: skip
    assert cost["policy"] > 0
    assert cost["training"] > 0
    graph = flywheel_json("lineage", "gen/1/labels", "--registry", guided)
    assert ["gen/0/reward_model", "gen/1/labels"] in graph["edges"]
    (labels,) = flywheel_json("query", "SELECT count(*) AS n FROM step_labels", "--registry", guided)
    assert labels["n"] > 0
    assert not list((guided / "student").glob("*reward*")), "the student needs none of it"


def test_searchers_on_one_student(guided: Path, twin: Path, tmp_path: Path) -> None:
    asked: list[str | Path] = ["searchers", "gen/0", "--registry", guided, "--outcome-from", twin, "--out",
                               tmp_path / "table", "--budgets", "1,2,4", "--problems", "10"]  # fmt: skip
    document = flywheel_json(*asked)
    made = {registry: json.loads((registry / "lineage" / "0000.json").read_text()) for registry in (guided, twin)}
    for name, registry in (("process", guided), ("outcome", twin)):
        assert document["reward_models"][name]["snapshot"] == made[registry]["reward_model"]["snapshot"]
        assert document["reward_models"][name]["flops"] > 0
    arms = {row["arm"] for row in document["rows"]}
    assert {
        "best_of_n, exact",
        "best_of_n, outcome",
        "beam, process",
        "dvts, process",
        "tree, exact",
        "adaptive, majority",
    } <= arms
    assert len(document["rows"]) == len(arms) * 3
    table = pq.read_table(tmp_path / "table" / "outcomes.parquet")
    sql = "SELECT arm, budget, avg(value) AS value, avg(flops) AS flops, count(*) AS n FROM t GROUP BY ALL"
    found = {(arm, budget): (value, flops, n) for arm, budget, value, flops, n in
             duckdb.connect().register("t", table).execute(sql).fetchall()}  # fmt: skip
    for row in document["rows"]:
        value, flops, count = found[row["arm"], row["budget"]]
        assert (row["value"], row["flops"], 10) == (pytest.approx(value), pytest.approx(flops), count)
    exact = [found["best_of_n, exact", budget] for budget in (1, 2, 4)]
    assert [value for value, *_ in exact] == sorted(value for value, *_ in exact), "more samples find no less"
    assert [flops for _, flops, _ in exact] == sorted(flops for _, flops, _ in exact)
    # A reward that is never wrong and one answer alone: whoever judges, the answer is the same.
    ones = {arm: found[arm, 1][0] for arm in arms if arm.startswith("best_of_n")}
    assert len(set(ones.values())) == 1, ones
    assert "![Accuracy" in (tmp_path / "table" / "README.md").read_text()
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "table" / "cells").iterdir()}
    assert flywheel_json(*asked) == document, "and again, from what was kept"
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "table" / "cells").iterdir()}
    said = flywheel(*asked[:-1], "5", code=2).stderr
    assert "holds a table of something else (problems differ)" in said
    other = ["searchers", "gen/1", "--registry", guided, "--out", tmp_path / "other", "--outcome-from", twin]
    assert "has the student" in flywheel(*other, code=2).stderr
    other[-1], other[1] = guided, "gen/0"
    assert "has supervise.estimate soft, expected outcome" in flywheel(*other, code=2).stderr
    other[3] = twin
    assert "has supervise.estimate outcome, expected soft or hard" in flywheel(*other, code=2).stderr
    other[3], other[-1] = guided, twin
    said = flywheel(*other, "--set", "reward.step_tag='='", code=2).stderr
    assert "has reward.step_tag '\\n', expected '='" in said
    alone = flywheel_json("searchers", "gen/1", "--registry", guided, "--out", tmp_path / "alone", "--budgets", "1,2",
                          "--problems", "4")  # fmt: skip
    assert {row["arm"] for row in alone["rows"]} == {arm for arm in arms if "outcome" not in arm}
    assert not list((guided / ".flywheel" / "tmp").iterdir()), "nothing is left lying about"


def test_rewards_at_equal_compute(tmp_path: Path) -> None:
    asked: list[str | Path] = [
        "rewards", "--out", tmp_path / "study", "--seeds", "1", "--preset", "smoke", "--setting", "exact",
        "--setting", "noisy 20 %", "--set", "campaign.generations=1", "--set", "train.flops=1e8",
    ]  # fmt: skip
    result = flywheel_json(*asked)
    assert list(result["rows"]) == ["exact", "noisy 20 %"]
    assert all(row["count"] == 16 for row in result["rows"].values())
    difference: dict[str, Any] = result["differences"]["noisy 20 %"]
    assert difference["value"] == pytest.approx(
        result["rows"]["noisy 20 %"]["value"] - result["rows"]["exact"]["value"]
    )
    assert [len(curves) for curves in result["curves"].values()] == [1, 1]
    noisy = tmp_path / "study" / "noisy-20-percent" / "seed-1"
    sources = flywheel_json(
        "query", "SELECT DISTINCT reward_source FROM labels WHERE generation = 1", "--registry", noisy
    )
    assert sources in ([{"reward_source": "noisy(exact, 0.2)"}], [])
    assert flywheel_json(*asked) == result, "and again, from what was kept"
    said = flywheel("rewards", "--out", tmp_path / "study", "--setting", "perfect", code=2).stderr
    assert "got setting 'perfect', expected one of exact" in said


def test_a_users_reward_and_what_becomes_of_a_bad_one(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def judge(problem, answers):\n"
        "    target = str(problem['payload']['target'])\n"
        "    return [float(a['output'].strip().endswith('= ' + target)) for a in answers]\n"
        "def liar(problem, answers):\n"
        "    return [float('nan')] * len(answers)\n"
    )
    mine = ("--preset", "smoke", "--registry", tmp_path / "r", "-n", "1", "--set", "reward.name=function")
    flywheel("run", *mine, "--set", "reward.function=judge:judge", cwd=tmp_path)
    (row,) = flywheel_json("query", "SELECT count(*) AS n, count(reward) AS judged FROM attempts WHERE generation = 1 "
                           "AND reward_source = 'function(judge:judge)'", "--registry", tmp_path / "r")  # fmt: skip
    assert row["n"] == row["judged"] == 24 * 4
    said = flywheel("run", "--registry", tmp_path / "r", "-n", "1", "--set", "reward.function=judge:missing", code=2,
                    cwd=tmp_path).stderr  # fmt: skip
    assert "missing" in said
    said = flywheel("run", "--registry", tmp_path / "r", "-n", "1", "--set", "reward.function=nowhere:judge", code=2,
                    cwd=tmp_path).stderr  # fmt: skip
    assert "there is no module nowhere" in said
    said = flywheel("searchers", "gen/1", "--registry", tmp_path / "r", "--out", tmp_path / "t", code=2).stderr
    assert "gen/1 made no reward_model in" in said
    assert "set supervise.enabled" in said
    flywheel("run", "--registry", tmp_path / "r", "-n", "1", "--set", "reward.function=judge:liar", cwd=tmp_path)
    sql = "SELECT status, count(*) AS n, count(reward) AS judged FROM attempts WHERE generation = 2 GROUP BY 1"
    found = {row["status"]: row for row in flywheel_json("query", sql, "--registry", tmp_path / "r")}
    assert found["failed"]["n"] > found["failed"]["judged"] == 0, "no verdict, rather than a zero"
    assert "judged" not in found
    sql = "SELECT DISTINCT reason FROM rejected JOIN attempts USING (attempt_id) WHERE status = 'failed'"
    assert flywheel_json("query", sql, "--registry", tmp_path / "r") == [{"reason": "not judged: failed"}]


def test_a_search_and_a_reward_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    said = flywheel("run", "--preset", "smoke", "--registry", tmp_path / "r", "--set", "generate.searcher=beam",
                    code=2).stderr  # fmt: skip
    assert "searcher beam needs step scores, which reward exact does not give" in said
