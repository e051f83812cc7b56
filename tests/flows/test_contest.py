"""Contests at equal compute: means, ranks, regret and paired differences against a table written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.sweeps import contest, definition, fitting, results
from flows.sweeps.definition import Contest
from flywheel.errors import ConfigError, InputError
from storage.tables import write_table

GROUPS = ["a", "a", "b", "c"]


def row(cell: str, seed: int, generation: int, outcomes: list[float], flops: float) -> dict[str, Any]:
    held: dict[str, Any] = dict.fromkeys(results.RESULTS.names)
    return held | {
        "family": "f", "cell": cell, "seed": seed, "generation": generation, "domain": "countdown",
        "held_back": False, "run": f"f-{cell}-seed-{seed}", "metric": "greedy", "budget": 0,
        "value": sum(outcomes) / 4, "label_flops": flops / 4, "training_flops": flops / 2,
        "reward_model_flops": flops / 4, "outcomes": outcomes,
    }  # fmt: skip


PLAN = Contest(reference="plan")


def written(
    folder: Path,
    rows: list[dict[str, Any]],
    section: Contest = PLAN,
    asked: list[tuple[str, int, int]] | None = None,
) -> Path:
    """Both tables; what the sweep makes is what is there, or `asked`: cell, seed, generations."""
    table = pa.Table.from_pylist(rows, schema=results.RESULTS)
    runs = asked or [(cell, seed, last) for (cell, seed), last in newest(rows).items()]
    metadata = {
        "flywheel.note": "said", "flywheel.contest": section.model_dump_json(), "flywheel.runs": json.dumps(runs),
    }  # fmt: skip
    table = table.replace_schema_metadata(metadata)
    write_table(folder / "results.parquet", table)
    problems = [{"family": "f", "problem_id": str(k), "group": group} for k, group in enumerate(GROUPS)]
    write_table(folder / "problems.parquet", pa.Table.from_pylist(problems, schema=results.PROBLEMS))
    return folder


def newest(rows: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for each in rows:
        key = each["cell"], each["seed"]
        found[key] = max(each["generation"], found.get(key, 0))
    return found


ROWS = [
    row("plan", 0, 0, [0, 0, 0, 0], 1.0), row("plan", 0, 2, [1, 1, 0, 1], 8.0), row("plan", 1, 2, [1, 0, 1, 1], 8.0),
    row("other", 0, 1, [1, 0, 0, 0], 10.0), row("other", 1, 1, [1, 0, 1, 0], 10.0),
    row("best", 0, 1, [1, 1, 1, 1], 8.0), row("best", 1, 1, [1, 1, 1, 0], 8.0),
]  # fmt: skip


def test_ranks_regret_and_differences_are_of_the_last_generations(tmp_path: Path) -> None:
    found = contest.held(written(tmp_path, ROWS), PLAN, 200)
    assert [(each.name, each.rank, each.seeds) for each in found.contenders] == [
        ("best", 1, 2), ("plan", 2, 2), ("other", 3, 2),
    ]  # fmt: skip
    best, plan, other = found.contenders
    assert (best.accuracy.value, plan.accuracy.value, other.accuracy.value) == (7 / 8, 6 / 8, 3 / 8)
    assert (best.regret, plan.regret, other.regret) == (0.0, 1 / 8, 4 / 8)
    assert plan.difference is None
    assert best.difference is not None
    assert best.difference.value == pytest.approx(-1 / 8)
    assert (plan.label_flops, plan.training_flops, plan.queries_flops, plan.flops) == (2.0, 6.0, 0.0, 8.0)
    assert found.unequal == pytest.approx(0.25)
    assert plan.by_seed == (3 / 4, 3 / 4)
    assert other.difference is not None
    assert other.difference.low < 3 / 8 < other.difference.high


def test_fit_tells_a_contest_from_other_sweeps(tmp_path: Path) -> None:
    written(tmp_path, ROWS)
    fitted = fitting.fit(tmp_path, tmp_path / "out", draws=20)
    said = fitted.section(Path())
    assert said.startswith("said\n\n| rank |")
    assert "| 2 | **plan** | at once | 2 | 6 | 8 | 75.0% |" in said
    assert "at most 25% off those of plan" in said


def test_a_contest_whose_runs_are_not_all_made_is_refused(tmp_path: Path) -> None:
    whole = [(cell, seed, last) for (cell, seed), last in newest(ROWS).items()]
    for more, named in (
        (("plan", 2, 2), "1 of the 7 runs and controls of .* are not done, plan with seed 2: let"),
        (("never", 0, 1), "never with seed 0: let"),
        (("plan+no-search", 0, 2), r"plan\+no-search with seed 0: let"),
    ):
        with pytest.raises(InputError, match=named):
            contest.held(written(tmp_path, ROWS, asked=[*whole, more]), PLAN, 20)
    # All seeds equally far behind what the sweep makes.
    short = [(cell, seed, last + (cell == "other")) for cell, seed, last in whole]
    with pytest.raises(InputError, match=r"2 of the 6 runs .*other with seed 0, other with seed 1: let"):
        contest.held(written(tmp_path, ROWS, asked=short), PLAN, 20)


def test_the_tuned_search_answers_as_it_does(tmp_path: Path) -> None:
    tuned = [row("plan+tuned-search", seed, 2, [1, 1, 0, 0], 1.0) | {"metric": "best", "budget": 16} for seed in (0, 1)]
    found = contest.held(written(tmp_path, [*ROWS, *tuned]), PLAN, 20)
    assert [each.name for each in found.contenders] == ["best", "plan", "plan+tuned-search", "other"]


def test_a_table_that_does_not_say_its_runs_or_has_no_reference_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, ROWS)
    with pytest.raises(InputError, match="no results of gone"):
        contest.held(folder, Contest(reference="gone"), 20)
    table = results.read(folder).replace_schema_metadata({"flywheel.contest": PLAN.model_dump_json()})
    write_table(folder / "results.parquet", table)
    with pytest.raises(InputError, match="does not say which runs"):
        contest.held(folder, PLAN, 20)


def test_cells_that_are_alike_tell_so(tmp_path: Path) -> None:
    """Equal outcomes in all draws: no regret by chance. Else what the highest of equal noisy means is too high by."""
    same = [row(cell, seed, 1, [1, 0, 1, seed], 8.0) for cell in ("plan", "other") for seed in range(2)]
    found = contest.held(written(tmp_path, same), PLAN, 200)
    assert [each.regret for each in found.contenders] == [0.0, 0.0]
    random = np.random.default_rng(0)
    cells = ["plan", *(f"c{k}" for k in range(5))]
    groups = [str(k) for k in range(200)]
    regrets, told = [], []
    for _ in range(40):
        rows = [row(cell, seed, 1, (random.random(200) < 0.4).astype(float).tolist(), 8.0)
                for cell in cells for seed in range(3)]  # fmt: skip
        written(tmp_path, rows)
        problems = [{"family": "f", "problem_id": name, "group": name} for name in groups]
        write_table(tmp_path / "problems.parquet", pa.Table.from_pylist(problems, schema=results.PROBLEMS))
        found = contest.held(tmp_path, PLAN, 200)
        assert sum(each.best for each in found.contenders) == pytest.approx(1.0)
        regrets.append(np.mean([each.regret for each in found.contenders]))
        told.append(found.chance_regret)
    # Too much rather than too little: outcomes here are chance of seed and problem together alone.
    assert np.mean(regrets) < np.mean(told) < np.sqrt(3.0) * np.mean(regrets)


def test_a_reference_must_be_one_cell(tmp_path: Path) -> None:
    path = tmp_path / "contest.yaml"
    text = (
        "preset: hex-3\ncontest: {reference: gone}\nfamilies: {f: {cells: {a: {}, b: {}}, legs: [{generations: 1}]}}\n"
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="contest: got cells gone"):
        definition.load(str(path))


def test_other_problems_are_refused(tmp_path: Path) -> None:
    written(tmp_path, [ROWS[1], ROWS[5] | {"family": "g"}])
    problems = [{"family": family, "problem_id": f"{family}{k}", "group": "a"} for family in "fg" for k in range(4)]
    write_table(tmp_path / "problems.parquet", pa.Table.from_pylist(problems, schema=results.PROBLEMS))
    with pytest.raises(InputError, match="different problems"):
        contest.held(tmp_path, PLAN, 9)


def test_intervals_cover_what_new_seeds_would_give(tmp_path: Path) -> None:
    """Two cells that are alike, whose runs differ by chance: an interval of problems alone would cover 0 too seldom."""
    random = np.random.default_rng(4)
    groups = [str(k) for k in range(60)]
    covered = 0
    for _ in range(60):
        rows = []
        for cell in ("plan", "other"):
            for seed in range(3):
                chance = 0.5 + random.normal(0.0, 0.08)
                rows.append(row(cell, seed, 1, (random.random(60) < chance).astype(float).tolist(), 8.0))
        written(tmp_path, rows)
        problems = [{"family": "f", "problem_id": name, "group": name} for name in groups]
        write_table(tmp_path / "problems.parquet", pa.Table.from_pylist(problems, schema=results.PROBLEMS))
        difference = next(c.difference for c in contest.held(tmp_path, PLAN, 200).contenders if c.name == "other")
        assert difference is not None
        covered += difference.low <= 0.0 <= difference.high
    assert covered >= 52


def test_queries_cost_and_cells_answer_as_the_contest_says(tmp_path: Path) -> None:
    sampled = row("other", 0, 1, [1, 1, 1, 1], 10.0) | {"metric": "pass", "budget": 16, "query_flops": 5.0}
    rows = [each | {"query_flops": 2.0} for each in (ROWS[1], ROWS[3])] + [sampled]
    section = Contest(reference="plan", queries=3, answers={"other": 16})
    other, plan = contest.held(written(tmp_path, rows, section), section, 20).contenders
    assert (other.name, other.budget, other.accuracy.value, other.queries_flops) == ("other", 16, 1.0, 15.0)
    assert (plan.budget, plan.queries_flops, plan.flops) == (0, 6.0, 14.0)
