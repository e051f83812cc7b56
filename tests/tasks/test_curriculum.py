"""Which problems a generation searches: solved ones retire to their share, unsolved ones come again."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel import params as parameters
from flywheel.params import Params
from flywheel.records import Problem
from storage.cache import object_path
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import ATTEMPTS
from storage.tables import file_md5, write_file
from tasks import curriculum
from tests.tasks.test_filter import row


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{index:02d}", "d", 1, "train", 0.5, f"g{index}", {}) for index in range(count)]


@given(st.sets(st.integers(0, 19)), st.floats(0.0, 1.0), st.integers(1, 25))
def test_the_share_of_solved_problems_is_kept(solved: set[int], share: float, count: int) -> None:
    drawn = problems(20)
    names = {f"p{index:02d}" for index in solved}
    chosen = curriculum.mixed(drawn, names, share, count)
    again = [problem for problem in chosen if problem.problem_id in names]
    assert len(chosen) == len({problem.problem_id for problem in chosen}) <= count
    assert len(again) == min(len(solved), int(share * count))
    assert len(chosen) - len(again) == min(20 - len(solved), count - len(again)), "all that is left is unsolved"


def publish(layout: Layout, generation: int, attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """An attempts table as an older generation's in DVC's cache; its entry in lineage/tried.json."""
    draft = layout.tmp / f"attempts-{generation}.parquet"
    draft.parent.mkdir(parents=True, exist_ok=True)
    write_file(draft, attempts, ATTEMPTS)
    md5 = file_md5(draft)
    target = object_path(layout.root, md5)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(draft, target)
    return {"generation": generation, "files": [{"md5": md5}]}


@pytest.fixture
def solved(layout: Layout) -> set[str]:
    """The first ten training problems were solved, in two generations; two more were tried in vain."""
    names = [problem.problem_id for problem in read_problems(layout.problems, ["train"])]
    entries = [
        publish(layout, 1, [row(0, name) for name in names[:6]] + [row(1, names[10], reward=0.0)]),
        publish(layout, 2, [row(0, name) for name in names[4:10]] + [row(1, names[11], reward=None)]),
    ]
    (layout.lineage / "tried.json").write_text(json.dumps({"generations": entries}))
    return set(names[:10])


def test_solved_problems_retire(layout: Layout, tiny: Params, solved: set[str]) -> None:
    assert curriculum.solved_before(tiny, layout) == solved
    for share, expected in ((0.0, 0), (0.25, 2), (1.0, 8)):
        section = parameters.Generate(problems=8, solved_share=share)
        chosen = curriculum.chosen(tiny.model_copy(update={"generate": section}), layout)
        assert len(chosen) == 8
        assert sum(problem.problem_id in solved for problem in chosen) == expected
        assert [p.problem_id for p in chosen] == sorted(p.problem_id for p in chosen)


def test_without_a_share_the_draw_does_not_look(layout: Layout, tiny: Params, solved: set[str]) -> None:
    with_history = curriculum.chosen(tiny, layout)
    (layout.lineage / "tried.json").write_text(json.dumps({"generations": []}))
    assert curriculum.chosen(tiny, layout) == with_history
