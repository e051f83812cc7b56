"""The rules of `verify` for rows: a few sound rows of every table break none, and each defect breaks just its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from storage.schemas import BOARDS, SUPERVISION, TABLES
from storage.verification import rows, rules
from storage.verification.findings import Findings
from storage.verification.generations import Generation
from storage.verification.objects import Objects
from storage.verification.tags import Tag

SCHEMAS = {**TABLES, **SUPERVISION, **BOARDS}
NUMBER, STUDENT, TEACHER, SOLVER = 3, "student", "teacher", "solver"
POSITION = ".X./.../..."


def _problems() -> list[dict[str, Any]]:
    splits = {"p": "train", "q": "train", "v": "valid", "t": "test"}
    groups = {"p": "p", "q": "q", "v": POSITION, "t": "t"}
    return [{"problem_id": name, "split": split, "group": groups[name]} for name, split in splits.items()]


def _of(kind: str) -> dict[str, list[dict[str, Any]]]:
    """Attempts a, b, c: a became label x, b (which voted for it) and c were rejected. Of games: plies of a."""
    made = {"generation": NUMBER, "teacher": TEACHER}
    attempts = [{"attempt_id": name, "problem_id": "q" if name == "c" else "p", "seed": 0, **made} for name in "abc"]
    labels = [{"label_id": "x", "problem_id": "p", "prompt": "...", **made}]
    parents = [{"label_id": "x", "parent_id": "a", "role": "attempt"}]
    parents += [{"label_id": "x", "parent_id": "b", "role": "vote"}, {"label_id": "x", "parent_id": SOLVER}]
    parents[2]["role"] = "solver"
    by_student = {"generation": NUMBER, "snapshot": STUDENT}
    tables = {
        "problems": _problems(),
        "attempts": attempts,
        "labels": labels,
        "label_parents": parents,
        "rejected": [{"attempt_id": name, "reason": "below threshold"} for name in "bc"],
        "evaluations": [{**by_student, "split": "valid", "metric": "greedy"}],
        "outcomes": [
            {**by_student, "problem_id": name, "split": split} for name, split in (("v", "valid"), ("t", "test"))
        ],
    }
    if kind == "boards":
        plies = ((2, True), (3, False), (4, True))
        tables["searched"] = [{"attempt_id": "a", "ply": ply, "full": full} for ply, full in plies]
        tables["targets"] = [{"label_id": "x", "ply": 2, "board": "...", "mover": 0}]
        tables["rejected"] = [{"attempt_id": "a", "reason": "ply 4: a valid or test position"}]
        tables["matches"] = [{"match_id": "m", "generation": NUMBER}]
        tables["analyses"] = [{**by_student, "problem_id": "t"}]
    if kind == "steps":
        by_policy = {"generation": NUMBER, "policy": STUDENT, "problem_id": "p"}
        tables["rollouts"] = [
            {**by_policy, "rollout_id": "r0", "step": 0, "parent_id": None},
            {**by_policy, "rollout_id": "r1", "step": 1, "parent_id": "r0"},
        ]
        tables["step_labels"] = [{**by_policy, "step_label_id": "s"}]
        tables["step_label_parents"] = [
            {"step_label_id": "s", "parent_id": "r0", "role": "attempt"},
            {"step_label_id": "s", "parent_id": "r1", "role": "rollout"},
        ]
    return tables


def _generation(kind: str) -> Generation:
    lineage: dict[str, Any] = {
        "parent": 2,
        "teacher": {"kind": "champion", "snapshot": TEACHER},
        "student": {"snapshot": STUDENT},
        **({"reward_model": {"snapshot": "judge"}} if kind == "steps" else {}),
    }
    params = {"seed": 0, "problems": {"domain": "hex" if kind == "boards" else "countdown"}}
    output: Any = None
    return Generation(Tag(NUMBER, "", ""), lineage, params, {}, output, None, {}, [], "")


def _first() -> Generation:
    lineage = {"parent": None, "teacher": {"kind": "solver", "snapshot": SOLVER}, "student": {"snapshot": "first"}}
    output: Any = None
    return Generation(Tag(0, "", ""), lineage, {"problems": {"domain": ""}}, {}, output, None, {}, [], "")


@pytest.fixture
def opened() -> Iterator[Any]:
    with duckdb.connect(":memory:") as connection:
        yield connection


def broken(opened: Any, kind: str, change: str) -> set[tuple[str, str]]:
    """(table, why) of the rules that break after `change`, an SQL statement."""
    for name, values in _of(kind).items():
        schema = SCHEMAS[name]
        empty = {field.name: "" if field.type == pa.string() else None for field in schema}
        types = pa.schema([pa.field(field.name, field.type) for field in schema])
        given = pa.Table.from_pylist([{**empty, **row} for row in values], schema=types)
        opened.register("given", given)
        opened.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM given")
        opened.unregister("given")
    if change:
        opened.execute(change)
    generation = _generation(kind)
    found = set()
    for rule in rules.rules(generation, {0: _first(), NUMBER: generation}):
        if opened.execute(f"SELECT count(*) FROM ({rule.broken})").fetchall() != [(0,)]:
            found.add((rule.table, rule.why))
    if kind == "boards":
        registry: Any = None
        objects = Objects(registry, Findings())
        rows._check_held_out(opened, objects, generation, set(_of(kind)))
        found |= {("targets", failure.why.partition("for one: ")[2]) for failure in objects.findings.failures}
    return found


NO_TRAINING = "at a problem that is none of the training problems"
NEITHER = "it is neither a label nor rejected"
TWICE = "it is a label and rejected, or two labels"
NOT_ONE = "without the one attempt that it came from"
NO_PARENT = "its parent is no attempt at the label's problem"
OTHER_ROLE = "its parent is neither an attempt, a vote nor the solver"
OPEN = "a position searched in full that is neither a label nor rejected"
NOT_FULL = "a position that is a label or rejected and was not searched in full, or is both"
NO_STEP = "of a step label or a rollout that there is not, or of different problems"
GOES_ON = "it goes on from no attempt at its problem"
DEFECTS: list[tuple[str, str, set[tuple[str, str]]]] = [
    ("text", "UPDATE attempts SET problem_id = 'v' WHERE attempt_id = 'c'", {("attempts", NO_TRAINING)}),
    ("text", "UPDATE attempts SET problem_id = 'nowhere' WHERE attempt_id = 'c'", {("attempts", NO_TRAINING)}),
    (
        "text",
        "UPDATE attempts SET seed = 1 WHERE attempt_id = 'c'",
        {("attempts", "of another generation, teacher or seed than lineage and params say")},
    ),
    (
        "text",
        "UPDATE labels SET problem_id = 't'",
        {("labels", "of a problem that is none of the training problems"), ("label_parents", NO_PARENT)},
    ),
    (
        "text",
        f"UPDATE labels SET teacher = '{STUDENT}'",
        {("labels", "of another generation or teacher than lineage says")},
    ),
    ("text", "DELETE FROM label_parents WHERE role = 'attempt'", {("labels", NOT_ONE), ("attempts", NEITHER)}),
    ("text", "UPDATE label_parents SET parent_id = 'c' WHERE role = 'vote'", {("label_parents", NO_PARENT)}),
    ("text", "UPDATE label_parents SET parent_id = 'z' WHERE role = 'vote'", {("label_parents", NO_PARENT)}),
    ("text", "UPDATE label_parents SET parent_id = 'z' WHERE role = 'solver'", {("label_parents", OTHER_ROLE)}),
    ("text", "UPDATE label_parents SET role = 'friend' WHERE role = 'vote'", {("label_parents", OTHER_ROLE)}),
    (
        "text",
        "INSERT INTO label_parents VALUES ('y', 'b', 'vote')",
        {("label_parents", "of a label that there is not")},
    ),
    (
        "text",
        "INSERT INTO label_parents VALUES ('x', 'b', 'attempt')",
        {("labels", NOT_ONE), ("attempts", TWICE)},
    ),
    ("text", "DELETE FROM rejected WHERE attempt_id = 'c'", {("attempts", NEITHER)}),
    ("text", "INSERT INTO rejected VALUES ('a', 'late')", {("attempts", TWICE)}),
    ("text", "INSERT INTO rejected VALUES ('z', 'late')", {("rejected", "of an attempt that there is not")}),
    (
        "text",
        "UPDATE evaluations SET split = 'train'",
        {("evaluations", "of another generation or model, or not on valid or test")},
    ),
    (
        "text",
        "UPDATE outcomes SET split = 'test'",
        {("outcomes", "of another generation or model, or of no valid or test problem")},
    ),
    (
        "text",
        f"UPDATE outcomes SET snapshot = '{TEACHER}' WHERE split = 'test'",
        {("outcomes", "of another generation or model, or of no valid or test problem")},
    ),
    ("boards", "DELETE FROM rejected", {("searched", OPEN)}),
    ("boards", "UPDATE rejected SET reason = 'ply 3: no'", {("searched", OPEN), ("searched", NOT_FULL)}),
    ("boards", "INSERT INTO rejected VALUES ('a', 'ply 2: no')", {("searched", NOT_FULL)}),
    (
        "boards",
        "INSERT INTO searched SELECT * REPLACE ('z' AS attempt_id, false AS \"full\") FROM searched LIMIT 1",
        {("searched", "of a game that there is not")},
    ),
    (
        "boards",
        "UPDATE targets SET board = '..X'",
        {("targets", "of a label that there is not, or of another position than its label")},
    ),
    (
        "boards",
        "DELETE FROM targets",
        {("labels", "that teaches nothing: it has no row in targets"), ("searched", OPEN)},
    ),
    ("boards", "UPDATE matches SET generation = 2", {("matches", "of another generation")}),
    (
        "boards",
        "UPDATE analyses SET problem_id = 'v'",
        {("analyses", "of another generation or model, or of no test position")},
    ),
    ("steps", "UPDATE rollouts SET parent_id = NULL", {("rollouts", GOES_ON)}),
    ("steps", "UPDATE rollouts SET parent_id = 'r1' WHERE step = 1", {("rollouts", GOES_ON)}),
    (
        "steps",
        "UPDATE rollouts SET problem_id = 'q' WHERE step = 1",
        {("rollouts", GOES_ON), ("step_label_parents", NO_STEP)},
    ),
    (
        "steps",
        "UPDATE step_labels SET problem_id = 'v'",
        {("step_labels", NO_TRAINING), ("step_label_parents", NO_STEP)},
    ),
    (
        "steps",
        f"UPDATE step_labels SET policy = '{TEACHER}'",
        {("step_labels", "of another generation or model than lineage says")},
    ),
    (
        "steps",
        "UPDATE step_label_parents SET role = 'rollout'",
        {("step_label_parents", NO_STEP), ("step_labels", "without the one attempt whose steps it labels")},
    ),
    (
        "steps",
        "UPDATE step_label_parents SET step_label_id = 'z' WHERE role = 'rollout'",
        {("step_label_parents", NO_STEP)},
    ),
]


@pytest.mark.parametrize("kind", ["text", "boards", "steps"])
def test_sound_rows_break_no_rule(opened: Any, kind: str) -> None:
    assert broken(opened, kind, "") == set()


@pytest.mark.parametrize(("kind", "change", "expected"), DEFECTS, ids=[defect[1] for defect in DEFECTS])
def test_a_defect_breaks_its_rules(opened: Any, kind: str, change: str, expected: set[tuple[str, str]]) -> None:
    assert broken(opened, kind, change) == expected


@pytest.mark.parametrize(
    ("board", "mover"),
    # As it is, half a turn on, and with colours and axes exchanged and the other to move.
    [(POSITION, 0), (POSITION[::-1], 0), (".../O../...", 1), (".../..O/...", 1)],
)
def test_positions_seen_as_held_out_ones_are_no_labels(opened: Any, board: str, mover: int) -> None:
    from flywheel.problems.hex_positions import canonical

    assert canonical(board, mover) == min(POSITION, POSITION[::-1])
    change = f"UPDATE targets SET board = '{board}', mover = {mover}"
    assert ("targets", "a position of valid or test") in broken(opened, "boards", change)
    other = f"UPDATE targets SET board = '{board}', mover = {1 - mover}"
    assert ("targets", "a position of valid or test") not in broken(opened, "boards", other)
