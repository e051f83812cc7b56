"""History from git alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import RegistryError
from flywheel.params import load, parse
from storage import dvc
from storage.history import history, published, window
from storage.registry import Registry
from storage.rollback import rollback, undo
from tests.storage import sample


def test_rows_say_what_happened(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    runs = registry.layout.local / "runs" / "0001.json"
    runs.parent.mkdir()
    runs.write_text(json.dumps({"mlflow_run": "m1", "prefect_flow_run": "p1", "seconds": 2.0}), encoding="utf-8")
    rows = history(registry)
    assert [row["tag"] for row in rows] == ["gen/0000", "gen/0001", "gen/0002", "gen/0003"]
    assert [row["parent"] for row in rows] == [None, 0, 1, 2]
    assert [row["labels"] for row in rows] == [sample.LABELS + g for g in range(4)]
    assert [row["student"] for row in rows] == [sample.snapshot_of(g) for g in range(4)]
    assert rows[0]["teacher"] == sample.SOLVER
    assert [row["teacher"] for row in rows[1:]] == [sample.snapshot_of(g) for g in (0, 1, 1)]
    assert [(row["champion"], row["promoted"]) for row in rows] == [(0, True), (1, True), (1, False), (3, True)]
    assert rows[2]["reason"] == "not promoted: worse by 0.125 on valid than gen/0001"
    assert [row["reason"] for row in (rows[0], rows[1], rows[3])] == [None] * 3
    assert (rows[1]["mlflow_run"], rows[1]["prefect_flow_run"], rows[2]["mlflow_run"]) == ("m1", "p1", None)
    assert rows[3]["metrics"]["test"]["greedy"]["value"] == pytest.approx(0.5)
    assert json.loads(json.dumps(rows)) == rows
    assert window(registry, 2) == [0, 1, 2]
    assert history(fresh_empty(registry)) == []


def fresh_empty(registry: Registry) -> Registry:
    return sample.new_registry(registry.root.parent / "empty")


def test_what_was_never_published_is_named(made: dict[int, Registry]) -> None:
    with pytest.raises(RegistryError, match="gen/0007"):
        published(made[4], 7)
    with pytest.raises(RegistryError, match="gen/0007"):
        window(made[4], 7)


def test_a_clone_reads_the_same_and_goes_on_from_a_remote(made: dict[int, Registry], tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(made[4].root), str(clone)], check=True)
    registry = Registry.open(clone)
    assert history(registry) == history(made[4])
    with pytest.raises(RegistryError, match="is not in the cache and no remote has it"):
        sample.make_generation(registry)
    shutil.copytree(made[4].root / ".dvc" / "cache", tmp_path / "away")
    dvc.run(registry, "remote", "add", "-q", "-d", "--local", "away", str(tmp_path / "away"))
    assert sample.make_generation(registry).generation == 4


def test_reading_loads_no_heavy_package(made: dict[int, Registry]) -> None:
    code = (
        "import sys; from pathlib import Path; from storage.registry import Registry; "
        "from storage.history import history; "
        f"rows = history(Registry.open(Path({str(made[4].root)!r}))); "
        "heavy = {'dvc', 'mlflow', 'prefect', 'torch', 'duckdb', 'pandas', 'pyarrow', 'transformers'}; "
        "print(len(rows), sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "4 []"


def test_rows_say_why_each_generation_exists(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    rollback(registry, 1, "the later ones cheat")
    values = load(registry.layout.params).model_dump(mode="json")
    values["generate"]["samples"], values["filter"]["per_problem"] = 32, None
    sample.make_generation(registry, parse(values))
    sample.make_generation(registry)
    undo(registry)
    sample.make_generation(registry)
    rows = {row["generation"]: row for row in history(registry)}
    assert [rows[g]["why"] for g in (0, 1, 5)] == ["the seed", "goes on from gen/0000", "goes on from gen/0004"]
    assert rows[4]["why"] == "goes on from gen/0001, rolled back to from gen/0003: the later ones cheat"
    assert rows[6]["why"] == "goes on from gen/0003, to which undo of the rollback to gen/0001 returned"
    default = load(registry.layout.params)
    assert rows[4]["changed"] == {
        "generate.samples": [default.generate.samples, 32],
        "filter.per_problem": [default.filter.per_problem, None],
    }
    assert [rows[g]["changed"] for g in (0, 3, 5, 6)] == [{}] * 4
