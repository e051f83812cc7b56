"""The one question that row lineage asks of the Parquet files in DVC's cache, where they lie.

A recursive query walks rows and models. Its edges are what the files say: who made a set of labels is read from the
rows' `teacher`, what a model learned from `trained_on`, counted by the label's generation (a column of few values, so
that no label is joined); what git alone knows (which weights a model began from, whose reward model judged, what was
evaluated) goes in as a relation. A single row is looked for in the files of its own generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.records import canonical_json
from storage.cache import cache_path

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from storage.lineage import Direction, Recorded
    from storage.registry import Registry

FOLDERS = {"student": "training/", "reward_model": "supervision/"}
"""Whose rows of `trained_on` lie where."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Where each generation's tables lie in the cache."""

    registry: Registry
    published: dict[int, dict[str, Any]]

    def files(self, generation: int, table: str, folder: str = "") -> list[dict[str, Any]]:
        """A table's files as lineage/NNNN.json lists them, those below `folder` only."""
        files = self.published[generation]["tables"].get(table, {"files": []})["files"]
        return [file for file in files if file["path"].startswith(folder)]

    def paths(self, generation: int, table: str, folder: str = "") -> list[Path] | None:
        """Their paths; [] where the generation has none, None where an object is not in the cache."""
        paths = [cache_path(self.registry, file["md5"]) for file in self.files(generation, table, folder)]
        return paths if all(path.is_file() for path in paths) else None

    def old(self, generation: int) -> bool:
        """Whether its `trained_on` does not say of which generation a label is."""
        return int(self.published[generation]["version"]) < 2


@dataclass(frozen=True, slots=True)
class Set:
    """A generation's labels by one teacher. `maker`: its address; `here`: whether the rows were read, or git had to be
    believed."""

    address: str
    generation: int
    teacher: str
    maker: str
    rows: int
    here: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """One label, the node that it is, and its teacher."""

    address: str
    generation: int
    label_id: str
    teacher: str


@dataclass(frozen=True, slots=True)
class Walked:
    """What the walk reached: nodes; edges (cause, effect, role, rows or None); how many rows each model learned from
    in all; and the models whose rows of `trained_on` are not in the cache."""

    nodes: set[str]
    edges: list[tuple[str, str, str, int | None]]
    learned: dict[str, int]
    elsewhere: set[str]


def label_sets(connection: DuckDBPyConnection, known: Recorded, tables: Tables) -> list[Set]:
    """Every generation's labels by teacher, counted; oldest generation first."""
    parts: list[str] = []
    told: dict[int, tuple[str, int]] = {}
    for generation, facts in tables.published.items():
        paths = tables.paths(generation, "labels")
        if paths is None:
            told[generation] = (facts["teacher"]["snapshot"], facts["labels"]["kept"])
        else:
            parts.append(f"SELECT {generation}, teacher, count(*) FROM {read(paths)} GROUP BY teacher")
    rows = connection.execute(" UNION ALL ".join(parts)).fetchall() if parts else []
    rows += [(generation, *fact) for generation, fact in told.items()]
    numbers = [row[0] for row in rows]
    return [
        Set(
            f"gen/{generation}/labels" + (f"@{teacher}" if numbers.count(generation) > 1 else ""),
            generation,
            teacher,
            known.teacher(teacher, generation),
            count,
            generation not in told,
        )
        for generation, teacher, count in sorted(rows)
    ]


def walk(
    connection: DuckDBPyConnection,
    known: Recorded,
    tables: Tables,
    sets: list[Set],
    roots: list[str],
    direction: Direction,
    asked: Asked | None = None,
) -> Walked:
    """All that `roots` came from (up), went into (down), or both, by one recursive query."""
    learned, believed, elsewhere = _learned(known, tables, sets)
    sources: list[tuple[Any, ...]] = [("student", one.generation, one.teacher, one.address) for one in sets]
    sources += [("reward_model", number, None, f"gen/{number}/step_labels") for number in tables.published]
    bound: dict[str, Any] = {
        "fixed": _json(_FIXED, [*_fixed(known, sets), *believed]),
        "sources": _json(_SOURCES, sources),
        "sets": _json(_SETS, [(one.address, one.maker, one.rows) for one in sets]),
        "roots": roots,
    }
    if asked is not None:
        models = {facts["teacher"]["snapshot"] for facts in tables.published.values()} | set(known.makers)
        named = [(snapshot, known.teacher(snapshot, asked.generation)) for snapshot in sorted(models)]
        bound |= {"models": _json(_MODELS, named), "label": asked.label_id, "node": asked.address}
        bound |= {"teacher": asked.teacher, "judge": known.judge(asked.generation), "place": f"gen/{asked.generation}"}
        # Parents that are no attempts are something else, unless the attempts could not be looked at.
        bound["other"] = "attempts" if tables.paths(asked.generation, "attempts") is None else "parents"
    sql = _WALK.format(
        fixed=_relation("fixed", _FIXED),
        sources=_relation("sources", _SOURCES),
        sets=_relation("sets", _SETS),
        learned=" UNION ALL ".join(learned) or _NONE,
        rows=_row_relations(known, tables, asked, direction) if asked else "",
        row_edges="UNION ALL SELECT cause, effect, role, NULL FROM row_edges" if asked else "",
        up=direction in {"up", "both"},
        down=direction in {"down", "both"},
    )
    found = connection.execute(sql, bound).fetchall()
    return Walked(
        {cause for what, cause, *_ in found if what == "node"},
        [(cause, effect, role, count) for what, cause, effect, role, count in found if what == "edge"],
        {cause: int(count) for what, cause, *_, count in found if what == "learned"},
        elsewhere,
    )


_FIXED = {"cause": "VARCHAR", "effect": "VARCHAR", "role": "VARCHAR"}
_SOURCES = {"part": "VARCHAR", "generation": "BIGINT", "teacher": "VARCHAR", "address": "VARCHAR"}
_SETS = {"address": "VARCHAR", "maker": "VARCHAR", "rows": "BIGINT"}
_MODELS = {"snapshot": "VARCHAR", "address": "VARCHAR"}
_NONE = "SELECT NULL::VARCHAR, NULL::VARCHAR, NULL::BIGINT, NULL::VARCHAR, NULL::BIGINT WHERE false"
_WALK = """
WITH RECURSIVE
    fixed AS ({fixed}), sources AS ({sources}), sets AS ({sets}),
    learned(learner, part, generation, teacher, rows) AS MATERIALIZED ({learned}),
    {rows}
    edges(cause, effect, role, rows) AS MATERIALIZED (
        SELECT cause, effect, role, NULL::BIGINT FROM fixed
        UNION ALL
        SELECT maker, address, 'made', rows FROM sets
        UNION ALL
        SELECT s.address, l.learner, 'learned', l.rows FROM learned l JOIN sources s
            ON s.part = l.part AND s.generation = l.generation AND (l.teacher IS NULL OR l.teacher = s.teacher)
        {row_edges}
    ),
    up(node) AS (
        SELECT unnest($roots) UNION SELECT e.cause FROM up JOIN edges e ON e.effect = up.node WHERE {up}
    ),
    down(node) AS (
        SELECT unnest($roots) UNION SELECT e.effect FROM down JOIN edges e ON e.cause = down.node WHERE {down}
    ),
    kept AS MATERIALIZED (SELECT node FROM up UNION SELECT node FROM down)
SELECT 'node' AS what, node AS cause, NULL AS effect, NULL AS role, NULL AS rows FROM kept
UNION ALL
SELECT 'edge', cause, effect, role, rows FROM edges
    SEMI JOIN kept k ON cause = k.node SEMI JOIN kept l ON effect = l.node
UNION ALL
SELECT 'learned', learner, NULL, NULL, sum(rows)::BIGINT FROM learned GROUP BY learner
"""
_ROWS = """
    models AS ({models}),
    parents AS MATERIALIZED (SELECT DISTINCT parent_id, role FROM {parents} WHERE label_id = $label),
    tried AS MATERIALIZED (
        SELECT attempt_id, problem_id, coalesce(m.address, 'model/' || teacher) AS maker
        FROM {attempts} SEMI JOIN parents ON attempt_id = parent_id LEFT JOIN models m ON m.snapshot = teacher
    ),
    row_edges(cause, effect, role) AS (
        SELECT $place || '/attempts#' || attempt_id, $node, 'parent' FROM tried
        UNION ALL
        SELECT maker, $place || '/attempts#' || attempt_id, 'made' FROM tried
        UNION ALL
        SELECT $place || '/problems#' || problem_id, $place || '/attempts#' || attempt_id, 'posed' FROM tried
        UNION ALL
        SELECT judge, $place || '/attempts#' || attempt_id, 'judged'
            FROM tried, (SELECT $judge::VARCHAR AS judge) WHERE judge IS NOT NULL
        UNION ALL
        SELECT DISTINCT coalesce(m.address, $place || '/' || $other || '#' || parent_id), $node, 'parent'
            FROM parents ANTI JOIN tried ON attempt_id = parent_id LEFT JOIN models m ON m.snapshot = parent_id
        UNION ALL
        SELECT coalesce((SELECT address FROM models WHERE snapshot = $teacher), 'model/' || $teacher), $node, 'made'
            WHERE NOT EXISTS (FROM tried)
        UNION ALL
        SELECT DISTINCT $node, learner, 'learned' FROM ({taught})
    ),
"""


def _row_relations(known: Recorded, tables: Tables, asked: Asked, direction: Direction) -> str:
    """What leads to the label and, unless only causes are asked for, the students that learned from it."""
    taught = []
    for number, window in known.windows.items():
        paths = tables.paths(number, "trained_on", FOLDERS["student"])
        if direction != "up" and asked.generation in window and paths:
            own = "" if tables.old(number) else f" AND generation = {asked.generation}"
            taught.append(f"SELECT 'gen/{number}/student' AS learner FROM {read(paths)} WHERE label_id = $label{own}")
    return _ROWS.format(
        models=_relation("models", _MODELS),
        parents=_rows_or_none(tables.paths(asked.generation, "label_parents"), "label_id", "parent_id", "role"),
        attempts=_rows_or_none(tables.paths(asked.generation, "attempts"), "attempt_id", "problem_id", "teacher"),
        taught=" UNION ALL ".join(taught) or "SELECT NULL AS learner WHERE false",
    )


def _fixed(known: Recorded, sets: list[Set]) -> list[tuple[str, str, str]]:
    """Edges that git alone knows of."""
    edges: list[tuple[str, str, str]] = [
        (cause, effect, role)
        for (cause, effect), role in known.edges.items()
        if role != "learned" and known.nodes[effect]["kind"] != "labels"
    ]
    judges = {one.address: known.judge(one.generation) for one in sets}
    return edges + [(judge, address, "judged") for address, judge in judges.items() if judge is not None]


def _learned(
    known: Recorded, tables: Tables, sets: list[Set]
) -> tuple[list[str], list[tuple[str, str, str]], set[str]]:
    """How many labels of each generation every model learned from: a query for each model; the edges that git's windows
    allow where the rows are not in the cache; and the models of which that is so."""
    queries: list[str] = []
    believed: list[tuple[str, str, str]] = []
    elsewhere: set[str] = set()
    teachers: dict[int, int] = {}
    for one in sets:
        teachers[one.generation] = teachers.get(one.generation, 0) + 1
    mixed = [number for number, count in teachers.items() if count > 1]
    for number in tables.published:
        for part, folder in FOLDERS.items():
            paths = tables.paths(number, "trained_on", folder)
            window = known.windows[number] if part == "student" else [number]
            asking = _counts(tables, number, part, paths, window, mixed) if paths else None
            if asking is not None:
                queries += asking
            elif paths != []:
                learner = f"gen/{number}/{part}"
                elsewhere.add(learner)
                labels = [one.address for one in sets if one.generation in window]
                causes = labels if part == "student" else [f"gen/{number}/step_labels"]
                believed += [(cause, learner, "learned") for cause in causes]
    return queries, believed, elsewhere


def _counts(
    tables: Tables, number: int, part: str, paths: list[Path], window: list[int], mixed: list[int]
) -> list[str] | None:
    """Queries for how many labels of each generation (and teacher, where it has several) a model learned from. None
    where that takes labels which are not in the cache."""
    head = f"SELECT 'gen/{number}/{part}', '{part}'"
    if part == "reward_model" and tables.old(number):  # learned the step labels of its own generation
        return [f"{head}, {number}, NULL::VARCHAR, count(*) FROM {read(paths)} HAVING count(*) > 0"]
    if part == "reward_model":
        return [f"{head}, generation, NULL::VARCHAR, count(*) FROM {read(paths)} GROUP BY generation"]
    queries: list[str] = []
    joined = window if tables.old(number) else [other for other in window if other in mixed]
    listed = ", ".join(map(str, joined))
    if not tables.old(number):
        others = f" WHERE generation NOT IN ({listed})" if joined else ""
        queries.append(f"{head}, generation, NULL::VARCHAR, count(*) FROM {read(paths)}{others} GROUP BY generation")
    labels = [tables.paths(other, "labels") for other in joined]
    if None in labels:
        return None
    if held := [path for one in labels for path in one or []]:
        own = "" if tables.old(number) else f" WHERE t.generation IN ({listed})"
        queries.append(
            f"{head}, l.generation, l.teacher, count(*) FROM {read(paths)} t JOIN {read(held)} l USING (label_id){own} "
            "GROUP BY l.generation, l.teacher"
        )
    return queries


def read(paths: Sequence[Path]) -> str:
    """The relation of some Parquet files."""
    return f"read_parquet([{', '.join(quoted(str(path)) for path in paths)}], hive_partitioning = false)"


def quoted(text: str) -> str:
    """Text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _rows_or_none(paths: list[Path] | None, *columns: str) -> str:
    nothing = ", ".join(f"NULL::VARCHAR AS {column}" for column in columns)
    return read(paths) if paths else f"(SELECT {nothing} WHERE false)"


def _relation(name: str, kinds: dict[str, str]) -> str:
    """The relation that is bound as `name`, by way of JSON: pyarrow would import pandas to make one."""
    columns = ", ".join(f'row."{column}"' for column in kinds)
    return f"SELECT {columns} FROM (SELECT unnest(from_json_strict(${name}, '{canonical_json([kinds])}')) AS row)"


def _json(kinds: dict[str, str], rows: Sequence[tuple[Any, ...]]) -> str:
    return canonical_json([dict(zip(kinds, row, strict=True)) for row in rows])
