"""SQL over a registry, now or as of a generation: DuckDB views on the Parquet files in DVC's cache.

Files are found by the digests that `lineage/0007.json` lists and read where they lie; neither the work tree nor an old
revision is opened. Nothing can be written: one reading statement at a time, no file outside the cache, no extension, no
setting. Needs neither DVC nor MLflow.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from flywheel.errors import InputError, RegistryError
from flywheel.records import canonical_json
from storage import ledger
from storage.schemas import BOARDS, LEDGER, SUPERVISION, TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from storage.registry import Registry

MEMORY_LIMIT = "1GB"
"""What DuckDB may hold before it spills to disk."""

_KNOWN = {**TABLES, **SUPERVISION, **BOARDS}
_BATCH_ROWS = 2048
NEWEST_ONLY = {"problems", "excluded"}
"""Tables that each generation carries whole."""
OF_LABELS = {"attempts", "searched", "labels", "targets", "label_parents", "rejected"}
"""Tables that tell of labels."""
OF_EACH_LABEL = {"labels", "targets", "label_parents"}

_GENERATIONS = pa.schema(
    [
        *((name, pa.int64()) for name in ("generation", "parent", "champion", "labels")),
        *((name, pa.string()) for name in ("tag", "status", "teacher", "student")),
        ("promoted", pa.bool_()),
        *((f"flops_{kind}", pa.float64()) for kind in ("policy", "prefill", "reward", "training", "padding")),
        *((name, pa.string()) for name in ("metrics", "reason", "commit", "mlflow_run", "prefect_flow_run")),
    ]
)
_TYPES = {
    "string": "VARCHAR",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "float": "FLOAT",
}


@dataclass(frozen=True, slots=True)
class Result:
    """Columns and, once, the rows; they are read from disk as they are asked for."""

    columns: list[str]
    rows: Iterator[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Absent:
    """A table that has no view: why, and the objects that would give it one."""

    message: str
    md5s: tuple[str, ...]


def connect(
    registry: Registry, at: int | None = None, tables: Collection[str] | None = None, every_line: bool = False
) -> DuckDBPyConnection:
    """A connection with a view for each table, `ledger` and `generations`, as of generation `at` (default: the head).

    Tables of one generation (attempts, labels, ...) hold the rows of `at` and all its ancestors; `problems` those of
    `at`. `ledger` and `generations` hold every generation up to `at`, rolled-back ones too: their compute was spent.
    Files that are not in the cache are brought from the remote; those of `tables` alone where they are named, others
    may then have no view. `every_line`: the rows of all generations, whatever line they are on, none left out.
    Raises InputError for an unknown generation, RegistryError where a file cannot be had.
    """
    connection, absent = _open(registry, at, every_line)
    needed = [table for table in absent if tables is None or table in tables]
    if not needed:
        return connection
    connection.close()
    _bring(registry, {table: absent[table] for table in needed})
    return connect(registry, at, tables)


def query(registry: Registry, sql: str, at: int | None = None) -> Result:
    """Run one reading statement. Columns of the same name are told apart as `a`, `a_1`, ...

    Files of tables that it names are brought from the remote where they are not in the cache. Raises InputError, with
    DuckDB's words and the tables there are, where the statement is wrong or would write, and RegistryError where it
    needs a table whose files cannot be had; other tables can be asked for all the same.
    """
    import duckdb

    connection, absent = _open(registry, at)
    try:
        _check_reads(connection, sql)
        cursor = connection.execute(sql)
    except duckdb.Error as error:
        connection.close()
        needed = {table: why for table, why in absent.items() if re.search(rf"\b{table}\b", sql, re.IGNORECASE)}
        if not needed:
            raise _explained(error) from error
    except InputError:
        connection.close()
        raise
    else:
        columns = _told_apart([str(column[0]) for column in cursor.description or []])
        return Result(columns, _rows(cursor, columns))
    _bring(registry, needed)
    return query(registry, sql, at)


def _bring(registry: Registry, absent: dict[str, _Absent]) -> None:
    """Have the files of these tables in the cache. Raises RegistryError where they cannot be had."""
    from storage import remotes

    if not remotes.sources(registry):
        raise RegistryError(next(iter(absent.values())).message)
    md5s = [md5 for why in absent.values() for md5 in why.md5s]
    remotes.bring(registry, md5s, f"table {', '.join(absent)}")


def _rows(cursor: DuckDBPyConnection, columns: list[str]) -> Iterator[dict[str, Any]]:
    import duckdb

    try:
        while batch := cursor.fetchmany(_BATCH_ROWS):
            for row in batch:
                yield dict(zip(columns, row, strict=True))
    except duckdb.Error as error:
        raise _explained(error) from error
    finally:
        cursor.close()


def _told_apart(names: list[str]) -> list[str]:
    taken: list[str] = []
    for name in names:
        unique, count = name, 0
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.append(unique)
    return taken


def _check_reads(connection: DuckDBPyConnection, sql: str) -> None:
    """Let through one SELECT (so are DESCRIBE, SHOW, SUMMARIZE, FROM and VALUES) or PIVOT, and nothing that writes."""
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise InputError(f"got {len(statements)} statements, expected exactly one; {_tables()}")
    kind = statements[0].type
    # A PIVOT without IN is rewritten to several statements, the last of them a SELECT.
    pivots = kind == duckdb.StatementType.MULTI and re.match(r"\s*(from|pivot|unpivot)\b", sql, re.IGNORECASE)
    if kind != duckdb.StatementType.SELECT and not pivots:
        name = str(kind).rpartition(".")[2]
        raise InputError(
            f"got a statement of kind {name}, expected one that reads, such as SELECT: published generations are never "
            f"edited; to drop what a bad generation brought, roll back. {_tables()}"
        )


def _tables() -> str:
    return f"tables: {', '.join([*_KNOWN, 'ledger', 'generations'])}"


def _explained(error: Exception) -> InputError:
    return InputError(f"{str(error).strip()}\n{_tables()}")


def _open(
    registry: Registry, at: int | None, every_line: bool = False
) -> tuple[DuckDBPyConnection, dict[str, _Absent]]:
    """A locked connection, and why each table that has no view has none."""
    import duckdb

    from storage import exclusions
    from storage.cache import cache_path
    from storage.history import history

    rows = as_of(history(registry), at)
    line = [row["generation"] for row in rows if every_line or row["status"] != "abandoned"]
    applying = [] if every_line else exclusions.applying(exclusions.read(registry), line, at is None)
    out = sorted(exclusions.models(applying))
    files, absent, old = _files(registry, line, exclusions.kept(applying, line), out)
    connection = duckdb.connect(":memory:")
    connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
    connection.execute(f"SET temp_directory = {quoted(spill_folder(registry))}")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    # The order matters: views on files can be read only if their folder was allowed before access is shut.
    cache = cache_path(registry, "0" * 32).parent.parent
    connection.execute(f"SET allowed_directories = [{quoted(f'{cache}/')}]")
    if old and (lost := absent.keys() & {"labels", "step_labels"}):
        absent.setdefault("trained_on", absent[min(lost)])
    # Of an earlier version `trained_on` is told apart by views of other tables.
    for table, paths in sorted(files.items(), key=lambda entry: entry[0] == "trained_on"):
        if table not in absent:
            _create(connection, table, f'CREATE VIEW "{table}" AS {_selection(table, paths, old, out)}')
    for name, values, schema in (
        ("ledger", ledger.committed(registry, at), LEDGER),
        ("generations", [_generation(row) for row in rows], _GENERATIONS),
    ):
        # By way of JSON: pyarrow imports pandas to make an array of Python values, 0.4 s that a reader would wait for.
        kinds = canonical_json([{field.name: _duckdb_type(field.type) for field in schema}])
        columns = ", ".join(f'row."{field.name}"' for field in schema)
        source = "(SELECT unnest(from_json_strict($rows, $kinds)) AS row)"
        known = [{column: row.get(column) for column in schema.names} for row in values]
        bound = {"rows": canonical_json(known), "kinds": kinds}
        _create(connection, name, f"CREATE TABLE {name} AS SELECT {columns} FROM {source}", bound)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection, absent


def spill_folder(registry: Registry) -> Path:
    """Where DuckDB puts what memory cannot hold, made and removed by it: in the registry's scratch folder, or in the
    system's where a reader may not write to the registry or nothing ever ran in it (a clone)."""
    scratch = registry.layout.tmp
    if not (scratch.is_dir() and os.access(scratch, os.W_OK)):
        scratch = Path(tempfile.gettempdir())
    return scratch / f"query-{uuid.uuid4().hex[:8]}"


def _create(connection: DuckDBPyConnection, name: str, sql: str, bound: dict[str, str] | None = None) -> None:
    import duckdb

    try:
        connection.execute(sql, bound)
    except duckdb.Error as error:
        connection.close()
        raise RegistryError(
            f"table {name} cannot be read, a file of it is damaged or of another version: {error}"
        ) from error


def as_of(rows: list[dict[str, Any]], at: int | None) -> list[dict[str, Any]]:
    """History rows as they were when `at` had just been published: none newer, and `status` as seen from there.

    Raises InputError for a generation that was never published.
    """
    if at is None:
        return rows
    parents = {row["generation"]: row["parent"] for row in rows}
    if at not in parents:
        there = ", ".join(f"gen/{generation}" for generation in parents) or "none yet"
        raise InputError(f"got gen/{at}, which was never published; there are: {there}")
    line, generation = set(), parents[at]
    while generation is not None:
        line.add(generation)
        generation = parents[generation]
    seen = [row for row in rows if row["generation"] <= at]
    statuses = [
        "current" if r["generation"] == at else "ancestor" if r["generation"] in line else "abandoned" for r in seen
    ]
    return [{**row, "status": status} for row, status in zip(seen, statuses, strict=True)]


def _files(
    registry: Registry, line: list[int], kept: list[int], out: list[str]
) -> tuple[dict[str, list[Path]], dict[str, _Absent], list[Path]]:
    """Table -> its files of all generations of the line, oldest first; table -> which of them is not there; the files
    of `trained_on` that say nothing of the labels' generations.

    `kept`: generations off the line whose labels an exclusion kept; of them the tables that tell of labels come along.
    `out`: excluded models; labels that one of them judged are left out by generation.
    """
    from storage import exclusions
    from storage.cache import cache_path
    from storage.history import published_many

    files: dict[str, list[Path]] = {table: [] for table in _KNOWN}
    absent: dict[str, _Absent] = {}
    old: list[Path] = []
    for generation, lineage in published_many(registry, sorted([*line, *kept])).items():
        for table, entry in lineage["tables"].items():
            if table not in files or (table in NEWEST_ONLY and generation != line[-1]):
                continue
            if generation in kept and table not in OF_LABELS:
                continue
            if table in OF_EACH_LABEL and exclusions.judged_by(lineage) in out:
                continue
            if table == "trained_on" and lineage["version"] == 1:
                old += [cache_path(registry, file["md5"]) for file in entry["files"]]
            for file in entry["files"]:
                path = cache_path(registry, file["md5"])
                if not path.is_file():
                    message = (
                        f"{file['path']}, a file of table {table} of gen/{generation}, is not in the cache (expected "
                        f"{path}); fetch it with `flywheel pull gen/{generation}`, or restore .dvc/cache from a copy"
                    )
                    why = absent.get(table, _Absent(message, ()))
                    absent[table] = _Absent(why.message, (*why.md5s, file["md5"]))
                files[table].append(path)
    return files, absent, old


def _selection(table: str, paths: list[Path], old: list[Path], out: list[str]) -> str:
    """The rows of a table's files; without any, a relation without rows that has the table's columns and types.

    `old`: files of `trained_on` of schema version 1, where the labels themselves say of which generation they are;
    `out`: excluded models, whose labels are left out.
    """
    schema = _KNOWN[table]
    if not paths:
        nulls = (f'NULL::{_duckdb_type(field.type)} AS "{field.name}"' for field in schema)
        return f"SELECT {', '.join(nulls)} WHERE false"
    columns = ", ".join(f'"{name}"' for name in schema.names)
    if table == "labels" and out:
        return f"SELECT {columns} FROM {_read(paths)} WHERE teacher NOT IN ({', '.join(map(quoted, out))})"
    if table != "trained_on" or not old:
        return f"SELECT {columns} FROM {_read(paths)}"
    new = [path for path in paths if path not in old]
    told = (
        "SELECT t.snapshot, t.label_id, coalesce(l.generation, s.generation) AS generation, t.weight, t.epochs FROM "
        f"{_read(old)} t LEFT JOIN labels l USING (label_id) LEFT JOIN step_labels s ON t.label_id = s.step_label_id"
    )
    return f"SELECT {columns} FROM ({told}" + (f" UNION ALL SELECT {columns} FROM {_read(new)})" if new else ")")


def _read(paths: list[Path]) -> str:
    return f"read_parquet([{', '.join(map(quoted, paths))}], hive_partitioning = false)"


def _duckdb_type(kind: Any) -> str:
    return f"{_TYPES[str(kind.value_type)]}[]" if pa.types.is_list(kind) else _TYPES[str(kind)]


def quoted(value: Path | str) -> str:
    """A text as SQL says it."""
    return "'" + str(value).replace("'", "''") + "'"


def _generation(row: dict[str, Any]) -> dict[str, Any]:
    flops = {f"flops_{kind}": float(value) for kind, value in row["flops"].items()}
    return {**row, **flops, "metrics": canonical_json(row["metrics"])}
