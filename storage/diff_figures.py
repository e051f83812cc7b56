"""Figures of two generations beside each other: rewards, reasons of rejection, metrics.

Metrics are compared by problem where both generations' outcomes are there: two students answered the same problems, so
the difference of each problem is what varies (`flywheel.evaluation.intervals`, clustered by the problems' groups).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.diff_rows import File, read

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BINS = 10
"""Of a histogram of rewards, of equal width."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_PAIRED = """
SELECT split, metric, budget, a."group", b.value - a.value, a.problem_id IS NOT NULL AND b.problem_id IS NOT NULL
FROM {before} a FULL JOIN {after} b USING (split, metric, budget, problem_id)
ORDER BY split, metric, budget, problem_id
"""


def rewards(connection: DuckDBPyConnection, before: list[File], after: list[File]) -> dict[str, Any]:
    """How the rewards of two sets of rows are spread.

    {"from", "to": {"count", "without": rows that got none, "mean", "low", "high", "quantiles": {"0.05": ...},
    "histogram": rows in each of BINS bins}, "bins": [lower edge of the first, upper edge of the last]}. The bins cover
    0 to 1, or what was observed where that is wider. Of no rewards, mean, low, high and quantiles are null.
    """
    sides = {"from": _spread(connection, before), "to": _spread(connection, after)}
    lows = [side["low"] for side in sides.values() if side["low"] is not None]
    highs = [side["high"] for side in sides.values() if side["high"] is not None]
    first, last = min([0.0, *lows]), max([1.0, *highs])
    for side, files in (("from", before), ("to", after)):
        sides[side]["histogram"] = _histogram(connection, files, first, last)
    return {**sides, "bins": [first, last]}


def _spread(connection: DuckDBPyConnection, files: list[File]) -> dict[str, Any]:
    row: tuple[Any, ...] | None = (0, 0, None, None, None, None)
    if files:
        sql = (
            f"SELECT count(*), count(reward), favg(reward), min(reward), max(reward), "
            f"quantile_cont(reward, {list(QUANTILES)}) FROM {read(files)}"
        )
        row = connection.execute(sql).fetchone()
    assert row is not None
    rows, count, mean, low, high, quantiles = row
    return {
        "count": count,
        "without": rows - count,
        "mean": mean,
        "low": low,
        "high": high,
        "quantiles": dict(zip(map(str, QUANTILES), quantiles or [None] * len(QUANTILES), strict=True)),
    }


def _histogram(connection: DuckDBPyConnection, files: list[File], first: float, last: float) -> list[int]:
    if not files:
        return [0] * BINS
    sql = (
        f"SELECT least({BINS - 1}, floor((reward - $first) / ($last - $first) * {BINS})::INT), count(*) "
        f"FROM {read(files)} WHERE reward IS NOT NULL GROUP BY 1"
    )
    found = dict(connection.execute(sql, {"first": first, "last": last}).fetchall())
    return [found.get(place, 0) for place in range(BINS)]


def reasons(connection: DuckDBPyConnection, before: list[File], after: list[File]) -> dict[str, dict[str, int]]:
    """Why attempts were rejected: {reason: {"from", "to"}}, the most frequent first. Of a board game the ply, by which
    a position is named, is left out."""
    counts: dict[str, dict[str, int]] = {}
    for side, files in (("from", before), ("to", after)):
        if files:
            sql = f"SELECT regexp_replace(reason, '^ply [0-9]+: ', ''), count(*) FROM {read(files)} GROUP BY 1"
            for reason, count in connection.execute(sql).fetchall():
                counts.setdefault(reason, {"from": 0, "to": 0})[side] = count
    return dict(sorted(counts.items(), key=lambda item: (-max(item[1].values()), item[0])))


def metrics(
    connection: DuckDBPyConnection, before: dict[str, Any], after: dict[str, Any], files: tuple[list[File], list[File]]
) -> dict[str, dict[str, Any]]:
    """Each metric of two metrics.json by split: {"from", "to": {value, low, high, count} or null, "difference"}.

    `difference` is {value, low, high, count, paired}: later minus earlier, with its 95 % interval and the number of
    problems where both generations were measured on the same ones (`paired`), else the values' difference alone; null
    for a metric that only one of the two has. `files`: both generations' tables `outcomes`.
    """
    paired = _paired(connection, *files) if all(files) else {}
    found: dict[str, dict[str, Any]] = {}
    for split in ("valid", "test", "elo"):
        old, new = before.get(split) or {}, after.get(split) or {}
        for name in dict.fromkeys((*old, *new)):
            sides = {"from": old.get(name), "to": new.get(name)}
            difference = None
            if name in old and name in new:
                difference = paired.get((split, name))
                if difference is None:
                    value = new[name]["value"] - old[name]["value"]
                    difference = {"value": value, "low": None, "high": None, "count": None, "paired": False}
            found.setdefault(split, {})[name] = {**sides, "difference": difference}
    return found


def _paired(
    connection: DuckDBPyConnection, before: list[File], after: list[File]
) -> dict[tuple[str, str], dict[str, Any]]:
    """(split, metric) -> difference, of those that were measured on the same problems."""
    from flywheel.evaluation import intervals
    from flywheel.evaluation.metrics import metric_key

    cells: dict[tuple[str, str], tuple[list[float], list[str]]] = {}
    unlike: set[tuple[str, str]] = set()
    sql = _PAIRED.format(before=read(before), after=read(after))
    for split, metric, budget, group, difference, both in connection.execute(sql).fetchall():
        key = (split, metric_key(metric, budget))
        values, groups = cells.setdefault(key, ([], []))
        if both:
            values.append(difference)
            groups.append(group)
        else:
            unlike.add(key)
    return {
        key: {**intervals.mean(values, groups).as_dict(), "paired": True}
        for key, (values, groups) in cells.items()
        if key not in unlike
    }
