"""generate in shards: units are done once, survive a stop, and join to the same bytes however they were cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel import params as parameters
from flywheel.compute import Cost
from flywheel.errors import FlywheelError, Interrupted, ModelError
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params
from flywheel.problems import domain as domains
from flywheel.search.best_of_n import BestOfN
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import ATTEMPTS, REJECTED
from storage.tables import read_rows
from tasks import generate, models
from tasks.stage import Hooks, Units, folder_digest


@pytest.fixture(autouse=True)
def _forget() -> None:
    models.forget()


def clone(layout: Layout, target: Path) -> Layout:
    return Layout(Path(shutil.copytree(layout.root, target)))


def test_a_unit_is_its_rows_and_its_facts(tmp_path: Path) -> None:
    units = Units(Layout(tmp_path), 3, "generate", "mark")
    assert units.folder == tmp_path / ".flywheel" / "work" / "0003" / "generate-mark"
    assert not units.done(17)
    rows = [{"attempt_id": "a", "reason": "truncated"}]
    units.write(17, rows, REJECTED, {"seconds": 1.5})
    assert units.table(17).name == "unit-00017.parquet"
    assert units.done(17)
    assert (units.rows(17), units.facts(17)) == (rows, {"seconds": 1.5})
    # Facts alone, as a kill between the two writes leaves them, are no unit.
    units.table(17).unlink()
    assert not units.done(17)


def test_missing_units_are_named(tmp_path: Path) -> None:
    units = Units(Layout(tmp_path), 0, "generate", "mark")
    units.write(0, [], REJECTED, {})
    units.require(1)
    with pytest.raises(FlywheelError, match=r"2 of 3 units are missing .*first: 1"):
        units.require(3)


def test_any_number_of_shards_gives_the_same_bytes(layout: Layout, tiny: Params, tmp_path: Path) -> None:
    digests, costs = set(), set()
    for shards in (1, 2, 3, 7):
        here = clone(layout, tmp_path / f"shards-{shards}")
        # Last shard first: the order they are done in does not matter either.
        parts = [generate.run_shard(tiny, here, shard, shards) for shard in reversed(range(shards))]
        report = generate.finish(tiny, here)
        digests.add(folder_digest(here.attempts))
        assert sum(part.rows_out for part in parts) == report.rows_out == 14 * 3
        assert sum((part.cost for part in reversed(parts)), Cost()).tokens == report.cost.tokens
        costs.add(report.cost)
    assert len(digests) == 1
    assert len(costs) == 1


def test_attempts_lie_by_problem_in_the_order_of_ids(layout: Layout, tiny: Params) -> None:
    generate.run(tiny, layout)
    rows = read_rows(layout.attempts, ATTEMPTS)
    places = [(row["problem_id"], row["index"]) for row in rows]
    assert places == sorted(places)
    assert len(set(places)) == len(rows) == 42
    assert len({row["attempt_id"] for row in rows}) == 42
    train = {problem.problem_id for problem in read_problems(layout.problems, ["train"])}
    assert {row["problem_id"] for row in rows} <= train
    assert {row["teacher"] for row in rows} == {models.teacher(layout)["snapshot"]}


def count_searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many problems each search from here on was given."""
    searched: list[int] = []
    search = BestOfN.search

    def counting(self: BestOfN, problems: list[object], *args: object, **options: object) -> object:
        searched.append(len(problems))
        return search(self, problems, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(BestOfN, "search", counting)
    return searched


def test_a_done_unit_is_not_done_again(layout: Layout, tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = count_searches(monkeypatch)
    generate.run_shard(tiny, layout, 0, 3)
    assert searched == [2, 2]
    generate.run_shard(tiny, layout, 0, 1)
    assert searched == [2] * 7, "the other five"
    first = generate.finish(tiny, layout)
    again = generate.run(tiny, layout)
    assert searched == [2] * 7
    assert again.reused
    assert (again.cost, again.rows_out, again.seconds) == (first.cost, first.rows_out, first.seconds)


def stop_after(units: int) -> Callable[[], None]:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls > units:
            raise Interrupted("stop")

    return stop


@pytest.mark.parametrize("calls", [0, 1, 7, 25])
def test_stopped_and_resumed_with_other_shards_is_as_if_unbroken(
    layout: Layout, tiny: Params, tmp_path: Path, calls: int
) -> None:
    whole = clone(layout, tmp_path / "whole")
    generate.run(tiny, whole)
    with pytest.raises(Interrupted):
        generate.run_shard(tiny, layout, 0, 1, Hooks(should_stop=stop_after(calls)))
    assert not layout.attempts.exists()
    with pytest.raises(FlywheelError, match="units are missing"):
        generate.finish(tiny, layout)
    for shard in range(5):
        generate.run_shard(tiny, layout, shard, 5)
    generate.finish(tiny, layout)
    assert folder_digest(layout.attempts) == folder_digest(whole.attempts)


def test_what_shapes_the_attempts_voids_them_and_nothing_else_does(
    layout: Layout, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(**sections: object) -> Params:
        return tiny.model_copy(update=sections)

    generate.run(tiny, layout)
    searched = count_searches(monkeypatch)
    same = [
        changed(execution=parameters.Execution(device="cpu", threads=1, shards=9, retries=0)),
        changed(train=parameters.Train(epochs=99)),
        changed(campaign=parameters.Campaign(generations=2)),
    ]
    for params in same:
        assert generate.run(params, layout).reused
    assert searched == []
    short = {"samples": 1, "max_new_tokens": 2, "problems": 2, "unit": 2}
    others = [
        changed(generate=parameters.Generate(**short)),
        changed(generate=parameters.Generate(**short, temperature=0.5)),
        changed(generate=parameters.Generate(**short), seed=1),
        changed(generate=parameters.Generate(**short), generation=2),
    ]
    for params in others:
        assert not generate.run(params, layout).reused
    assert len(searched) == 4


def test_a_damaged_table_is_put_together_anew_from_its_units(layout: Layout, tiny: Params) -> None:
    generate.run(tiny, layout)
    (part,) = layout.attempts.glob("*.parquet")
    data = part.read_bytes()
    part.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert not generate.finish(tiny, layout).reused
    (part,) = layout.attempts.glob("*.parquet")
    assert part.read_bytes() == data


def test_generation_0_is_the_solvers(layout: Layout, tiny: Params) -> None:
    first = tiny.for_generation(0, None)
    report = generate.run(first, layout)
    rows = read_rows(layout.attempts, ATTEMPTS)
    assert report.cost == Cost()
    assert {row["searcher"] for row in rows} == {"solver"}
    assert {row["reward"] for row in rows} == {1.0}
    assert len(rows) == len(read_problems(layout.problems, ["train"])), "there are fewer than seed_labels.problems"


def test_each_generation_draws_its_own_problems(layout: Layout, tiny: Params) -> None:
    drawn = [
        [problem.problem_id for problem in generate.chosen(tiny.for_generation(number, 0), layout)] for number in (1, 2)
    ]
    assert [len(ids) for ids in drawn] == [14, 14]
    assert drawn[0] != drawn[1]
    assert drawn[0] == sorted(drawn[0])


def test_a_digest_kept_for_later_is_made_anew_for_other_weights(layout: Layout, tiny: Params) -> None:
    words = list(domains.load(tiny.problems).vocabulary())
    first = models.snapshot_of(layout.parent)
    assert models.snapshot_of(layout.parent) == first == weights_digest(layout.parent)
    other = language.create(tiny.model, words, (), 4, layout.parent)
    assert models.snapshot_of(layout.parent) == other != first


def test_a_teacher_that_is_not_the_one_lineage_names(layout: Layout, tiny: Params) -> None:
    shutil.rmtree(layout.parent)
    other = language.create(tiny.model, domains.load(tiny.problems).vocabulary(), (), 4, layout.parent)
    with pytest.raises(ModelError, match=f"holds weights {other}, expected"):
        generate.run(tiny, layout)
    teacher = json.loads((layout.lineage / "teacher.json").read_text())
    (layout.lineage / "teacher.json").write_text(json.dumps({**teacher, "snapshot": other}))
    models.forget()
    assert generate.run(tiny, layout).rows_out == 42
