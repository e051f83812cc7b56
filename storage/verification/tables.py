"""Each table by itself: its files have the schema of their version, the rows and keys of lineage, and no id twice.

Files are read where they lie, by DuckDB under a memory limit, a generation at a time. How tables agree with each other
is `storage.verification.rows`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from storage.schemas import BOARDS, SCHEMA_VERSION, SUPERVISION, TABLES, tables_of
from storage.verification.findings import Findings, Tell
from storage.verification.generations import Generation
from storage.verification.objects import Objects

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "400MB"
"""What DuckDB may hold before it spills to disk."""

_SCHEMAS = {**TABLES, **SUPERVISION, **BOARDS}
_VERSIONS = {str(version) for version in range(1, SCHEMA_VERSION + 1)}
_ADDED = {("trained_on", "generation"): 2}
"""(table, column) -> the schema version that brought it."""
_UNIQUE: dict[str, tuple[str, ...]] = {
    "label_parents": ("label_id", "parent_id", "role"),
    "step_label_parents": ("step_label_id", "parent_id", "role"),
    "trained_on": ("snapshot", "label_id"),
    "evaluations": ("snapshot", "searcher", "budget", "split", "metric"),
    "outcomes": ("snapshot", "problem_id", "metric", "budget"),
    "searched": ("attempt_id", "ply"),
}
"""Columns that name a row, where they are not the table's key alone."""
_FIX = "the table is not what a stage wrote; go back before it with `flywheel rollback`, or restore from a copy"


@contextlib.contextmanager
def connection(jobs: int) -> Iterator[DuckDBPyConnection]:
    """A DuckDB of our own, in memory, that spills into a folder of its own in the system's."""
    import duckdb

    with (
        tempfile.TemporaryDirectory(prefix="flywheel-verify-") as folder,
        contextlib.closing(duckdb.connect(":memory:")) as opened,
    ):
        opened.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        opened.execute(f"SET threads = {int(jobs)}")
        opened.execute(f"SET temp_directory = {quoted(folder)}")
        opened.execute("SET preserve_insertion_order = false")
        opened.execute("SET parquet_metadata_cache = true")
        opened.execute("SET autoinstall_known_extensions = false")
        opened.execute("SET autoload_known_extensions = false")
        yield opened


def quoted(value: Any) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def files(objects: Objects, generation: Generation, table: str) -> list[str] | None:
    """A table's files as SQL names them; None where one is missing, damaged or elsewhere, or there is no such table."""
    entry = generation.lineage["tables"].get(table)
    if entry is None or not objects.sound.issuperset(file["md5"] for file in entry["files"]):
        return None
    return [quoted(objects.path(file["md5"])) for file in entry["files"]]


def _view(opened: DuckDBPyConnection, objects: Objects, generation: Generation, table: str) -> bool:
    """Make a view of a generation's table, called as the table; whether all its files are sound."""
    sources = files(objects, generation, table)
    if sources is not None:
        source = f"read_parquet([{', '.join(sources)}], hive_partitioning = false)"
        opened.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS SELECT * FROM {source}")
    return sources is not None


def check(
    opened: DuckDBPyConnection, objects: Objects, generation: Generation, seen: set[str], tell: Tell
) -> dict[str, bool]:
    """Each of a generation's tables; which of them have a view now. `seen`: tables of older generations, by their
    files, which are not looked at twice."""
    import duckdb

    there = {}
    known = tables_of(generation.is_supervised, generation.is_board)
    for table in known.keys() & generation.lineage["tables"].keys():
        entry, where = generation.lineage["tables"][table], f"{generation.name}/{table}"
        there[table] = _view(opened, objects, generation, table)
        if not there[table]:
            continue
        mark = " ".join([table, *(file["md5"] for file in entry["files"])])
        if mark in seen:  # problems, which each generation carries whole
            continue
        seen.add(mark)
        try:
            there[table] = _check_schema(objects, table, entry, where)
            if there[table]:
                _check_rows(opened, objects.findings, table, entry, where)
        except (duckdb.Error, pa.ArrowException) as error:
            there[table] = False
            objects.findings.fail("table", where, f"it cannot be read: {error}"[:300], _FIX)
        objects.findings.count("tables")
        objects.findings.count("rows", entry["rows"])
    return there


def schema_of(table: str, version: int) -> pa.Schema:
    """A table's columns as of a schema version."""
    fields = [field for field in _SCHEMAS[table] if _ADDED.get((table, field.name), 1) <= version]
    return pa.schema(fields)


def _check_schema(objects: Objects, table: str, entry: dict[str, Any], where: str) -> bool:
    import pyarrow.parquet as pq

    sound = True
    for file in entry["files"]:
        held = pq.ParquetFile(objects.path(file["md5"]))
        schema, rows = held.schema_arrow, held.metadata.num_rows
        told = {key.decode(): value.decode("utf-8", "replace") for key, value in (schema.metadata or {}).items()}
        version = told.get("flywheel.version", "")
        if told.get("flywheel.table") != table or version not in _VERSIONS:
            why = f"{file['path']} says it is table {told.get('flywheel.table')} of version {version!r}"
        elif not schema.remove_metadata().equals(schema_of(table, int(version))):
            names = ", ".join(str(field) for field in schema)
            why = f"{file['path']} has not the columns of version {version}; it has {names}"[:400]
        elif rows != file["rows"]:
            why = f"{file['path']} has {rows} rows, lineage says {file['rows']}"
        else:
            continue
        sound = False
        objects.findings.fail("table", where, why, _FIX)
    return sound


def _check_rows(opened: DuckDBPyConnection, findings: Findings, table: str, entry: dict[str, Any], where: str) -> None:
    key = entry["key"]
    low, high = one(opened, f'SELECT min("{key}")::VARCHAR, max("{key}")::VARCHAR FROM {table}')
    if (low, high) != (entry["low"], entry["high"]):
        why = f"its {key} are from {low} to {high}, lineage says from {entry['low']} to {entry['high']}"
        findings.fail("table", where, why, _FIX)
    names = ", ".join(f'"{name}"' for name in _UNIQUE.get(table, (key,)))
    if table == "rejected":
        # Of a game several positions can be rejected.
        names = "attempt_id, reason"
    twice = opened.execute(f"SELECT {names} FROM {table} GROUP BY ALL HAVING count(*) > 1 LIMIT 1").fetchall()
    if twice:
        why = f"it has a row twice: {names.replace(chr(34), '')} {', '.join(map(str, twice[0]))}"
        findings.fail("table", where, why, _FIX)


def one(opened: DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """The one row of an aggregate."""
    (row,) = opened.execute(sql).fetchall()
    return tuple(row)


def check_all(objects: Objects, generations: Iterable[Generation], jobs: int, tell: Tell) -> None:
    """Every table of every generation, and how they agree."""
    from storage.verification import rows

    listed = list(generations)
    by_number = {generation.number: generation for generation in listed}
    seen: set[str] = set()
    with connection(jobs) as opened:
        for done, generation in enumerate(listed, 1):
            there = check(opened, objects, generation, seen, tell)
            rows.check(opened, objects, generation, by_number, {table for table, held in there.items() if held})
            tell("tables of generations", done, len(listed))
