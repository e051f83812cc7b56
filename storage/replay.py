"""Whether a generation that was made again is what its tag says: digest by digest, and else in what it differs.

Making it is `flows.replay`, where is `storage.scratch`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import RegistryError
from flywheel.models.checkpoints import weights_digest
from flywheel.params import folder_name
from storage import cache, contents, git, remotes, replay_rows
from storage.history import published, tagged
from storage.layout import Layout, tag_name
from storage.scratch import within
from storage.tables import file_md5

if TYPE_CHECKING:
    from storage.registry import Registry


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a generation's tag says of it: digests of its outputs, of its models' weights, the code that made it, and
    what the last bits of each stage depended on (`numerics` in the ledger)."""

    outputs: dict[str, str]
    weights: dict[str, str]
    code: str
    numerics: dict[str, str]
    at_odds: list[dict[str, Any]]
    """Outputs of which dvc.lock and lineage say different things, as `differences` tells them."""


def recorded(registry: Registry, generation: int) -> Recorded:
    """What is recorded of a published generation. Raises RegistryError where the tag holds no such files."""
    tag = tag_name(generation)
    names = [f"{tag}:dvc.lock", f"{tag}:ledger/{folder_name(generation)}.jsonl"]
    locked, ledger = git.read_many(registry.root, names)
    if locked is None:
        raise RegistryError(f"{tag} holds no dvc.lock; it was not made by Flywheel")
    lineage = published(registry, generation)
    outputs = {name: output.md5 for name, output in cache.lock_outputs(locked.decode()).items()}
    rows = [json.loads(line) for line in (ledger or b"").splitlines() if line.strip()]
    return Recorded(
        outputs=outputs,
        weights={role: lineage[role]["snapshot"] for role in ("student", "reward_model") if role in lineage},
        code=tagged(registry)[generation].code_revision,
        numerics={row["stage"]: row["numerics"] for row in rows if row["numerics"]},
        at_odds=[
            {"output": name, "why": f"dvc.lock says {outputs.get(name)}, lineage says {md5}"}
            for name, md5 in lineage["outputs"].items()
            if outputs.get(name) != md5
        ],
    )


def digests(layout: Layout, names: Iterable[str]) -> dict[str, str | None]:
    """What `dvc.lock` would say of these outputs as they lie there; None for one that does not."""
    found: dict[str, str | None] = {}
    for name in names:
        path = layout.root / within(name, "dvc.lock")
        found[name] = folder_md5(path) if path.is_dir() else file_md5(path) if path.is_file() else None
    return found


def weights(layout: Layout, roles: Iterable[str]) -> dict[str, str | None]:
    """Snapshots of the models that were made, by their role: `student`, `reward_model`."""
    return {role: weights_digest(layout.root / role) if (layout.root / role).is_dir() else None for role in roles}


def folder_md5(folder: Path) -> str:
    """The digest by which DVC knows a folder: the MD5 of its list of files, with `.dir` at the end."""
    entries = [{"md5": file_md5(path), "relpath": name} for name, path in cache.listing(folder).items()]
    text = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def differences(registry: Registry, generation: int, layout: Layout, names: Iterable[str]) -> list[dict[str, Any]]:
    """In what these outputs differ from what is recorded, table by table and file by file, in the order of `names`.

    {"output", "table", ...what `replay_rows.differ` says} for a table, {"output", "file", "recorded", "here": MD5s,
    null where there is no such file} for another file, with "first", the first value of a metrics.json that differs;
    {"output", "why"} where what is recorded cannot be had.
    """
    found: list[dict[str, Any]] = []
    known = contents.of(registry, [generation])[generation].outputs
    for name in names:
        if name == "metrics.json":
            found.append(_document(registry, generation, layout))
            continue
        here = {path: file_md5(where) for path, where in cache.listing(layout.root / name).items()}
        try:
            remotes.bring(registry, [known[name].md5], f"{name}/ of {tag_name(generation)}")
            there = cache.tree(registry, known[name])
        except RegistryError as error:
            found.append({"output": name, "why": str(error)})
            continue
        unlike = [path for path in sorted({*there, *here}) if there.get(path) != here.get(path)]
        tables = dict.fromkeys(path.rpartition("/")[0] for path in unlike if path.endswith(".parquet"))
        for folder in tables:
            told = replay_rows.differ(
                [cache.cache_path(registry, md5) for path, md5 in sorted(there.items()) if _of(path, folder)],
                [layout.root / name / path for path in sorted(here) if _of(path, folder)],
                layout.tmp,
            )
            found.append({"output": name, "table": folder or name, **told})
        found += [
            {"output": name, "file": path, "recorded": there.get(path), "here": here.get(path)}
            for path in unlike
            if not path.endswith(".parquet")
        ]
    return found


def _of(path: str, folder: str) -> bool:
    return path.rpartition("/")[0] == folder and path.endswith(".parquet")


def _document(registry: Registry, generation: int, layout: Layout) -> dict[str, Any]:
    """Of two metrics.json, the first value that differs."""
    text = git.read_many(registry.root, [f"{tag_name(generation)}:metrics.json"])[0] or b"{}"
    mine = layout.metrics.read_bytes() if layout.metrics.is_file() else b"{}"
    sides = [dict(_leaves("", json.loads(one))) for one in (text, mine)]
    first = next((key for key in sorted({*sides[0], *sides[1]}) if sides[0].get(key) != sides[1].get(key)), None)
    marks = [hashlib.md5(one, usedforsecurity=False).hexdigest() for one in (text, mine)]
    told = {"output": "metrics.json", "file": "metrics.json", "recorded": marks[0], "here": marks[1]}
    if first is None:
        return told
    return {**told, "first": {"key": first, "recorded": sides[0].get(first), "here": sides[1].get(first)}}


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)
