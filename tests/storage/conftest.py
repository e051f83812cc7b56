"""A registry with four generations, made once and copied for each test that changes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.registry import Registry
from tests.storage import sample


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits need a name; the machine's own git settings must not matter."""
    use_identity(monkeypatch)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Registry]:
    """Registries by how many generations they hold: 0, 1 and 4 (of which 2 was not promoted). Copy, never change."""
    with pytest.MonkeyPatch.context() as patch:
        use_identity(patch)
        folder = tmp_path_factory.mktemp("registries")
        registries = {0: sample.new_registry(folder / "0")}
        registry = copy_of(registries[0], folder / "1")
        sample.make_generation(registry)
        registries[1] = registry
        registry = copy_of(registry, folder / "4")
        for generation in (1, 2, 3):
            sample.make_generation(registry, promoted=generation != 2)
        registries[4] = registry
    return registries


@pytest.fixture
def fresh(made: dict[int, Registry], tmp_path: Path) -> Callable[[int], Registry]:
    """`fresh(4)`: a copy of the registry with four generations, the test's own."""

    def copy(generations: int, name: str = "registry") -> Registry:
        return copy_of(made[generations], tmp_path / name)

    return copy


def copy_of(registry: Registry, target: Path) -> Registry:
    shutil.copytree(registry.root, target, symlinks=True)
    return Registry.open(target)


def use_identity(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{role}_NAME", "Test")
        patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
