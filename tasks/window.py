"""What a student learns from: the labels of the window, pairs of right and wrong answers, and the valid answers that
tell when to stop.

Labels sampled with the student's own tokenizer are learned by their own token ids; labels of a teacher with another
tokenizer, or of a server that gives text, are encoded anew from their text, asked in the student's own form.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from flywheel.learning import preference
from flywheel.learning.examples import Examples
from flywheel.learning.preference import Preference
from flywheel.models.language import LanguageModel
from flywheel.params import Params
from flywheel.records import Problem
from flywheel.search import unit
from flywheel.seeds import generator
from storage.cache import object_path
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import ATTEMPTS, LABELS
from storage.tables import read_batches
from tasks import models

_COLUMNS = [
    "label_id", "content_id", "kind", "weight", "problem_id", "generation", "teacher", "prompt", "completion",
    "prompt_ids", "completion_ids", "tokenizer",
]  # fmt: skip
_ATTEMPT_COLUMNS = [
    "problem_id", "index", "output", "stop_reason", "reward", "prompt_ids", "token_ids", "tokenizer",
]  # fmt: skip
_MOST_PAIRS = 16
"""Pairs a problem where the filter sets no share."""
_Triple = tuple[list[int], list[int], float]


@dataclass(frozen=True, slots=True)
class Window:
    """What a student learns from: examples, and the labels they are, in one order."""

    examples: Examples
    label_ids: list[str]
    generations: list[int]
    """Which generation each label is of."""
    weights: list[float]
    times: list[int]
    """How often each label stands among the examples: once, unless seed labels are to have a share."""
    repeated: int
    """Labels left out since an older one teaches the same."""


def read_window(params: Params, layout: Layout, model: LanguageModel) -> Window:
    seen: set[str] = set()
    triples: list[_Triple] = []
    kinds: list[str] = []
    label_ids: list[str] = []
    generations: list[int] = []
    repeated = 0
    domain = models.domain_of(params.problems)
    training = {problem.problem_id: problem for problem in read_problems(layout.problems, ["train"])}
    for row in _labels(params, layout):
        assert row["problem_id"] in training, f"label {row['label_id']} is of a problem outside the training split"
        if params.train.dedupe and row["content_id"] in seen:
            repeated += 1
            continue
        seen.add(row["content_id"])
        label_ids.append(row["label_id"])
        generations.append(row["generation"])
        kinds.append(row["kind"])
        # A teacher of another tokenizer (or a server, which gives text) was asked in its own form, too.
        if row["tokenizer"] == model.tokenizer_id:
            triples.append((row["prompt_ids"], row["completion_ids"], row["weight"]))
        else:
            asked = unit.ask(training[row["problem_id"]], domain, model)
            triples.append((list(asked.prompt_ids), model.encode_answer(row["completion"]), row["weight"]))
    times = repetitions([kind == "seed" for kind in kinds], params.train.seed_share, params.seed)
    examples = Examples(triple for triple, count in zip(triples, times, strict=True) for _ in range(count))
    return Window(examples, label_ids, generations, [weight for *_, weight in triples], times, repeated)


def repetitions(is_seed: list[bool], share: float | None, seed: int) -> list[int]:
    """How often each label is to stand among the examples so that seed labels make up `share` of them; once each for
    None, and where there are only seeds or none. Which seeds get one more, or are left out, is drawn by `seed`."""
    seeds = [index for index, one in enumerate(is_seed) if one]
    others = len(is_seed) - len(seeds)
    times = [1] * len(is_seed)
    if share is None or not seeds or not others:
        return times
    if share == 1.0:
        return [int(one) for one in is_seed]
    whole, more = divmod(round(share / (1.0 - share) * others), len(seeds))
    for rank, place in enumerate(generator(seed, "seed share").permutation(len(seeds)).tolist()):
        times[seeds[place]] = whole + (rank < more)
    return times


def _labels(params: Params, layout: Layout) -> Iterator[dict[str, Any]]:
    """Rows of the window's labels: older generations from the cache, oldest first and without those of excluded
    models, then this generation's own."""
    window = json.loads((layout.lineage / "window.json").read_text(encoding="utf-8"))
    excluded = set(window.get("excluded", []))
    for generation in window["generations"]:
        for entry in generation["files"]:
            with pq.ParquetFile(object_path(layout.root, entry["md5"])) as file:
                for batch in file.iter_batches(columns=_COLUMNS):
                    yield from (row for row in batch.to_pylist() if row["teacher"] not in excluded)
    for batch in read_batches(layout.labels(params.generation) / "labels", LABELS, _COLUMNS):
        yield from batch.to_pylist()


def valid_examples(params: Params, layout: Layout, model: LanguageModel) -> Examples:
    """Reference answers of the valid problems."""
    domain = models.domain_of(params.problems)
    return Examples(
        (unit.ask(problem, domain, model).prompt_ids, model.encode_answer(problem.reference), 1.0)
        for problem in read_problems(layout.problems, ["valid"])
        if problem.reference is not None
    )


def preferences(params: Params, layout: Layout, model: LanguageModel) -> list[Preference]:
    """Right and wrong answers to the same training problems, from this generation's attempts; as many pairs a problem
    as the filter keeps labels. Which are taken is a function of the table alone."""
    training = {problem.problem_id: problem for problem in read_problems(layout.problems, ["train"])}
    domain = models.domain_of(params.problems)
    count = params.filter.per_problem or _MOST_PAIRS

    def encoded(problem: Problem, row: preference.Row) -> tuple[list[int], list[int]]:
        if row["tokenizer"] == model.tokenizer_id:
            return row["prompt_ids"], row["token_ids"]
        return list(unit.ask(problem, domain, model).prompt_ids), model.encode_answer(row["output"])

    found = []
    rows = (row for batch in read_batches(layout.attempts, ATTEMPTS, _ATTEMPT_COLUMNS) for row in batch.to_pylist())
    for problem_id, attempts in itertools.groupby(rows, key=lambda row: row["problem_id"]):
        for right, wrong in preference.pairs(list(attempts), params.filter.threshold, count):
            prompt_ids, chosen = encoded(training[problem_id], right)
            found.append(Preference(prompt_ids, chosen, encoded(training[problem_id], wrong)[1]))
    return found
