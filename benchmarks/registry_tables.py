"""The tables of a made-up generation as columns drawn at random, by seed; a value that is no array is every row's.

Ids are random digests, not those of what they name. Rows refer to each other as a run's do: labels to attempts,
attempts to problems, what was trained on to the labels of two generations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.random import Generator

from flywheel.params import Params
from flywheel.records import canonical_json, digest

Columns = dict[str, Any]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
SAMPLES, KEPT = 5, 4
"""Attempts at a problem, and how many of them become labels."""
_ANSWERS = 400
"""That a problem has."""
METRICS = (("greedy", 1), ("pass@16", 16), ("best@16", 16))
TOKENIZER = digest("tokenizer")
_DIGITS = 8192
"""Of a long answer."""
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), dtype=np.uint16)


@dataclass(frozen=True, slots=True)
class Scale:
    """How large. Labels of a generation: KEPT for each training problem."""

    generations: int
    train: int
    """Training problems, each tried in every generation."""
    valid: int = 1000
    test: int = 2000
    newest_bytes: int = 0
    """Bytes of objects that the newest generation has on top, half in its attempts, half in its student."""
    seed: int = 0


def tables(
    params: Params, scale: Scale, teacher: str, before: str, snapshot: str, extra: int
) -> dict[str, Iterator[Columns] | list[Columns]]:
    """Each table's columns; a value that is no array is that of every row."""
    generation, seed = params.generation, params.seed
    problems = _problems(scale)
    attempts = _attempts(params, problems, teacher)
    chosen = np.sort(_kept(scale, generation))
    dropped = np.setdiff1d(np.arange(scale.train * SAMPLES), chosen, assume_unique=True)
    picked = {name: column.take(pa.array(chosen)) for name, column in attempts.items() if isinstance(column, pa.Array)}
    labels, longer = label_ids(scale, generation), _extra_ids(extra)
    learned = [generation - 1, generation] if generation else [generation]
    outcome = {"snapshot": snapshot, "generation": generation, "flops": 1e6}
    test = {"snapshot": snapshot, "generation": generation, "searcher": "best_of_n", "flops_per_problem": 1e6}
    splits = {"valid": problems["problem_id"][scale.train : scale.train + scale.valid]}
    splits["test"] = problems["problem_id"][scale.train + scale.valid :]
    return {
        "problems": [problems],
        "excluded": [],
        "attempts": _with_extra(attempts, longer),
        "labels": [{
            "label_id": labels, "content_id": _content_ids(scale, generation),
            "kind": "policy" if generation else "seed", "generation": generation, "teacher": teacher,
            "searcher": attempts["searcher"], "reward": 1.0, "reward_source": "exact", "weight": 1.0,
            "completion": picked["output"], "completion_ids": picked["token_ids"], "tokenizer": TOKENIZER,
            **{name: picked[name] for name in ("problem_id", "prompt", "prompt_ids")},
        }],
        "label_parents": [{"label_id": labels, "parent_id": picked["attempt_id"], "role": "attempt"}],
        "rejected": [
            {"attempt_id": ids, "reason": "below threshold"}
            for ids in (attempts["attempt_id"].take(pa.array(dropped)), longer)
        ],
        "snapshots": [{
            "snapshot": snapshot, "role": "policy", "generation": generation, "initialised_from": before,
            "params_digest": params.digest(), "parameters": 1024, "training_flops": 1e12, "verified": True,
        }],
        "trained_on": [
            {"snapshot": snapshot, "label_id": label_ids(scale, number), "generation": number, "weight": 1.0,
             "epochs": 2.0}
            for number in learned
        ],
        "evaluations": [
            {**test, "split": split, "metric": metric, "budget": budget, "value": 0.5, "low": 0.4, "high": 0.6,
             "count": len(ids)}
            for split, ids in splits.items() for metric, budget in METRICS
        ],
        "outcomes": [
            {**outcome, "split": split, "problem_id": ids, "group": ids, "metric": metric, "budget": budget,
             "value": pa.array(np.random.default_rng((seed, generation, 4)).integers(0, 2, len(ids)).astype(float))}
            for split, ids in splits.items() for metric, budget in METRICS
        ],
    }  # fmt: skip


def label_ids(scale: Scale, generation: int) -> pa.Array:
    """The ids of a generation's labels, in the order of its table."""
    return hex_ids(np.random.default_rng((scale.seed, generation, 2)), scale.train * KEPT)


def hex_ids(random: Generator, count: int) -> pa.Array:
    """`count` random ids of 32 hex digits."""
    return _hex_of(random.bytes(16 * count), count)


def _hex_of(raw: bytes, count: int) -> pa.Array:
    """`count` texts, all of one length, of the hex digits of `raw`."""
    text, length = _HEX[np.frombuffer(raw, np.uint8)], 2 * len(raw) // max(count, 1)
    ends = np.arange(count + 1, dtype=np.int32) * length
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(ends), pa.py_buffer(text)])


def _content_ids(scale: Scale, generation: int) -> pa.Array:
    """What the labels teach: of each problem's _ANSWERS answers KEPT different ones, so that of fifty generations'
    labels a fifth teaches what another one did before."""
    random = np.random.default_rng((scale.seed, generation, 3))
    first = random.integers(0, _ANSWERS, scale.train)[:, None]
    answers = (first + np.arange(KEPT) * (_ANSWERS // KEPT)) % _ANSWERS
    numbers = (np.arange(scale.train)[:, None] * _ANSWERS + answers).astype(np.uint64).ravel()
    # SplitMix64, twice: one number, one id.
    words = np.stack([_mixed(numbers + np.uint64(shift << 48)) for shift in (1, 2)], axis=1)
    return _hex_of(words.tobytes(), len(numbers))


def _mixed(numbers: Words) -> Words:
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _kept(scale: Scale, generation: int) -> Integers:
    """Numbers of the attempts that become labels: of each problem's, all but one."""
    left_out = np.random.default_rng((scale.seed, generation, 5)).integers(0, SAMPLES, scale.train)
    each = np.arange(SAMPLES)[None, :] != left_out[:, None]
    return np.flatnonzero(each)


def _problems(scale: Scale) -> Columns:
    """Made anew each time, the same each time: generations share one object."""
    random = np.random.default_rng((scale.seed, 0, 6))
    counts = {"train": scale.train, "valid": scale.valid, "test": scale.test}
    count = sum(counts.values())
    numbers = [_texts(random.integers(1, 100, count)) for _ in range(4)]
    numbers, target = numbers[:3], numbers[3]
    return {
        "problem_id": hex_ids(random, count), "domain": "countdown", "domain_version": 1, "difficulty": 1.0,
        "split": pa.array(np.repeat(list(counts), list(counts.values()))), "group": _joined(*numbers, between=" "),
        "payload": _joined('{"numbers":[', _joined(*numbers, between=","), '],"target":', target, "}"),
        "reference": None,
    }  # fmt: skip


def _attempts(params: Params, problems: Columns, teacher: str) -> Columns:
    random = np.random.default_rng((params.seed, params.generation, 7))
    train = len(problems["split"].filter(pc.equal(problems["split"], "train")))
    each = pa.array(np.repeat(np.arange(train), SAMPLES))
    count, seeded = len(each), params.generation == 0
    numbers = [_texts(random.integers(1, 100, count)) for _ in range(3)]
    return {
        "attempt_id": hex_ids(random, count), "problem_id": problems["problem_id"].take(each),
        "generation": params.generation, "teacher": teacher, "searcher": "solver" if seeded else "best_of_n",
        "search_params": canonical_json({"samples": SAMPLES}), "seed": params.seed,
        "index": pa.array(np.tile(np.arange(SAMPLES), train)),
        "prompt": _joined(problems["group"].take(each), ": "), "prompt_ids": _lists(random, count, 6),
        "output": _joined(numbers[0], " + ", numbers[1], " = ", numbers[2]), "token_ids": _lists(random, count, 8),
        "tokenizer": TOKENIZER, "steps": _lists(random, count, 0, pa.string()), "answer": numbers[2],
        "stop_reason": "finished" if seeded else "eos", "status": "judged",
        "reward": pa.array(random.integers(0, 2, count).astype(float)), "reward_source": "exact",
        "step_rewards": _lists(random, count, 0, pa.float64()), "flops_policy": 1e5, "flops_reward": 0.0,
        "tokens": 8, "log_probability": pa.array(random.standard_normal(count).round(3)),
    }  # fmt: skip


def _extra_ids(size: int) -> pa.Array:
    """Of as many attempts with long answers as take `size` bytes: half of a digit is chance."""
    return hex_ids(np.random.default_rng(9), 2 * size // _DIGITS)


def _with_extra(attempts: Columns, ids: pa.Array) -> Iterator[Columns]:
    """The attempts, and after them some more with long answers."""
    yield attempts
    random = np.random.default_rng(8)
    for start in range(0, len(ids), 10_000):
        some = ids[start : start + 10_000]
        first = {
            name: column.take(pa.array(np.arange(len(some)) % len(column))) if isinstance(column, pa.Array) else column
            for name, column in attempts.items()
        }
        outputs = _hex_of(random.bytes(len(some) * _DIGITS // 2), len(some))
        yield {**first, "attempt_id": some, "output": outputs}


def table_of(columns: Columns, schema: pa.Schema) -> pa.Table:
    rows = max((len(column) for column in columns.values() if isinstance(column, pa.Array)), default=1)
    arrays = []
    for field in schema:
        value = columns[field.name]
        is_array = isinstance(value, pa.Array)
        arrays.append(value.cast(field.type) if is_array else pa.repeat(pa.scalar(value, field.type), rows))
    return pa.table(arrays, schema=schema)


def _texts(numbers: Integers) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def _joined(*parts: Any, between: str = "") -> pa.Array:
    return pc.binary_join_element_wise(*parts, between)


def _lists(random: Generator, count: int, length: int, kind: pa.DataType | None = None) -> pa.Array:
    """A list of `length` small numbers for each row."""
    kind = kind or pa.int32()
    values = pa.array(random.integers(0, 32, count * length)).cast(kind)
    return pa.ListArray.from_arrays(pa.array(np.arange(0, count + 1, dtype=np.int32) * length), values)
