"""A generation's tables against each other, against lineage, and against the labels of older generations.

Of each generation the views that `storage.verification.tables` made are read; what they must keep to is in `rules` and
`learned`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from storage.verification import learned, rules, tables
from storage.verification.generations import Generation
from storage.verification.objects import Objects
from storage.verification.rules import Rule

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_FIX = "the rows are not what the stages wrote; go back before them with `flywheel rollback`, or exclude their model"
_EXCHANGED = str.maketrans("XO", "OX")


def check(
    opened: DuckDBPyConnection, objects: Objects, generation: Generation, known: dict[int, Generation], there: set[str]
) -> None:
    """Every rule of which all tables are `there`, as views. `known`: all generations by number."""
    import duckdb

    for rule in rules.rules(generation, known):
        _apply(opened, objects, generation, rule, there)
    try:
        if "snapshots" in there:
            _check_snapshots(opened, objects, generation)
        if "trained_on" in there:
            for rule in learned.rules(opened, objects, generation, known):
                _apply(opened, objects, generation, rule, there)
        if {"targets", "problems"} <= there:
            _check_held_out(opened, objects, generation, there)
    except duckdb.Error as error:
        objects.findings.fail("table", generation.name, f"its tables cannot be read: {error}"[:300], _FIX)


def _apply(opened: DuckDBPyConnection, objects: Objects, generation: Generation, rule: Rule, there: set[str]) -> None:
    import duckdb

    if not there.issuperset((rule.table, *rule.needs)):
        return
    where = f"{generation.name}/{rule.table}"
    try:
        count, example = tables.one(opened, f"SELECT count(*), min(bad) FROM ({rule.broken})")
    except duckdb.Error as error:
        objects.findings.fail("table", where, f"it cannot be read: {error}"[:300], _FIX)
        return
    if count:
        objects.findings.fail("table", where, f"{count} rows, {example} for one: {rule.why}", _FIX)


def _check_snapshots(opened: DuckDBPyConnection, objects: Objects, generation: Generation) -> None:
    """The rows about the models are what lineage says of them."""
    cursor = opened.execute("SELECT * FROM snapshots ORDER BY role")
    names = [str(column[0]) for column in cursor.description or []]
    held = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    made = [("policy", "student"), *([("reward", "reward_model")] if generation.is_supervised else [])]
    facts = ("snapshot", "initialised_from", "parameters", "training_flops")
    wanted: list[dict[str, Any]] = [
        {
            "role": role,
            "generation": generation.number,
            "params_digest": generation.lineage["params_digest"],
            "verified": True,
            **{fact: generation.lineage[part][fact] for fact in facts},
        }
        for role, part in made
    ]
    if held != [{name: row[name] for name in names} for row in wanted]:
        why = f"got {held}, lineage says {wanted}"
        objects.findings.fail("table", f"{generation.name}/snapshots", why[:600], _FIX)


def _check_held_out(opened: DuckDBPyConnection, objects: Objects, generation: Generation, there: set[str]) -> None:
    """No label of a board game is a valid or test position, nor one that a network sees as the same."""
    groups = opened.execute("SELECT \"group\" FROM problems WHERE split IN ('valid', 'test')").fetchall()
    opened.execute("CREATE OR REPLACE TEMP TABLE held_out (board VARCHAR, mover BIGINT)")
    same = {position for (form,) in groups for position in _seen_as(form)}
    if not same:
        return
    opened.execute(
        "INSERT INTO held_out SELECT unnest($boards), unnest($movers)",
        {"boards": [board for board, _ in same], "movers": [mover for _, mover in same]},
    )
    broken = "SELECT label_id AS bad FROM targets SEMI JOIN held_out USING (board, mover)"
    _apply(opened, objects, generation, Rule("targets", "a position of valid or test", broken), there)


def _seen_as(form: str) -> Iterator[tuple[str, int]]:
    """(board, mover) of all positions with this canonical form: half a turn apart, or with colours and axes exchanged
    and the other player to move."""
    for text in (form, form[::-1]):
        yield text, 0
        yield "/".join("".join(column) for column in zip(*text.split("/"), strict=True)).translate(_EXCHANGED), 1
