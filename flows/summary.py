"""What a campaign came to, in a sentence and a table: did the student overtake the search, and when is it paid back?

Read from the tables of the registry's head: paired by problem on test, intervals clustered by the problems' groups.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flows.amortize import model_of
from flywheel.evaluation import intervals
from flywheel.evaluation.intervals import Interval
from flywheel.scaling.amortization import BreakEven, at_budgets, at_equal_accuracy
from flywheel.scaling.ways import Model
from storage.ledger import INVESTED
from storage.registry import Registry
from storage.views import query

_OUTCOMES = """
    SELECT generation, problem_id, "group", metric, budget, value, flops
    FROM outcomes WHERE split = 'test' AND generation IN ({first}, {last})
    ORDER BY problem_id, metric, budget
"""
_SPENT = """
    SELECT stage, sum(flops_policy + flops_prefill + flops_reward + flops_training + flops_padding) AS flops
    FROM ledger
    WHERE stage IN ('generate', 'train', 'supervise', 'evaluate') AND generation <= {last}
        AND (generation > {first} OR stage = 'supervise')
    GROUP BY stage
"""


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of a registry; FLOPs are executed ones, padding included. `difference` is student minus search."""

    generation: int
    budget: int
    student: Interval
    search: Interval
    difference: Interval
    investment_flops: float
    """Search and training of all generations after the first, up to the student's, and all reward models: the first
    generation's judges the next one's search."""
    evaluation_flops: float
    break_even: BreakEven
    at_budgets: list[BreakEven]
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """JSON; `break_even` is a row a budget: that at equal accuracy is the sentence's and `flows.amortize`'s."""
        values = asdict(self)
        values["break_even"] = [
            {"comparison": f"a search of {row.budget:.0f}", **asdict(row)} for row in self.at_budgets
        ]
        del values["at_budgets"]
        return values


def summarise(registry: Registry, rows: list[dict[str, Any]], budget: int) -> Summary | None:
    """Compare the champion at the head with generation 0's search of `budget` samples; None before generation 1.

    Where generation 0 is still the champion, the head's student stands in, and the sentence says so.
    `rows` is `history(registry)`.
    """
    line = [row for row in rows if row["status"] != "abandoned"]
    if len(line) < 2:
        return None
    first, last = line[0]["generation"], line[-1]["champion"]
    if isinstance(last, dict):
        last = last["generation"]
    promoted = last != first
    if not promoted:
        last = line[-1]["generation"]
    outcomes = list(query(registry, _OUTCOMES.format(first=first, last=last)).rows)
    cells = {(row["generation"], row["problem_id"], row["metric"], row["budget"]): row for row in outcomes}
    problems = sorted({row["problem_id"] for row in outcomes})
    # The search is generation 0's: a later one may be judged by another reward, at other budgets.
    measured = {row["metric"] for row in outcomes if row["generation"] == first}
    best = next(metric for metric in ("best", "oracle", "majority", "search") if metric in measured)
    budgets = sorted({row["budget"] for row in outcomes if row["metric"] == best and row["generation"] == first})
    budget = max((held for held in budgets if held <= budget), default=budgets[0])
    groups = [cells[last, problem, "greedy", 1]["group"] for problem in problems]
    student = [cells[last, problem, "greedy", 1] for problem in problems]
    search = [cells[first, problem, best, budget] for problem in problems]
    difference = intervals.mean(
        [mine["value"] - theirs["value"] for mine, theirs in zip(student, search, strict=True)], groups
    )
    # Generations off the line cost too: a rolled-back one was paid for.
    spent = {row["stage"]: row["flops"] for row in query(registry, _SPENT.format(first=first, last=last)).rows}
    investment = sum(spent.get(stage, 0.0) for stage in INVESTED)
    old = _model(cells, problems, first)
    accuracy, price = _mean(student, "value"), _mean(student, "flops")
    student_share = intervals.share([row["value"] for row in student], groups)
    search_share = intervals.share([row["value"] for row in search], groups)
    even = at_equal_accuracy(old, accuracy, price, investment)
    return Summary(
        generation=last,
        budget=budget,
        student=student_share,
        search=search_share,
        difference=difference,
        investment_flops=investment,
        evaluation_flops=spent.get("evaluate", 0.0),
        break_even=even,
        at_budgets=at_budgets(old, budgets, accuracy, price, investment),
        sentence=_sentence(
            last, promoted, first, budget, student_share, search_share, difference, investment, even, best == "search"
        )
        + (_overtaken(registry, line, first, budget) if best == "search" else ""),
    )


def _overtaken(registry: Registry, line: list[dict[str, Any]], first: int, budget: int) -> str:
    """From which generation on the network alone is better on test than generation 0 with its search."""
    rows = query(
        registry,
        'SELECT a.generation, a.value - b.value AS difference, a."group" AS cluster FROM outcomes a JOIN outcomes b'
        f" USING (problem_id) WHERE a.split = 'test' AND a.metric = 'greedy' AND b.metric = 'search' AND b.budget ="
        f" {budget} AND b.generation = {first} ORDER BY a.generation, problem_id",
    )
    by_generation: dict[int, tuple[list[float], list[str]]] = {}
    for row in rows.rows:
        values, groups = by_generation.setdefault(row["generation"], ([], []))
        values.append(row["difference"])
        groups.append(row["cluster"])
    led_here = [row["generation"] for row in line]
    better = [n for n, (values, groups) in by_generation.items() if intervals.mean(values, groups).low > 0]
    begun = next((n for k, n in enumerate(led_here) if set(led_here[k:]) <= set(better)), None)
    if begun is None:
        return ""
    return f" The network alone is better than that search from generation {begun} on."


def _model(cells: dict[Any, dict[str, Any]], problems: list[str], first: int) -> Model:
    """Generation 0, at once and by its search."""
    keys = {(metric, budget) for generation, _, metric, budget in cells if generation == first}
    columns = {}
    for key in keys:
        rows = [cells[first, problem, *key] for problem in problems]
        columns[key] = (np.array([row["value"] for row in rows]), np.array([row["flops"] for row in rows]))
    return model_of(f"gen/{first}", 0.0, columns)


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(sum(row[key] for row in rows) / len(rows))


def _sentence(
    last: int,
    promoted: bool,
    first: int,
    budget: int,
    student: Interval,
    search: Interval,
    difference: Interval,
    investment: float,
    even: BreakEven,
    board: bool,
) -> str:
    """In words. On a board the student is a network that plays at once, and its test problems are won positions."""
    verdict = (
        "beats" if difference.low > 0 else "falls short of" if difference.high < 0 else "cannot be told apart from"
    )
    queries = "moves" if board else "queries"
    if even.queries is None:
        paid = f"no number of {queries} pays it back, since the search is the cheaper one"
    elif even.reached:
        paid = f"it pays for itself after {even.queries:,.0f} {queries}, at equal accuracy"
    else:
        paid = (
            f"it pays for itself after at most {even.queries:,.0f} {queries} "
            f"(a search of {even.budget:.0f} reaches only {even.search_accuracy:.1%})"
        )
    return (
        f"The {'network' if board else 'student'} of generation {last}{'' if promoted else ' (not promoted)'}, "
        f"{'playing' if board else 'answering'} at once, {verdict} generation {first} with a search of {budget}: "
        f"{'it keeps the win in ' if board else ''}{student.value:.1%} against {search.value:.1%} of {student.count} "
        f"test {'positions' if board else 'problems'} "
        f"(difference {100 * difference.value:+.1f} points, 95 % interval {100 * difference.low:+.1f} to "
        f"{100 * difference.high:+.1f}); the search and training cost {investment:.3g} FLOPs; {paid}."
    )
