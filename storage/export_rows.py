"""The rows of an exported data set, in the columns that TRL's trainers read, streamed from the registry's tables.

    prompt-completion   prompt, completion                      a label
    messages            messages                                a label as a conversation
    preference          prompt, chosen, rejected                a label and a wrong attempt at its problem
    stepwise            prompt, completions, labels, scores     an answer with a verdict on each of its steps

Each row also says where it came from (`PROVENANCE`); TRL's trainers drop columns that they do not know. Nothing here
writes. Of the split `train` come labels, which are of training problems only; `valid` and `test` are the reference
answers of their problems, never anything that a model found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pyarrow as pa

from flywheel.errors import InputError, RegistryError
from flywheel.problems import domain as domains
from storage.export_source import Row, Source, labels, question, questions, training_problems

_text, _real = pa.string(), pa.float64()
PROVENANCE = [
    *((name, _text) for name in ("label_id", "problem_id")),
    ("generation", pa.int64()),
    *((name, _text) for name in ("teacher", "searcher")),
    ("reward", _real),
    ("reward_source", _text),
]
_MESSAGES = pa.list_(pa.struct([("role", _text), ("content", _text)]))
SCHEMAS: dict[str, pa.Schema] = {
    "prompt-completion": pa.schema([("prompt", _text), ("completion", _text), *PROVENANCE]),
    "messages": pa.schema([("messages", _MESSAGES), *PROVENANCE]),
    "preference": pa.schema(
        [
            *((name, _text) for name in ("prompt", "chosen", "rejected")),
            *PROVENANCE,
            ("rejected_attempt_id", _text),
            ("rejected_reward", _real),
        ]
    ),
    "stepwise": pa.schema(
        [
            ("prompt", _text),
            ("completions", pa.list_(_text)),
            ("labels", pa.list_(pa.bool_())),
            ("scores", pa.list_(_real)),
            *((name, _text) for name in ("step_label_id", "problem_id")),
            ("generation", pa.int64()),
            ("policy", _text),
            ("estimate", _text),
            ("rollouts", pa.int64()),
        ]
    ),
}
_STEPS = ["step_label_id", "problem_id", "generation", "policy", "prompt", "steps", "scores", "estimate", "rollouts"]


def train_rows(source: Source, form: str, pairs: int, step_threshold: float) -> Iterator[Row]:
    """Rows of the training split."""
    if form == "preference":
        return _pairs(source, pairs)
    if form == "stepwise":
        return _stepwise(source, step_threshold)
    found = labels(source)
    if form == "prompt-completion":
        return ({"prompt": row["prompt"], "completion": row["completion"], **_provenance(row)} for row in found)
    asked = questions(source)
    return (
        {
            "messages": conversation(asked.get(row["problem_id"]), row["prompt"], row["completion"]),
            **_provenance(row),
        }
        for row in found
    )


def reference_rows(source: Source, form: str, split: str) -> Iterator[Row]:
    """Reference answers of the problems of `valid` or `test` that have one; provenance names the problem only."""
    domain = domains.load(source.params[source.generation].problems)
    for problem in source.problems(split):
        if problem.reference is None:
            continue
        asked, prompt = question(domain, problem), domain.prompt(problem)
        origin = {**dict.fromkeys(name for name, _ in PROVENANCE), "problem_id": problem.problem_id}
        if form == "messages":
            yield {"messages": conversation(asked, prompt, problem.reference), **origin}
        else:
            yield {"prompt": prompt, "completion": problem.reference, **origin}


def conversation(asked: list[dict[str, str]] | None, prompt: str, completion: str) -> list[dict[str, str]]:
    """The messages of a label: the problem's own, where it is asked in messages; otherwise the prompt as the user's,
    without the line end that parts it from the answer in plain text. The completion is the assistant's."""
    question = asked or [{"role": "user", "content": prompt.removesuffix("\n")}]
    return [*question, {"role": "assistant", "content": completion}]


def _provenance(row: Row) -> Row:
    return {name: row[name] for name, _ in PROVENANCE}


def _pairs(source: Source, count: int) -> Iterator[Row]:
    """(label, wrong attempt) of one problem and generation. Wrong is an attempt that ended by itself, has an answer
    and a reward below the generation's `filter.threshold`."""
    from storage.views import query

    training = training_problems(source)
    kept = {row["label_id"] for row in labels(source)} if len(source.params) > 1 else None
    generations = ", ".join(map(str, source.params))
    below = " OR ".join(
        f"(generation = {g} AND reward < {params.filter.threshold!r})" for g, params in source.params.items()
    )
    sql = f"""
        SELECT generation, problem_id, true AS is_label, label_id AS id, prompt, completion AS text,
            teacher, searcher, reward, reward_source, 0 AS position
        FROM labels WHERE generation IN ({generations})
        UNION ALL
        SELECT generation, problem_id, false, attempt_id, prompt, output,
            teacher, searcher, reward, reward_source, "index"
        FROM attempts WHERE ({below}) AND answer IS NOT NULL
            AND stop_reason IN ('eos', 'finished') AND status NOT IN ('timeout', 'failed')
        ORDER BY generation, problem_id, is_label DESC, position, id"""
    found = query(source.registry, sql, at=source.generation).rows
    for (_, problem), group in itertools.groupby(found, key=lambda row: (row["generation"], row["problem_id"])):
        attempts = list(group)
        right = [row for row in attempts if row["is_label"]]
        assert not right or problem in training, f"a label of {problem}, which is outside the training split"
        # A fallible reward may have let the same text pass once and not again.
        texts = {row["text"] for row in right}
        wrong: dict[str, Row] = {}
        for row in attempts:
            if row["text"] not in texts:
                wrong.setdefault(row["text"], row)
        chosen = [row for row in right if kept is None or row["id"] in kept]
        for label, attempt in _matched(chosen, list(wrong.values()), count):
            yield {
                "prompt": label["prompt"],
                "chosen": label["text"],
                "rejected": attempt["text"],
                **_provenance({**label, "label_id": label["id"]}),
                "rejected_attempt_id": attempt["id"],
                "rejected_reward": attempt["reward"],
            }


def _matched(rights: list[Row], wrongs: list[Row], count: int) -> Iterator[tuple[Row, Row]]:
    """Up to `count` pairs: the first right with the first wrong, the second with the second, and round again, until
    every combination was had once."""
    # Both numbers go round together after their least common multiple; shifted by one then, nothing comes twice.
    period = math.lcm(len(rights), len(wrongs))
    for index in range(min(count, len(rights) * len(wrongs))):
        yield rights[index % len(rights)], wrongs[(index + index // period) % len(wrongs)]


def _stepwise(source: Source, threshold: float) -> Iterator[Row]:
    """Step labels; a step is right where its score is above `threshold`. Answers with a step that nothing could judge
    are left out: there is no verdict to cast to a bool."""
    training = training_problems(source)
    for generation in source.params:
        for row in source.rows("step_labels", generation, _STEPS):
            name, scores = row["step_label_id"], row["scores"]
            assert row["problem_id"] in training, f"step label {name} is of a problem outside the training split"
            if any(score is None for score in scores):
                continue
            if len(scores) != len(row["steps"]) or not all(0.0 <= score <= 1.0 for score in scores):
                raise RegistryError(
                    f"step label {name} of gen/{generation} has scores {scores} for {len(row['steps'])} steps, "
                    "expected a share in 0..1 for each; the table is damaged or of another version"
                )
            yield {
                "prompt": row["prompt"],
                "completions": row["steps"],
                "labels": [score > threshold for score in scores],
                **{key: row[key] for key in _STEPS if key not in {"prompt", "steps"}},
            }


def no_rows(source: Source, form: str) -> InputError:
    """Why there is nothing to export, and what to do."""
    of = f"gen/{source.generation}" + (" and its window" if len(source.params) > 1 else "")
    if form == "stepwise":
        return InputError(
            f"{of} has no step labels; they are made by process supervision: run generations with "
            "--set supervise.enabled=true, then export one of those"
        )
    if form == "preference":
        return InputError(
            f"{of} has no problem with both a label and a wrong answer that ended by itself (generation 0's labels are "
            "a solver's, without wrong ones); export a later generation, or search with more generate.samples"
        )
    return InputError(
        f"{of} has no label; see why with "
        f'`flywheel query "SELECT reason, count(*) FROM rejected GROUP BY 1" --at gen/{source.generation}`'
    )
