"""Registries of any size, made in minutes: every table, object, commit and tag is there, no model ever ran.

    python benchmarks/registries.py ten-million FOLDER     50 generations of 200,000 labels, 20 million rows trained on
    python benchmarks/registries.py many FOLDER            300 generations of a few labels; few FOLDER: 3 of them
    python benchmarks/registries.py heavy FOLDER           2 generations, the newest with 2 GB of objects
    python benchmarks/registries.py next FOLDER            one more of a few labels, DVC and all; prints what that took

Generations are begun and published by `storage` itself. In place of the stages stand columns drawn at random, by seed;
in place of `dvc commit`, but for the first generation, `record`, which leaves what it would leave without its seconds
of imports. Ids are random digests, not those of what they name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import yaml
from registry_tables import KEPT, METRICS, SAMPLES, Scale, table_of, tables
from safetensors.numpy import save_file

from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params, load, parse
from flywheel.records import canonical_json, digest
from storage import cache, dvc, lock
from storage.history import published
from storage.prepare import begin
from storage.publish import publish
from storage.recipes import load_preset, recipe_text
from storage.registry import Registry, json_text
from storage.schemas import LEDGER, TABLES, table_folder
from storage.tables import TableWriter, file_md5, replace_folder

SOLVER, REVISION = digest("solver"), "0" * 40
SCALES = {
    "ten-million": Scale(50, 50_000),
    "few": Scale(3, 3, valid=4, test=4),
    "many": Scale(300, 3, valid=4, test=4),
    "heavy": Scale(2, 1000, valid=100, test=100, newest_bytes=2 * 10**9),
}


def make(root: Path, scale: Scale) -> Registry:
    """A new registry at `root`, with all its generations."""
    registry = new(root, scale)
    for generation in range(scale.generations):
        # DVC notes what it hashed itself; only then is a rollback of large files as quick as it is for a user.
        by_dvc = generation == 0 or (scale.newest_bytes > 0 and generation == scale.generations - 1)
        add_generation(registry, scale, by_dvc)
    return registry


def new(root: Path, scale: Scale) -> Registry:
    """A registry without generations."""
    values = load_preset()
    values["seed"] = scale.seed
    values["problems"].update(train=scale.train, valid=scale.valid, test=scale.test)
    values["generate"].update(samples=SAMPLES, problems=scale.train)
    values["filter"].update(per_problem=KEPT, window=2)
    values["seed_labels"].update(problems=scale.train)
    with identity():
        return Registry.init(root, parse(values), recipe_text(), "countdown")


@contextmanager
def identity() -> Iterator[None]:
    """A git identity, whatever the machine has."""
    names = {f"GIT_{role}_{part}": text for role in ("AUTHOR", "COMMITTER") for part, text in _IDENTITY.items()}
    with patch.dict(os.environ, names | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}):
        yield


_IDENTITY = {"NAME": "Benchmark", "EMAIL": "benchmark@example.org"}


def add_generation(registry: Registry, scale: Scale, by_dvc: bool) -> dict[str, tuple[float, float]]:
    """Begin, fill and publish the next generation; process time and seconds by the clock of begin and of publish."""
    with identity(), lock.hold(registry, "make a generation"):
        if not by_dvc:
            _link_parent(registry)
        start = _now()
        params = begin(registry, load(registry.layout.params), _base, lambda source: (source, False), SOLVER)
        begun = _now()
        fill(registry, params, scale)
        filled = _now()
        if by_dvc:
            publish(registry, params, REVISION)
        else:
            with patch.object(dvc, "commit", record):
                publish(registry, params, REVISION)
        ended = _now()
    return {
        "begin": (begun[0] - start[0], begun[1] - start[1]),
        "publish": (ended[0] - filled[0], ended[1] - filled[1]),
    }


def _now() -> tuple[float, float]:
    """User and system time so far, children that ended included; the clock."""
    return sum(os.times()[:4]), time.perf_counter()


def fill(registry: Registry, params: Params, scale: Scale) -> None:
    """What the stages leave: tables, student, metrics.json, ledger."""
    layout, generation = registry.layout, params.generation
    draft = layout.tmp / "made"
    shutil.rmtree(draft, ignore_errors=True)
    newest = scale.newest_bytes if generation == scale.generations - 1 else 0
    snapshot = _student(draft / "student", (scale.seed, generation, 0), newest // 2)
    teacher = json.loads((layout.lineage / "teacher.json").read_text(encoding="utf-8"))["snapshot"]
    columns_of = tables(params, scale, teacher, weights_digest(layout.parent), snapshot, newest // 2)
    for name, schema in TABLES.items():
        with TableWriter(draft / table_folder(name, params.folder), schema) as writer:
            for columns in columns_of[name]:
                writer.write_batches(table_of(columns, schema).to_batches())
    for name in ("problems", "attempts", f"labels/{params.folder}", "training", "evaluations", "student"):
        replace_folder(draft / name, layout.root / name, layout.tmp)
    shutil.rmtree(draft)
    _write_metrics(registry, params, snapshot)
    rows = [_ledger_row(generation, stage) for stage in ("problems", "generate", "filter", "train", "evaluate")]
    layout.ledger(generation).parent.mkdir(exist_ok=True)
    layout.ledger(generation).write_text("".join(canonical_json(row) + "\n" for row in rows), encoding="utf-8")


def _base(folder: Path) -> str:
    return _student(folder, (0, 0, 1), 0)


def _student(folder: Path, seeds: tuple[int, int, int], size: int) -> str:
    """A model folder with `size` bytes of random weights in files of 256 MB at most; its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seeds)
    left, part = max(size, 1024), 0
    while left > 0:
        piece = np.frombuffer(random.bytes(min(left, 2**28)), np.uint8)
        save_file({f"layer.{part}": piece}, folder / f"model-{part:05d}.safetensors")
        left, part = left - len(piece), part + 1
    (folder / "config.json").write_text(json.dumps({"model_type": "none"}), encoding="utf-8")
    return weights_digest(folder)


def _write_metrics(registry: Registry, params: Params, snapshot: str) -> None:
    layout, generation = registry.layout, params.generation
    before = json.loads((layout.lineage / "champion.json").read_text(encoding="utf-8"))
    promoted = generation % 7 != 6
    measured = {metric: {"value": 0.5, "low": 0.4, "high": 0.6, "count": 1} for metric, _ in METRICS}
    champion = {
        "generation": generation if promoted else before["generation"],
        "snapshot": snapshot if promoted else before["snapshot"],
        "promoted": promoted,
        "difference": None if promoted else {"value": -0.125, "low": -0.3, "high": 0.0},
    }
    metrics = {"generation": generation, "snapshot": snapshot, "valid": measured, "test": measured}
    layout.metrics.write_text(json_text({**metrics, "champion": champion}), encoding="utf-8")


def _ledger_row(generation: int, stage: str) -> dict[str, Any]:
    row: dict[str, Any] = {name: "0" if LEDGER.field(name).type == pa.string() else 1 for name in LEDGER.names}
    return {**row, "generation": generation, "stage": stage, "flops_policy": 1e9, "seconds": 1.0}


def _link_parent(registry: Registry) -> None:
    """Put the champion's student in place, so that `begin` need not ask DVC for it."""
    champion = published(registry, registry.generations()[-1])["champion"]["generation"]
    output = published(registry, champion)["outputs"]["student"]
    draft = registry.layout.tmp / "parent"
    draft.mkdir(parents=True)
    for name, md5 in cache.tree(registry, cache.Output("student", output, 0, 0, True)).items():
        os.link(cache.cache_path(registry, md5), draft / name)
    replace_folder(draft, registry.layout.parent, registry.layout.tmp)


def record(registry: Registry) -> None:
    """In place of `dvc commit -f`: every output into the cache, linked back read-only; dvc.lock of the generation
    before, with the values, digests, sizes and counts of this one."""
    layout, known = registry.layout, dict[str, dict[str, Any]]()
    values = yaml.load(layout.params.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    path = registry.root / "dvc.lock"
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    for stage in document["stages"].values():
        for name in stage.get("params", {}).get("params.yaml", {}):
            value = values
            for key in name.split("."):
                value = value[key]
            stage["params"]["params.yaml"][name] = value
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            if entry["path"].startswith("labels/"):
                entry["path"] = f"labels/{values['folder']}"
            if entry["path"] not in known:
                known[entry["path"]] = _recorded(registry, registry.root / entry["path"])
            entry.update(known[entry["path"]])
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def _recorded(registry: Registry, path: Path) -> dict[str, Any]:
    """Digest, size and, of a folder, number of files; a folder's files are moved to the cache and linked back."""
    if path.is_file():
        return {"md5": file_md5(path), "size": path.stat().st_size}
    entries, size = [], 0
    for name, file in cache.listing(path).items():
        md5 = file_md5(file)
        target = cache.cache_path(registry, md5)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
            target.chmod(0o444)
        elif not target.samefile(file):
            file.unlink()
            os.link(target, file)
        size += target.stat().st_size
        entries.append({"md5": md5, "relpath": name})
    text = json.dumps(sorted(entries, key=lambda entry: entry["relpath"])).encode()
    whole = hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"
    target = cache.cache_path(registry, whole)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text)
        target.chmod(0o444)
    return {"md5": whole, "size": size, "nfiles": len(entries)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=(*SCALES, "next"))
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet; for `next`, a registry")
    given = parser.parse_args()
    if given.which == "next":
        print(json.dumps(add_generation(Registry.open(given.folder), SCALES["few"], by_dvc=True)))
        return 0
    start = time.perf_counter()
    make(given.folder, SCALES[given.which])
    print(f"made {given.folder} in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
