"""Records to table rows and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from flywheel.records import Attempt, Label, Problem, Rollout, StepLabel, canonical_json
from storage.schemas import PROBLEMS
from storage.tables import read_rows

_ATTEMPT = tuple(entry.name for entry in fields(Attempt))


def problem_row(problem: Problem) -> dict[str, Any]:
    return {**asdict(problem), "payload": canonical_json(problem.payload)}


def attempt_rows(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    written: dict[int, str] = {}
    rows = []
    for attempt in attempts:
        row = {name: getattr(attempt, name) for name in _ATTEMPT}
        # A problem's attempts share one object.
        if (shared := id(attempt.search_params)) not in written:
            written[shared] = canonical_json(attempt.search_params)
        row["search_params"] = written[shared]
        rows.append(row)
    return rows


def label_row(label: Label) -> dict[str, Any]:
    return {entry.name: getattr(label, entry.name) for entry in fields(label) if entry.name != "parents"}


def parent_rows(label: Label) -> list[dict[str, Any]]:
    return [{"label_id": label.label_id, "parent_id": parent, "role": role} for parent, role in label.parents]


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    return {entry.name: getattr(rollout, entry.name) for entry in fields(rollout)}


def step_label_row(label: StepLabel) -> dict[str, Any]:
    return {entry.name: getattr(label, entry.name) for entry in fields(label) if entry.name != "parents"}


def step_parent_rows(label: StepLabel) -> list[dict[str, Any]]:
    return [{"step_label_id": label.step_label_id, "parent_id": parent, "role": role} for parent, role in label.parents]


def read_problems(folder: Path, splits: Iterable[str]) -> list[Problem]:
    """The problems of some splits, in the table's order (by id)."""
    wanted = set(splits)
    return [
        Problem(**{**row, "payload": json.loads(row["payload"])})
        for row in read_rows(folder, PROBLEMS)
        if row["split"] in wanted
    ]
