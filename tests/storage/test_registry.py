"""Making and opening a registry: what a user can get wrong, and that nothing is left half-made."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flywheel.errors import InputError, RegistryBusy, RegistryError
from flywheel.params import load, parse
from storage import recipes
from storage.registry import Registry, read_state, write_state
from tests.storage import sample


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_a_new_registry_is_one_clean_commit(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    marker = json.loads(registry.layout.marker.read_text(encoding="utf-8"))
    assert (marker["registry_version"], marker["preset"], len(marker["registry_id"])) == (2, "countdown", 32)
    assert _git(registry.root, "rev-list", "--count", "HEAD") == "1"
    assert _git(registry.root, "branch", "--show-current") == "main"
    assert _git(registry.root, "status", "--porcelain", "--untracked-files=all") == ""
    assert load(registry.layout.params) == parse(recipes.load_preset())
    assert (registry.generations(), registry.head_generation(), registry.next_generation()) == ([], None, 0)
    registry.check_clean()


def test_init_refuses_what_is_not_its_own(fresh: Callable[[int], Registry], tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is a registry already"):
        sample.new_registry(fresh(0).root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(RegistryError, match="not an empty folder"):
        sample.new_registry(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert sample.new_registry(tmp_path / "empty").generations() == []


def test_without_an_identity_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME")
        monkeypatch.delenv(f"GIT_{role}_EMAIL")
    with pytest.raises(InputError, match=r"config --global user\.name[\s\S]*config --global user\.email"):
        sample.new_registry(tmp_path / "deep" / "registry")
    assert list(tmp_path.iterdir()) == []


def test_without_git_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="got no `git`"):
        sample.new_registry(tmp_path / "registry")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(Exception, match="file"):
        sample.new_registry(tmp_path / "file" / "registry")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_inside_another_repository_it_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = tmp_path / "code"
    outer.mkdir()
    _git(outer, "init", "-q")
    _git(outer, "config", "user.name", "Outer")
    _git(outer, "config", "user.email", "outer@example.org")
    (outer / ".gitignore").write_text("/registry/\n", encoding="utf-8")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME")
        monkeypatch.delenv(f"GIT_{role}_EMAIL")
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))  # as in a hook of the outer repository
    registry = sample.new_registry(outer / "registry")
    monkeypatch.delenv("GIT_DIR")
    assert _git(registry.root, "rev-parse", "--show-toplevel") == str(registry.root)
    assert _git(registry.root, "log", "-1", "--format=%an <%ae>") == "Outer <outer@example.org>"
    assert _git(outer, "status", "--porcelain") == "?? .gitignore"


def test_open_says_what_is_wrong(fresh: Callable[..., Registry], tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="flywheel init"):
        Registry.open(tmp_path / "nowhere")
    with pytest.raises(RegistryError, match="not a registry"):
        Registry.open(tmp_path)
    registry = fresh(0)
    marker = registry.layout.marker
    marker.write_text('{"registry_version": 3}', encoding="utf-8")
    with pytest.raises(RegistryError, match=r"version 3, .* up to 2; upgrade"):
        Registry.open(registry.root)
    marker.write_text("{", encoding="utf-8")
    with pytest.raises(RegistryError, match="damaged"):
        Registry.open(registry.root)
    _git(registry.root, "restore", "flywheel.json")
    _git(registry.root, "checkout", "-q", "--detach")
    with pytest.raises(RegistryBusy, match=r"conflict: .*switch main"):
        Registry.open(registry.root)


def test_hand_edits_are_found_and_the_work_of_the_protocol_is_not(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    registry.check_clean()
    params = registry.layout.params.read_text(encoding="utf-8")
    registry.layout.params.write_text(params + "# mine\n", encoding="utf-8")
    with pytest.raises(RegistryBusy, match=r"by hand .*params\.yaml.*restore") as caught:
        registry.check_clean()
    assert caught.value.exit_code == 3
    with pytest.raises(RegistryBusy, match="by hand"):
        sample.begin_generation(registry)
    assert "unfinished" not in read_state(registry)
    write_state(registry, unfinished={"generation": 1, "parent": 0, "run": "r", "recipe": "x"})
    registry.check_clean()
    (registry.root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    with pytest.raises(RegistryBusy, match=r"dvc\.yaml"):
        registry.check_clean()


def test_presets_lie_over_the_default_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_folder", lambda: tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "params.yaml").write_text("seed: 0\nfilter: {threshold: 1.0, window: null}\n", encoding="utf-8")
    (tmp_path / "presets" / "tiny.yaml").write_text("filter: {window: 2}\n", encoding="utf-8")
    assert recipes.presets() == ["countdown", "tiny"]
    assert recipes.load_preset("tiny") == {"seed": 0, "filter": {"threshold": 1.0, "window": 2}}
    assert recipes.load_preset("countdown")["filter"]["window"] is None
    with pytest.raises(InputError, match="did you mean tiny"):
        recipes.load_preset("tinny")


def test_pairs_make_training_depend_on_the_attempts(fresh: Callable[[int], Registry]) -> None:
    values = recipes.load_preset("countdown")
    shipped = yaml.safe_load(recipes.recipe_text(parse(values)))
    values["train"]["preference"] = "dpo"
    paired = yaml.safe_load(recipes.recipe_text(parse(values)))
    train, before = paired["stages"].pop("train"), shipped["stages"].pop("train")
    assert paired == shipped
    assert (set(train["deps"]) - set(before["deps"]), set(train["params"]) - set(before["params"])) == (
        {"attempts"},
        {"filter.threshold", "filter.per_problem"},
    )
    text = recipes.recipe_text(parse(values))
    assert recipes.wiring(text) != recipes.wiring(recipes.recipe_text())
    registry = fresh(0)
    sample.begin_generation(registry, parse(values))
    assert (registry.root / "dvc.yaml").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", recipes.presets())
def test_every_shipped_preset_is_valid(name: str) -> None:
    assert parse(recipes.load_preset(name)).digest()
