"""A registry that an earlier version wrote (data/version-1.tar.xz: real stages, supervision, one rollback) is read as
it is, and written once it was upgraded."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import InputError, RegistryBusy, RegistryError
from flywheel.params import load
from storage import upgrade
from storage.history import history
from storage.lineage import lineage
from storage.registry import Registry
from storage.views import query
from tests.storage import sample

ARCHIVE = Path(__file__).parent / "data" / "version-1.tar.xz"


@pytest.fixture
def old(tmp_path: Path) -> Registry:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return Registry.open(tmp_path / "version-1")


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_it_is_read_as_it_is(old: Registry) -> None:
    assert old.version() == 1
    assert [(row["generation"], row["status"]) for row in history(old)] == [
        (0, "ancestor"), (1, "ancestor"), (2, "abandoned"), (3, "current"),
    ]  # fmt: skip
    # `trained_on` had no generation then; the labels say it.
    sql = (
        "SELECT t.generation AS told, l.generation AS labels, s.generation AS steps FROM trained_on t "
        "LEFT JOIN labels l USING (label_id) LEFT JOIN step_labels s ON t.label_id = s.step_label_id"
    )
    rows = list(query(old, sql).rows)
    assert len(rows) > 300
    assert all(row["told"] == (row["labels"] if row["steps"] is None else row["steps"]) for row in rows)
    label = next(query(old, "SELECT label_id FROM labels WHERE generation = 3").rows)["label_id"]
    nodes = {node["address"] for node in lineage(old, f"gen/3/labels#{label}").nodes}
    assert f"gen/3/labels#{label}" in nodes
    assert _git(old.root, "status", "--porcelain") == ""


def test_it_is_not_written_before_it_is_upgraded(old: Registry) -> None:
    with pytest.raises(RegistryError, match=r"registry version 1; .*`flywheel upgrade`"):
        sample.begin_generation(old, load(old.layout.params))


def test_upgraded_and_taken_back(old: Registry) -> None:
    tree = _git(old.root, "rev-parse", "HEAD^{tree}")
    done = upgrade.upgrade(old)
    assert (done["from"], done["to"], done["generations"]) == (1, 2, 4)
    assert _git(old.root, "status", "--porcelain") == ""
    anchors = json.loads((old.root / "anchors.json").read_text(encoding="utf-8"))["tags"]
    assert anchors == {f"gen/{g:04d}": _git(old.root, "rev-parse", f"refs/tags/gen/{g:04d}") for g in range(4)}
    with pytest.raises(InputError, match="already"):
        upgrade.upgrade(old)
    upgrade.undo(old)
    assert _git(old.root, "rev-parse", "HEAD^{tree}") == tree
    assert Registry.open(old.root).version() == 1
    with pytest.raises(InputError, match="was not upgraded"):
        upgrade.undo(old)


def test_what_was_made_since_keeps_it_from_being_taken_back(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    marker = json.loads(registry.layout.marker.read_text(encoding="utf-8"))
    registry.layout.marker.write_text(json.dumps({**marker, "registry_version": 1}), encoding="utf-8")
    _git(registry.root, "commit", "-qam", "as an earlier version would")
    registry.layout.params.write_text("mine", encoding="utf-8")
    with pytest.raises(RegistryBusy, match=r"changed by hand.*params\.yaml"):
        upgrade.upgrade(registry)
    _git(registry.root, "restore", "params.yaml")
    upgrade.upgrade(registry)
    sample.make_generation(registry)
    with pytest.raises(InputError, match=r"gen/0000 was published since the upgrade"):
        upgrade.undo(registry)
