"""A generation's labels as a data set for other tools: a folder that `datasets.load_dataset` and TRL read as it is.

    OUT/README.md                        the data set's card, with its lineage
    OUT/data/train/part-00000.parquet    the rows, in parts (or part-00000.jsonl)

The same tag and options give the same bytes. The folder is written beside its place and renamed: it is there whole or
not at all. Rows are streamed; what is held is ids.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flywheel import params as parameters
from flywheel.errors import InputError
from flywheel.problems import domain
from flywheel.records import digest
from storage import addresses, git
from storage.layout import tag_name

if TYPE_CHECKING:
    from storage.export_source import Row, Source
    from storage.registry import Registry

FORMATS = ("prompt-completion", "messages", "preference", "stepwise")
FILE_TYPES = ("parquet", "jsonl")
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""Flywheel's name of a split -> the name that data sets give it."""
ROWS_PER_PART = 250_000
_ROWS_PER_WRITE = 5_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to export."""

    form: str = "prompt-completion"
    """One of FORMATS."""
    file_type: str = "parquet"
    window: bool = False
    """All that the generation's student could learn from, each content once, not the generation's own labels alone."""
    splits: tuple[str, ...] = ("train",)
    """`valid` and `test` add the reference answers of their problems."""
    pairs: int = 1
    """preference: pairs a problem and generation, at most."""
    step_threshold: float = 0.5
    """stepwise: a step whose score is above this is right."""


@dataclass(frozen=True, slots=True)
class File:
    """A written file: its POSIX path within the folder, MD5 and size; rows, where it holds rows."""

    path: str
    md5: str
    bytes: int
    rows: int | None = None


@dataclass
class Tally:
    """What went by while rows were written."""

    generations: Counter[int]
    reward_sources: set[str]
    splits: dict[str, int]


def export(registry: Registry, address: str, out: Path, wanted: Wanted, force: bool = False) -> dict[str, Any]:
    """Write the data set; {path, rows by split, files, digest}. `address` is `gen/7` or `gen/7/labels`.

    `digest` names the files' bytes. Raises InputError for anything else, for a generation without rows of this format,
    and for an `out` that is neither new nor empty, which `force` replaces if it is an export; RegistryError where
    files are not in the cache.
    """
    from storage.export_card import card

    _check(wanted)
    resolved = addresses.resolve(registry, address)
    if resolved.kind not in {"generation", "labels"} or resolved.generation is None:
        raise InputError(f"got {address}, expected a generation's labels, such as gen/7 or gen/7/labels")
    out = Path(os.path.realpath(out))
    _check_place(registry, out, force)
    source = _source(registry, resolved.generation, wanted.window)
    domain.require_texts(source.params[resolved.generation].problems)
    draft = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    try:
        tally = _write(source, wanted, draft)
        (draft / "README.md").write_text(card(source, wanted, tally), encoding="utf-8")
        files = _listed(draft, wanted.file_type)
        _place(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {
        "path": str(out),
        "rows": tally.splits,
        "files": [asdict(file) for file in files],
        "digest": digest([[file.path, file.md5] for file in files]),
    }


def folder_for(address: str, wanted: Wanted) -> str:
    """The name of an export's folder where none is given: `gen-0007-preference`."""
    generation = addresses.parse(address).generation
    name = tag_name(generation).replace("/", "-") if generation is not None else "export"
    return f"{name}-{wanted.form}{'-window' if wanted.window else ''}"


def _check(wanted: Wanted) -> None:
    for name, value, known in (
        ("--format", wanted.form, FORMATS),
        ("--file-type", wanted.file_type, FILE_TYPES),
        *(("--split", split, tuple(SPLITS)) for split in wanted.splits),
    ):
        if value not in known:
            raise InputError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    if wanted.form in {"preference", "stepwise"} and set(wanted.splits) - {"train"}:
        raise InputError(
            f"--split: {wanted.form} has only `train`: problems of valid and test have a reference answer, which makes "
            "rows of prompt-completion and messages, and nothing to set it against"
        )
    if not 0.0 <= wanted.step_threshold < 1.0:
        raise InputError(f"--step-threshold: got {wanted.step_threshold}, expected a share from 0 to below 1")


def _check_place(registry: Registry, out: Path, force: bool) -> None:
    if out.is_relative_to(registry.root):
        raise InputError(f"{out} lies in the registry, whose folders are Flywheel's own; name another with --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_export(out):
        raise InputError(f"{out} exists and is no earlier export, so it is left alone; name a new folder with --out")
    if not force:
        raise InputError(f"{out} holds an export already; replace it with --force, or name a new folder with --out")


def _is_export(out: Path) -> bool:
    """Whether a folder holds what an export wrote and nothing else."""
    from storage.export_card import MARK

    readme = out / "README.md"
    if not out.is_dir() or {path.name for path in out.iterdir()} != {"README.md", "data"} or not readme.is_file():
        return False
    return MARK in readme.read_text(encoding="utf-8", errors="replace")


def _source(registry: Registry, generation: int, window: bool) -> Source:
    from storage.export_source import Source
    from storage.history import published_many

    generations = [generation]
    tag = tag_name(generation)
    if window:
        text = git.read_many(registry.root, [f"{tag}:lineage/window.json"])[0]
        generations = [entry["generation"] for entry in json.loads(text or b'{"generations": []}')["generations"]]
        generations.append(generation)
    texts = git.read_many(registry.root, [f"{tag_name(number)}:params.yaml" for number in generations])
    params = {
        number: parameters.parse(yaml.safe_load(text or b"") or {}, f"{tag_name(number)}:params.yaml")
        for number, text in zip(generations, texts, strict=True)
    }
    return Source(registry, generation, params, published_many(registry, generations))


def _write(source: Source, wanted: Wanted, draft: Path) -> Tally:
    from storage.export_rows import SCHEMAS, no_rows, reference_rows, train_rows

    tally = Tally(Counter(), set(), {})
    schema = SCHEMAS[wanted.form]
    for split in [name for name in SPLITS if name in wanted.splits]:
        if split == "train":
            rows = _counted(train_rows(source, wanted.form, wanted.pairs, wanted.step_threshold), tally)
        else:
            rows = reference_rows(source, wanted.form, split)
        folder = draft / "data" / SPLITS[split]
        written = _write_parquet(rows, schema, folder) if wanted.file_type == "parquet" else _write_lines(rows, folder)
        if not written:
            if split == "train":
                raise no_rows(source, wanted.form)
            raise InputError(f"--split {split}: no problem of that split has a reference answer; leave it out")
        tally.splits[SPLITS[split]] = written
    return tally


def _counted(rows: Iterator[Row], tally: Tally) -> Iterator[Row]:
    for row in rows:
        tally.generations[row["generation"]] += 1
        if "reward_source" in row:
            tally.reward_sources.add(row["reward_source"])
        yield row


def _write_parquet(rows: Iterable[Row], schema: Any, folder: Path) -> int:
    from storage.tables import TableWriter

    with TableWriter(folder, schema, ROWS_PER_PART) as writer:
        waiting = iter(rows)
        while batch := list(itertools.islice(waiting, _ROWS_PER_WRITE)):
            writer.write(batch)
        return writer.rows


def _write_lines(rows: Iterable[Row], folder: Path) -> int:
    folder.mkdir(parents=True)
    written, waiting = 0, iter(rows)
    for part in itertools.count():
        first = list(itertools.islice(waiting, 1))
        if not first:
            return written
        with (folder / f"part-{part:05d}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for row in itertools.chain(first, itertools.islice(waiting, ROWS_PER_PART - 1)):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                written += 1
    raise AssertionError("unreachable")


def _listed(draft: Path, file_type: str) -> list[File]:
    import pyarrow.parquet as pq

    from storage.cache import listing
    from storage.tables import file_md5

    files = []
    for name, path in listing(draft).items():
        rows: int | None = None
        if path.suffix == ".parquet":
            rows = pq.read_metadata(path).num_rows
        elif path.suffix == ".jsonl":
            with path.open("rb") as lines:
                rows = sum(1 for _ in lines)
        files.append(File(name, file_md5(path), path.stat().st_size, rows))
    return files


def _place(draft: Path, out: Path) -> None:
    """Put the finished folder in its place; an earlier export there goes once the new one stands."""
    aside = draft.with_name(f"{draft.name}.old")
    if out.exists():
        os.rename(out, aside)
    try:
        os.rename(draft, out)
    except OSError:
        if aside.exists():
            os.rename(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
