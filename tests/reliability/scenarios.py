"""What is disturbed, and from which state: the list that the runner goes through.

A scenario is an operation of `tests.reliability.operations` on a copy of a base: a folder with `registry/` in it and,
where there are remotes, `store/` and `origin/` beside it. To have another operation tested, add it there and a scenario
here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flywheel.params import Params, load
from storage.registry import Registry
from storage.rollback import exclude, rollback
from tests.reliability import checks
from tests.reliability.operations import ORIGIN, REASON, REGISTRY, STORE
from tests.storage import sample

_OLD = Path(__file__).resolve().parents[1] / "storage" / "data" / "version-1.tar.xz"


@dataclass(frozen=True, slots=True)
class Scenario:
    """`operation` with `arguments`, on a copy of what `base(folder)` makes."""

    name: str
    says: str
    base: Callable[[Path], None]
    operation: str
    arguments: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Paths in git that differ between any two runs."""
    also: Callable[[Path], list[str]] | None = None
    """What must hold besides, at any moment; sentences for what does not."""
    arrived: Callable[[Path], bool] | None = None
    """Whether the operation has come to its end, where tags and commits do not say so."""
    thorough: bool = False
    """Kill it at every single step, however few of all faults are asked for."""


def nothing(folder: Path) -> None:
    """Not even a registry."""
    folder.mkdir(parents=True)


def empty(folder: Path) -> None:
    sample.new_registry(folder / REGISTRY)


def one(folder: Path) -> None:
    """Generation 0."""
    empty(folder)
    sample.make_generation(Registry.open(folder / REGISTRY))


def tracked(folder: Path) -> None:
    """Generation 0, of which MLflow knows."""
    from tests.reliability.operations import recorded

    one(folder)
    recorded(Registry.open(folder / REGISTRY), "0")


def supervised(folder: Path) -> None:
    """Generation 1 with process supervision: the next can be judged by its reward model."""
    one(folder)
    registry = Registry.open(folder / REGISTRY)
    sample.make_generation(registry, params=_with(registry, "supervise.enabled=true"))


def four(folder: Path) -> None:
    """Generations 0 to 3; 2 did not become champion."""
    one(folder)
    for number in (1, 2, 3):
        sample.make_generation(Registry.open(folder / REGISTRY), promoted=number != 2)


def left(folder: Path) -> None:
    """As `four`, rolled back to 1."""
    four(folder)
    rollback(Registry.open(folder / REGISTRY), 1, REASON)


def pushed(folder: Path) -> None:
    """Generations 0 and 1, and a remote that has them."""
    empty(folder)
    _add_store(folder)
    for _ in range(2):
        sample.make_generation(Registry.open(folder / REGISTRY))


def fetched(folder: Path) -> None:
    """Generations 0 to 2 with a remote; the cache has lost what only the remote still has."""
    pushed(folder)
    root = folder / REGISTRY
    sample.make_generation(Registry.open(root))
    shutil.rmtree(root / ".dvc" / "cache")
    _dvc(root, "fetch", "-q")  # of generation 2 alone


def without(folder: Path) -> None:
    """As `four`, with a model excluded."""
    four(folder)
    exclude(Registry.open(folder / REGISTRY), sample.snapshot_of(2), REASON)


def old(folder: Path) -> None:
    """What an earlier version wrote, with real stages."""
    folder.mkdir(parents=True)
    with tarfile.open(_OLD) as archive:
        archive.extractall(folder, filter="data")
    next(folder.iterdir()).rename(folder / REGISTRY)
    _dvc(folder / REGISTRY, "checkout", "-q")


def sent(folder: Path) -> None:
    """Generations 0 to 3, all of it at the remotes."""
    from tests.reliability.operations import send

    four(folder)
    send(Registry.open(folder / REGISTRY))


def remote_only(folder: Path) -> None:
    """The remotes of `sent`, and no registry."""
    sent(folder)
    shutil.rmtree(folder / REGISTRY)


def behind(folder: Path) -> None:
    """A clone at generation 3, of a registry that has gone on to 4 since."""
    from tests.reliability.operations import clone, send

    sent(folder)
    (folder / REGISTRY).rename(folder / "theirs")
    clone(folder / REGISTRY)
    theirs = Registry.open(folder / "theirs")
    sample.make_generation(theirs)
    send(theirs)
    shutil.rmtree(folder / "theirs")


def published_whole(root: Path) -> list[str]:
    """Whoever sees a tag at the remote can have its data."""
    origin, store = root.parent / ORIGIN, root.parent / STORE
    if not (origin / "refs").exists():
        return []
    found = []
    for tag in checks.tags_of(origin):
        away = [md5 for md5 in checks.named(root, tag) if not checks.stored(store, md5)]
        found += [f"{tag} is at the remote, {len(away)} of its objects are not"] if away else []
    return found


def has_arrived(root: Path) -> bool:
    """Whether the remote has all tags."""
    return (root.parent / ORIGIN / "refs").exists() and checks.tags_of(root.parent / ORIGIN) == checks.tags_of(root)


def has_gone(root: Path) -> bool:
    """Whether the cache is rid of what only old generations need."""
    old = set(checks.named(root, "gen/0000")) - {md5 for n in (1, 2, 3) for md5 in checks.named(root, f"gen/000{n}")}
    heavy = [md5 for md5 in old if not md5.endswith(".dir") and not checks.cached(root, md5).exists()]
    return bool(heavy)


SCENARIOS = (
    Scenario("init", "a registry is made", nothing, "make", ignored=("flywheel.json",)),
    Scenario("first", "generation 0 is made and published", empty, "generation", ("0",)),
    Scenario("next", "a generation is made and published", one, "generation", ("1",), thorough=True),
    Scenario(
        "judged", "a generation with supervision and a judge: dvc.yaml is rewritten, judge.dvc comes", supervised,
        "generation", ("2", "supervise.enabled=true", "reward.name=process", "filter.threshold=0.7"),
    ),
    Scenario("unjudged", "supervision is switched off: dvc.yaml and .gitignore change", supervised, "generation",
             ("2", "supervise.enabled=false")),
    Scenario("stored", "a generation is published, its data sent to a remote", pushed, "generation", ("2",)),
    Scenario("rollback", "from generation 3 back to 1", four, "back", ("1",), thorough=True),
    Scenario("fetch", "a rollback whose objects come from the remote", fetched, "back", ("0",)),
    Scenario("undo", "a rollback is undone", left, "again", ("3",), thorough=True),
    Scenario("exclude", "a model is excluded, with all that came of it", four, "leave", (sample.snapshot_of(2),),
             thorough=True),
    Scenario("include", "an exclusion is undone", without, "again", ("3",)),
    Scenario("upgrade", "a registry of version 1 becomes one of version 2", old, "upgraded", thorough=True),
    Scenario("push", "data and history of four generations are sent", four, "send", also=published_whole,
             arrived=has_arrived),
    Scenario("pull", "a clone takes in a generation that was made elsewhere", behind, "follow"),
    Scenario("clone", "a registry is cloned", remote_only, "clone"),
    Scenario("gc", "the cache is cleared of what the remote has", sent, "collect", arrived=has_gone),
)  # fmt: skip
RECORDED = Scenario("recorded", "a generation is published and MLflow told", tracked, "recorded", ("1",))
"""For broken databases only: MLflow's import is most of what a case takes."""


def by_name(name: str) -> Scenario:
    return next(scenario for scenario in (*SCENARIOS, RECORDED) if scenario.name == name)


def _with(registry: Registry, *overrides: str) -> Params:
    return load(registry.layout.params, list(overrides))


def _add_store(folder: Path) -> None:
    """A remote beside the registry, named so that a copy of both has its own."""
    root = folder / REGISTRY
    (folder / STORE).mkdir()
    _dvc(root, "remote", "add", "-q", "-d", "store", f"../{STORE}")
    subprocess.run(["git", "-C", root, "commit", "-q", "-m", "Name a remote", "--", ".dvc/config"], check=True)


def _dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-P", "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)
