"""Going back and undoing it: files, folders, numbers and what the plan promised."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import FlywheelError, InputError, RegistryBusy
from storage import dvc
from storage.cache import cache_folder
from storage.history import history, published, window
from storage.prepare import unfinished
from storage.registry import Registry
from storage.rollback import plan, rollback, undo
from storage.tables import file_md5
from tests.storage import sample


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _digests(registry: Registry) -> dict[str, str]:
    """Every file of the current generation's output folders, by its own bytes."""
    labels = f"labels/{registry.head_generation():04d}"
    folders = ("parent", "problems", "attempts", labels, "student", "training", "evaluations")
    paths = [path for name in folders for path in (registry.root / name).rglob("*") if path.is_file()]
    return {path.relative_to(registry.root).as_posix(): file_md5(path) for path in paths}


def test_back_on_undone_and_on_again(fresh: Callable[[int], Registry], made: dict[int, Registry]) -> None:
    registry = fresh(4)
    newest = _digests(registry)
    planned = plan(registry, 0)
    kept = sample.LABELS
    assert planned == {
        "from": 3,
        "to": 0,
        "rows_dropped": (kept + 1) + (kept + 2) + (kept + 3),
        "rows_kept": kept,
        "models_abandoned": [sample.snapshot_of(g) for g in (1, 2, 3)],
        "alias": {"from": 3, "to": 0},
        "bytes_to_fetch": 0,
        "unfinished": None,
        "undo": "flywheel undo",
    }
    done = rollback(registry, 0, "the later ones\nlearned nothing: really")
    assert {key: done[key] for key in planned} == planned
    assert _digests(registry) == _digests(made[1])
    assert registry.head_generation() == 0
    assert registry.generations() == [0, 1, 2, 3]
    registry.check_clean()
    assert json.loads(dvc.run(registry, "status", "--json")) == {}
    assert (registry.layout.ledger(3)).exists(), "what was spent stays in the books"
    rows = {row["generation"]: row for row in history(registry)}
    assert [rows[g]["status"] for g in range(4)] == ["current", "abandoned", "abandoned", "abandoned"]
    assert rows[3]["reason"] == "the later ones learned nothing: really"

    params = sample.make_generation(registry)
    assert (params.generation, params.parent) == (4, 0)
    assert window(registry, None) == [0, 4]
    assert [row["status"] for row in history(registry)] == ["ancestor", *["abandoned"] * 3, "current"]

    undone = undo(registry)
    assert (undone["from"], undone["to"]) == (4, 3)
    assert _digests(registry) == newest
    assert window(registry, None) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="nothing to undo"):
        undo(registry)


def test_what_cannot_be_rolled_back_to(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    with pytest.raises(InputError, match=r"got gen/0009, .* there are: gen/0000, gen/0001"):
        rollback(registry, 9, "why not")
    with pytest.raises(InputError, match="already stands at gen/0003"):
        plan(registry, 3)
    with pytest.raises(InputError, match="empty reason"):
        rollback(registry, 1, " ")
    with pytest.raises(InputError, match="nothing to undo"):
        undo(registry)
    (registry.root / "dvc.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(RegistryBusy, match=r"dvc\.yaml"):
        rollback(registry, 1, "edited")


def test_a_generation_in_progress_is_dropped(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    params = sample.begin_generation(registry)
    sample.write_outputs(registry, params)
    registry.layout.work(4).mkdir(parents=True)
    assert plan(registry, 1)["unfinished"] == 4
    rollback(registry, 1, "start over")
    assert unfinished(registry) is None
    assert not registry.layout.work(4).exists()
    assert file_md5(registry.layout.metrics) == published(registry, 1)["outputs"]["metrics.json"]
    registry.check_clean()


def test_objects_are_fetched_or_nothing_changes(fresh: Callable[[int], Registry], tmp_path: Path) -> None:
    registry = fresh(4)
    before = _git(registry.root, "rev-parse", "HEAD")
    away = tmp_path / "away"
    shutil.copytree(cache_folder(registry.root), away)
    student = published(registry, 1)["outputs"]["student"]
    objects = cache_folder(registry.root) / "files" / "md5"
    (objects / student[:2] / student[2:]).unlink()
    assert plan(registry, 1)["bytes_to_fetch"] > 0
    with pytest.raises(FlywheelError, match=r"student of gen/0001 .* no remote"):
        rollback(registry, 1, "no remote")
    dvc.run(registry, "remote", "add", "-q", "-d", "--local", "away", str(tmp_path / "nothing"))
    with pytest.raises(FlywheelError, match=r"dvc fetch|remote lacks"):
        rollback(registry, 1, "an empty remote")
    assert _git(registry.root, "rev-parse", "HEAD") == before
    registry.check_clean()
    dvc.run(registry, "remote", "modify", "-q", "--local", "away", "url", str(away))
    rollback(registry, 1, "fetched")
    assert b"student-1-0" in (registry.layout.student / "model.safetensors").read_bytes()
