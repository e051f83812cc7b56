"""Taking objects out of the cache that nothing here needs soon and that the remote has: `flywheel gc`.

    kept      the last K generations of every line, what the head needs to go on, champions, what a user tagged,
              an unfinished generation, and of all generations the small tables that lineage is read from
    orphans   objects that no commit names, left by killed and dropped work: they go, remote or not
    the rest  goes where the remote has it, asked now; with `unpushed` also where it has not, and then for good

Nothing that git holds changes: history, lineage and diff answer as before, and what went is brought back by whoever
asks for it. What goes is written down first (`storage.dropped`), so that a kill leaves a sound registry.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import FlywheelError, InputError, RegistryError
from flywheel.params import folder_name
from storage import cache, contents, dropped, git, lock, needs, remotes
from storage.history import history
from storage.registry import read_state

if TYPE_CHECKING:
    from storage.registry import Registry

LINEAGE_TABLES = (
    "labels", "label_parents", "step_labels", "step_label_parents",
    "trained_on", "snapshots", "evaluations", "outcomes",
)  # fmt: skip
"""Kept of every generation: small, and what lineage, diff and `--at` are mostly asked for. The heavy ones are attempts,
searched, targets, rollouts and the models."""
_OBJECT = re.compile(r"[0-9a-f]{32}(?:\.dir)?")
_MD5 = re.compile(r"\b[0-9a-f]{32}\b")
_FOREIGN_SECONDS = 3600.0
"""A file in the cache that is no object is what a killed DVC was writing, once it is as old as this."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What would go, objects by MD5."""

    orphans: dict[str, Path]
    drop: dict[str, Path]
    """What generations name, and the remote has or `unpushed` lets go."""
    lost: frozenset[str]
    """Those of `drop` that no remote has."""
    spared: dict[str, Path]
    """Not needed here, but nowhere else: what `unpushed` would add."""
    links: dict[tuple[int, int], list[Path]]
    """Other names of such files, in folders of older generations' labels that lie about: they go too."""
    notes: list[str]
    before: int

    def document(self) -> dict[str, Any]:
        """Counts and bytes, as `flywheel gc --json` prints them."""
        lost = {md5: self.drop[md5] for md5 in self.lost}
        parts = {"orphans": self.orphans, "dropped": self.drop, "lost": lost, "unpushed": self.spared}
        after = self.before - self.freed({**self.orphans, **self.drop})
        return {
            **{name: {"objects": len(part), "bytes": self.freed(part)} for name, part in parts.items()},
            "bytes_before": self.before,
            "bytes_after": after,
            "notes": self.notes,
        }

    def paths(self, objects: dict[str, Path]) -> list[Path]:
        """The objects' files, their other names first: the name in the cache is what a second try goes by."""
        return [
            path for kept in objects.values() if (node := _inode(kept)) for path in [*self.links.get(node, []), kept]
        ]

    def freed(self, objects: dict[str, Path]) -> int:
        """Allocated bytes that go with these; none of a file that keeps a name elsewhere."""
        names: dict[tuple[int, int], list[os.stat_result]] = {}
        for path in self.paths(objects):
            with contextlib.suppress(FileNotFoundError):
                facts = path.lstat()
                names.setdefault((facts.st_dev, facts.st_ino), []).append(facts)
        return sum(facts[0].st_blocks * 512 for facts in names.values() if facts[0].st_nlink <= len(facts))


def plan(registry: Registry, keep_last: int, tables: bool = False, unpushed: bool = False) -> Plan:
    """What `collect` would take out; changes nothing but for lists of files that it brings from the remote.

    `tables`: the small tables of old generations too. Raises InputError where the cache is not the registry's own or
    `keep_last` is below 1, else as `storage.remotes.held` does.
    """
    if keep_last < 1:
        raise InputError(f"--keep-last: got {keep_last}, expected at least 1: the head's own generation stays")
    folder = cache.cache_folder(registry.root)
    if not folder.is_relative_to(registry.root):
        raise InputError(
            f"the cache {folder} lies outside {registry.root} and may serve other registries, whose objects nobody "
            "here knows; gc only clears a registry's own cache"
        )
    notes: list[str] = []
    everything = contents.everything(registry)
    named, unread = _expanded(registry, everything.flywheels | everything.own)
    kept = _kept(registry, keep_last, tables, everything, notes, unpushed)
    present, foreign = _present(folder)
    orphans = {md5: path for md5, path in present.items() if md5 not in named | kept}
    if unread:
        notes.append(
            f"{len(orphans)} objects that no generation is known to name stay: {len(unread)} lists of files are not in "
            "the cache, so that nobody can tell what those name"
        )
        orphans = {}
    candidates = {md5: path for md5, path in present.items() if md5 in named - kept}
    asked = bool(candidates) and remotes.default(registry) is not None
    there = remotes.held(registry, candidates, prove=True) if asked else set()
    drop = candidates if unpushed else {md5: path for md5, path in candidates.items() if md5 in there}
    return Plan(
        orphans | foreign,
        drop,
        frozenset(drop) - there,
        {md5: path for md5, path in candidates.items() if md5 not in drop},
        _stale_links(registry),
        notes,
        occupied(registry.root),
    )


def collect(registry: Registry, keep_last: int, tables: bool = False, unpushed: bool = False) -> dict[str, Any]:
    """Take out what `plan` finds, under the lock; its document, with the bytes that are there after.

    Raises as `plan` and RegistryBusy while a run is active.
    """
    from storage.recovery import recover

    with lock.ensure(registry, "gc"):
        recover(registry)
        remotes.clear_staging(registry)
        found = plan(registry, keep_last, tables, unpushed)
        document = found.document()
        dropped.add(registry, found.drop, found.lost)
        for path in found.paths({**found.orphans, **found.drop}):
            path.unlink(missing_ok=True)
        return {**document, "bytes_after": occupied(registry.root)}


def occupied(root: Path) -> int:
    """Allocated bytes of the files below `root`, one with several names once."""
    total, seen = 0, set()
    for base, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                facts = os.lstat(os.path.join(base, name))
                if (facts.st_dev, facts.st_ino) not in seen:
                    seen.add((facts.st_dev, facts.st_ino))
                    total += facts.st_blocks * 512
    return total


def _kept(
    registry: Registry,
    keep_last: int,
    tables: bool,
    everything: contents.Everything,
    notes: list[str],
    unpushed: bool,
) -> set[str]:
    """Objects that stay; lists of files are small and all stay."""
    rows = history(registry)
    known = contents.of(registry, [row["generation"] for row in rows])
    whole = _last(rows, keep_last) | _tagged(registry) | _aliased(registry, notes, unpushed)
    roots = {md5 for generation in whole if generation in known for md5 in known[generation].roots()}
    roots |= needs.to_go_on(registry) | _in_progress(registry) | everything.own
    kept, _ = contents.expand(registry, roots)
    for one in known.values():
        kept |= set() if tables else one.files(*LINEAGE_TABLES)
    return kept | everything.beside | {md5 for md5 in everything.flywheels if md5.endswith(".dir")}


def _last(rows: list[dict[str, Any]], keep_last: int) -> set[int]:
    """The last generations of every line: of those that nobody went on from, and of the head."""
    parents = {row["generation"]: row["parent"] for row in rows}
    tips = set(parents) - set(parents.values()) | {row["generation"] for row in rows if row["status"] == "current"}
    found = set()
    for generation in tips:
        for _ in range(keep_last):
            if generation is not None:
                found.add(generation)
                generation = parents[generation]
    return found


def _tagged(registry: Registry) -> set[int]:
    """Generations at commits that a user tagged or that a branch stands on."""
    form = "--format=%(refname:short) %(objectname) %(*objectname)"
    lines = [
        line.split() for line in git.run(registry.root, "for-each-ref", form, "refs/tags/", "refs/heads/").splitlines()
    ]
    commits = [names[-1] for names in lines if not re.fullmatch(r"gen/\d+", names[0])]
    texts = git.read_many(registry.root, [f"{commit}:params.yaml" for commit in commits])
    published, found = registry.generations(), set()
    for text in texts:
        values = cache.yaml_mapping(text.decode(), "params.yaml") if text is not None else {}
        # A commit before its generation's tag is still that of the one before.
        numbers = [number for number in (values.get("generation"), values.get("parent")) if number in published]
        found.update(numbers[:1])
    return found


def _aliased(registry: Registry, notes: list[str], unpushed: bool) -> set[int]:
    """Generations that MLflow knows by an alias such as `champion`; MLflow may be away, which is noted."""
    from storage import mlflow
    from storage.mlflow_run import MODEL

    if not mlflow.database(registry.layout).exists():
        return set()
    try:
        client = mlflow.client(registry.layout)
        if not client.search_registered_models(f"name = '{MODEL}'", max_results=1):
            return set()
        versions = set(client.get_registered_model(MODEL).aliases.values())
        found = [client.get_model_version(MODEL, version).tags.get("generation", "") for version in versions]
        return {int(number) for number in found if number.isdigit()}
    except mlflow.away() as error:
        if unpushed:
            raise FlywheelError(
                f"MLflow could not be asked which generations its aliases name ({error}), and with --unpushed what "
                "they need could be lost for good; mend it, or leave --unpushed out"
            ) from error
        notes.append(f"MLflow could not be asked for its aliases ({error}); the head's champion stays anyway")
        return set()


def _in_progress(registry: Registry) -> set[str]:
    """What an unfinished generation has begun with and made."""
    entry = read_state(registry).get("unfinished")
    if entry is None:
        return set()
    found = needs.recorded_here(registry)
    paths = [registry.layout.lineage / name for name in ("window.json", "tried.json")]
    paths.append(registry.layout.work(int(entry["generation"])) / "outputs.json")
    for path in paths:
        if path.exists():
            found |= set(_MD5.findall(path.read_text(encoding="utf-8")))
    return found


def _expanded(registry: Registry, roots: frozenset[str]) -> tuple[set[str], set[str]]:
    """As `contents.expand`, once lists that are not here were asked of the remote."""
    known, unread = contents.expand(registry, roots)
    if unread and remotes.sources(registry):
        with contextlib.suppress(RegistryError):  # one that nobody has stays unread
            remotes.bring(registry, unread, "lists of files", lists_only=True)
        known, unread = contents.expand(registry, roots)
    return known, unread


def _present(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Objects in the cache by MD5; and files by their path that are none, left by a DVC that was killed."""
    objects, foreign = {}, {}
    for path in sorted((folder / "files" / "md5").glob("??/*")):
        if _OBJECT.fullmatch(path.parent.name + path.name):
            objects[path.parent.name + path.name] = path
        elif path.is_file() and time.time() - path.stat().st_mtime > _FOREIGN_SECONDS:
            foreign[str(path)] = path
    return objects, foreign


def _stale_links(registry: Registry) -> dict[tuple[int, int], list[Path]]:
    """Files below labels/ of generations other than the worktree's, by what they are names of."""
    recorded = registry.root / "dvc.lock"
    outputs = cache.lock_outputs(recorded.read_text(encoding="utf-8")) if recorded.exists() else {}
    entry = read_state(registry).get("unfinished") or {}
    current = {path.partition("/")[2] for path in outputs if path.startswith("labels/")}
    current |= {folder_name(int(entry["generation"]))} if entry else set()
    found: dict[tuple[int, int], list[Path]] = {}
    for path in sorted((registry.root / "labels").glob("*/**/*")):
        folder = path.relative_to(registry.root / "labels").parts[0]
        if folder not in current and path.is_file() and not path.is_symlink() and (node := _inode(path)):
            found.setdefault(node, []).append(path)
    return found


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    return facts.st_dev, facts.st_ino
