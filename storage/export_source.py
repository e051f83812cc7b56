"""What an export is made of: the tables of a generation, or of the window its student learned from, read where they lie
in DVC's cache, in batches. Which rows count is decided here as `tasks.train` decides it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from flywheel.errors import RegistryError
from flywheel.params import Params
from flywheel.problems import domain as domains
from flywheel.records import Problem
from storage.cache import cache_path
from storage.schemas import PROBLEMS

if TYPE_CHECKING:
    from storage.registry import Registry

Row = dict[str, Any]
_LABELS = ["label_id", "content_id", "problem_id", "generation", "teacher", "searcher", "reward", "reward_source",
           "prompt", "completion"]  # fmt: skip
_BATCH_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Source:
    """What rows are made of: a registry as of `generation`, and the generations whose labels are wanted."""

    registry: Registry
    generation: int
    params: dict[int, Params]
    """Of each wanted generation, oldest first, the last being `generation`."""
    published: dict[int, dict[str, Any]]
    """Their `lineage/NNNN.json`."""

    def files(self, table: str, generation: int) -> list[Path]:
        """A table's files in the cache; [] where the generation has no such table. Raises RegistryError if one is not
        there."""
        paths = []
        for file in self.published[generation]["tables"].get(table, {"files": []})["files"]:
            path = cache_path(self.registry, file["md5"])
            if not path.is_file():
                raise RegistryError(
                    f"{file['path']}, a file of table {table} of gen/{generation}, is not in the cache (expected "
                    f"{path}); fetch it with `dvc pull --all-tags`, or restore .dvc/cache from a copy"
                )
            paths.append(path)
        return paths

    def rows(self, table: str, generation: int, columns: list[str]) -> Iterator[Row]:
        for path in self.files(table, generation):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                    yield from batch.to_pylist()

    def problems(self, split: str) -> Iterator[Problem]:
        for row in self.rows("problems", self.generation, PROBLEMS.names):
            if row["split"] == split:
                yield Problem(**{**row, "payload": json.loads(row["payload"])})


def labels(source: Source) -> Iterator[Row]:
    """Labels as the student of `generation` met them: oldest first, one that teaches what an earlier one did left out
    (`train.dedupe`). Holds their ids, never their texts."""
    training = training_problems(source)
    dedupe = source.params[source.generation].train.dedupe
    seen: set[bytes] = set()
    for generation in source.params:
        for row in source.rows("labels", generation, _LABELS):
            assert row["problem_id"] in training, f"label {row['label_id']} is of a problem outside the training split"
            content = bytes.fromhex(row["content_id"])
            if not (dedupe and content in seen):
                seen.add(content)
                yield row


def training_problems(source: Source) -> set[str]:
    """Ids of the problems that may be trained on."""
    rows = source.rows("problems", source.generation, ["problem_id", "split"])
    return {row["problem_id"] for row in rows if row["split"] == "train"}


def questions(source: Source) -> dict[str, list[dict[str, str]]]:
    """Problem -> its messages, for training problems that are asked in messages."""
    domain = domains.load(source.params[source.generation].problems)
    asked = ((problem.problem_id, question(domain, problem)) for problem in source.problems("train"))
    return {problem: messages for problem, messages in asked if messages}


def question(domain: domains.Domain, problem: Problem) -> list[dict[str, str]] | None:
    """The messages that a problem is asked in, by its domain or its own payload; None where it is plain text."""
    messages = domain.messages(problem) or problem.payload.get("messages")
    return [{"role": part["role"], "content": part["content"]} for part in messages] if messages else None
