"""What single rows say: the label that was asked for with its attempts and problem, and a few rows of each set.

Wide columns are read of these rows only. Token ids are left out: the texts say what they are.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from storage.lineage_query import FOLDERS, Set, Tables, quoted, read

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Row = dict[str, Any]
_HEAD = 64
"""Rows at the head of a set among which its examples are looked for: labels and what a student learned stand in one
order."""
_LABEL = (
    "label_id", "content_id", "kind", "problem_id", "teacher", "searcher", "reward", "reward_source", "weight",
    "prompt", "completion",
)  # fmt: skip
_EXAMPLE = ("label_id", "problem_id", "prompt", "completion", "reward", "reward_source", "searcher")
_ATTEMPT = (
    "problem_id", "teacher", "searcher", "search_params", "seed", "index", "prompt", "output", "steps", "step_rewards",
    "stop_reason", "status", "answer", "reward", "reward_source", "flops_policy", "flops_reward", "tokens",
    "log_probability",
)  # fmt: skip
_PROBLEM = ("domain", "split", "difficulty", "group", "payload", "reference")
_POSITION = ("ply", "board", "mover", "move", "simulations", "full", "value", "surprise", "policy")
_TARGET = ("ply", "board", "mover", "value", "policy")


def rows_of(connection: DuckDBPyConnection, sql: str, bound: Row | None = None) -> list[Row]:
    """The rows of a query."""
    cursor = connection.execute(sql, bound)
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def beginning(connection: DuckDBPyConnection, tables: Tables, generation: int, prefix: str, most: int) -> list[str]:
    """Ids of a generation's labels that begin so, `most` of them at the most, in order."""
    paths = tables.paths(generation, "labels")
    if not paths:
        return []
    begun = f"FROM {read(paths)} WHERE starts_with(label_id, $prefix)"
    rows = rows_of(connection, f"SELECT DISTINCT label_id {begun} ORDER BY 1 LIMIT {most}", {"prefix": prefix})
    return [str(row["label_id"]) for row in rows]


def label_facts(connection: DuckDBPyConnection, tables: Tables, generation: int, label_id: str) -> Row:
    """A label's row, on a board with what it teaches, and its parents with their roles."""
    label = _found(connection, tables, generation, "labels", "label_id", [label_id], _LABEL)[label_id]
    del label["label_id"]
    label["label_kind"] = label.pop("kind")
    paths = tables.paths(generation, "label_parents")
    sql = f"SELECT parent_id, role FROM {read(paths or [])} WHERE label_id = $label ORDER BY role, parent_id"
    label["parents"] = (
        [{"id": row["parent_id"], "role": row["role"]} for row in rows_of(connection, sql, {"label": label_id})]
        if paths
        else []
    )
    target = _found(connection, tables, generation, "targets", "label_id", [label_id], _TARGET)
    return label | ({"target": target[label_id]} if target else {})


def attempt_facts(
    connection: DuckDBPyConnection, tables: Tables, generation: int, names: list[str], ply: int | None
) -> dict[str, Row]:
    """Attempt id -> how it was searched; of a game also what was searched in it, and the position at `ply`."""
    found = _found(connection, tables, generation, "attempts", "attempt_id", names, _ATTEMPT)
    for row in found.values():
        row["search_params"], row["judged"] = json.loads(row["search_params"]), row.pop("status")
    paths = tables.paths(generation, "searched") if found else None
    if paths:
        sql = (
            'SELECT attempt_id, count(*) AS positions, count(*) FILTER (WHERE "full")::BIGINT AS "full", '
            f"sum(simulations)::BIGINT AS simulations FROM {read(paths)} "
            "WHERE list_contains($names, attempt_id) GROUP BY attempt_id"
        )
        for row in rows_of(connection, sql, {"names": list(found)}):
            found[row.pop("attempt_id")]["searched"] = {**row, "position": None}
        columns = ", ".join(f'"{name}"' for name in _POSITION)
        sql = f"SELECT attempt_id, {columns} FROM {read(paths)} WHERE list_contains($names, attempt_id) AND ply = $ply"
        for row in rows_of(connection, sql, {"names": list(found), "ply": ply}) if ply is not None else []:
            found[row.pop("attempt_id")]["searched"]["position"] = row
    return found


def problem_facts(connection: DuckDBPyConnection, tables: Tables, generation: int, names: list[str]) -> dict[str, Row]:
    """Problem id -> what was asked."""
    found = _found(connection, tables, generation, "problems", "problem_id", names, _PROBLEM)
    for row in found.values():
        row["payload"] = json.loads(row["payload"])
    return found


def examples(
    connection: DuckDBPyConnection, tables: Tables, sets: list[tuple[Set, int | None]], count: int
) -> dict[str, list[Row]]:
    """Address of a set -> `count` of its first rows. With the generation of a student that learned from the set: rows
    that it learned, where there are such among the first; `learned_by` says so."""
    heads, learned = [], []
    for place, (one, student) in enumerate(sets if count > 0 else []):
        if labels := tables.paths(one.generation, "labels"):
            whose = f"WHERE teacher = {quoted(one.teacher)} LIMIT {max(count, _HEAD)}"
            heads.append(f"(SELECT {place} AS place, {', '.join(_EXAMPLE)} FROM {read(labels)} {whose})")
        if student is not None and (paths := tables.paths(student, "trained_on", FOLDERS["student"])):
            whose = "" if tables.old(student) else f"WHERE generation = {one.generation} "
            learned.append(
                f"(SELECT {place} AS place, label_id FROM {read(paths)} {whose}LIMIT {max(count, 4 * _HEAD)})"
            )
    known = {tuple(row.values()) for row in rows_of(connection, " UNION ALL ".join(learned))} if learned else set()
    first: dict[int, list[Row]] = {}
    for row in rows_of(connection, " UNION ALL ".join(heads)) if heads else []:
        first.setdefault(row.pop("place"), []).append(row)
    found = {}
    for place, rows in first.items():
        one, student = sets[place]
        for row in rows:
            row["address"] = f"gen/{one.generation}/labels#{row['label_id']}"
            row["learned_by"] = [f"gen/{student}/student"] if (place, row["label_id"]) in known else []
        found[one.address] = sorted(rows, key=lambda row: not row["learned_by"])[:count]
    return found


def _found(
    connection: DuckDBPyConnection,
    tables: Tables,
    generation: int,
    table: str,
    key: str,
    names: list[str],
    columns: tuple[str, ...],
) -> dict[str, Row]:
    """Key -> its row, of those that there are; none where the files are not in the cache."""
    paths = tables.paths(generation, table)
    if not paths or not names:
        return {}
    listed = ", ".join(f'"{name}"' for name in columns)
    sql = f'SELECT "{key}" AS found, {listed} FROM {read(paths)} WHERE list_contains($names, "{key}")'
    return {row.pop("found"): row for row in rows_of(connection, sql, {"names": names})}
