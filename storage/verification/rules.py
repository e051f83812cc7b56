"""The rules that a generation's tables keep, each a query for the rows that break it.

problems (train) <── attempts <── label_parents ──> labels <── targets (boards)
                         └── rejected: every attempt, or position of a game, is one or the other

rollouts <── step_label_parents ──> step_labels          problems (valid, test) <── outcomes, analyses
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from storage.verification.generations import Generation
from storage.verification.tables import quoted

_TRAIN = "(SELECT problem_id FROM problems WHERE split = 'train')"


@dataclass(frozen=True, slots=True)
class Rule:
    """`broken` selects what names the rows of `table` that break it, as `bad`; `needs` are the tables that it reads."""

    table: str
    why: str
    broken: str
    needs: tuple[str, ...] = ()


def rules(generation: Generation, known: dict[int, Generation]) -> Iterator[Rule]:
    yield from _of_attempts(generation)
    yield from _of_labels(generation, known)
    yield from _of_evaluations(generation)
    if generation.is_board:
        yield from _of_boards(generation)
    else:
        yield from _of_texts()
    if generation.is_supervised:
        yield from _of_steps(generation)


def _of_attempts(generation: Generation) -> Iterator[Rule]:
    teacher, seed = quoted(generation.lineage["teacher"]["snapshot"]), int(generation.params["seed"])
    yield Rule(
        "attempts",
        "at a problem that is none of the training problems",
        f"SELECT attempt_id AS bad FROM attempts ANTI JOIN {_TRAIN} USING (problem_id)",
        ("problems",),
    )
    yield Rule(
        "attempts",
        "of another generation, teacher or seed than lineage and params say",
        "SELECT attempt_id AS bad FROM attempts "
        f"WHERE generation <> {generation.number} OR teacher <> {teacher} OR seed <> {seed}",
    )
    yield Rule(
        "rejected",
        "of an attempt that there is not",
        "SELECT attempt_id AS bad FROM rejected ANTI JOIN attempts USING (attempt_id)",
        ("attempts",),
    )


def _of_labels(generation: Generation, known: dict[int, Generation]) -> Iterator[Rule]:
    teacher = quoted(generation.lineage["teacher"]["snapshot"])
    first = known.get(0, generation).lineage["teacher"]
    solver = quoted(first["snapshot"] if first["kind"] == "solver" else "")
    yield Rule(
        "labels",
        "of a problem that is none of the training problems",
        f"SELECT label_id AS bad FROM labels ANTI JOIN {_TRAIN} USING (problem_id)",
        ("problems",),
    )
    yield Rule(
        "labels",
        "of another generation or teacher than lineage says",
        f"SELECT label_id AS bad FROM labels WHERE generation <> {generation.number} OR teacher <> {teacher}",
    )
    yield Rule(
        "labels",
        "without the one attempt that it came from",
        "SELECT label_id AS bad FROM labels ANTI JOIN (SELECT label_id FROM label_parents WHERE role = 'attempt' "
        "GROUP BY label_id HAVING count(*) = 1) USING (label_id)",
        ("label_parents",),
    )
    yield Rule(
        "label_parents",
        "of a label that there is not",
        "SELECT label_id AS bad FROM label_parents ANTI JOIN labels USING (label_id)",
        ("labels",),
    )
    yield Rule(
        "label_parents",
        "its parent is no attempt at the label's problem",
        "SELECT p.label_id AS bad FROM label_parents p JOIN labels l USING (label_id) "
        "LEFT JOIN attempts a ON a.attempt_id = p.parent_id "
        "WHERE p.role IN ('attempt', 'vote') AND a.problem_id IS DISTINCT FROM l.problem_id",
        ("labels", "attempts"),
    )
    yield Rule(
        "label_parents",
        "its parent is neither an attempt, a vote nor the solver",
        "SELECT label_id AS bad FROM label_parents "
        f"WHERE role NOT IN ('attempt', 'vote') AND NOT (role = 'solver' AND parent_id = {solver})",
    )


def _of_texts() -> Iterator[Rule]:
    settled = (
        "(SELECT attempt_id FROM rejected UNION ALL "
        "SELECT parent_id AS attempt_id FROM label_parents WHERE role = 'attempt')"
    )
    needs = ("attempts", "rejected", "label_parents")
    yield Rule(
        "attempts",
        "it is neither a label nor rejected",
        f"SELECT attempt_id AS bad FROM attempts ANTI JOIN {settled} USING (attempt_id)",
        needs,
    )
    yield Rule(
        "attempts",
        "it is a label and rejected, or two labels",
        f"SELECT attempt_id AS bad FROM {settled} GROUP BY attempt_id HAVING count(*) > 1",
        needs,
    )


def _of_boards(generation: Generation) -> Iterator[Rule]:
    student = quoted(generation.lineage["student"]["snapshot"])
    full = '(SELECT attempt_id, ply FROM searched WHERE "full")'
    settled = (
        "(SELECT parent_id AS attempt_id, ply FROM label_parents JOIN targets USING (label_id) WHERE role = 'attempt' "
        "UNION ALL SELECT attempt_id, regexp_extract(reason, '^ply (\\d+):', 1)::BIGINT AS ply FROM rejected)"
    )
    needs = ("searched", "label_parents", "targets", "rejected")
    yield Rule(
        "searched",
        "of a game that there is not",
        "SELECT attempt_id AS bad FROM searched ANTI JOIN attempts USING (attempt_id)",
        ("attempts",),
    )
    yield Rule(
        "searched",
        "a position searched in full that is neither a label nor rejected",
        f"SELECT attempt_id AS bad FROM {full} ANTI JOIN {settled} USING (attempt_id, ply)",
        needs,
    )
    yield Rule(
        "searched",
        "a position that is a label or rejected and was not searched in full, or is both",
        f"SELECT attempt_id AS bad FROM {settled} ANTI JOIN {full} USING (attempt_id, ply) UNION ALL "
        f"(SELECT attempt_id AS bad FROM {settled} GROUP BY attempt_id, ply HAVING count(*) > 1)",
        needs,
    )
    yield Rule(
        "targets",
        "of a label that there is not, or of another position than its label",
        "SELECT label_id AS bad FROM targets LEFT JOIN labels USING (label_id) WHERE board IS DISTINCT FROM prompt",
        ("labels",),
    )
    yield Rule(
        "labels",
        "that teaches nothing: it has no row in targets",
        "SELECT label_id AS bad FROM labels ANTI JOIN targets USING (label_id)",
        ("targets",),
    )
    yield Rule(
        "analyses",
        "of another generation or model, or of no test position",
        "SELECT problem_id AS bad FROM analyses LEFT JOIN problems USING (problem_id) "
        f"WHERE generation <> {generation.number} OR snapshot <> {student} OR split IS DISTINCT FROM 'test'",
        ("problems",),
    )
    yield Rule(
        "matches",
        "of another generation",
        f"SELECT match_id AS bad FROM matches WHERE generation <> {generation.number}",
    )


def _of_evaluations(generation: Generation) -> Iterator[Rule]:
    student = quoted(generation.lineage["student"]["snapshot"])
    other = f"generation <> {generation.number} OR snapshot <> {student}"
    yield Rule(
        "evaluations",
        "of another generation or model, or not on valid or test",
        f"SELECT metric AS bad FROM evaluations WHERE {other} OR split NOT IN ('valid', 'test')",
    )
    yield Rule(
        "outcomes",
        "of another generation or model, or of no valid or test problem",
        "SELECT problem_id AS bad FROM outcomes o LEFT JOIN problems p USING (problem_id) "
        f"WHERE {other} OR o.split NOT IN ('valid', 'test') OR p.split IS DISTINCT FROM o.split",
        ("problems",),
    )


def _of_steps(generation: Generation) -> Iterator[Rule]:
    student = quoted(generation.lineage["student"]["snapshot"])
    other = f"generation <> {generation.number} OR policy <> {student}"
    for table, name in (("rollouts", "rollout_id"), ("step_labels", "step_label_id")):
        yield Rule(
            table,
            "at a problem that is none of the training problems",
            f"SELECT {name} AS bad FROM {table} ANTI JOIN {_TRAIN} USING (problem_id)",
            ("problems",),
        )
        yield Rule(
            table,
            "of another generation or model than lineage says",
            f"SELECT {name} AS bad FROM {table} WHERE {other}",
        )
    yield Rule(
        "rollouts",
        "it goes on from no attempt at its problem",
        "SELECT r.rollout_id AS bad FROM rollouts r LEFT JOIN rollouts a ON a.rollout_id = r.parent_id AND a.step = 0 "
        "WHERE (r.step = 0) <> (r.parent_id IS NULL) OR (r.step > 0 AND a.problem_id IS DISTINCT FROM r.problem_id)",
    )
    yield Rule(
        "step_label_parents",
        "of a step label or a rollout that there is not, or of different problems",
        "SELECT p.step_label_id AS bad FROM step_label_parents p LEFT JOIN step_labels l USING (step_label_id) "
        "LEFT JOIN rollouts r ON r.rollout_id = p.parent_id WHERE r.problem_id IS NULL "
        "OR r.problem_id IS DISTINCT FROM l.problem_id OR p.role <> if(r.step = 0, 'attempt', 'rollout')",
        ("step_labels", "rollouts"),
    )
    yield Rule(
        "step_labels",
        "without the one attempt whose steps it labels",
        "SELECT step_label_id AS bad FROM step_labels ANTI JOIN (SELECT step_label_id FROM step_label_parents "
        "WHERE role = 'attempt' GROUP BY step_label_id HAVING count(*) = 1) USING (step_label_id)",
        ("step_label_parents",),
    )
