"""What each model learned from: every row of `trained_on` is of a label that its window let it learn.

    window.json of gen/4 ── labels of gen/0..3, and its own ──> trained_on (student)      none by an excluded model
    step_labels of gen/4 ─────────────────────────────────────> trained_on (reward model)

Files of schema version 1 do not say of which generation a label is; there it is looked for in the whole window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from storage import exclusions
from storage.verification import tables
from storage.verification.generations import Generation
from storage.verification.objects import Objects
from storage.verification.rules import Rule

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def rules(
    opened: DuckDBPyConnection, objects: Objects, generation: Generation, known: dict[int, Generation]
) -> Iterator[Rule]:
    """The rules for a generation whose `trained_on` has a view. `known`: all generations by number."""
    student, own = tables.quoted(generation.lineage["student"]["snapshot"]), generation.number
    is_told = "generation" in [row[0] for row in opened.execute("DESCRIBE trained_on").fetchall()]
    yield from _of_reward_model(generation, is_told)
    window = [row["generation"] for row in generation.documents["window"]["generations"]]
    allowed = [number for number in (*window, own) if number in known]
    there = [number for number in allowed if tables.files(objects, known[number], "labels") is not None]
    if not there:
        return
    sources = ", ".join(path for number in there for path in tables.files(objects, known[number], "labels") or [])
    labels = f"read_parquet([{sources}], hive_partitioning = false)"
    learned = f"FROM trained_on WHERE snapshot = {student}"
    if is_told:
        numbers = ", ".join(map(str, there))
        yield Rule(
            "trained_on",
            "of a generation that was not in the window",
            f"SELECT label_id AS bad {learned} AND generation NOT IN ({', '.join(map(str, allowed))})",
        )
        yield Rule(
            "trained_on",
            "of a label that its generation does not have",
            f"SELECT label_id AS bad FROM (SELECT label_id, generation {learned} AND generation IN ({numbers})) "
            f"ANTI JOIN (SELECT label_id, generation FROM {labels}) USING (label_id, generation)",
        )
    elif there == allowed:
        yield Rule(
            "trained_on",
            "of no label in the window",
            f"SELECT label_id AS bad FROM (SELECT label_id {learned}) "
            f"ANTI JOIN (SELECT label_id FROM {labels}) USING (label_id)",
        )
    if out := sorted(exclusions.models(generation.exclusions)):
        yield Rule(
            "trained_on",
            "of a label that an excluded model made",
            f"SELECT label_id AS bad FROM (SELECT label_id {learned}) SEMI JOIN (SELECT label_id FROM {labels} "
            f"WHERE teacher IN ({', '.join(map(tables.quoted, out))})) USING (label_id)",
        )


def _of_reward_model(generation: Generation, is_told: bool) -> Iterator[Rule]:
    lineage = generation.lineage
    made = [lineage[part]["snapshot"] for part in ("student", "reward_model") if part in lineage]
    yield Rule(
        "trained_on",
        "of a model that this generation did not make",
        f"SELECT label_id AS bad FROM trained_on WHERE snapshot NOT IN ({', '.join(map(tables.quoted, made))})",
    )
    if generation.is_supervised:
        trained = tables.quoted(lineage["reward_model"]["snapshot"])
        other = f" OR generation <> {generation.number}" if is_told else ""
        yield Rule(
            "trained_on",
            "the reward model learned from no step label of this generation",
            f"SELECT label_id AS bad FROM (SELECT * FROM trained_on WHERE snapshot = {trained}) "
            "LEFT JOIN (SELECT step_label_id FROM step_labels) ON step_label_id = label_id "
            f"WHERE step_label_id IS NULL{other}",
            ("step_labels",),
        )
