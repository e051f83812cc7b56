"""Rows of a problem file: JSON lines, CSV or Parquet, found by the file's ending; text kinds also gzipped.

A row that cannot be used is a `Skipped` with its reason, so that it can be counted and written down; a file that cannot
be used is a ConfigError that names the key to change. What a row means is `collection`'s business.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from flywheel import sections
from flywheel.errors import ConfigError

PACKAGE = "package:"
"""Before the name of a file that ships with Flywheel."""
PATH_KEYS = ("path", "valid_path", "test_path")

_LONGEST_LINE = 100 * 1000 * 1000
"""Bytes of a JSON line, or characters of a CSV field, beyond which it is taken for damage."""
_PIECE = 1 << 20
_MOST_COLUMNS = 50
"""Columns that a message about them is drawn from."""
_DATA = Path(__file__).parent / "data"
_TEXT_KINDS = (".jsonl", ".csv")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number in the file, from 1 (CSV: without the header), and its values by column."""

    number: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that cannot be used, and why."""

    number: int
    reason: str


def absolute(section: sections.Problems) -> sections.Problems:
    """The section with its files' paths made absolute, for a registry, whose stages run in another folder."""
    given = {key: getattr(section, key) for key in PATH_KEYS}
    return section.model_copy(
        update={
            key: os.path.abspath(os.path.expanduser(path))
            for key, path in given.items()
            if path is not None and not path.startswith(PACKAGE)
        }
    )


def files(section: sections.Problems) -> dict[str, Path]:
    """The files of a section by their key, all there. Raises ConfigError with every one that is missing."""
    found, problems = {}, []
    for key in PATH_KEYS:
        path = getattr(section, key)
        if path is None:
            continue
        try:
            found[key] = _resolve(path)
        except LookupError as error:
            problems.append(f"problems.{key}: {error.args[0]}")
    if problems:
        raise ConfigError(problems)
    return found


def read(path: Path, columns: Iterable[str], key: str) -> Iterator[Row | Skipped]:
    """The rows of a file, in their order; a row has all the `columns` unless its reader gives it away as skipped.

    Raises ConfigError, naming `problems.key`, where the file is not of its kind, is damaged, or has no such column.
    """
    wanted = list(columns)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "parquet":
            yield from _parquet(path, wanted, key)
        elif kind == "csv":
            yield from _csv(path, wanted, key)
        else:
            yield from _json_lines(path, wanted, key)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError([f"problems.{key}: {path} is damaged: {error}; copy it anew"]) from error
    except OSError as error:
        raise ConfigError([f"problems.{key}: {path} cannot be read: {error.strerror or error}"]) from error


def _resolve(path: str) -> Path:
    if path.startswith(PACKAGE):
        found = _DATA / path.removeprefix(PACKAGE)
        ships = [PACKAGE + file.relative_to(_DATA).as_posix() for file in sorted(_DATA.glob("*/*.gz"))]
        if path not in ships:
            raise LookupError(f"no file {path!r} ships with Flywheel; there are {', '.join(ships)}")
        return found
    found = Path(path).expanduser()
    if not found.is_file():
        what = "a folder" if found.is_dir() else "not there"
        raise LookupError(f"{found} is {what}; expected a .jsonl, .csv or .parquet file (from {Path.cwd()})")
    kind = found.name.removesuffix(".gz")
    if not (kind.endswith(_TEXT_KINDS) or found.suffix == ".parquet"):
        raise LookupError(f"{found} is of no known kind; expected .jsonl, .csv (or either with .gz), or .parquet")
    return found


def _json_lines(path: Path, columns: list[str], key: str) -> Iterator[Row | Skipped]:
    seen: dict[str, None] = {}
    met: set[str] = set()
    for number, line in _lines(path):
        row = Skipped(number, f"longer than {_LONGEST_LINE // 10**6} MB") if line is None else _json_row(number, line)
        if row is None:
            continue
        if isinstance(row, Skipped):
            yield row
            continue
        if len(seen) < _MOST_COLUMNS:
            seen |= dict.fromkeys(row.values)
        absent = [column for column in columns if column not in row.values]
        met.update(column for column in columns if column in row.values)
        yield Skipped(number, f"has no {' and no '.join(absent)}") if absent else row
    # Whether a column is missing or misnamed shows only at the end.
    if seen and (never := [column for column in columns if column not in met]):
        raise _no_columns(path, never, list(seen), key)


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without their ends, None for one too long to be held; blank ones are numbered, not given."""
    with _open(path) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE and not line.endswith(b"\n"):
                while (piece := file.readline(_PIECE)) and not piece.endswith(b"\n"):
                    pass
                yield number, None
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _json_row(number: int, line: bytes) -> Row | Skipped | None:
    try:
        # Numbers stay as they are written: an answer of 0.10 or 1e400 is no float.
        values = json.loads(line.decode("utf-8"), parse_float=str, parse_int=str, parse_constant=str)
    except UnicodeDecodeError:
        return Skipped(number, "not UTF-8")
    except (ValueError, RecursionError):
        return Skipped(number, "not JSON")
    return Row(number, values) if isinstance(values, dict) else Skipped(number, "not a JSON object")


def _csv(path: Path, columns: list[str], key: str) -> Iterator[Row | Skipped]:
    with _open(path) as binary, _long_fields():
        # Bytes that are no UTF-8 come through as lone surrogates, so that one bad row is one bad row.
        pieces = iter(lambda: binary.readline(_LONGEST_LINE), b"")
        text = (piece.decode("utf-8", "surrogateescape") for piece in pieces)
        reader = csv.reader(text, strict=True)
        try:
            header = [name.removeprefix("\ufeff") for name in next(reader, [])]
            if absent := [column for column in columns if column not in header]:
                raise _no_columns(path, absent, header, key)
            for number, fields in enumerate(reader, 1):
                if not fields:
                    continue
                if len(fields) != len(header):
                    yield Skipped(number, f"has {len(fields)} fields, the header has {len(header)}")
                elif any("\ud800" <= character <= "\udfff" for field in fields for character in field):
                    yield Skipped(number, "not UTF-8")
                else:
                    yield Row(number, dict(zip(header, fields, strict=True)))
        except csv.Error as error:
            raise ConfigError(
                [f"problems.{key}: {path}, line {reader.line_num}, is not CSV: {error}; is a quote left open?"]
            ) from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module's limit, which is the process's, raised for a while."""
    before = csv.field_size_limit(_LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, columns: list[str], key: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if absent := [column for column in columns if column not in file.schema_arrow.names]:
                raise _no_columns(path, absent, file.schema_arrow.names, key)
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
    except pa.ArrowException as error:
        raise ConfigError([f"problems.{key}: {path} is not Parquet: {str(error).splitlines()[0]}"]) from error


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _no_columns(path: Path, absent: list[str], there: list[str], key: str) -> ConfigError:
    shown = ", ".join(there[:20]) or "none"
    return ConfigError(
        [
            f"problems.{key}: {path} has no column {' and no '.join(absent)}; its columns are {shown}; name the right "
            "ones by problems.prompt_column (or messages_column) and problems.answer_column"
        ]
    )
