"""Two makings of one table: how many rows only one of them has, and the first place where they part."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.views import MEMORY_LIMIT

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_LONGEST = 200
"""Letters of a value that is told."""
_APART = """
SELECT coalesce(sum(greatest(recorded - here, 0)), 0), coalesce(sum(greatest(here - recorded, 0)), 0)
FROM (SELECT count(*) FILTER (recorded) AS recorded, count(*) FILTER (NOT recorded) AS here FROM marks GROUP BY mark)
"""
_FIRST = """
SELECT min(place)
FROM (SELECT place, mark FROM marks WHERE recorded) a FULL JOIN (SELECT place, mark FROM marks WHERE NOT recorded) b
    USING (place)
WHERE a.mark IS DISTINCT FROM b.mark
"""


def differ(recorded: list[Path], here: list[Path], scratch: Path) -> dict[str, Any]:
    """Compare the rows of two lists of Parquet files, one part after the other.

    {"rows": {"recorded", "here"}, "only_recorded", "only_here": rows, whatever their order; "columns": those that only
    one of the two has and that are not compared; "first": {"row": its number from 0, "key": the name of the table's
    key, "recorded", "here": its key and what differs of it, null where there is no such row}, null where the same rows
    stand in the same order}. Rows are told apart by a hash of 64 bits. What memory cannot hold goes to a folder in
    `scratch`.
    """
    import duckdb
    import pyarrow.parquet as pq

    footers = {path: pq.read_metadata(path) for path in (*recorded, *here)}
    schemas = [pq.read_schema(files[0]) for files in (recorded, here) if files]
    columns = [name for name in schemas[0].names if all(name in schema.names for schema in schemas)]
    unlike = sorted({name for schema in schemas for name in schema.names} - set(columns))
    key = (schemas[0].metadata or {}).get(b"key", b"").decode()
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute("SET temp_directory = $folder", {"folder": str(scratch / f"rows-{uuid.uuid4().hex[:8]}")})
        connection.execute("CREATE TEMP TABLE marks (recorded BOOLEAN, place BIGINT, mark UBIGINT)")
        listed = ", ".join(f'"{name}"' for name in columns)
        for is_recorded, files in ((True, recorded), (False, here)):
            start = 0
            for path in files:
                connection.execute(
                    f"INSERT INTO marks SELECT {is_recorded}, {start} + file_row_number, hash({listed}) "
                    f"FROM {_read(path)}"
                )
                start += footers[path].num_rows
        only_recorded, only_here = connection.execute(_APART).fetchall()[0]
        place = connection.execute(_FIRST).fetchall()[0][0]
        rows = [_row(connection, files, [footers[path].num_rows for path in files], place, columns)
                for files in (recorded, here)]  # fmt: skip
    return {
        "rows": {
            "recorded": sum(footers[path].num_rows for path in recorded),
            "here": sum(footers[path].num_rows for path in here),
        },
        "only_recorded": int(only_recorded),
        "only_here": int(only_here),
        "columns": unlike,
        "first": None if place is None else {"row": place, "key": key, **_apart(rows[0], rows[1], key)},
    }


def _read(path: Path) -> str:
    quoted = str(path).replace("'", "''")
    return f"read_parquet('{quoted}', hive_partitioning = false, file_row_number = true)"


def _row(
    connection: DuckDBPyConnection, files: list[Path], counts: list[int], place: int | None, columns: list[str]
) -> dict[str, Any] | None:
    """The row with that number over all files; None where there are not as many."""
    for path, count in zip(files, counts, strict=True):
        if place is not None and place < count:
            listed = ", ".join(f'"{name}"' for name in columns)
            sql = f"SELECT {listed} FROM {_read(path)} WHERE file_row_number = {place}"
            return dict(zip(columns, connection.execute(sql).fetchall()[0], strict=True))
        place = None if place is None else place - count
    return None


def _apart(recorded: dict[str, Any] | None, here: dict[str, Any] | None, key: str) -> dict[str, Any]:
    """Of two rows the key and what differs; long values are cut off."""
    old, new = recorded or {}, here or {}
    names = [name for name in {**old, **new} if name == key or old.get(name) != new.get(name)]
    return {
        side: None if row is None else {name: _short(row[name]) for name in names}
        for side, row in (("recorded", recorded), ("here", here))
    }


def _short(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
