"""Leaving a bad model behind: what is bad by brute force over the tables, what later windows hold, undoing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from flywheel.errors import ConfigError, InputError
from flywheel.params import load, parse
from flywheel.records import digest
from storage import exclusions
from storage.history import history, published, window
from storage.prepare import begin
from storage.registry import Registry
from storage.rollback import exclude, plan_exclusion, rollback, undo
from storage.views import query
from tests.storage import sample


def taken(registry: Registry) -> dict[str, Any]:
    """lineage/window.json of the generation that was made last."""
    document: dict[str, Any] = json.loads((registry.layout.lineage / "window.json").read_text(encoding="utf-8"))
    return document


def rows(registry: Registry, sql: str) -> list[dict[str, Any]]:
    return list(query(registry, sql).rows)


def bad_by_hand(registry: Registry, model: str) -> set[str]:
    """Repeated expansion over plain rows, label by label."""
    labels = {row["label_id"]: row["teacher"] for row in rows(registry, "SELECT label_id, teacher FROM labels")}
    learned = [
        (row["label_id"], row["snapshot"]) for row in rows(registry, "SELECT label_id, snapshot FROM trained_on")
    ]
    begun = rows(registry, "SELECT initialised_from AS cause, snapshot FROM snapshots")
    steps = {(labels.get(label), snapshot) for label, snapshot in learned}
    steps |= {(row["cause"], row["snapshot"]) for row in begun}
    found = {model}
    while more := {snapshot for cause, snapshot in steps if cause in found} - found:
        found |= more
    return found


@pytest.mark.parametrize("model", range(4))
def test_what_is_bad_is_what_came_of_it(fresh: Callable[[int], Registry], model: int) -> None:
    registry, digest = fresh(4), sample.snapshot_of(model)
    if model == 0:
        assert len(bad_by_hand(registry, digest)) == 4
        with pytest.raises(InputError, match="every generation came of"):
            plan_exclusion(registry, digest)
    else:
        assert set(plan_exclusion(registry, digest)["models_excluded"]) == bad_by_hand(registry, digest)


def test_a_model_that_nothing_came_of(fresh: Callable[[int], Registry]) -> None:
    """The student of 2 was not promoted: 3 came of 1, by its labels and its weights."""
    registry = fresh(4)
    bad = sample.snapshot_of(2)
    planned = plan_exclusion(registry, f"{bad[:9]}")
    assert (planned["to"], planned["labels_kept"], planned["rows_dropped"]) == (3, [], 0)
    assert (planned["models_excluded"], planned["models_abandoned"]) == ([bad], [])
    done = exclude(registry, bad, "it is bad all the same")
    assert (done["from"], done["to"]) == (3, 3)
    sample.make_generation(registry)
    assert taken(registry)["excluded"] == [bad]
    assert undo(registry)["to"] == 3
    assert undo_is_done(registry)


def undo_is_done(registry: Registry) -> bool:
    with pytest.raises(InputError, match="nothing to undo"):
        undo(registry)
    return exclusions.read(registry) == []


def test_the_flywheel_goes_on_from_the_newest_clean_one_with_every_clean_label(
    fresh: Callable[[int], Registry],
) -> None:
    registry = fresh(4)
    bad = sample.snapshot_of(1)
    held = {row["label_id"] for row in rows(registry, f"SELECT label_id FROM labels WHERE teacher <> '{bad}'")}
    done = exclude(registry, bad, "learned to cheat")
    assert set(done["models_excluded"]) == {sample.snapshot_of(g) for g in (1, 2, 3)}
    # Generation 1's labels are the student of 0's; those of 2 and 3 are the bad model's own.
    assert (done["from"], done["to"], done["labels_kept"]) == (3, 0, [1])
    assert done["rows_dropped"] == (sample.LABELS + 2) + (sample.LABELS + 3)
    assert registry.head_generation() == 0
    registry.check_clean()
    assert {row["label_id"] for row in rows(registry, "SELECT label_id FROM labels")} == held

    params = sample.make_generation(registry)
    assert (params.generation, params.parent) == (4, 0)
    assert [entry["generation"] for entry in taken(registry)["generations"]] == [0, 1]
    assert set(taken(registry)["excluded"]) == set(done["models_excluded"])
    sample.make_generation(registry)
    assert [entry["generation"] for entry in taken(registry)["generations"]] == [0, 1, 4]
    assert window(registry, None) == [0, 4, 5]
    told = {row["generation"]: row for row in history(registry)}
    assert told[2]["reason"] == f"model/{bad[:12]} excluded: learned to cheat"
    assert told[4]["why"] == f"goes on from gen/0000, model/{bad[:12]} being excluded: learned to cheat"
    # As things stood then, the labels are there.
    then = list(query(registry, "SELECT count(*) AS n FROM labels WHERE generation IN (2, 3)", at=3).rows)
    assert then == [{"n": done["rows_dropped"]}]
    assert {row["generation"] for row in query(registry, "SELECT generation FROM labels", at=4).rows} == {0, 1, 4}


def test_a_window_by_number_counts_the_kept(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    exclude(registry, sample.snapshot_of(1), "cheats")
    values = load(registry.layout.params).model_dump(mode="json")
    values["filter"]["window"] = 2
    sample.make_generation(registry, parse(values))
    assert [entry["generation"] for entry in taken(registry)["generations"]] == [1]


def test_undone_everything_is_as_it_was(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    before = rows(registry, "SELECT label_id FROM labels ORDER BY 1")
    exclude(registry, sample.snapshot_of(1), "cheats")
    assert registry.head_generation() == 0
    done = undo(registry)
    assert (done["from"], done["to"]) == (0, 3)
    assert exclusions.read(registry) == []
    assert rows(registry, "SELECT label_id FROM labels ORDER BY 1") == before
    sample.make_generation(registry)
    assert "excluded" not in taken(registry)
    assert published(registry, 4)["parent"] == 3
    assert undo_is_done(registry)


def test_an_excluded_model_stays_out(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    exclude(registry, sample.snapshot_of(1), "cheats")
    with pytest.raises(InputError, match=r"gen/0002 came of model/.*, which is excluded \(cheats\); go back to gen/0"):
        rollback(registry, 2, "back to the bad one")
    with pytest.raises(InputError, match="excluded already, with model/"):
        exclude(registry, sample.snapshot_of(2), "again")
    values = load(registry.layout.params).model_dump(mode="json")
    values["generate"]["teacher"] = "the bad one"
    with pytest.raises(ConfigError, match=r"generate\.teacher: the bad one is model/.*, which is excluded"):
        begin(registry, parse(values), sample.make_base, lambda _: (sample.snapshot_of(1), True), sample.SOLVER)


def test_a_teacher_from_outside(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    values = load(registry.layout.params).model_dump(mode="json")
    values["generate"]["teacher"] = "hub/large"
    sample.make_generation(registry, parse(values))
    bad = digest("external", "hub/large")
    done = exclude(registry, bad, "a bad teacher")
    assert (done["from"], done["to"], done["labels_kept"]) == (4, 3, [])
    assert set(done["models_excluded"]) == {bad, sample.snapshot_of(4)}
    values["generate"]["teacher"] = "champion"
    sample.make_generation(registry, parse(values))
    assert [entry["generation"] for entry in taken(registry)["generations"]] == [0, 1, 2, 3]


def test_the_seed_cannot_be_left_behind(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    with pytest.raises(InputError, match="every generation came of"):
        plan_exclusion(registry, sample.SOLVER)
    with pytest.raises(InputError, match="a model no generation made or used"):
        plan_exclusion(registry, "0" * 32)


def test_a_second_exclusion_keeps_what_the_first_kept(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    assert exclude(registry, sample.snapshot_of(3), "one")["to"] == 2
    sample.make_generation(registry)
    done = exclude(registry, sample.snapshot_of(4), "two")
    # Labels of 3 and 4 were made by the student of 1, the champion of 2.
    assert (done["to"], done["labels_kept"]) == (2, [3, 4])
    sample.make_generation(registry)
    assert [entry["generation"] for entry in taken(registry)["generations"]] == [0, 1, 2, 3, 4]
    # On another line nothing is kept.
    rollback(registry, 0, "start over")
    sample.make_generation(registry)
    assert [entry["generation"] for entry in taken(registry)["generations"]] == [0]


def test_a_reward_model_and_what_it_judged(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    values = load(registry.layout.params).model_dump(mode="json")
    values["supervise"]["enabled"] = True
    sample.make_generation(registry, parse(values))
    values["reward"]["name"], values["filter"]["threshold"] = "process", 0.5
    sample.make_generation(registry, parse(values))
    sample.make_generation(registry, parse(values))
    judge = sample.reward_snapshot_of(1)
    done = exclude(registry, judge, "over-optimised")
    # It judged 2; 3 was judged by that of 2, which began from nothing of it, but 3's labels were made by 2's student.
    assert done["to"] == 0
    assert {judge, sample.snapshot_of(2), sample.snapshot_of(3)} <= set(done["models_excluded"])
    assert done["labels_kept"] == [1]


def test_another_line_that_came_of_it_is_refused(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    values = load(registry.layout.params).model_dump(mode="json")
    values["generate"]["teacher"] = "hub/large"
    for _ in range(2):  # 4 and 5 on one line
        sample.make_generation(registry, parse(values))
    rollback(registry, 3, "another try")
    sample.make_generation(registry, parse(values))
    done = exclude(registry, digest("external", "hub/large"), "a bad teacher")
    assert (done["from"], done["to"]) == (6, 3)
    assert {sample.snapshot_of(g) for g in (4, 5, 6)} < set(done["models_excluded"])
    for bad in (4, 5, 6):
        with pytest.raises(InputError, match=rf"gen/000{bad} came of .*a bad teacher"):
            rollback(registry, bad, "to the bad one")
    rollback(registry, 2, "a clean one")


def test_labels_that_an_excluded_model_judged_leave_later_windows(fresh: Callable[[int], Registry]) -> None:
    """Generation 2, judged by the reward model of 1, was not promoted, and 3 learned nothing of it."""
    registry = fresh(1)
    values = load(registry.layout.params).model_dump(mode="json")
    values["supervise"]["enabled"] = True
    sample.make_generation(registry, parse(values))
    values["reward"]["name"], values["filter"]["threshold"] = "process", 0.5
    sample.make_generation(registry, parse(values), promoted=False)
    values["reward"]["name"], values["filter"]["window"] = "exact", 1
    sample.make_generation(registry, parse(values))
    done = exclude(registry, sample.reward_snapshot_of(1), "over-optimised")
    assert done["to"] == 3
    assert done["rows_dropped"] == sample.LABELS + 2
    assert {row["generation"] for row in rows(registry, "SELECT generation FROM labels")} == {0, 1, 3}
    values["filter"]["window"] = None
    sample.make_generation(registry, parse(values))
    assert [entry["generation"] for entry in taken(registry)["generations"]] == [0, 1, 3]


def test_what_came_of_it_on_a_line_that_was_left(fresh: Callable[[int], Registry]) -> None:
    """The reward models of 3 and 2 are excluded first, and the labels of both stay; those of 3 are of 2's student,
    which no line that is left knows to have come of 1's."""
    registry = fresh(1)
    values = load(registry.layout.params).model_dump(mode="json")
    values["supervise"]["enabled"] = True
    for _ in range(3):
        sample.make_generation(registry, parse(values))
    assert exclude(registry, sample.reward_snapshot_of(3), "one")["labels_kept"] == [3]
    first = exclude(registry, sample.reward_snapshot_of(2), "two")
    assert (first["to"], first["labels_kept"]) == (1, [2, 3])
    sample.make_generation(registry, parse(values))
    second = exclude(registry, sample.snapshot_of(1), "three")
    assert {sample.snapshot_of(g) for g in (1, 2, 3, 4)} <= set(second["models_excluded"])
    assert (second["to"], second["labels_kept"]) == (0, [1])
