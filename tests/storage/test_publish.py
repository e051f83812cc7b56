"""Publishing: what lands in the cache, in git and under the tag, checked against the bytes themselves."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flywheel.errors import FlywheelError, StorageFull
from flywheel.params import load, parse
from storage import publish as publishing
from storage.history import cache_path, published
from storage.prepare import begin, unfinished
from storage.publish import commit_files, publish
from storage.registry import Registry, read_state
from storage.schemas import TABLES
from storage.tables import file_md5
from tests.storage import sample


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_lineage_names_bytes_that_are_in_the_cache(made: dict[int, Registry]) -> None:
    registry = made[4]
    for generation in range(4):
        lineage = published(registry, generation)
        assert set(lineage["tables"]) == set(TABLES)
        for name, table in lineage["tables"].items():
            keys = []
            for file in table["files"]:
                data = cache_path(registry, file["md5"]).read_bytes()
                assert hashlib.md5(data, usedforsecurity=False).hexdigest() == file["md5"]
                assert len(data) == file["bytes"]
                rows = pq.read_table(cache_path(registry, file["md5"])).column(table["key"]).to_pylist()
                assert len(rows) == file["rows"]
                keys += rows
            expected = (min(keys), max(keys)) if keys else (None, None)
            assert (table["low"], table["high"], table["rows"]) == (*expected, len(keys)), name
        assert lineage["labels"] == {"kept": sample.LABELS + generation, "rejected": 2}
        assert lineage["flops"]["training"] == 2e6
        assert lineage["parent"] == (generation - 1 if generation else None)


def test_the_commit_is_whole_and_says_where_it_came_from(made: dict[int, Registry]) -> None:
    registry = made[4]
    assert registry.generations() == [0, 1, 2, 3]
    assert _git(registry.root, "cat-file", "-t", "gen/0002") == "tag"
    body = _git(registry.root, "log", "-1", "--format=%B", "gen/0002")
    assert body.startswith("Publish generation 2\n\nFlywheel-Generation: 2\nFlywheel-Parent: 1\nFlywheel-Run: ")
    assert "Flywheel-Parent: none" in _git(registry.root, "log", "-1", "--format=%B", "gen/0000")
    tree = set(_git(registry.root, "ls-tree", "-r", "--name-only", "gen/0002").split("\n"))
    assert {"dvc.lock", "parent.dvc", "params.yaml", "metrics.json", "ledger/0002.jsonl", "lineage/0001.json"} <= tree
    assert not any(path.startswith((".flywheel/", "labels/", "student/", ".dvc/cache")) for path in tree)
    registry.check_clean()
    assert not registry.layout.work(3).exists()
    assert unfinished(registry) is None


def test_dvc_itself_agrees(fresh: Callable[[int], Registry]) -> None:
    from storage import dvc

    assert json.loads(dvc.run(fresh(4), "status", "--json")) == {}


def test_a_generation_starts_from_the_champion(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    # Generation 2 was not promoted, so generation 3 started from generation 1.
    lines = _git(registry.root, "show", "gen/0003:parent.dvc")
    student = next(path for path in (registry.root / "parent").iterdir() if path.name == "model.safetensors")
    assert b"student-1-0" in student.read_bytes()
    assert published(registry, 1)["outputs"]["student"] in lines
    lineage = published(registry, 3)
    assert lineage["teacher"] == {
        "kind": "champion",
        "snapshot": sample.snapshot_of(1),
        "generation": 1,
        "source": "gen/0001/student",
        "verified": True,
    }
    assert lineage["champion"]["generation"] == 3
    champion = json.loads((registry.layout.lineage / "champion.json").read_text(encoding="utf-8"))
    expected = {"generation": 1, "snapshot": sample.snapshot_of(1), "valid_greedy": sample.greedy(1)}
    metrics = json.loads(_git(registry.root, "show", "gen/0001:metrics.json"))
    assert champion.pop("metrics") == {"valid": metrics["valid"]}
    assert champion == expected


def test_window_and_external_teacher(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    values = load(registry.layout.params).model_dump()
    values["filter"]["window"] = 3
    values["generate"]["teacher"] = "some/model"
    params = sample.begin_generation(registry, parse(values))
    assert (params.generation, params.parent, params.folder) == (4, 3, "0004")
    assert load(registry.layout.params) == params
    window = json.loads((registry.layout.lineage / "window.json").read_text(encoding="utf-8"))["generations"]
    assert [entry["generation"] for entry in window] == [2, 3]  # the third is generation 4 itself
    assert window[0]["files"] == published(registry, 2)["tables"]["labels"]["files"]
    assert window[0]["files"][0]["path"] == "labels/0002/labels/part-00000.parquet"
    teacher = json.loads((registry.layout.lineage / "teacher.json").read_text(encoding="utf-8"))
    assert (teacher["kind"], teacher["source"], teacher["verified"]) == ("external", "some/model", False)
    values["filter"]["window"] = 1
    sample.begin_generation(registry, parse(values))
    window = json.loads((registry.layout.lineage / "window.json").read_text(encoding="utf-8"))["generations"]
    assert window == []


def test_resuming_keeps_the_run_unless_the_recipe_changed(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    made = []

    def make_base(folder: Path) -> str:
        made.append(folder)
        return sample.write_model(folder, "base")

    def again(**execution: object) -> None:
        values = load(registry.layout.params).model_dump()
        values["execution"].update(execution)
        begin(registry, parse(values), make_base, sample.external_teacher, sample.SOLVER)

    again()
    first = unfinished(registry)
    stamp = registry.layout.work(0) / "stamp"
    stamp.parent.mkdir(parents=True)
    stamp.touch()
    again(shards=7)
    assert unfinished(registry) == first
    assert stamp.exists()
    assert len(made) == 1, "the base model is made once"
    values = load(registry.layout.params).model_dump()
    values["train"]["epochs"] = 99
    begin(registry, parse(values), make_base, sample.external_teacher, sample.SOLVER)
    second = unfinished(registry)
    assert first is not None
    assert second is not None
    assert (second["generation"], second["run"] != first["run"]) == (0, True)
    assert not stamp.exists()


def test_what_is_missing_is_not_published(fresh: Callable[[int], Registry], monkeypatch: pytest.MonkeyPatch) -> None:
    registry = fresh(1)
    params = sample.begin_generation(registry)
    with pytest.raises(FlywheelError, match=r"labels/0001/ is missing"):
        publish(registry, params, sample.REVISION)
    sample.write_outputs(registry, params)
    registry.layout.ledger(1).unlink()
    with pytest.raises(FlywheelError, match="no ledger"):
        publish(registry, params, sample.REVISION)
    monkeypatch.setattr(publishing, "_ROOM_BYTES", 2**62)
    with pytest.raises(StorageFull, match="left, publishing gen/0001 needs"):
        publish(registry, params, sample.REVISION)
    assert registry.generations() == [0]


def test_a_damaged_object_of_the_same_name_is_replaced(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    params = sample.begin_generation(registry)
    sample.write_outputs(registry, params)
    table = registry.root / "attempts" / "part-00000.parquet"
    data, md5 = table.read_bytes(), file_md5(table)
    damaged = cache_path(registry, md5)
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(data[:-1] + b"?")
    damaged.chmod(0o444)  # read-only: DVC takes it for sound
    publish(registry, params, sample.REVISION)
    assert cache_path(registry, md5).read_bytes() == data == table.read_bytes()


def test_an_object_damaged_while_publishing_stops_it(
    fresh: Callable[[int], Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = fresh(1)
    params = sample.begin_generation(registry)
    sample.write_outputs(registry, params)
    md5 = file_md5(registry.layout.student / "model.safetensors")
    real = publishing.dvc.commit

    def commit_and_damage(target: Registry) -> None:
        real(target)
        path = cache_path(target, md5)
        path.chmod(0o644)
        path.write_bytes(b"a bad sector")

    monkeypatch.setattr(publishing.dvc, "commit", commit_and_damage)
    with pytest.raises(FlywheelError, match=r"not published: student/model\.safetensors is damaged in the cache"):
        publish(registry, params, sample.REVISION)
    assert registry.generations() == [0]


def test_metrics_of_another_generation_are_refused(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    params = sample.begin_generation(registry)
    metrics = registry.layout.metrics.read_text(encoding="utf-8")
    sample.write_outputs(registry, params)
    registry.layout.metrics.write_text(metrics, encoding="utf-8")
    with pytest.raises(FlywheelError, match="should be evaluate's of generation 1; got generation 0"):
        publish(registry, params, sample.REVISION)


def test_a_remote_has_the_objects_before_the_tag_exists(fresh: Callable[[int], Registry], tmp_path: Path) -> None:
    from storage import dvc

    registry = fresh(1)
    dvc.run(registry, "remote", "add", "-q", "-d", "--local", "away", str(tmp_path / "away"))
    sample.make_generation(registry)
    lineage = published(registry, 1)
    for table in lineage["tables"].values():
        for file in table["files"]:
            assert file_md5(tmp_path / "away" / "files" / "md5" / file["md5"][:2] / file["md5"][2:]) == file["md5"]
    # A remote that cannot be written: nothing is published.
    (tmp_path / "blocked").write_text("a file", encoding="utf-8")
    dvc.run(registry, "remote", "modify", "-q", "--local", "away", "url", str(tmp_path / "blocked"))
    with pytest.raises(FlywheelError, match="nothing was published"):
        sample.make_generation(registry)
    assert registry.generations() == [0, 1]


def test_commit_files_takes_only_those(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    path = registry.layout.controls / "ceiling.json"
    path.parent.mkdir()
    path.write_text("{}", encoding="utf-8")
    (registry.root / "notes.txt").write_text("mine", encoding="utf-8")
    _git(registry.root, "add", "notes.txt")
    first = commit_files(registry, [path], "Record a control", {"Flywheel-Control": "ceiling"})
    assert _git(registry.root, "show", "--format=", "--name-only", first) == "controls/ceiling.json"
    assert "Flywheel-Control: ceiling" in _git(registry.root, "log", "-1", "--format=%B")
    assert commit_files(registry, [path], "Record a control", {}) == first
    assert registry.head_generation() == 0
    assert read_state(registry) == {}
