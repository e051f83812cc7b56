"""filter: which attempts become labels. Everything dropped has its reason in `rejected`; nothing is edited.

An attempt is a label if it ended by itself, its problem is a training problem of the wanted difficulty, its reward
reaches the threshold, no earlier attempt at the problem teaches the same, and the problem has not had its share yet.
Where answers voted, all that voted for a label's answer are its parents. Attempts of a problem lie together, so the
stage streams: it holds one problem's attempts at a time.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from typing import Any

from flywheel import sections
from flywheel.params import Params
from flywheel.problems.domain import Domain
from flywheel.records import Label, content_id, label_id
from storage.layout import Layout
from storage.rows import label_row, parent_rows
from storage.schemas import ATTEMPTS, LABEL_PARENTS, LABELS, PROBLEMS, REJECTED
from storage.tables import TableWriter, read_batches, replace_folder
from tasks import models
from tasks.stage import Hooks, Report, Stamp, fingerprint, main

_SOURCES = (
    "flywheel.problems", "flywheel.records", "storage.rows", "storage.schemas", "storage.tables",
    "tasks.models", "tasks.filter",
)  # fmt: skip
VOTES = "majority"
"""The `reward_source` of answers that voted."""
_COLUMNS = [
    "attempt_id", "problem_id", "generation", "teacher", "searcher", "prompt", "prompt_ids", "output", "token_ids",
    "tokenizer", "stop_reason", "status", "answer", "reward", "reward_source",
]  # fmt: skip


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """Write the tables `labels`, `label_parents` and `rejected` of this generation."""
    if params.problems.domain == "hex":
        from tasks.boards import filter as boards

        return boards.run(params, layout, hooks)
    section, generation = params.filter, params.generation
    target = layout.labels(generation)
    mark = fingerprint(
        "filter",
        _SOURCES,
        [
            params.seed,
            generation,
            params.problems.model_dump(mode="json"),
            section.model_dump(mode="json", exclude={"window"}),
        ],
        [layout.problems, layout.attempts],
        "",
    )
    stamp = Stamp(layout, generation, "filter", mark, [target])
    if (report := stamp.fresh()) is not None:
        return report
    start = time.monotonic()
    new = layout.tmp / f"labels-{uuid.uuid4().hex[:8]}"
    training = _training_problems(layout)
    domain = models.domain_of(params.problems)
    seen = kept = 0
    reasons: dict[str, int] = {}
    with (
        TableWriter(new / "labels", LABELS) as labels,
        TableWriter(new / "label_parents", LABEL_PARENTS) as parents,
        TableWriter(new / "rejected", REJECTED) as rejected,
    ):
        for attempts in _by_problem(layout):
            hooks.should_stop()
            seen += len(attempts)
            chosen, dropped = select(attempts, section, attempts[0]["problem_id"] in training, domain)
            made = [_label(attempt, attempts, generation, domain) for attempt in chosen]
            kept += len(made)
            labels.write([label_row(label) for label in made])
            parents.write([row for label in made for row in parent_rows(label)])
            rejected.write([{"attempt_id": attempt["attempt_id"], "reason": reason} for attempt, reason in dropped])
            for _, reason in dropped:
                reasons[reason] = reasons.get(reason, 0) + 1
    replace_folder(new, target, layout.tmp)
    report = Report(
        "filter",
        generation,
        seconds=time.monotonic() - start,
        rows_in=seen,
        rows_out=kept,
        notes={"kept": kept, **dict(sorted(reasons.items()))},
    )
    stamp.write(report)
    return report


def select(
    attempts: list[dict[str, Any]], section: sections.Filter, is_training: bool, domain: Domain
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], str]]]:
    """One problem's attempts: (kept, [(dropped, reason)]). Higher rewards first, then the earlier attempt."""
    kept: list[dict[str, Any]] = []
    dropped = []
    contents = set()
    too_easy_or_hard = _wrong_difficulty(attempts, section)
    for attempt in sorted(attempts, key=lambda a: -(a["reward"] if a["reward"] is not None else -1e300)):
        content = None if attempt["answer"] is None else domain.content(attempt["output"], attempt["answer"])
        if not is_training:
            reason = "not a training problem"
        elif attempt["stop_reason"] == "length":
            reason = "truncated"
        elif attempt["reward"] is None:
            reason = f"not judged: {attempt['status']}"
        elif content is None:
            reason = "malformed"
        elif attempt["reward"] < section.threshold:
            reason = "below threshold"
        elif too_easy_or_hard is not None:
            reason = too_easy_or_hard
        elif content in contents:
            reason = "same answer as another"
        elif section.per_problem is not None and len(kept) >= section.per_problem:
            reason = "over the share of its problem"
        else:
            contents.add(content)
            kept.append(attempt)
            continue
        dropped.append((attempt, reason))
    return kept, dropped


def _wrong_difficulty(attempts: list[dict[str, Any]], section: sections.Filter) -> str | None:
    """Why the problem is left out by its pass rate, a share of the judged attempts; None where it is not. A solver's
    attempts say nothing of difficulty."""
    judged = [attempt for attempt in attempts if attempt["reward"] is not None]
    if section.pass_rate is None or not judged or judged[0]["stop_reason"] == "finished":
        return None
    rate = sum(attempt["reward"] >= section.threshold for attempt in judged) / len(judged)
    low, high = section.pass_rate
    return "pass rate too low" if rate <= low else "pass rate too high" if rate >= high else None


def _label(attempt: dict[str, Any], attempts: list[dict[str, Any]], generation: int, domain: Domain) -> Label:
    content = content_id(attempt["problem_id"], domain.content(attempt["output"], attempt["answer"]))
    parents = [(attempt["attempt_id"], "attempt")]
    if attempt["reward_source"] == VOTES:
        parents += [
            (other["attempt_id"], "vote")
            for other in attempts
            if other["answer"] == attempt["answer"] and other is not attempt
        ]
    return Label(
        label_id=label_id([parent for parent, _ in parents], "answer", {}, content),
        content_id=content,
        kind="seed" if attempt["stop_reason"] == "finished" else "policy",
        problem_id=attempt["problem_id"],
        generation=generation,
        teacher=attempt["teacher"],
        searcher=attempt["searcher"],
        reward=attempt["reward"],
        reward_source=attempt["reward_source"],
        weight=1.0,
        prompt=attempt["prompt"],
        completion=attempt["output"],
        prompt_ids=tuple(attempt["prompt_ids"]),
        completion_ids=tuple(attempt["token_ids"]),
        tokenizer=attempt["tokenizer"],
        parents=tuple(parents),
    )


def _training_problems(layout: Layout) -> set[str]:
    return {
        row["problem_id"]
        for batch in read_batches(layout.problems, PROBLEMS, ["problem_id", "split"])
        for row in batch.to_pylist()
        if row["split"] == "train"
    }


def _by_problem(layout: Layout) -> Iterator[list[dict[str, Any]]]:
    rows = (row for batch in read_batches(layout.attempts, ATTEMPTS, _COLUMNS) for row in batch.to_pylist())
    for _, attempts in itertools.groupby(rows, key=lambda row: row["problem_id"]):
        yield list(attempts)


if __name__ == "__main__":
    raise SystemExit(main(run))
