"""What each generation's commit holds in git, read by its object id and parsed once; `manifests` and `chain` judge it.

Of a generation only what later checks need stays in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flywheel.errors import RegistryError
from flywheel.params import folder_name
from storage import cache, exclusions
from storage.verification import repository
from storage.verification.findings import Findings
from storage.verification.tags import History, Tag

REQUIRED = (
    "flywheel.json", ".gitignore", "params.yaml", "dvc.yaml", "dvc.lock", "parent.dvc", "metrics.json",
    "lineage/teacher.json", "lineage/champion.json", "lineage/window.json",
)  # fmt: skip
OPTIONAL = ("judge.dvc", "lineage/judge.json", "lineage/tried.json", "exclusions.json")
_AT_ONCE = 32
"""Generations whose files are held at a time."""


@dataclass(frozen=True, slots=True)
class Files:
    """A generation's files in git as they are: `blobs` of those that are read here, `objects` of all in `lineage/` and
    `ledger/`, by path."""

    tag: Tag
    trailers: dict[str, str]
    blobs: dict[str, bytes]
    objects: dict[str, str]


@dataclass(frozen=True, slots=True)
class Generation:
    """What later checks need of a generation."""

    tag: Tag
    lineage: dict[str, Any]
    params: dict[str, Any]
    outputs: dict[str, cache.Output]
    parent: cache.Output
    judge: cache.Output | None
    documents: dict[str, dict[str, Any]]
    """teacher, champion (without what it solved), window, and where there are such, judge and tried."""
    exclusions: list[exclusions.Exclusion]
    registry_id: str

    @property
    def number(self) -> int:
        return self.tag.generation

    @property
    def name(self) -> str:
        return f"gen/{self.number}"

    @property
    def is_board(self) -> bool:
        return bool(self.params["problems"]["domain"] == "hex")

    @property
    def is_supervised(self) -> bool:
        return "reward_model" in self.lineage


def read(root: Path, tags: dict[int, Tag], history: History, findings: Findings) -> Iterator[Files]:
    """Files of each generation, oldest first; what a commit should have and has not is a failure."""
    numbers = sorted(tags)
    for start in range(0, len(numbers), _AT_ONCE):
        yield from _some(root, [tags[number] for number in numbers[start : start + _AT_ONCE]], history, findings)


def _some(root: Path, tags: list[Tag], history: History, findings: Findings) -> Iterator[Files]:
    wanted = {tag: [*REQUIRED, *_own(tag), *OPTIONAL] for tag in tags}
    names = [f"{tag.commit}:{path}" for tag in tags for path in wanted[tag]]
    folders = [f"{tag.commit}:{folder}" for tag in tags for folder in ("lineage", "ledger")]
    contents = iter(repository.read(root, names))
    listings = iter(repository.read(root, folders))
    for tag in tags:
        blobs = {path: content for path in wanted[tag] if (content := next(contents)) is not None}
        objects = {
            f"{folder}/{name}": digest
            for folder in ("lineage", "ledger")
            for name, digest in entries(next(listings) or b"", len(tag.commit) // 2).items()
        }
        absent = [path for path in (*REQUIRED, *_own(tag)) if path not in blobs]
        for path in absent:
            why = "its commit has no such file, or git cannot read it"
            findings.fail("manifest", f"{path} of gen/{tag.generation}", why, FIX)
        yield Files(tag, history.trailers.get(tag.commit, {}), blobs, objects)


FIX = "the commit is not what Flywheel made: compare it with a clone or a backup, and restore the registry from there"


def _own(tag: Tag) -> tuple[str, str]:
    folder = folder_name(tag.generation)
    return f"lineage/{folder}.json", f"ledger/{folder}.jsonl"


def entries(tree: bytes, size: int) -> dict[str, str]:
    """Name -> object id of a git tree; ids of `size` bytes."""
    found, place = {}, 0
    while place < len(tree):
        space, end = tree.index(b" ", place), tree.index(b"\0", place)
        found[tree[space + 1 : end].decode("utf-8", "replace")] = tree[end + 1 : end + 1 + size].hex()
        place = end + 1 + size
    return found


def md5(content: bytes) -> str:
    """MD5 of a file's bytes, as DVC records it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def parse(files: Files, findings: Findings) -> tuple[Generation, dict[str, Any]] | None:
    """A generation from its files, and its dvc.lock; None where one of them cannot be read, which is a failure."""
    found: dict[str, Any] = {}
    own = _own(files.tag)[0]
    readers: dict[str, Callable[[str], Any]] = {
        "params.yaml": lambda text: cache.yaml_mapping(text, "params.yaml"),
        "dvc.lock": lambda text: cache.yaml_mapping(text, "dvc.lock"),
        "parent.dvc": cache.pointed,
        "judge.dvc": lambda text: cache.pointed(text, "judge.dvc"),
        "exclusions.json": lambda text: exclusions.parse(text.encode()),
    }
    for path, content in files.blobs.items():
        if path.endswith(".jsonl") or path in {".gitignore", "dvc.yaml"}:
            continue
        reader: Callable[[str], Any] = readers.get(path, _mapping)
        try:
            found[path] = reader(content.decode("utf-8"))
        except (RegistryError, ValueError, KeyError, IndexError, TypeError, AttributeError, yaml.YAMLError) as error:
            where = f"{path} of gen/{files.tag.generation}"
            findings.fail("manifest", where, f"it cannot be read: {error!r}"[:300], FIX)
    if any(path not in found for path in (*REQUIRED, own) if path not in {".gitignore", "dvc.yaml"}):
        return None
    names = {path: path[8:-5] for path in (*REQUIRED, *OPTIONAL) if path.startswith("lineage/") and path in found}
    documents = {name: found[path] for path, name in names.items()}
    documents["champion"] = {key: documents["champion"].get(key) for key in ("generation", "snapshot")}
    with shaped(findings, f"dvc.lock of gen/{files.tag.generation}"):
        made = Generation(
            files.tag,
            found[own],
            found["params.yaml"],
            _outputs(found["dvc.lock"]),
            found["parent.dvc"],
            found.get("judge.dvc"),
            documents,
            found.get("exclusions.json", []),
            str(found["flywheel.json"]["registry_id"]),
        )
        return made, found["dvc.lock"]
    return None


def _outputs(document: dict[str, Any]) -> dict[str, cache.Output]:
    """As `cache.lock_outputs`."""
    entries = [entry for stage in document["stages"].values() for entry in stage.get("outs", [])]
    return {
        str(entry["path"]): cache.Output(
            str(entry["path"]),
            str(entry["md5"]),
            int(entry["size"]),
            int(entry.get("nfiles", 1)),
            entry["path"] != "metrics.json",
        )
        for entry in entries
    }


@contextmanager
def shaped(findings: Findings, where: str) -> Iterator[None]:
    """Makes a failure of what a document lacks or has of another kind than Flywheel writes."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        findings.fail("manifest", where, f"it is not what Flywheel writes: {error!r}"[:300], FIX)


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, expected an object")
    return value
