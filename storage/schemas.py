"""The tables: one explicit, versioned pyarrow schema each, never inferred.

Rows carry no clock times and no machine facts. Keys are 128-bit digests in lower-case hex. JSON columns hold canonical
JSON. A change to a schema raises SCHEMA_VERSION, which every file carries in its metadata.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 2
"""2: `trained_on` says of which generation each label is."""


def _schema(name: str, key: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"flywheel.table": name, "flywheel.version": str(SCHEMA_VERSION), "key": key})


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_text, _int, _float, _ids = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int32())
_policy = pa.list_(pa.float32())

PROBLEMS = _schema(
    "problems",
    "problem_id",
    [
        _required("problem_id", _text),
        _required("domain", _text),
        _required("domain_version", _int),
        _required("split", _text),
        _required("difficulty", _float),
        _required("group", _text),
        _required("payload", _text),
        pa.field("reference", _text),
    ],
)

EXCLUDED = _schema(
    "excluded",
    "excluded_id",
    [
        _required("excluded_id", _text),
        _required("source", _text),
        _required("row", _int),
        _required("reason", _text),
        _required("detail", _text),
        pa.field("problem_id", _text),
        pa.field("evidence", _text),
        pa.field("matched_id", _text),
        pa.field("matched_split", _text),
        pa.field("similarity", _float),
    ],
)
"""Rows of a user's files that did not become problems. `source`: path, valid_path or test_path; `evidence`: the words
in common with the problem `matched_id`."""

ATTEMPTS = _schema(
    "attempts",
    "attempt_id",
    [
        _required("attempt_id", _text),
        _required("problem_id", _text),
        _required("generation", _int),
        _required("teacher", _text),
        _required("searcher", _text),
        _required("search_params", _text),
        _required("seed", _int),
        _required("index", _int),
        _required("prompt", _text),
        _required("prompt_ids", _ids),
        _required("output", _text),
        _required("token_ids", _ids),
        _required("tokenizer", _text),
        _required("steps", pa.list_(_text)),
        _required("stop_reason", _text),
        _required("status", _text),
        pa.field("answer", _text),
        pa.field("reward", _float),
        _required("reward_source", _text),
        _required("step_rewards", pa.list_(_float)),
        _required("flops_policy", _float),
        _required("flops_reward", _float),
        _required("tokens", _int),
        pa.field("log_probability", _float),
    ],
)

LABELS = _schema(
    "labels",
    "label_id",
    [
        _required("label_id", _text),
        _required("content_id", _text),
        _required("kind", _text),
        _required("problem_id", _text),
        _required("generation", _int),
        _required("teacher", _text),
        _required("searcher", _text),
        _required("reward", _float),
        _required("reward_source", _text),
        _required("weight", _float),
        _required("prompt", _text),
        _required("completion", _text),
        _required("prompt_ids", _ids),
        _required("completion_ids", _ids),
        _required("tokenizer", _text),
    ],
)

LABEL_PARENTS = _schema(
    "label_parents",
    "label_id",
    [_required("label_id", _text), _required("parent_id", _text), _required("role", _text)],
)

REJECTED = _schema("rejected", "attempt_id", [_required("attempt_id", _text), _required("reason", _text)])

SNAPSHOTS = _schema(
    "snapshots",
    "snapshot",
    [
        _required("snapshot", _text),
        _required("role", _text),
        _required("generation", _int),
        pa.field("initialised_from", _text),
        _required("params_digest", _text),
        _required("parameters", _int),
        _required("training_flops", _float),
        _required("verified", pa.bool_()),
    ],
)

TRAINED_ON = _schema(
    "trained_on",
    "label_id",
    [
        _required("snapshot", _text),
        _required("label_id", _text),
        _required("generation", _int),
        _required("weight", _float),
        _required("epochs", _float),
    ],
)

"""What a model learned from: policies from labels, reward models from step labels. `generation`: the label's."""

EVALUATIONS = _schema(
    "evaluations",
    "snapshot",
    [
        _required("snapshot", _text),
        _required("generation", _int),
        _required("searcher", _text),
        _required("budget", _int),
        _required("split", _text),
        _required("metric", _text),
        _required("value", _float),
        _required("low", _float),
        _required("high", _float),
        _required("count", _int),
        _required("flops_per_problem", _float),
    ],
)

OUTCOMES = _schema(
    "outcomes",
    "problem_id",
    [
        _required("snapshot", _text),
        _required("generation", _int),
        _required("split", _text),
        _required("problem_id", _text),
        _required("group", _text),
        _required("metric", _text),
        _required("budget", _int),
        _required("value", _float),
        _required("flops", _float),
    ],
)

LEDGER = _schema(
    "ledger",
    "generation",
    [
        _required("generation", _int),
        _required("stage", _text),
        _required("shard", _text),
        _required("flops_policy", _float),
        _required("flops_prefill", _float),
        _required("flops_reward", _float),
        _required("flops_training", _float),
        _required("flops_padding", _float),
        _required("tokens", _int),
        _required("seconds", _float),
        _required("peak_memory_bytes", _int),
        _required("rows_in", _int),
        _required("rows_out", _int),
        _required("machine", _text),
        _required("numerics", _text),
        pa.field("models", _text),
    ],
)
"""`models`: JSON, how much of it is whose work, {snapshot: {kind: FLOPs, ..., "tokens": count}}; null in lines of
earlier versions. `seconds`: of every process that worked, added up."""

ROLLOUTS = _schema(
    "rollouts",
    "rollout_id",
    [
        _required("rollout_id", _text),
        _required("problem_id", _text),
        _required("generation", _int),
        _required("policy", _text),
        _required("seed", _int),
        _required("attempt", _int),
        _required("step", _int),
        _required("index", _int),
        pa.field("parent_id", _text),
        _required("prefix", _text),
        _required("output", _text),
        _required("stop_reason", _text),
        _required("status", _text),
        pa.field("answer", _text),
        pa.field("reward", _float),
        _required("flops_policy", _float),
        _required("tokens", _int),
    ],
)
"""`step` 0: an attempt from the prompt; k: a completion of the attempt `parent_id` from the end of its k-th step.
`prefix`: digest of problem and steps that it goes on from."""

STEP_LABELS = _schema(
    "step_labels",
    "step_label_id",
    [
        _required("step_label_id", _text),
        _required("problem_id", _text),
        _required("generation", _int),
        _required("policy", _text),
        _required("prompt", _text),
        _required("steps", pa.list_(_text)),
        _required("scores", pa.list_(_float)),
        _required("right", pa.list_(_int)),
        _required("judged", pa.list_(_int)),
        _required("rollouts", _int),
        _required("estimate", _text),
        _required("tokenizer", _text),
    ],
)
"""Of each step: `right` of `judged` completions from its end came right; the last step of a finished answer, and with
the estimate `outcome` every step, has the answer's own verdict, 1 of 1 or 0 of 1."""

STEP_LABEL_PARENTS = _schema(
    "step_label_parents",
    "step_label_id",
    [_required("step_label_id", _text), _required("parent_id", _text), _required("role", _text)],
)

SEARCHED = _schema(
    "searched",
    "attempt_id",
    [
        _required("attempt_id", _text),
        _required("ply", _int),
        _required("board", _text),
        _required("mover", _int),
        _required("move", _int),
        _required("simulations", _int),
        _required("full", pa.bool_()),
        _required("value", _float),
        _required("surprise", _float),
        _required("policy", _policy),
    ],
)
"""The positions of a board game that were searched. `mover` 0: the first player; `value`: what the search found, the
mover's, -1 to 1; `policy`: a share for each move; `surprise`: nats by which search moved it; `full`: to be learned."""

TARGETS = _schema(
    "targets",
    "label_id",
    [
        _required("label_id", _text),
        _required("ply", _int),
        _required("board", _text),
        _required("mover", _int),
        _required("value", _float),
        _required("policy", _policy),
    ],
)
"""What a label of a board game teaches: a position, its policy and its value, the mover's."""

MATCHES = _schema(
    "matches",
    "match_id",
    [
        _required("match_id", _text),
        _required("generation", _int),
        _required("problem_id", _text),
        _required("first", _text),
        _required("second", _text),
        _required("winner", _text),
        _required("plies", _int),
        _required("moves", _text),
        pa.field("forfeit", _text),
    ],
)
"""Games between players, both sides of each opening. `first` moves first from the empty board on; players are named
`gen/7` (the network alone), `gen/7@64` (with that many simulations), `perfect`, `random`."""

ANALYSES = _schema(
    "analyses",
    "problem_id",
    [
        _required("problem_id", _text),
        _required("generation", _int),
        _required("snapshot", _text),
        _required("budget", _int),
        _required("board", _text),
        _required("mover", _int),
        _required("prior", _policy),
        _required("prior_value", _float),
        _required("policy", _policy),
        _required("value", _float),
        _required("proven", _int),
        _required("line", _text),
    ],
)
"""Some test positions as the student sees them, alone (`prior`) and after a search: shares of the moves, values to the
mover, whether the search proved it (1 won, -1 lost), and the line that it looked at most."""

TABLES: dict[str, pa.Schema] = {
    "problems": PROBLEMS,
    "excluded": EXCLUDED,
    "attempts": ATTEMPTS,
    "labels": LABELS,
    "label_parents": LABEL_PARENTS,
    "rejected": REJECTED,
    "snapshots": SNAPSHOTS,
    "trained_on": TRAINED_ON,
    "evaluations": EVALUATIONS,
    "outcomes": OUTCOMES,
}
"""Tables that every generation keeps as Parquet under DVC; the ledger is JSON lines in git."""

SUPERVISION: dict[str, pa.Schema] = {
    "rollouts": ROLLOUTS,
    "step_labels": STEP_LABELS,
    "step_label_parents": STEP_LABEL_PARENTS,
}
"""Tables of generations with process supervision only."""

BOARDS: dict[str, pa.Schema] = {"searched": SEARCHED, "targets": TARGETS, "matches": MATCHES, "analyses": ANALYSES}
"""Tables of registries of a board game only."""


def tables_of(supervised: bool, boards: bool) -> dict[str, pa.Schema]:
    """The tables that a generation has."""
    return {**TABLES, **(SUPERVISION if supervised else {}), **(BOARDS if boards else {})}


def table_folder(table: str, folder: str) -> str:
    """A table's folder in a registry, POSIX, relative to its root; `folder` is the generation's (`0007`)."""
    if table in {"problems", "attempts"}:
        return table
    if table == "excluded":
        return f"problems/{table}"
    if table == "searched":
        return f"attempts/{table}"
    if table in {"labels", "label_parents", "rejected", "targets"}:
        return f"labels/{folder}/{table}"
    if table in {"snapshots", "trained_on"}:
        return f"training/{table}"
    if table in SUPERVISION:
        return f"supervision/{table}"
    return f"evaluations/{table}"


def table_folders(table: str, folder: str, supervised: bool) -> list[str]:
    """All folders of a table: a supervised generation's reward model has its rows of `snapshots` and `trained_on`
    beside its step labels."""
    folders = [table_folder(table, folder)]
    if supervised and table in {"snapshots", "trained_on"}:
        folders.append(f"supervision/{table}")
    return folders
