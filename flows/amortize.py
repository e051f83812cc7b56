"""From which number of queries on each generation has been the cheaper one, and what all of them cost together.

Read from the tables of the registry's head: outcomes on test and the ledger, by one query. The mathematics is in
`flywheel.scaling.amortization`; FLOPs are executed ones, padding included, those of evaluations left out.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel import seeds
from flywheel.errors import InputError
from flywheel.scaling.amortization import (
    Row,
    Way,
    amortize,
    at_budget,
    common_target,
    estimate,
    payback,
    reaching,
    total_cost,
)
from flywheel.scaling.ways import Floats, Model, measured, resampled, sampled
from storage.ledger import INVESTED

if TYPE_CHECKING:
    from storage.registry import Registry

DRAWS = 1000
"""Of the bootstrap."""
_READ = """
    SELECT generation, metric, budget, list(problem_id ORDER BY problem_id) AS problems,
        list("group" ORDER BY problem_id) AS groups, list(value ORDER BY problem_id) AS solved,
        list(flops ORDER BY problem_id) AS flops
    FROM outcomes WHERE split = 'test' AND metric IN ('greedy', 'search', 'right', 'pass') GROUP BY ALL
    UNION ALL
    SELECT DISTINCT generation, metric, 0, NULL, NULL, NULL, NULL FROM outcomes WHERE metric IN ('best', 'weighted')
    UNION ALL
    SELECT generation, stage, 0, NULL, NULL, NULL,
        [sum(flops_policy + flops_prefill + flops_reward + flops_training + flops_padding)]
    FROM ledger WHERE stage IN {stages} GROUP BY ALL
"""

Columns = dict[tuple[str, int], tuple[Floats, Floats]]
"""(metric, budget) -> chances and FLOPs of the test problems."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The generations of a registry's line as models, and what has to be said of them."""

    models: list[Model]
    generations: list[int]
    groups: list[str]
    student: int
    """Which of the models is the champion, or, where that is the first one, the newest."""
    promoted: bool
    board: bool
    checked: bool
    """A checker accepts right answers at run time; where none does, that searches stop at one is a bound."""


def read(registry: Registry, rows: list[dict[str, Any]]) -> Measured:
    """`rows` is `history(registry)`. Raises InputError before generation 1 and where too little was measured."""
    from storage.views import query

    line = [row for row in rows if row["status"] != "abandoned"]
    if len(line) < 2:
        held = f"only {_name(line[0]['generation'])}" if line else "no generation"
        raise InputError(
            f"{registry.root} holds {held}, expected two at least: there is nothing yet that was invested to be paid "
            "back; make more with `flywheel run`"
        )
    found: dict[int, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in query(registry, _READ.format(stages=INVESTED)).rows:
        found.setdefault(row["generation"], {})[row["metric"], row["budget"]] = row
    first, champion = line[0]["generation"], line[-1]["champion"]
    numbers = [row["generation"] for row in line if _searched(found.get(row["generation"], {}))]
    if first not in numbers or len(numbers) < 2:
        raise InputError(
            f"{registry.root} says of too few generations what they do on test at once and by search (of "
            f"{', '.join(map(_name, numbers)) or 'none'}), expected {_name(first)} and one more"
        )
    problems = sorted(set.intersection(*({*found[number]["greedy", 1]["problems"]} for number in numbers)))
    if not problems:
        raise InputError(f"the generations of {registry.root} have no test problem in common: they cannot be compared")
    greedy = found[first]["greedy", 1]
    group = dict(zip(greedy["problems"], greedy["groups"], strict=True))
    models = []
    for number in numbers:
        # Generations off the line cost too: a rolled-back one was paid for.
        invested = math.fsum(
            row["flops"][0]
            for other, entries in found.items()
            for (stage, _), row in entries.items()
            if stage in INVESTED and other <= number and (other > first or stage == "supervise") and number != first
        )
        columns = {key: _columns(row, problems) for key, row in found[number].items() if row["problems"] is not None}
        models.append(model_of(_name(number), invested, columns))
    later = champion if champion != first and champion in numbers else numbers[-1]
    return Measured(
        models,
        numbers,
        [group[problem] for problem in problems],
        numbers.index(later),
        champion != first,
        ("right" not in {metric for metric, _ in found[first]}),
        all(("best", 0) in found[number] and ("weighted", 0) not in found[number] for number in numbers),
    )


def model_of(name: str, investment_flops: float, columns: Columns) -> Model:
    """A generation's model: of texts by how many samples were right, on a board by what its searches did."""
    at_once = columns["greedy", 1]
    samples = max((budget for metric, budget in columns if metric == "right"), default=0)
    if not samples:
        budgets = [1, *sorted(budget for metric, budget in columns if metric == "search" and budget > 1)]
        cells = [at_once, *(columns["search", budget] for budget in budgets[1:])]
        solved, flops = (np.column_stack(part) for part in zip(*cells, strict=True))
        return measured(name, investment_flops, budgets, solved, flops)
    right, whole = columns["right", samples]
    # The price of k samples is prompt + k * sample; two budgets give the two unknowns.
    fewer = min((budget for metric, budget in columns if metric == "pass" and budget < samples), default=0)
    part = columns["pass", fewer][1] if fewer else np.zeros_like(whole)
    sample = (whole - part) / (samples - fewer)
    return sampled(name, investment_flops, at_once, samples, right, whole - samples * sample, sample)


def amortized(
    registry: Registry, rows: list[dict[str, Any]], target: float | None = None, draws: int = DRAWS
) -> dict[str, Any]:
    """What `flywheel amortize` says, as plain values: `sentence`, `target`, `rows`, one a generation, and `curves`.

    `target` is an accuracy on test; by default the student's at once or, where generation 0 cannot reach that, all
    that it can. Infinite queries stand for never. Raises InputError as `read` does, and where nothing reaches the
    target.
    """
    if target is not None and not 0 < target <= 1:
        raise InputError(f"got a target of {target:g}, expected an accuracy above 0 and up to 1, such as 0.6")
    return document(read(registry, rows), target, draws)


def document(
    held: Measured, target: float | None = None, draws: int = DRAWS, weights: Floats | None = None
) -> dict[str, Any]:
    """`amortized` of what was read; `weights` [1 + draws, problems] where the bootstrap is the caller's own."""
    if weights is None:
        weights = resampled(held.groups, draws, seeds.generator(0, "amortization"))
    first, student = held.models[0], held.models[held.student]
    wanted = common_target(student, first, weights) if target is None else np.full(len(weights), target)
    ways = [reaching(model, weights, wanted) for model in held.models]
    table = amortize(ways)
    most = [float(model.means(weights[:1])[0].max()) for model in held.models]
    best = held.models[int(np.argmax(most))]
    reach = f"{best.name} comes to at most {max(most):.1%}, with any budget up to {best.largest}"
    if wanted[0] <= 0:
        raise InputError(
            f"{student.name} at once or {first.name} with any budget solves nothing on test: no accuracy to compare "
            f"at; give one with --target ({reach})"
        )
    if not any(row.reached for row in table):
        raise InputError(f"no generation reaches {wanted[0]:.1%} on test: {reach}; give a lower --target")
    lines = [way for way in ways if way.reached[0]]
    own = [
        at_budget(model, weights, budget) for model in (first, student) for budget in dict.fromkeys((0, model.largest))
    ]
    at_once = float(student.solved[:, 0].mean())
    return {
        "sentence": _sentence(held, table, float(wanted[0]), target is None, at_once > wanted[0] + 1e-12),
        "target": asdict(estimate(wanted)),
        "problems": len(held.groups),
        "groups": len(set(held.groups)),
        "draws": draws,
        "board": held.board,
        "rows": [
            {"generation": number, "most": top, "student": index == held.student, **asdict(row)}
            for index, (number, top, row) in enumerate(zip(held.generations, most, table, strict=True))
        ],
        "curves": {
            "equal_accuracy": _curves(lines, lines[0], held, False),
            "per_solved": _curves(own, own[1] if first.largest else own[0], held, True),
        },
    }


def _searched(entries: dict[tuple[str, int], Any]) -> bool:
    metrics = {metric for metric, _ in entries}
    return "greedy" in metrics and bool(metrics & {"right", "search"})


def _columns(row: dict[str, Any], problems: list[str]) -> tuple[Floats, Floats]:
    place = {problem: index for index, problem in enumerate(row["problems"])}
    chosen = [place[problem] for problem in problems]
    return np.array(row["solved"], dtype=np.float64)[chosen], np.array(row["flops"], dtype=np.float64)[chosen]


def _curves(ways: list[Way], against: Way, held: Measured, per_solved: bool) -> dict[str, Any]:
    """Total cost against queries, and where each way gets below the one it is held against."""
    crossings = [None if way is against else payback(against, way, per_solved) for way in ways]
    marks = [crossing.queries.value for crossing in crossings if crossing and 0 < crossing.queries.value < math.inf]
    # Without a crossing: around the queries whose cost is the investment.
    marks = marks or [max(1.0, ways[-1].investment_flops / max(1.0, ways[-1].flops[0]))]
    low, high = math.floor(math.log10(min(marks) / 20)), math.ceil(math.log10(max(marks) * 20))
    queries = np.logspace(max(low, 0), max(high, 1), 6 * (max(high, 1) - max(low, 0)) + 1)
    drawn = []
    for way, crossing in zip(ways, crossings, strict=True):
        value, below, above = (part.tolist() for part in total_cost(way, queries, per_solved))
        at = crossing.queries.value if crossing else math.inf
        crossed = total_cost(way, np.array([at]), per_solved)[0] if 0 < at < math.inf else None
        drawn.append(
            {
                "model": way.model,
                "name": f"{way.model} {budget_words(float(way.budget[0]), held.board)}",
                "value": value,
                "low": below,
                "high": above,
                "crossing": asdict(crossing) if crossing else None,
                "crossing_flops": float(crossed[0]) if crossed is not None else None,
            }
        )
    return {"queries": queries.tolist(), "ways": drawn}


def budget_words(budget: float, board: bool) -> str:
    """A budget as a reader says it: `at once`, `with 11.3 samples`."""
    if budget == 0 or (board and budget == 1):
        return "at once"
    unit = "simulation" if board else "sample"
    text = f"{budget:.0f}" if math.isclose(budget, round(budget)) else f"{budget:.1f}"
    return f"with {text} {unit}{'' if text == '1' else 's'}"


def queries_words(queries: float) -> str:
    """A number of queries, or `never`."""
    return "never" if math.isinf(queries) else f"{queries:,.0f}"


def _name(generation: int) -> str:
    return f"gen/{generation}"


def _sentence(held: Measured, table: list[Row], target: float, default: bool, lowered: bool) -> str:
    """The answer in words."""
    first, student = table[0], table[held.student]
    asks = "moves" if held.board else "queries"
    did = "keep the win in" if held.board else "solve"
    tested = "test positions" if held.board else "test problems"
    status = "" if held.promoted else ", not promoted,"
    why = ""
    if default and lowered:
        why = f", the most that {first.name} reaches with any measured budget"
    elif default:
        why = f", what {student.name}{status} does at once"
    said = f"To {did} {target:.1%} of the {tested}{why}"
    if not first.reached:
        return (
            f"{said}, {first.name} has no measured budget that is enough, so that there is nothing to be paid back "
            f"against; {_needs([row for row in table if row.reached], held.board)}."
        )
    if not student.reached:
        reached = [row.name for row in table[1:] if row.reached]
        others = f"; of the later generations {', '.join(reached)} can" if reached else ""
        return f"{said}, {student.name} has no measured budget that is enough, {first.name} has{others}."
    assert student.against_first is not None
    bought = f"the {student.investment_flops:.3g} FLOPs of search and training between them"
    queries = student.against_first.queries
    if math.isinf(queries.value):
        paid = f"no number of {asks} pays back {bought}, since {first.name} is the cheaper one"
    else:
        # More accurate than was asked for, it gets no credit for that.
        most = "at most " if student.accuracy.value > target + 1e-9 else ""
        low, high = queries_words(queries.low), queries_words(queries.high)
        spread = "" if low == high else f" (95 % interval {low} to {high})"
        paid = f"{most}{queries.value:,.0f} {asks} pay back {bought}{spread}"
    bound = "" if held.board or held.checked else (
        ". Searches are taken to stop at a right answer, which here nothing tells them at run time: those to be had "
        "cost more, and are paid back sooner"
    )  # fmt: skip
    return f"{said}, {_needs([first, student], held.board)}: {paid}{bound}."


def _needs(rows: list[Row], board: bool) -> str:
    """`gen/0 with 11.3 samples takes 1.2e+09 FLOPs a query, gen/5 at once 8.1e+07`."""
    unit = "move" if board else "query"
    parts = [f"{row.name} {budget_words(row.budget.value, board)}" for row in rows]
    costs = [f"{row.flops.value:.3g}" for row in rows]
    begun = f"{parts[0]} takes {costs[0]} FLOPs a {unit}"
    return ", ".join([begun, *(f"{part} {cost}" for part, cost in zip(parts[1:], costs[1:], strict=True))])
