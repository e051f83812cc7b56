"""The stage `problems` for a user's own files: its two tables, what it refuses, and what makes it run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flywheel import params as parameters
from flywheel.errors import ConfigError
from flywheel.params import Params
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import EXCLUDED, PROBLEMS
from storage.tables import count_rows, read_rows
from tasks import problems

ROWS = [
    {"prompt": f"{name} has {i} coins and finds {i} more under a {place}. How many?", "answer": f"#### {2 * i}"}
    for i, (name, place) in enumerate(
        [(name, place) for name in ("Ann", "Ben", "Cleo", "Dan", "Eve") for place in ("bed", "rug", "tree", "rock")], 1
    )
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "registry")


@pytest.fixture
def params(tmp_path: Path) -> Params:
    return parameters.parse(
        {
            "problems": {
                "domain": "file", "path": write(tmp_path / "train.jsonl", [*ROWS[:16], "no object", ROWS[3], ROWS[19]]),
                "test_path": write(tmp_path / "test.jsonl", ROWS[16:]), "train": 9, "valid": 3, "test": 3,
            },
        }
    )  # fmt: skip


def test_problems_and_what_was_left_out_are_two_tables(params: Params, layout: Layout) -> None:
    report = problems.run(params, layout)
    assert report.notes == {"train": 9, "valid": 3, "test": 3, "decontaminated": 1, "duplicate": 1, "skipped": 1}
    assert report.rows_out == count_rows(layout.problems) == 15
    made = read_problems(layout.problems, ["train", "valid", "test"])
    assert [problem.problem_id for problem in made] == sorted(problem.problem_id for problem in made)
    prompts = {problem.payload["prompt"]: problem.split for problem in made}
    assert {row["prompt"] for row in ROWS[16:]} >= {prompt for prompt, split in prompts.items() if split == "test"}
    excluded = read_rows(layout.problems / "excluded", EXCLUDED)
    assert [(row["row"], row["reason"]) for row in excluded] == [
        (17, "skipped"), (18, "duplicate"), (19, "decontaminated"),
    ]  # fmt: skip
    assert excluded[2]["matched_split"] == "test"
    assert all(row["source"] == "path" for row in excluded)
    assert str(layout.root.parent) not in json.dumps(excluded), "rows carry no facts of a machine"


def test_the_same_files_give_the_same_bytes(params: Params, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        layout = Layout(tmp_path / name)
        problems.run(params, layout)
        files = sorted(path for path in layout.problems.rglob("*") if path.is_file())
        made.append([(path.relative_to(layout.problems), path.read_bytes()) for path in files])
    assert [path.as_posix() for path, _ in made[0]] == ["excluded/part-00000.parquet", "part-00000.parquet"]
    assert made[0] == made[1]


def test_countdown_leaves_nothing_out(layout: Layout) -> None:
    values = {"numbers": 2, "largest": 9, "largest_target": 40, "train": 30, "valid": 8, "test": 8}
    problems.run(parameters.parse({"problems": values}), layout)
    assert read_rows(layout.problems / "excluded", EXCLUDED) == []
    assert {row["domain"] for row in read_rows(layout.problems, PROBLEMS)} == {"countdown"}


def test_it_is_not_done_again_until_a_file_changes(params: Params, layout: Layout, tmp_path: Path) -> None:
    assert not problems.run(params, layout).reused
    assert problems.run(params, layout).reused
    write(tmp_path / "test.jsonl", ROWS[17:])
    assert not problems.run(params, layout).reused


def test_a_later_generation_wants_the_problems_of_the_one_before(
    params: Params, layout: Layout, tmp_path: Path
) -> None:
    problems.run(params, layout)
    problems.run(params.for_generation(1, 0), layout)
    write(tmp_path / "test.jsonl", [*ROWS[16:18], {"prompt": "Another?", "answer": "1"}])
    before = [path.read_bytes() for path in sorted(layout.problems.glob("*.parquet"))]
    with pytest.raises(ConfigError, match=r"[0-9] problems are new and [0-9] are gone since the generation before"):
        problems.run(params.for_generation(2, 1), layout)
    assert [path.read_bytes() for path in sorted(layout.problems.glob("*.parquet"))] == before


def test_a_split_without_problems_is_refused_with_what_became_of_the_rows(
    params: Params, layout: Layout, tmp_path: Path
) -> None:
    write(tmp_path / "test.jsonl", [{"prompt": "Why?", "answer": "because"}, {"prompt": "", "answer": "1"}])
    with pytest.raises(ConfigError) as caught:
        problems.run(params, layout)
    assert len(caught.value.problems) == 1
    assert "no problem is left for test: 1 skipped: answer: no final answer that is a number, 1 skipped" in str(
        caught.value
    )
    write(tmp_path / "test.jsonl", [])
    with pytest.raises(ConfigError, match=r"no problem is left for test: problems.test_path has no rows for it"):
        problems.run(params, layout)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"problems.test_path: .*test.jsonl is not there"):
        problems.run(params, layout)
    assert not layout.problems.exists()
