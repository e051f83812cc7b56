"""A registry whose rows tell a history worth following, and what its tables say, read without the code under test.

generation   0        1              2                     3                4 (parent 1)
labels by    solver   0's student    1's student           hub/large        1's student and, half of them, `SECOND`
judged by    exact    exact          1's reward model      exact            exact
learned      0        0, 1           1 (but one), 2        0, 2, 3 (but its first)   0, 1, and of 4 those by `SECOND`

2 and 3 are rolled back. The first label of generation 2 was voted for by two more attempts; `HOSTILE` is a prompt in 1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flywheel.params import Params, load, parse
from flywheel.records import digest
from storage import lock
from storage.cache import cache_path
from storage.history import published_many
from storage.publish import publish
from storage.registry import Registry
from storage.rollback import rollback
from storage.schemas import TABLES, table_folder
from storage.tables import TableWriter, read_rows, replace_folder
from tests.storage import sample
from tests.storage.conftest import use_identity

Row = dict[str, Any]
LARGE = "hub/large"
SECOND = digest("a second teacher")
HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\"><!-- ' \" \u2028 \x1b[31m"


@pytest.fixture(scope="module")
def storied(made: dict[int, Registry]) -> Registry:
    """The registry of the table above, made by the first module that asks; for reading only."""
    target = made[0].root.parent / "storied"
    if target.exists():
        return Registry.open(target)
    with pytest.MonkeyPatch.context() as patch:
        use_identity(patch)
        return build(target)


def build(root: Path) -> Registry:
    """Make it at `root`."""
    registry = sample.new_registry(root)
    make(registry, recipe(registry), lambda row: True)
    make(registry, recipe(registry, supervise=True), lambda row: True, _hostile)
    make(registry, recipe(registry, reward="process"), _but_one_of_1, _voted)
    make(registry, recipe(registry, teacher=LARGE), _but_the_first_of_3)
    rollback(registry, 1, "the large one cheats")
    make(registry, recipe(registry), lambda row: row["generation"] != 4 or row["teacher"] == SECOND, _two_teachers)
    return registry


def recipe(registry: Registry, supervise: bool = False, reward: str = "exact", teacher: str = "champion") -> Params:
    values = load(registry.layout.params).model_dump(mode="json")
    values["supervise"] |= {"enabled": supervise, "start": "previous"}
    values["reward"]["name"] = reward
    values["filter"]["threshold"] = 1.0 if reward == "exact" else 0.7
    values["generate"]["teacher"] = teacher
    return parse(values)


def make(
    registry: Registry,
    params: Params,
    learned: Callable[[Row], bool],
    change: Callable[[dict[str, list[Row]]], None] = lambda rows: None,
) -> None:
    """A generation of the sample's whose student learned those labels of its window that `learned` lets through."""
    with lock.hold(registry, "make a generation"):
        params = sample.begin_generation(registry, params)
        sample.write_outputs(registry, params)
        layout = registry.layout
        names = ("attempts", "labels", "label_parents")
        folders = {name: layout.root / table_folder(name, params.folder) for name in (*names, "trained_on")}
        rows = {name: read_rows(folders[name], TABLES[name]) for name in names}
        change(rows)
        window = json.loads((layout.lineage / "window.json").read_text(encoding="utf-8"))["generations"]
        older = [file["md5"] for entry in window for file in entry["files"]]
        labels = [row for md5 in older for row in pq.read_table(cache_path(registry, md5)).to_pylist()]
        rows["trained_on"] = [
            {
                "snapshot": sample.snapshot_of(params.generation),
                "label_id": row["label_id"],
                "generation": row["generation"],
                "weight": 1.0,
                "epochs": 2.0,
            }
            for row in [*labels, *rows["labels"]]
            if learned(row)
        ]
        for name, values in rows.items():
            draft = layout.tmp / "draft"
            with TableWriter(draft, TABLES[name]) as writer:
                writer.write(values)
            replace_folder(draft, folders[name], layout.tmp)
        publish(registry, params, sample.REVISION)


def _hostile(rows: dict[str, list[Row]]) -> None:
    for row in (rows["attempts"][0], rows["labels"][0]):
        row["prompt"] = HOSTILE


def _but_one_of_1(row: Row) -> bool:
    return row["generation"] in {1, 2} and row["label_id"] != digest("label", digest("attempt", 1, 0, 3))


def _but_the_first_of_3(row: Row) -> bool:
    return row["generation"] in {0, 2, 3} and row["label_id"] != digest("label", digest("attempt", 3, 0, 0))


def _voted(rows: dict[str, list[Row]]) -> None:
    label = rows["labels"][0]
    voters = [row["attempt_id"] for row in rows["attempts"][1:3]]
    rows["label_parents"] += [{"label_id": label["label_id"], "parent_id": name, "role": "vote"} for name in voters]
    for row in rows["attempts"]:
        row |= {"steps": ["one", "two"], "step_rewards": [0.25, 0.75], "reward_source": "process"}


def _two_teachers(rows: dict[str, list[Row]]) -> None:
    for name in ("attempts", "labels"):
        for row in rows[name][::2]:
            row["teacher"] = SECOND


@dataclass(frozen=True)
class Told:
    """What the tables say, by plain loops over all their rows."""

    labels: dict[str, Row]
    attempts: dict[str, Row]
    parents: list[Row]
    learned: Counter[tuple[str, str]]
    """(address of the set, address of the model) -> rows."""
    learners: dict[str, set[str]]
    """Label -> students that learned from it."""
    edges: set[tuple[str, str]]


def told(registry: Registry) -> Told:
    """Read every Parquet file of every generation, and put the edges together."""
    published = published_many(registry, registry.generations())

    def rows(generation: int, table: str, under: str = "") -> list[Row]:
        files = published[generation]["tables"].get(table, {"files": []})["files"]
        paths = [cache_path(registry, file["md5"]) for file in files if file["path"].startswith(under)]
        return [row for path in paths for row in pq.read_table(path).to_pylist()]

    labels = {row["label_id"]: row for number in published for row in rows(number, "labels")}
    attempts = {row["attempt_id"]: row for number in published for row in rows(number, "attempts")}
    parents = [row for number in published for row in rows(number, "label_parents")]
    teachers = {
        number: {row["teacher"] for row in labels.values() if row["generation"] == number} for number in published
    }
    made = {facts["student"]["snapshot"]: f"gen/{number}/student" for number, facts in published.items()}

    def model(snapshot: str) -> str:
        return made.get(snapshot, f"model/{snapshot}")

    def of(row: Row) -> str:
        mixed = len(teachers[row["generation"]]) > 1
        return f"gen/{row['generation']}/labels" + (f"@{row['teacher']}" if mixed else "")

    edges = {(model(row["teacher"]), of(row)) for row in labels.values()}
    learned: Counter[tuple[str, str]] = Counter()
    learners: dict[str, set[str]] = {}
    for number, facts in published.items():
        student, reward = f"gen/{number}/student", f"gen/{number}/reward_model"
        for row in rows(number, "trained_on", "training/"):
            learned[of(labels[row["label_id"]]), student] += 1
            learners.setdefault(row["label_id"], set()).add(student)
        learned[f"gen/{number}/step_labels", reward] += len(rows(number, "trained_on", "supervision/"))
        edges.add((student, f"gen/{number}/evaluations"))
        edges.add((model(facts["student"]["initialised_from"]), student))
        if "reward_model" in facts:
            edges |= {
                (student, f"gen/{number}/step_labels"),
                (model(facts["reward_model"]["initialised_from"]), reward),
            }
        if "judge" in facts and facts["judge"]["judges"]:
            judge = f"gen/{facts['judge']['generation']}/reward_model"
            edges |= {(judge, of(row)) for row in labels.values() if row["generation"] == number}
            edges.add((judge, f"gen/{number}/evaluations"))
    learned = +learned
    return Told(labels, attempts, parents, learned, learners, edges | set(learned))


def reached(roots: set[str], edges: set[tuple[str, str]]) -> set[str]:
    """What edges lead to, by repeated expansion."""
    found = set(roots)
    while more := {end for start, end in edges if start in found} - found:
        found |= more
    return found
