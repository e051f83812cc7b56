"""Parts of a replay that need no model: the scratch clone, digests as DVC's, rows that differ, tests of agreement."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from flywheel.errors import InputError, RegistryError
from flywheel.records import digest
from storage import cache, equivalence, git, replay, replay_rows, scratch
from storage.history import published
from storage.layout import Layout
from storage.registry import Registry
from storage.schemas import ATTEMPTS, LABELS, OUTCOMES, PROBLEMS, STEP_LABELS
from storage.tables import file_md5, write_file
from tests.storage import sample
from tests.storage.forked import forked as forked

Fresh = Callable[[int], Registry]
Row = dict[str, Any]


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


def published_again(registry: Registry, generation: int, message: str = "Tamper") -> None:
    """Commit what lies there and move the generation's tag to it."""
    git.run(registry.root, "add", "-A", "-f", "--", *sorted(_changed(registry)))
    git.run(registry.root, "commit", "-q", "-m", message)
    git.run(registry.root, "tag", "-f", "-a", "-m", message, f"gen/{generation:04d}")


def _changed(registry: Registry) -> set[str]:
    text = git.run(registry.root, "status", "--porcelain=v1", "-z", "--ignored", "--untracked-files=all")
    names = {entry[3:] for entry in text.split("\0") if entry}
    own = (".flywheel/lock", ".flywheel/state", ".flywheel/dvc", ".flywheel/tmp", ".dvc/", "student/", "labels/")
    return {name for name in names if not name.startswith(own) and (registry.root / name).is_file()} - {""}


def test_digests_are_those_that_dvc_wrote(made: dict[int, Registry]) -> None:
    registry = made[4]
    recorded = replay.recorded(registry, 3)
    assert set(recorded.outputs) >= {"problems", "attempts", "labels/0003", "student", "metrics.json"}
    assert replay.digests(registry.layout, recorded.outputs) == recorded.outputs
    assert replay.weights(registry.layout, recorded.weights) == recorded.weights == {"student": sample.snapshot_of(3)}
    assert recorded.numerics == {"generate": "n", "train": "n"}
    assert recorded.code == sample.REVISION
    assert recorded.at_odds == []
    assert replay.digests(registry.layout, ["nowhere"]) == {"nowhere": None}


def test_the_clone_holds_what_went_in_and_nothing_that_came_out(made: dict[int, Registry], tmp_path: Path) -> None:
    registry = made[4]
    before = listing(registry.root)
    layout = scratch.prepare(registry, 3, tmp_path / "clone")
    assert listing(registry.root) == before
    # The champion of 2 is 1, which was therefore the parent of 3.
    student = published(registry, 1)["outputs"]["student"]
    assert replay.digests(layout, ["parent"]) == {"parent": student}
    for name in ("student", "problems", "attempts", "labels", "training", "evaluations", "metrics.json", ".flywheel"):
        assert not (layout.root / name).exists(), name
    for generation in range(3):
        for file in published(registry, generation)["tables"]["labels"]["files"]:
            placed = cache.object_path(layout.root, file["md5"])
            assert file_md5(placed) == file["md5"]
            assert placed.samefile(cache.cache_path(registry, file["md5"])), "linked, not copied"
    objects = [path for path in (layout.root / ".dvc" / "cache").rglob("*") if path.is_file()]
    assert len(objects) == 3, "the labels of 0 to 2 and nothing else"
    assert (layout.root / "params.yaml").read_text() == (registry.root / "params.yaml").read_text()


def test_an_older_generation_is_made_with_its_own_recipe(forked: Registry, tmp_path: Path) -> None:
    layout = scratch.prepare(forked, 2, tmp_path / "clone")
    assert "generation: 2\n" in layout.params.read_text()
    window = json.loads((layout.lineage / "window.json").read_text())
    assert [entry["generation"] for entry in window["generations"]] == [0, 1]
    with pytest.raises(InputError, match="gen/0009, which was never published"):
        scratch.prepare(forked, 9, tmp_path / "other")


def test_what_a_commit_brings_along_does_not_stand_in_for_work(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(1)
    work = registry.layout.work(0) / "train.json"
    work.parent.mkdir(parents=True)
    work.write_text("{}")
    (registry.root / ".gitignore").write_text("")
    for folder in ("attempts", "evaluations"):
        assert (registry.root / folder).is_dir()
    published_again(registry, 0)
    held = git.run(registry.root, "ls-tree", "-r", "--name-only", "gen/0000")
    assert "train.json" in held
    assert "attempts/part-00000.parquet" in held
    layout = scratch.prepare(registry, 0, tmp_path / "clone")
    assert not layout.local.exists()
    assert not layout.attempts.exists()


def test_links_of_a_commit_lead_nowhere(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (registry.root / "controls").symlink_to(outside)
    git.run(registry.root, "add", "controls")
    git.run(registry.root, "commit", "-q", "-m", "A link")
    git.run(registry.root, "tag", "-f", "-a", "-m", "0", "gen/0000")
    layout = scratch.prepare(registry, 0, tmp_path / "clone")
    assert not layout.controls.is_symlink()


def test_what_went_in_must_be_there_and_sound(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(4)
    label = cache.cache_path(registry, published(registry, 1)["tables"]["labels"]["files"][0]["md5"])
    text = label.read_bytes()
    label.unlink()
    with pytest.raises(RegistryError, match=r"tables of older generations, which went into gen/0003.*no remote"):
        scratch.prepare(registry, 3, tmp_path / "one")
    label.write_bytes(text + b" ")
    with pytest.raises(RegistryError, match=r"labels/0001/labels/part-00000.parquet of gen/0001 is damaged"):
        scratch.prepare(registry, 3, tmp_path / "two")


@pytest.mark.parametrize("inside", ["../../outside", "/etc/outside"])
def test_a_list_of_files_cannot_reach_outside(fresh: Fresh, tmp_path: Path, inside: str) -> None:
    registry = fresh(1)
    entry = {"md5": next(iter(cache.tree(registry, base(registry)).values())), "relpath": inside}
    listed = json.dumps([entry]).encode()
    md5 = hashlib.md5(listed, usedforsecurity=False).hexdigest() + ".dir"
    path = cache.cache_path(registry, md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(listed)
    (registry.root / "parent.dvc").write_text(cache.pointer_text(cache.Output("parent", md5, 1, 1, True), "parent"))
    published_again(registry, 0)
    with pytest.raises(RegistryError, match="which lies outside"):
        scratch.prepare(registry, 0, tmp_path / "deep" / "clone")
    assert not list(tmp_path.rglob("outside"))


def base(registry: Registry) -> cache.Output:
    return cache.pointed((registry.root / "parent.dvc").read_text())


def test_a_window_that_names_no_md5_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(4)
    path = registry.layout.lineage / "window.json"
    window = json.loads(path.read_text())
    window["generations"][0]["files"][0]["md5"] = "..//../secret"
    path.write_text(json.dumps(window))
    published_again(registry, 3)
    with pytest.raises(RegistryError, match="which is no MD5"):
        scratch.prepare(registry, 3, tmp_path / "clone")


def test_differences_are_named_by_output_table_and_row(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(1)
    layout = Layout(tmp_path / "made")
    names = ("labels/0000", "attempts", "student", "metrics.json")
    for name in ("labels", "attempts", "student"):
        for path, where in cache.listing(registry.root / name).items():
            target = layout.root / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(where.read_bytes())
    layout.metrics.write_text(registry.layout.metrics.read_text())
    assert [one["first"] for one in replay.differences(registry, 0, layout, ["attempts"])] == []
    part = layout.labels(0) / "labels" / "part-00000.parquet"
    rows = pa.parquet.read_table(part, partitioning=None).to_pylist()
    rows[2]["reward"] = 0.25
    write_file(part, rows, LABELS)
    (layout.student / "config.json").write_text("{}")
    (layout.student / "more.json").write_text("{}")
    metrics = json.loads(layout.metrics.read_text())
    metrics["valid"]["greedy"]["value"] = 0.5
    layout.metrics.write_text(json.dumps(metrics))
    found = replay.differences(registry, 0, layout, names)
    assert [(one["output"], one.get("table") or one.get("file")) for one in found] == [
        ("labels/0000", "labels"), ("student", "config.json"), ("student", "more.json"),
        ("metrics.json", "metrics.json"),
    ]  # fmt: skip
    assert found[0] == {
        "output": "labels/0000", "table": "labels", "rows": {"recorded": 4, "here": 4}, "only_recorded": 1,
        "only_here": 1, "columns": [], "first": {
            "row": 2, "key": "label_id", "recorded": {"label_id": rows[2]["label_id"], "reward": 1.0},
            "here": {"label_id": rows[2]["label_id"], "reward": 0.25},
        },
    }  # fmt: skip
    assert found[2]["recorded"] is None
    assert found[3]["first"] == {"key": "valid.greedy.value", "recorded": 0.25, "here": 0.5}
    cache.cache_path(registry, published(registry, 0)["outputs"]["attempts"]).unlink()
    (missing,) = replay.differences(registry, 0, layout, ["attempts"])
    assert "no remote" in missing["why"]


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_differ_as_by_brute_force(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    schema = pa.schema(
        [("id", pa.string()), ("number", pa.float64()), ("list", pa.list_(pa.int32())), ("text", pa.string())],
        metadata={"key": "id"},
    )
    rows = [
        {"id": f"{n}", "number": n / 7, "list": [n] * (n % 3), "text": None if n % 4 == 0 else "a'b"}
        for n in range(chance.randrange(1, 60))
    ]
    other = [dict(row) for row in rows]
    for _ in range(chance.randrange(4)):
        match chance.randrange(4):
            case 0 if other:
                other[chance.randrange(len(other))]["number"] += 1e-12
            case 1 if other:
                other.pop(chance.randrange(len(other)))
            case 2 if other:
                chance.shuffle(other)
            case _:
                other.append(dict(chance.choice(rows)))
    files = [parts(tmp_path / name, held, schema, chance) for name, held in (("old", rows), ("new", other))]
    found = replay_rows.differ(files[0], files[1], tmp_path)
    counted = [Counter(json.dumps(row, sort_keys=True) for row in held) for held in (rows, other)]
    assert found["rows"] == {"recorded": len(rows), "here": len(other)}
    assert found["only_recorded"] == (counted[0] - counted[1]).total()
    assert found["only_here"] == (counted[1] - counted[0]).total()
    place = next((n for n in range(max(len(rows), len(other))) if rows[n : n + 1] != other[n : n + 1]), None)
    if place is None:
        assert found["first"] is None
        return
    assert found["first"]["row"] == place
    for side, held in (("recorded", rows), ("here", other)):
        told = found["first"][side]
        assert (told is None) == (place >= len(held))
        if told is not None:
            assert told["id"] == held[place]["id"]


def parts(folder: Path, rows: list[Row], schema: pa.Schema, chance: random.Random) -> list[Path]:
    """The rows in files of any lengths, one of them without any."""
    cuts = sorted(chance.randrange(len(rows) + 1) for _ in range(2))
    found = []
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        found.append(folder / f"part-{number}.parquet")
        write_file(found[-1], rows[start:end], schema)
    return found


def test_columns_that_only_one_has_are_told_and_not_compared(tmp_path: Path) -> None:
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    write_file(old, [{"id": "a", "n": 1}], pa.schema([("id", pa.string()), ("n", pa.int64())]))
    write_file(new, [{"id": "a", "m": 2}], pa.schema([("id", pa.string()), ("m", pa.int64())]))
    found = replay_rows.differ([old], [new], tmp_path)
    assert (found["columns"], found["only_recorded"], found["first"]) == (["m", "n"], 0, None)


class Making:
    """Tables of a generation: problems in groups, their attempts, labels, outcomes and step labels."""

    def __init__(self, folder: Path, chance: random.Random, right: float, alone: bool = False) -> None:
        folder.mkdir()
        groups = {f"p{n:02d}": f"g{n if alone else n // 2}" for n in range(40)}
        self.rewards = {name: [float(chance.random() < right) for _ in range(4)] for name in groups}
        self.greedy = {name: float(chance.random() < right) for name in groups}
        self.groups = groups
        self.tables: equivalence.Tables = {}
        attempts = [
            {**_blank(ATTEMPTS), "attempt_id": digest(name, n), "problem_id": name, "reward": reward}
            for name, rewards in self.rewards.items()
            for n, reward in enumerate(rewards)
        ]
        attempts.append({**attempts[0], "reward": None})
        labels = [
            {**_blank(LABELS), "label_id": row["attempt_id"], "problem_id": row["problem_id"]}
            for row in attempts
            if row["reward"] == 1.0
        ]
        problems = [{**_blank(PROBLEMS), "problem_id": name, "group": group} for name, group in groups.items()]
        outcomes = [
            {**_blank(OUTCOMES), "problem_id": name, "group": groups[name], "metric": metric, "value": value,
             "split": "test"}
            for name, value in self.greedy.items() for metric in ("greedy", "pass")
        ]  # fmt: skip
        steps = [
            {**_blank(STEP_LABELS), "problem_id": name, "scores": [rewards[0], rewards[1]]}
            for name, rewards in self.rewards.items()
        ]
        for table, schema, rows in (
            ("attempts", ATTEMPTS, attempts), ("labels", LABELS, labels), ("problems", PROBLEMS, problems),
            ("outcomes", OUTCOMES, outcomes), ("step_labels", STEP_LABELS, steps),
        ):  # fmt: skip
            chance.shuffle(rows)
            path = folder / f"{table}.parquet"
            write_file(path, rows, schema)
            self.tables[table] = [path]


def _blank(schema: pa.Schema) -> Row:
    kinds: dict[str, Any] = {"string": "", "int64": 0, "double": 0.0}
    return {field.name: kinds.get(str(field.type), []) for field in schema}


def test_each_problem_alone_it_is_the_paired_t_test_of_scipy(tmp_path: Path) -> None:
    chance = random.Random(1)
    old, new = (Making(tmp_path / name, chance, 0.5, alone=True) for name in ("old", "new"))
    found = {test["of"]: test for test in equivalence.tests(old.tables, new.tables, tmp_path)}
    names = sorted(old.groups)
    for quantity, values in {
        "greedy accuracy": [[one.greedy[name] for name in names] for one in (old, new)],
        "mean reward of attempts": [[np.mean(one.rewards[name]) for name in names] for one in (old, new)],
        "labels kept of a problem's attempts": [[sum(one.rewards[name]) for name in names] for one in (old, new)],
        "mean score of labelled steps": [[np.mean(one.rewards[name][:2]) for name in names] for one in (old, new)],
    }.items():
        expected = stats.ttest_rel(values[1], values[0])
        interval = expected.confidence_interval(0.95)
        assert found[quantity]["p"] == pytest.approx(expected.pvalue, rel=1e-9)
        assert found[quantity]["value"] == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
        assert (found[quantity]["low"], found[quantity]["high"]) == pytest.approx((interval.low, interval.high))
        assert found[quantity]["count"] == 40


def test_with_groups_it_is_the_clustered_test(tmp_path: Path) -> None:
    """Miller 2024, section 2.2, written out: sums of the groups' residuals, G / (G - 1), G - 1 degrees of freedom."""
    chance = random.Random(4)
    old, new = (Making(tmp_path / name, chance, 0.5) for name in ("old", "new"))
    each = {name: new.greedy[name] - old.greedy[name] for name in old.groups}
    mean = sum(each.values()) / 40
    sums = [sum(each[name] - mean for name in each if old.groups[name] == group) for group in set(old.groups.values())]
    error = (sum(total**2 for total in sums) * 20 / 19) ** 0.5 / 40
    greedy = next(one for one in equivalence.tests(old.tables, new.tables, tmp_path) if one["of"] == "greedy accuracy")
    assert len(sums) == 20
    assert mean != 0
    assert greedy["p"] == pytest.approx(2 * stats.t.sf(abs(mean) / error, 19), rel=1e-9)


def test_the_same_distribution_agrees_and_another_does_not(tmp_path: Path) -> None:
    """Thirty pairs of makings: false alarms no more often than stated (binomial, 1 in 10,000 for more), and a student
    that is right 40 points less often is told apart each time."""
    chance = random.Random(2)
    makings = [Making(tmp_path / f"{n}", chance, 0.6) for n in range(31)]
    alarms = sum(
        not equivalence.agree(equivalence.tests(a.tables, b.tables, tmp_path)) for a, b in itertools.pairwise(makings)
    )
    assert alarms <= stats.binom.ppf(0.9999, 30, equivalence.LEVEL)
    worse = [Making(tmp_path / f"worse {n}", chance, 0.2) for n in range(5)]
    for one in worse:
        assert not equivalence.agree(equivalence.tests(makings[0].tables, one.tables, tmp_path))


def test_groups_count_as_one_observation_each(tmp_path: Path) -> None:
    """Twenty problems of one group that all got worse, twenty that did not change: by problems sure, by groups nothing
    that two groups could tell."""
    chance = random.Random(3)
    old, new = (Making(tmp_path / name, chance, 1.0, alone=True) for name in ("old", "new"))
    rows = [
        {**_blank(OUTCOMES), "problem_id": name, "group": f"{n < 20}", "metric": "greedy", "split": "test",
         "value": float(n >= 20)}
        for n, name in enumerate(sorted(old.groups))
    ]  # fmt: skip
    write_file(new.tables["outcomes"][0], rows, OUTCOMES)
    old_rows = [{**row, "value": 1.0} for row in rows]
    write_file(old.tables["outcomes"][0], old_rows, OUTCOMES)
    (greedy,) = (
        test for test in equivalence.tests(old.tables, new.tables, tmp_path) if test["of"] == "greedy accuracy"
    )
    assert greedy["value"] == -0.5
    assert greedy["p"] > 0.05
    assert stats.ttest_1samp([-1.0] * 20 + [0.0] * 20, 0.0).pvalue < 1e-5


def test_nothing_to_test_is_no_agreement(tmp_path: Path) -> None:
    assert equivalence.tests({}, {}, tmp_path) == []
    assert not equivalence.agree([])
    assert equivalence.agree([equivalence.same_rows(3)])
