"""Which objects of DVC's cache each generation names, and which any commit names at all.

    commit ── dvc.lock, parent.dvc, judge.dvc ── output ── x.dir, the list of its files ── files
          └── lineage/0007.json ── tables ── files (the same objects; known even where the list is not in the cache)

Reads git and the lists in the cache; needs no DVC and asks no remote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flywheel.errors import RegistryError
from flywheel.params import folder_name
from storage import cache, git
from storage.layout import tag_name

if TYPE_CHECKING:
    from storage.registry import Registry

POINTERS = ("parent.dvc", "judge.dvc")
_PATTERNS = ("*.dvc", "dvc.lock", "*/dvc.lock")
_OBJECT = re.compile(rb"\b[0-9a-f]{32}(?:\.dir)?\b")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a commit of a generation names: outputs by path (`student`, `parent`, ...) and tables' files."""

    outputs: dict[str, cache.Output]
    tables: dict[str, list[dict[str, Any]]]

    def roots(self) -> set[str]:
        """MD5s of all outputs; of a folder that of its list, which stands for its files too."""
        return {output.md5 for output in self.outputs.values()}

    def files(self, *tables: str) -> set[str]:
        """MD5s of the files of these tables."""
        return {file["md5"] for table in tables for file in self.tables.get(table, [])}


def of(registry: Registry, generations: Iterable[int]) -> dict[int, Contents]:
    """Contents of published generations."""
    return at(registry, {generation: tag_name(generation) for generation in generations})


def at(registry: Registry, revisions: Mapping[int, str]) -> dict[int, Contents]:
    """Contents of generations whose commits git knows by these names. Raises RegistryError where one is damaged."""
    files = ("dvc.lock", *POINTERS)
    names = [
        f"{revision}:{path}"
        for generation, revision in revisions.items()
        for path in (*files, f"lineage/{folder_name(generation)}.json")
    ]
    texts = iter(git.read_many(registry.root, names))
    found = {}
    for generation, revision in revisions.items():
        recorded, *pointers = (next(texts) for _ in files)
        lineage = next(texts)
        if recorded is None or lineage is None:
            raise RegistryError(f"{revision} holds no dvc.lock or lineage; it was not made by Flywheel")
        outputs = {path: output for path, output in cache.lock_outputs(recorded.decode()).items() if output.cached}
        for name, text in zip(POINTERS, pointers, strict=True):
            if text is not None:
                output = cache.pointed(text.decode(), name)
                outputs[output.path] = output
        tables = {table: entry["files"] for table, entry in json.loads(lineage)["tables"].items()}
        found[generation] = Contents(outputs, tables)
    return found


def listed(registry: Registry, md5: str) -> dict[str, str]:
    """Files that a list (`x.dir`) in the cache names: POSIX path -> MD5."""
    return cache.tree(registry, cache.Output(md5, md5, 0, 0, True))


def expand(registry: Registry, md5s: Iterable[str]) -> tuple[set[str], set[str]]:
    """The objects with the files that their lists name; and the lists that are not in the cache."""
    known, unread = set(md5s), set()
    for md5 in [md5 for md5 in known if md5.endswith(".dir")]:
        if cache.cache_path(registry, md5).exists():
            known.update(listed(registry, md5).values())
        else:
            unread.add(md5)
    return known, unread


@dataclass(frozen=True, slots=True)
class Everything:
    """What all commits of all branches and tags and the worktree name, lists not opened."""

    flywheels: frozenset[str]
    own: frozenset[str]
    """Of `.dvc` files that a user made."""
    beside: frozenset[str]
    """metrics.json, which git keeps and DVC stores all the same."""


def everything(registry: Registry) -> Everything:
    """Read every dvc.lock and `.dvc` file there ever was on a branch or tag, and those of the worktree."""
    text = git.run(registry.root, "rev-list", "--all", "--objects", "--full-history", "--", *_PATTERNS)
    blobs = {}
    for line in text.splitlines():
        sha, _, path = line.partition(" ")
        if _is_pointer(path):
            blobs[sha] = path
    texts = git.read_many(registry.root, list(blobs))
    found = [(path, text or b"") for path, text in zip(blobs.values(), texts, strict=True)]
    return _named_by([*found, *_of_worktree(registry)])


def worktree(registry: Registry) -> Everything:
    """As `everything`, of the files that lie in the worktree, tracked or not."""
    return _named_by(_of_worktree(registry))


def _of_worktree(registry: Registry) -> list[tuple[str, bytes]]:
    listing = git.run(registry.root, "ls-files", "-z", "-c", "-o", "--exclude-standard", "--", *_PATTERNS)
    names = sorted({name for name in listing.split("\0") if _is_pointer(name) and (registry.root / name).is_file()})
    return [(name, (registry.root / name).read_bytes()) for name in names]


def _named_by(files: list[tuple[str, bytes]]) -> Everything:
    """MD5s of the outputs in files of DVC's. Of a user's own all that look like one: too many do no harm."""
    flywheels: set[str] = set()
    own: set[str] = set()
    beside: set[str] = set()
    for path, text in files:
        if path == "dvc.lock":
            for output in cache.lock_outputs(text.decode()).values():
                (flywheels if output.cached else beside).add(output.md5)
        else:
            (flywheels if path in POINTERS else own).update(name.decode() for name in _OBJECT.findall(text))
    return Everything(frozenset(flywheels), frozenset(own), frozenset(beside))


def _is_pointer(path: str) -> bool:
    return path.endswith(".dvc") or path.rpartition("/")[2] == "dvc.lock"
