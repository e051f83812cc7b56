"""push, clone, pull and gc as a user meets them: texts, documents and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.registry import Registry
from tests.flows.command import flywheel, flywheel_json
from tests.storage import sample
from tests.storage.stores import cached


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    registry = sample.new_registry(tmp_path / "registry")
    sample.make_generation(registry)
    sample.make_generation(registry)
    return registry


def test_two_machines_and_room(registry: Registry, tmp_path: Path) -> None:
    first, second = ("--registry", registry.root), ("--registry", tmp_path / "second")
    assert "no remote is named" in flywheel("push", *first, code=2).stderr
    assert "hush" not in flywheel("push", *first, "--git", "https://me:hush@host/a.git", code=2).stderr
    text = flywheel("push", *first, "--remote", tmp_path / "data", "--git", tmp_path / "history.git").stdout
    held = cached(registry)
    assert f"Sent {len(held)} objects (" in text
    assert "Sent branch main and 2 new tags to" in text
    again = flywheel_json("push", *first)
    assert (again["data"]["objects"], again["data"]["held"], again["lost"]) == (0, len(held), 0)
    # The folder of the data is no address that history tells.
    assert "--remote URL" in flywheel("clone", tmp_path / "history.git", tmp_path / "second", code=2).stderr
    options = ("--remote", tmp_path / "data", "--at", "gen/0")
    made = flywheel_json("clone", tmp_path / "history.git", tmp_path / "second", *options)
    assert (made["generations"], made["head"]) == (2, 1)
    assert made["objects"] == len(cached(Registry.open(tmp_path / "second")))
    assert "expected a generation such as gen/4" in flywheel(
        "clone", tmp_path / "history.git", tmp_path / "third", "--at", "gen/0/labels", code=2
    ).stderr  # fmt: skip
    sample.make_generation(registry)
    flywheel("push", *first)
    assert "Followed" in (text := flywheel("pull", *second).stdout)
    assert "gen/0002" in text
    sample.make_generation(registry)
    flywheel("push", *first)
    sample.make_generation(Registry.open(tmp_path / "second"))
    error = flywheel("pull", *second, code=3).stderr
    assert "two machines went on from the same generation" in error
    # Room on the first.
    held = cached(registry)
    planned = flywheel_json("gc", "--keep-last", "1", "--dry-run", *first)
    assert "asks before it acts" in flywheel("gc", *first, code=2).stderr
    assert cached(registry) == held
    text = flywheel("gc", "--keep-last", "1", "--yes", *first).stdout
    assert f"{planned['dropped']['objects']} objects of older generations" in text
    assert len(cached(registry)) == len(held) - planned["dropped"]["objects"] < len(held)
    assert flywheel_json("pull", "gen/0", "gen/1", "--all", *first)["data"]["objects"] == planned["dropped"]["objects"]
    assert cached(registry) == held
