"""supervise: rollouts, step labels and the reward model that learns them; killed, in shards, and from a judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flywheel import sections
from flywheel.errors import InputError, Interrupted, ModelError
from flywheel.learning.reward_training import is_held_out
from flywheel.models import language, reward_model
from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params
from flywheel.problems import domain as domains
from flywheel.records import Problem
from flywheel.rewards.exact import Exact
from flywheel.rewards.reward import Answer, Judgement
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import PROBLEMS, ROLLOUTS, SNAPSHOTS, STEP_LABEL_PARENTS, STEP_LABELS, TRAINED_ON
from storage.tables import read_rows
from tasks import models, supervise
from tasks.reward_learning import HELD_OUT
from tasks.stage import Hooks, folder_digest

SECTION = sections.Supervise(
    enabled=True, start="previous", base=None, problems=16, attempts=2, rollouts=3, hidden_size=16, layers=1,
    heads=2, intermediate_size=32, epochs=2, batch_size=8,
)  # fmt: skip
FOLDERS = ("supervision", "reward_model")


class EvenLength(Exact):
    """A checker that an untrained student can please: an answer that ended is right if its length is even."""

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        return [
            [Judgement(float(right(answer.stop_reason, answer.output)), "judged", answer.output) for answer in answers]
            for _, answers in groups
        ]


def right(stop_reason: str, output: str) -> bool:
    return stop_reason == "eos" and len(output) % 2 == 0


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    models.forget()
    monkeypatch.setattr(supervise, "_UNIT", 8)
    monkeypatch.setattr(supervise, "Exact", EvenLength)


@pytest.fixture
def params(tiny: Params) -> Params:
    """An untrained student ends a step seldom, so answers are long here."""
    generate = tiny.generate.model_copy(update={"max_new_tokens": 60})
    return tiny.model_copy(update={"supervise": SECTION, "generate": generate})


@pytest.fixture
def trained(layout: Layout, params: Params) -> Layout:
    """A layout after the stage train."""
    domain = domains.load(params.problems)
    language.create(params.model, domain.vocabulary(), domain.corpus(), 11, layout.student)
    return layout


def clone(layout: Layout, target: Path) -> Layout:
    return Layout(Path(shutil.copytree(layout.root, target)))


def digests(layout: Layout) -> list[str]:
    return [folder_digest(layout.root / name) for name in FOLDERS]


def tables(layout: Layout) -> dict[str, list[dict[str, Any]]]:
    schemas = {
        "rollouts": ROLLOUTS, "step_labels": STEP_LABELS, "step_label_parents": STEP_LABEL_PARENTS,
        "snapshots": SNAPSHOTS, "trained_on": TRAINED_ON,
    }  # fmt: skip
    return {name: read_rows(layout.supervision / name, schema) for name, schema in schemas.items()}


def test_what_is_written(trained: Layout, params: Params) -> None:
    report = supervise.run(params, trained)
    found = tables(trained)
    rollouts = {row["rollout_id"]: row for row in found["rollouts"]}
    train = {row["problem_id"] for row in read_rows(trained.problems, PROBLEMS) if row["split"] == "train"}
    student = weights_digest(trained.student)
    assert {row["problem_id"] for row in rollouts.values()} <= train
    assert {(row["policy"], row["generation"]) for row in rollouts.values()} == {(student, 1)}
    attempts = [row for row in rollouts.values() if row["step"] == 0]
    assert len(attempts) == 16 * 2
    # Every score, counted anew from the rows that its label names.
    domain = domains.load(params.problems)
    problems = {problem.problem_id: problem for problem in read_problems(trained.problems, ["train"])}
    parents: dict[str, list[str]] = {}
    for row in found["step_label_parents"]:
        parents.setdefault(row["step_label_id"], []).append(row["parent_id"])
    assert {0.0, 1.0} < {score for label in found["step_labels"] for score in label["scores"]}, "some in between"
    for label in found["step_labels"]:
        rows = [rollouts[name] for name in parents[label["step_label_id"]]]
        attempt = rows[0]
        assert domain.steps(attempt["output"])[: len(label["steps"])] == label["steps"]
        assert label["prompt"] == domain.prompt(problems[label["problem_id"]])
        for step, (score, of) in enumerate(zip(label["scores"], label["judged"], strict=True), 1):
            heard = [row for row in rows if row["step"] == step] or [attempt]
            verdicts = [right(row["stop_reason"], row["output"]) for row in heard]
            assert (score, of) == (sum(verdicts) / len(verdicts), len(verdicts))
    reward = weights_digest(trained.reward_model)
    (row,) = found["snapshots"]
    assert (row["snapshot"], row["role"], row["generation"]) == (reward, "reward", 1)
    loaded = reward_model.load(trained.reward_model, "cpu", sections.Reward(name="process"))
    assert row["parameters"] == sum(parameter.numel() for parameter in loaded.model.parameters())
    learned = {row["label_id"] for row in found["trained_on"]}
    held_out = {row["step_label_id"] for row in found["step_labels"] if is_held_out(row["problem_id"], HELD_OUT)}
    assert learned == {row["step_label_id"] for row in found["step_labels"]} - held_out
    assert {row["snapshot"] for row in found["trained_on"]} == {reward}
    assert report.rows_out == len(found["step_labels"])
    cost = report.cost
    assert cost.policy == pytest.approx(sum(row["flops_policy"] for row in rollouts.values()))
    assert min(cost.policy, cost.prefill, cost.training) > 0
    assert row["training_flops"] >= cost.training


@pytest.mark.slow
def test_shards_and_kills_change_nothing(trained: Layout, params: Params, tmp_path: Path) -> None:
    whole, cut, killed = (clone(trained, tmp_path / name) for name in ("whole", "cut", "killed"))
    report = supervise.run(params, whole)
    for shard in reversed(range(3)):
        supervise.run_shard(params, cut, shard, 3)
    assert supervise.run(params, cut).cost == report.cost
    assert digests(cut) == digests(whole)
    lives = 0
    for calls in (3, 9, 15, 30, 60, 120, 240, 480, 10**6):
        try:
            done = supervise.run(params, killed, Hooks(should_stop=stop_after(calls)))
        except Interrupted:
            lives += 1
            assert not killed.reward_model.exists()
            continue
        break
    assert lives > 2
    assert done.cost.policy == report.cost.policy
    assert digests(killed) == digests(whole)


def stop_after(calls: int) -> Callable[[], None]:
    made = 0

    def stop() -> None:
        nonlocal made
        made += 1
        if made > calls:
            raise Interrupted("stop")

    return stop


def test_done_once_and_void_when_its_recipe_changes(trained: Layout, params: Params) -> None:
    first = supervise.run(params, trained)
    again = supervise.run(params, trained)
    assert (again.reused, again.cost) == (True, first.cost)
    before = folder_digest(trained.supervision / "rollouts")
    longer = params.model_copy(update={"supervise": SECTION.model_copy(update={"epochs": 3})})
    assert not supervise.run(longer, trained).reused
    assert folder_digest(trained.supervision / "rollouts") == before
    hard = params.model_copy(update={"supervise": SECTION.model_copy(update={"estimate": "hard"})})
    supervise.run(hard, trained)
    scores = {score for row in tables(trained)["step_labels"] for score in row["scores"]}
    assert scores <= {0.0, 1.0}


def with_judge(layout: Layout, params: Params) -> str:
    """Put in a judge as `prepare` does; its digest."""
    snapshot = reward_model.create(params.supervise, layout.student, 99, layout.judge)
    document = {"snapshot": snapshot, "generation": 0, "source": "gen/0000/reward_model", "judges": False}
    (layout.lineage / "judge.json").write_text(json.dumps(document), encoding="utf-8")
    return snapshot


def test_it_goes_on_from_the_judge_or_begins_anew(trained: Layout, params: Params) -> None:
    judge = with_judge(trained, params)
    supervise.run(params, trained)
    warm = weights_digest(trained.reward_model)
    assert tables(trained)["snapshots"][0]["initialised_from"] == judge
    anew = params.model_copy(update={"supervise": SECTION.model_copy(update={"start": "base"})})
    supervise.run(anew, trained)
    assert tables(trained)["snapshots"][0]["initialised_from"] != judge
    assert weights_digest(trained.reward_model) != warm
    students = params.model_copy(update={"supervise": SECTION.model_copy(update={"start": "base", "base": "student"})})
    supervise.run(students, trained)
    assert tables(trained)["snapshots"][0]["initialised_from"] == weights_digest(trained.student)


def test_a_judge_that_is_not_the_one_lineage_names(trained: Layout, params: Params) -> None:
    judge = with_judge(trained, params)
    shutil.rmtree(trained.judge)
    other = reward_model.create(params.supervise, trained.student, 98, trained.judge)
    with pytest.raises(ModelError, match=rf"judge holds weights {other}, expected {judge} as lineage/judge\.json says"):
        supervise.run(params, trained)


def test_nothing_to_learn_is_said(trained: Layout, params: Params) -> None:
    generate = params.generate.model_copy(update={"max_new_tokens": 1})
    with pytest.raises(InputError, match=r"no step label to train a reward model on.*generate\.max_new_tokens"):
        supervise.run(params.model_copy(update={"generate": generate}), trained)
    assert not trained.reward_model.exists()


def test_problems_are_drawn_anew_and_within_training(trained: Layout, params: Params) -> None:
    few = params.model_copy(update={"supervise": SECTION.model_copy(update={"problems": 10})})
    drawn = [[p.problem_id for p in supervise.chosen(few.for_generation(g, None), trained)] for g in (1, 2)]
    assert [len(ids) for ids in drawn] == [10, 10]
    assert drawn[0] != drawn[1]
    assert all(ids == sorted(ids) for ids in drawn)
