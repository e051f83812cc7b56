"""How much the next label search should draw, by the newest attempts: counted by hand from the registry's own rows."""

from __future__ import annotations

import statistics

import pytest

from flows.sweeps import label_budget
from flows.sweeps.label_budget import LabelBudget
from storage.registry import Registry
from storage.views import query
from tests.storage.conftest import made  # noqa: F401 (a fixture)


def test_the_newest_attempts_count(made: dict[int, Registry]) -> None:  # noqa: F811
    registry = made[4]
    found = label_budget.newest(registry, threshold=1.0, per_problem=4)
    attempts = list(query(registry, "SELECT generation, problem_id, reward FROM attempts").rows)
    newest = max(row["generation"] for row in attempts)
    right: dict[str, int] = {}
    drawn: dict[str, int] = {}
    for row in attempts:
        if row["generation"] == newest:
            drawn[row["problem_id"]] = drawn.get(row["problem_id"], 0) + 1
            right[row["problem_id"]] = right.get(row["problem_id"], 0) + (row["reward"] == 1.0)
    assert found is not None
    assert found.generation == newest
    # Best-of-N draws as many for every problem; in this sample some have one more, and the others are looked at.
    assert found.samples == statistics.mode(drawn.values()) >= 2
    right = {problem: count for problem, count in right.items() if drawn[problem] == found.samples}
    assert found.yields[-1].solved == pytest.approx(sum(count > 0 for count in right.values()))
    assert found.yields[-1].kept == pytest.approx(sum(min(count, 4) for count in right.values()))
    assert found.yields[0].solved == pytest.approx(sum(right.values()) / found.samples)


def test_nothing_is_known_before_a_search(made: dict[int, Registry]) -> None:  # noqa: F811
    assert label_budget.newest(made[0], threshold=1.0, per_problem=4) is None


@pytest.mark.parametrize(
    ("best", "planned", "drawn"),
    # What the attempts do not tell, more samples than were drawn, is the plan's to say.
    [(4, 32, 4), (4, 2, 4), (16, 8, 16), (16, 16, 16), (16, 32, 32)],
)
def test_a_plan_is_followed_where_the_attempts_cannot_tell(best: int, planned: int, drawn: int) -> None:
    samples, why = LabelBudget(3, 16, best, ()).follow(planned)
    assert samples == drawn
    assert f"draws {drawn}" in why
