"""Parquet on disk: written to a temporary name and renamed, read in batches, compared by bytes.

The same rows in the same order give the same bytes: one writer version, zstd, row groups of a fixed size, no clock.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel.errors import StorageFull

ROWS_PER_PART = 250_000
_ROWS_PER_GROUP = 50_000
_ROWS_PER_BATCH = 5_000


def write_file(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> int:
    """Write one Parquet file by temporary name and rename. Returns the number of rows."""
    return write_table(path, pa.Table.from_pylist(rows, schema=schema))


def write_table(path: Path, table: pa.Table) -> int:
    """Write a table as one Parquet file by temporary name and rename. Returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", row_group_size=_ROWS_PER_GROUP)
            # The name must not outlive the bytes in a power cut.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _full_or(error, path) from error
    return int(table.num_rows)


class TableWriter:
    """Streams rows into `part-00000.parquet`, ... of a folder, in parts of a fixed number of rows.

    The parts depend only on the rows and their order, never on the sizes of the batches that brought them. An empty
    table is one part without rows, so that a table always has its schema on disk. Use as a context manager on a folder
    that is itself temporary; the caller renames the folder into place.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_part: int = ROWS_PER_PART) -> None:
        self.folder = folder
        self._written = 0
        self._schema = schema
        self._rows_per_part = rows_per_part
        self._pending: list[dict[str, Any]] = []
        self._group: list[pa.RecordBatch] = []
        self._group_rows = 0
        self._part = 0
        self._part_rows = 0
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def rows(self) -> int:
        """Rows taken so far."""
        return self._written + len(self._pending)

    def write(self, rows: list[dict[str, Any]]) -> None:
        self._pending += rows
        # Arrow spends kilobytes on a batch, however few its rows.
        if len(self._pending) >= _ROWS_PER_BATCH:
            self._convert()

    def _convert(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            self.write_batches(pa.Table.from_pylist(pending, schema=self._schema).to_batches())

    def write_batches(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._convert()
        for batch in batches:
            while batch.num_rows:
                room = min(_ROWS_PER_GROUP - self._group_rows, self._rows_per_part - self._part_rows - self._group_rows)
                piece = batch.slice(0, room)
                self._group.append(piece)
                self._group_rows += piece.num_rows
                self._written += piece.num_rows
                batch = batch.slice(piece.num_rows)
                if piece.num_rows == room:
                    self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            path = self.folder / f"part-{self._part:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        table = pa.Table.from_batches(self._group, schema=self._schema).combine_chunks()
        self._writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        self._part_rows += self._group_rows
        self._group, self._group_rows = [], 0
        if self._part_rows >= self._rows_per_part:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part += 1
            self._part_rows = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._convert()
            if kind is None and (self._group or (self._writer is None and self._part == 0)):
                self._flush()
            self._close_part()
        except OSError as error:
            raise _full_or(error, self.folder) from error


def read_batches(
    folder: Path, schema: pa.Schema, columns: list[str] | None = None, batch_rows: int = 10_000
) -> Iterator[pa.RecordBatch]:
    """Rows of a table's folder, parts in order, in bounded batches."""
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=batch_rows, columns=columns or schema.names)


def read_rows(folder: Path, schema: pa.Schema, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """All rows of a small table."""
    return [row for batch in read_batches(folder, schema, columns) for row in batch.to_pylist()]


def count_rows(folder: Path) -> int:
    """Rows of a table's folder, from the files' footers."""
    return sum(pq.read_metadata(path).num_rows for path in sorted(folder.glob("*.parquet")))


def replace_folder(new: Path, target: Path, scratch: Path) -> None:
    """Put a finished folder in the place of another by two renames; the old one is moved aside, then deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    aside = scratch / f"old-{uuid.uuid4().hex[:8]}"
    if target.exists():
        os.replace(target, aside)
    os.replace(new, target)
    if aside.exists():
        shutil.rmtree(aside)


def replace_text(path: Path, text: str) -> None:
    """Write a small file of text; as `replace_bytes`."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a small file by temporary name, flush and rename: a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _full_or(error, path) from error


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes, the digest DVC stores it under (a name, not a safeguard)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _full_or(error: OSError, path: Path) -> Exception:
    if error.errno in {28, 122}:  # ENOSPC, EDQUOT
        return StorageFull(f"no space left while writing {path}; free some and run again: finished work is kept")
    return error
