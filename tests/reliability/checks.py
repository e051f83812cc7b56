"""What must be true of a registry whatever was done to it, found out with git and hashing alone.

Nothing of the product is used but its layout: tags are read by `git`, DVC's files as YAML, objects hashed by their
bytes, labels read by pyarrow from the objects that the tags name. A check returns sentences, one a violation.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a registry holds."""

    trees: dict[str, tuple[str, ...]]
    """By tag, and for HEAD: `git ls-tree -r`, paths that may differ apart."""
    labels: dict[str, tuple[str, ...]]
    """By tag: label ids in the order of the rows."""
    commits: int
    """On HEAD's line."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Labels that one registry has and another has not, or has twice."""

    lost: int
    duplicated: int


def facts(root: Path, ignored: tuple[str, ...] = ()) -> Facts:
    """Read a sound registry. `ignored` are paths, or beginnings of them, that differ between any two runs."""
    tags = tags_of(root)
    trees = {name: _tree(root, name, ignored) for name in [*tags, "HEAD"]}
    return Facts(trees, {tag: _labels(root, tag) for tag in tags}, int(_git(root, "rev-list", "--count", "HEAD")))


def damage(root: Path, before: Facts, after: Facts, ignored: tuple[str, ...] = ()) -> list[str]:
    """What a fault broke: the registry must be as before or as after, whole, though not yet tidy."""
    found = _repository(root)
    if found:
        return found
    tags = set(tags_of(root))
    if not set(before.trees) - {"HEAD"} <= tags:
        found.append(f"tags went away: {sorted(set(before.trees) - {'HEAD'} - tags)}")
    if not tags <= set(after.trees):
        found.append(f"tags that nobody made: {sorted(tags - set(after.trees))}")
    for tag in sorted(tags & set(after.trees)):
        if _tree(root, tag, ignored) != after.trees[tag]:
            found.append(f"{tag} holds something else than it should: {_differing(root, tag, after, ignored)}")
        found += [f"{tag}: {sentence}" for sentence in _objects(root, tag)]
        if not found and _labels(root, tag) != after.labels[tag]:
            found.append(f"{tag} has other labels than it should")
    commits = int(_git(root, "rev-list", "--count", "HEAD"))
    if not before.commits <= commits <= after.commits:
        found.append(f"{commits} commits, expected {before.commits} to {after.commits}")
    return found


def difference(root: Path, after: Facts, ignored: tuple[str, ...] = ()) -> list[str]:
    """How a registry that was mended and finished differs from one that was left alone, or is untidy."""
    found = damage(root, after, after, ignored)
    if found:
        return found
    if _tree(root, "HEAD", ignored) != after.trees["HEAD"]:
        found.append(f"HEAD holds something else than it should: {_differing(root, 'HEAD', after, ignored)}")
    status = _git(root, "status", "--porcelain")
    if status:
        found.append(f"git status is not clean: {status}")
    found += [f"the worktree: {sentence}" for sentence in _worktree(root)]
    state = root / ".flywheel" / "state.json"
    if state.exists() and json.loads(state.read_text(encoding="utf-8")):
        found.append(f"state.json still says {state.read_text(encoding='utf-8')}")
    work = root / ".flywheel" / "work"
    left = [*(work.iterdir() if work.is_dir() else []), *(root / ".git").rglob("*.lock")]
    for folder in (root, root / "lineage", root / "ledger", root / ".flywheel"):
        left += [path for path in (folder.iterdir() if folder.is_dir() else []) if _DRAFT.fullmatch(path.name)]
    if left:
        found.append(f"left behind: {', '.join(path.relative_to(root).as_posix() for path in sorted(left))}")
    return found


def labels_lost(root: Path, after: Facts) -> Lost:
    """Labels of `after` that are not, or more than once, in the tables of the same tags; tags that are not there yet
    count for nothing."""
    lost = duplicated = 0
    for tag in tags_of(root):
        expected, got = Counter(after.labels.get(tag, ())), Counter(_labels(root, tag))
        lost += sum((expected - got).values())
        duplicated += sum((got - expected).values())
    return Lost(lost, duplicated)


def standing(root: Path) -> tuple[str, int]:
    """The newest tag ("" for none) and how many commits HEAD's line has."""
    return max(tags_of(root), default=""), int(_git(root, "rev-list", "--count", "HEAD"))


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.rstrip("\n")


def _show(root: Path, name: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), "show", name], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def tags_of(root: Path) -> list[str]:
    """Tags of generations, in order; also of a bare repository."""
    return sorted(_git(root, "tag", "--list", "gen/*").split())


def _tree(root: Path, name: str, ignored: tuple[str, ...]) -> tuple[str, ...]:
    lines = _git(root, "ls-tree", "-r", f"{name}^{{tree}}").split("\n")
    return tuple(line for line in lines if not line.partition("\t")[2].startswith(ignored or ("\0",)))


def _differing(root: Path, name: str, after: Facts, ignored: tuple[str, ...]) -> str:
    lines = set(_tree(root, name, ignored)) ^ set(after.trees[name])
    return ", ".join(sorted({line.partition("\t")[2] for line in lines}))


def _repository(root: Path) -> list[str]:
    """git's own opinion; each tag an annotated one on a commit of its generation, on the branch."""
    done = subprocess.run(
        ["git", "-C", str(root), "fsck", "--full", "--strict", "--no-dangling", "--no-progress"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return [f"git fsck: {done.stdout}{done.stderr}"]
    found = []
    line = set(_git(root, "rev-list", "HEAD").split())
    form = "%(refname:short) %(objecttype) %(*objectname) %(*contents:trailers:key=Flywheel-Generation,valueonly)"
    for row in _git(root, "for-each-ref", f"--format={form}", "refs/tags/gen/").split("\n"):
        if not row.strip():
            continue
        name, kind, commit, number = (*row.split(), "", "", "")[:4]
        if kind != "tag" or commit not in line or name != f"gen/{int(number or -1):04d}":
            found.append(f"{name} is a {kind} of {commit or 'nothing'} with trailer {number!r}")
    return found


def _recorded(root: Path, revision: str) -> dict[str, str]:
    """Output -> MD5 by the DVC files of a revision."""
    found = {}
    for name in ("dvc.lock", "parent.dvc", "judge.dvc"):
        text = _show(root, f"{revision}:{name}")
        values: dict[str, Any] = yaml.safe_load(text) if text else {}
        stages = (values.get("stages") or {}).values() if name == "dvc.lock" else [values]
        for out in [out for stage in stages for out in stage.get("outs", [])]:
            if out["path"] != "metrics.json":
                found[out["path"]] = out["md5"]
    return found


def cached(root: Path, md5: str) -> Path:
    """Where an object is in the cache, or would be."""
    return root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def stored(store: Path, md5: str) -> bool:
    """Whether a remote that is a folder has an object, undamaged."""
    path = store / "files" / "md5" / md5[:2] / md5[2:]
    return path.exists() and _md5(path) == md5.removesuffix(".dir")


def object_path(root: Path, md5: str) -> Path:
    """Where an object is: in the cache or, where the cache has lost it, in the remote beside the registry."""
    away = root.parent / "store" / "files" / "md5" / md5[:2] / md5[2:]
    here = cached(root, md5)
    return away if away.exists() and not here.exists() else here


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _listed(root: Path, md5: str) -> dict[str, str]:
    return {entry["relpath"]: entry["md5"] for entry in json.loads(object_path(root, md5).read_bytes())}


def named(root: Path, tag: str) -> list[str]:
    """Every object that a tag names, by its DVC files and by its lineage; those of a list that is gone cannot be."""
    wanted = set(_recorded(root, tag).values())
    for md5 in list(wanted):
        if md5.endswith(".dir") and object_path(root, md5).exists():
            wanted |= set(_listed(root, md5).values())
    lineage = json.loads(_show(root, f"{tag}:lineage/{tag[4:]}.json") or "{}")
    wanted |= {file["md5"] for table in lineage["tables"].values() for file in table["files"]}
    return sorted(wanted)


def _objects(root: Path, tag: str) -> list[str]:
    """Objects that a tag names and that are nowhere, or damaged."""
    if not _recorded(root, tag):
        return ["names no outputs"]
    found = []
    for md5 in named(root, tag):
        path = object_path(root, md5)
        if not path.exists():
            found.append(f"object {md5} is not in the cache")
        elif _md5(path) != md5.removesuffix(".dir"):
            found.append(f"object {md5} is damaged in the cache")
    return found


def _labels(root: Path, tag: str) -> tuple[str, ...]:
    lineage = json.loads(_show(root, f"{tag}:lineage/{tag[4:]}.json") or "{}")
    paths = [object_path(root, file["md5"]) for file in lineage["tables"]["labels"]["files"]]
    return tuple(
        str(name) for path in paths for name in pq.ParquetFile(path).read(["label_id"])["label_id"].to_pylist()
    )


def _worktree(root: Path) -> list[str]:
    """Folders that are not what HEAD's DVC files say."""
    found = []
    for output, md5 in _recorded(root, "HEAD").items():
        listed = _listed(root, md5)
        folder = root / output
        there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        if {name: _md5(path) for name, path in there.items()} != listed:
            found.append(f"{output}/ is not what HEAD records")
    return found
