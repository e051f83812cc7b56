"""What two sets of a table's files differ in, row by row: DuckDB over the files that only one of the two has.

A file that both have is the same rows on both sides and is not compared. Of it at most the column with the key is
read, to find what is said again, and where neither side has a file of its own nothing is. What memory cannot hold goes
to disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True, slots=True)
class File:
    """A Parquet file of a table: where it lies in the cache, and the generation that wrote it."""

    generation: int
    md5: str
    rows: int
    path: Path


@dataclass(frozen=True, slots=True)
class Side:
    """A table's files on one side. Rows that a model in `out` made are taken not to be there."""

    files: tuple[File, ...]
    out: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows of a table are compared: those of one `key` with each other, by `maker` and the columns `compared`."""

    key: str
    identity: str
    """The column that names a row; several rows may have one key."""
    generation: str
    """The column, or expression, for the generation that wrote a row; likewise `maker`, the model that made it."""
    maker: str
    compared: tuple[str, ...]
    shown: tuple[str, ...]
    """Columns of the example rows."""


SHAPES = {
    "labels": Shape(
        "content_id", "label_id", "generation", "teacher", ("kind", "reward", "weight"),
        ("label_id", "content_id", "problem_id", "kind", "generation", "teacher", "searcher", "reward",
         "reward_source", "weight", "prompt", "completion"),
    ),
    "attempts": Shape(
        "attempt_id", "attempt_id", "generation", "teacher", ("status", "reward", "output"),
        ("attempt_id", "problem_id", "generation", "teacher", "searcher", "status", "reward", "prompt", "output"),
    ),
    "step_labels": Shape(
        "step_label_id", "step_label_id", "generation", "policy", ("scores",),
        ("step_label_id", "problem_id", "generation", "policy", "estimate", "steps", "scores"),
    ),
    "problems": Shape(
        "problem_id", "problem_id", "NULL::BIGINT", "NULL::VARCHAR", ("split", "group", "payload", "reference"),
        ("problem_id", "split", "difficulty", "group", "payload", "reference"),
    ),
}  # fmt: skip
"""The tables whose rows can be told apart by a key."""

_CLASSES = ("added", "removed", "changed", "equal")
_CLASSIFY = """
WITH
    g AS (SELECT k, min({g: g, l: l, maker: maker, v: v}) AS one FROM gone GROUP BY k),
    c AS (SELECT k, min({g: g, l: l, maker: maker, v: v}) AS one FROM come GROUP BY k),
    pairs AS (SELECT k, g.one AS old, c.one AS new FROM g FULL JOIN c USING (k)),
    known AS (SELECT DISTINCT k FROM shared SEMI JOIN (SELECT k FROM gone UNION ALL SELECT k FROM come) USING (k))
SELECT
    CASE WHEN old IS NULL THEN 'added' WHEN new IS NULL THEN 'removed'
         WHEN old.maker IS DISTINCT FROM new.maker OR old.v IS DISTINCT FROM new.v THEN 'changed' ELSE 'equal' END,
    old.g, old.maker, new.g, new.maker, count(*),
    min({g: coalesce(new.g, old.g), l: coalesce(new.l, old.l), old_g: old.g, old_l: old.l}, $limit)
FROM pairs ANTI JOIN known USING (k)
GROUP BY ALL
"""
_Totals = dict[tuple[int | None, str | None], int]
_Group = tuple[str, int | None, str | None, int | None, str | None, int, list[dict[str, Any]]]


def compare(connection: DuckDBPyConnection, table: str, before: Side, after: Side, limit: int = 0) -> dict[str, Any]:
    """What the rows of `table` (one of SHAPES) say on one side and not on the other.

    {"rows": {"from", "to"}, "same", "added", "removed", "changed", "equal", "repeated": {"from", "to"}, "by",
    "examples"}. Each row of a side is counted once:

    - same: the very row stands on both sides;
    - repeated: a row that both sides have, or an older one of its own side, has its key. Of several rows of a key the
      oldest counts, as it does in training;
    - added, removed: no row of the other side has its key;
    - changed, equal: the other side's oldest row of its key differs in maker or in a column compared, or does not.

    So rows.to = same + added + changed + equal + repeated.to, and rows.from likewise with removed. `by` has these
    counts for each side ("on"), generation and maker, same rows apart. `examples` holds up to `limit` rows of each of
    added, removed and changed, oldest first; of changed ones {"from", "to"}.
    """
    shape = SHAPES[table]
    same, totals = sum(file.rows for file in before.files), dict[str, _Totals]({"from": {}, "to": {}})
    if not are_same(before, after):
        same = _open(connection, shape, before, after)
        totals = {"from": _totals(connection, "gone"), "to": _totals(connection, "come")}
    groups: list[_Group] = []
    if totals["from"] or totals["to"]:
        groups = connection.execute(_CLASSIFY, {"limit": max(limit, 1)}).fetchall()
    counts = {name: sum(group[5] for group in groups if group[0] == name) for name in _CLASSES}
    rows = {side: sum(total.values()) for side, total in totals.items()}
    both = counts["changed"] + counts["equal"]
    return {
        "rows": {side: same + own for side, own in rows.items()},
        "same": same,
        **counts,
        "repeated": {"from": rows["from"] - both - counts["removed"], "to": rows["to"] - both - counts["added"]},
        "by": [line for side, total in totals.items() for line in _by(side, total, groups)],
        "examples": _examples(connection, shape, before, after, groups, limit),
    }


def are_same(before: Side, after: Side) -> bool:
    """Whether both sides have the same rows, so that no file needs to be opened."""
    ours, theirs = ({file.md5 for file in side.files} for side in (before, after))
    return ours == theirs and not (ours and before.out | after.out)


def read(files: Iterable[File]) -> str:
    """SQL of the rows of some files."""
    paths = ", ".join("'" + str(file.path).replace("'", "''") + "'" for file in files)
    return f"read_parquet([{paths}], hive_partitioning = false)"


def _open(connection: DuckDBPyConnection, shape: Shape, before: Side, after: Side) -> int:
    """Make the views `gone` and `come`, the rows of one side only, and `shared`, those that both have; how many both
    have."""
    ours, theirs = ({file.md5 for file in side.files} for side in (before, after))
    shared = [file for file in before.files if file.md5 in theirs]
    either = before.out | after.out
    views: dict[str, list[tuple[list[File], frozenset[str], frozenset[str] | None]]] = {
        "gone": [
            ([file for file in before.files if file.md5 not in theirs], before.out, None),
            (shared, before.out, after.out),
        ],
        "come": [
            ([file for file in after.files if file.md5 not in ours], after.out, None),
            (shared, after.out, before.out),
        ],
        "shared": [(shared, either, None)],
    }
    for name, parts in views.items():
        # A row of a shared file is on one side only where the other leaves its maker out.
        wanted = [(files, out, only) for files, out, only in parts if files and (only is None or only - out)]
        sql = " UNION ALL ".join(_select(shape, files, out, only) for files, out, only in wanted)
        none = _select(shape, [*before.files, *after.files][:1], frozenset(), frozenset())
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {sql or none}")
    if either:
        return sum(_totals(connection, "shared").values())
    return sum(file.rows for file in shared)


def _select(shape: Shape, files: list[File], out: frozenset[str], only: frozenset[str] | None) -> str:
    """SQL of rows that no model in `out` made, and if `only` is given one of those did."""
    compared = ", ".join(f'"{name}": "{name}"' for name in shape.compared)
    conditions = [f"coalesce({shape.maker}, '') NOT IN ({_texts(out)})"] if out else []
    if only is not None:
        conditions.append(f"{shape.maker} IN ({_texts(only)})" if only else "false")
    return (
        f'SELECT "{shape.key}" AS k, "{shape.identity}" AS l, {shape.generation} AS g, {shape.maker} AS maker, '
        f"{{{compared}}} AS v FROM {read(files)}" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")
    )


def _texts(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(values))


def _totals(connection: DuckDBPyConnection, view: str) -> _Totals:
    """Rows by generation and maker."""
    counted = connection.execute(f"SELECT g, maker, count(*) FROM {view} GROUP BY ALL ORDER BY ALL").fetchall()
    return {(generation, maker): rows for generation, maker, rows in counted}


def _by(side: str, totals: _Totals, groups: list[_Group]) -> list[dict[str, Any]]:
    """A line for each generation and maker of one side's own rows."""
    place, names = (1, _CLASSES[1:]) if side == "from" else (3, (_CLASSES[0], *_CLASSES[2:]))
    lines = []
    for (generation, maker), rows in totals.items():
        mine = [group for group in groups if group[place : place + 2] == (generation, maker)]
        counts = {name: sum(group[5] for group in mine if group[0] == name) for name in names}
        told = {**counts, "repeated": rows - sum(counts.values())}
        lines.append({"on": side, "generation": generation, "maker": maker, "rows": rows, **told})
    return lines


def _examples(
    connection: DuckDBPyConnection, shape: Shape, before: Side, after: Side, groups: list[_Group], limit: int
) -> dict[str, list[dict[str, Any]]]:
    chosen: dict[str, list[dict[str, Any]]] = {}
    for name in _CLASSES[:3]:
        found = [pair for group in groups if group[0] == name for pair in group[6]]
        chosen[name] = sorted(found, key=lambda pair: (pair["g"] or 0, pair["l"]))[:limit]
    new = _shown(connection, shape, after, [(p["g"], p["l"]) for name in ("added", "changed") for p in chosen[name]])
    lost = [(pair["g"], pair["l"]) for pair in chosen["removed"]]
    old = _shown(connection, shape, before, lost + [(pair["old_g"], pair["old_l"]) for pair in chosen["changed"]])
    return {
        "added": [new[pair["l"]] for pair in chosen["added"]],
        "removed": [old[pair["l"]] for pair in chosen["removed"]],
        "changed": [{"from": old[pair["old_l"]], "to": new[pair["l"]]} for pair in chosen["changed"]],
    }


def _shown(
    connection: DuckDBPyConnection, shape: Shape, side: Side, wanted: list[tuple[int | None, str]]
) -> dict[str, dict[str, Any]]:
    """Rows, named by generation and identity, as examples show them; only their generations' files are read."""
    if not wanted:
        return {}
    numbers = {generation for generation, _ in wanted}
    files = [file for file in side.files if None in numbers or file.generation in numbers]
    columns = ", ".join(f'"{name}"' for name in shape.shown)
    sql = f'SELECT {columns} FROM {read(files)} WHERE "{shape.identity}" IN (SELECT unnest($names))'
    found = connection.execute(sql, {"names": [name for _, name in wanted]}).fetchall()
    rows = [dict(zip(shape.shown, row, strict=True)) for row in found]
    return {row[shape.identity]: row for row in rows}
