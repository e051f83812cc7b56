"""Whether two makings of a generation agree in distribution: paired tests by problem.

Where last bits may differ (other threads, versions, a GPU, a server), so may samples, and what can be asked is whether
the two differ by more than chance. Both makings tried the same problems, so each quantity is compared problem by
problem: the mean difference against 0, by Student's t with variance clustered by the problems' groups
(`flywheel.evaluation.intervals`). Several answers to a problem are not independent, so that a test of two proportions
over attempts would call too much a difference. The tests share a false alarm of 5 % (Bonferroni).

That no difference was found is not proof that there is none: the intervals say how large one could be.
"""

from __future__ import annotations

import math
import uuid
from pathlib import Path
from typing import Any

from flywheel.evaluation import intervals
from storage.views import MEMORY_LIMIT

LEVEL = 0.05
"""Chance of a false alarm over all tests together."""
TEST = "paired t test by problem, clustered by group"

Tables = dict[str, list[Path]]
"""Table -> its files."""

_BY_PROBLEM = {
    "greedy accuracy": (
        ("outcomes",),
        "SELECT split || problem_id AS name, any_value(\"group\") AS cluster, avg(value) AS value FROM {outcomes} "
        "WHERE metric = 'greedy' GROUP BY 1",
    ),
    "mean reward of attempts": (
        ("attempts", "problems"),
        'SELECT problem_id AS name, any_value("group") AS cluster, avg(reward) AS value FROM {attempts} '
        "JOIN {problems} USING (problem_id) WHERE reward IS NOT NULL GROUP BY 1",
    ),
    "labels kept of a problem's attempts": (
        ("attempts", "labels", "problems"),
        'SELECT problem_id AS name, any_value("group") AS cluster, coalesce(any_value(kept), 0)::DOUBLE AS value '
        "FROM {attempts} LEFT JOIN (SELECT problem_id, count(*) AS kept FROM {labels} GROUP BY 1) USING (problem_id) "
        "JOIN {problems} USING (problem_id) GROUP BY 1",
    ),
    "mean score of labelled steps": (
        ("step_labels", "problems"),
        'SELECT problem_id AS name, any_value("group") AS cluster, avg(list_avg(scores)) AS value FROM {step_labels} '
        "JOIN {problems} USING (problem_id) GROUP BY 1",
    ),
}  # fmt: skip
"""Quantity -> the tables that it takes, and its value for each problem."""
TABLES = tuple(dict.fromkeys(name for names, _ in _BY_PROBLEM.values() for name in names))


def tests(recorded: Tables, here: Tables, scratch: Path) -> list[dict[str, Any]]:
    """A test for each quantity that both makings have of at least two groups of problems.

    {"test", "of": the quantity, "value", "low", "high": mean difference, here minus recorded, with its 95 % interval,
    "count": problems, "p"}. Problems that only one of the two tried are left out.
    """
    import duckdb

    found = []
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute("SET temp_directory = $folder", {"folder": str(scratch / f"tests-{uuid.uuid4().hex[:8]}")})
        for quantity, (names, sql) in _BY_PROBLEM.items():
            if not all(side.get(name) for side in (recorded, here) for name in names):
                continue
            old, new = (sql.format(**{name: _read(name, side[name]) for name in names}) for side in (recorded, here))
            paired = f"SELECT a.cluster, b.value - a.value FROM ({old}) a JOIN ({new}) b USING (name) ORDER BY name"
            rows = connection.execute(paired).fetchall()
            tested = _test([value for _, value in rows], [cluster for cluster, _ in rows])
            if tested is not None:
                found.append({"test": TEST, "of": quantity, **tested})
    return found


def timeouts(tables: Tables) -> int:
    """Attempts whose judge did not finish, in those files of theirs that are there."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    files = [path for path in tables.get("attempts", []) if path.exists()]
    columns = [pq.read_table(path, columns=["status"], partitioning=None).column("status") for path in files]
    return sum(pc.sum(pc.equal(column, "timeout")).as_py() or 0 for column in columns)


def same_rows(count: int) -> dict[str, Any]:
    """In the place of tests where all `count` rows are the same, in files of other bytes."""
    return {"test": "equality", "of": "all rows", "value": 0.0, "low": 0.0, "high": 0.0, "count": count, "p": 1.0}


def agree(found: list[dict[str, Any]]) -> bool:
    """Whether none of the tests tells the two makings apart; False where there was nothing to test."""
    return bool(found) and all(test["p"] >= LEVEL / len(found) for test in found)


def _test(differences: list[float], groups: list[str]) -> dict[str, Any] | None:
    """Mean difference, its interval, and the p value of its being 0; None of fewer than two groups."""
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

    clusters = len(set(groups))
    if clusters < 2:
        return None
    found = intervals.mean(differences, groups)
    error = (found.high - found.low) / 2.0 / float(stdtrit(clusters - 1, 0.975))
    if error == 0.0:
        p = 1.0 if math.isclose(found.value, 0.0, abs_tol=1e-15) else 0.0
    else:
        p = 2.0 * float(stdtr(clusters - 1, -abs(found.value) / error))
    return {**found.as_dict(), "p": p}


def _read(name: str, files: list[Path]) -> str:
    paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    return f"(FROM read_parquet([{paths}], hive_partitioning = false)) AS {name}"
