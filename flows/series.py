"""What the report plots: the numbers of each drawing, taken from history rows, the ledger and the controls."""

from __future__ import annotations

import math
from typing import Any

from flows.figures import Band, Costs, Crossing, Line

LINES = 6
"""Generations drawn as lines of their own; more cannot be told apart."""

Row = dict[str, Any]


def on_test(row: Row) -> Row:
    """A generation's metrics on test, by key."""
    return (row["metrics"] or {}).get("test") or {}


def name_of(row: Row) -> str:
    """A generation's address: `gen/7`."""
    return f"gen/{row['generation']}"


def collapse_of(row: Row) -> Row:
    """A generation's signs of collapse."""
    return (row["metrics"] or {}).get("collapse") or {}


def present_of(history: list[Row]) -> Row:
    """The generation the registry stands at."""
    return next((row for row in history if row["status"] == "current"), history[-1])


def budgets(history: list[Row], kind: str) -> list[int]:
    """The N of `kind@N` that any generation was measured at, rising."""
    keys = {key for row in history for key in on_test(row)}
    return sorted(int(key.split("@")[1]) for key in keys if key.startswith(f"{kind}@"))


def metric_keys(history: list[Row]) -> list[str]:
    """Metrics worth a column and a line: greedy, and each kind of search at its largest budget.

    pass@N that equals best@N everywhere (a checker that needs no reference makes it so) is not shown twice.
    """
    keys = ["greedy"] if any("greedy" in on_test(row) for row in history) else []
    for kind in ("best", "search", "oracle", "weighted", "pass", "majority"):
        measured = budgets(history, kind)
        if not measured:
            continue
        key = f"{kind}@{measured[-1]}"
        twin = f"best@{measured[-1]}"
        if kind == "pass" and twin in keys and all(_same(on_test(row), key, twin) for row in history):
            continue
        keys.append(key)
    return keys


def _same(test: Row, one: str, other: str) -> bool:
    return (one in test) == (other in test) and (
        one not in test or abs(test[one]["value"] - test[other]["value"]) < 1e-9
    )


def drawings(
    history: list[Row], costs: list[Row], controls: list[Row], keys: list[str], matches: list[Row] | None = None
) -> list[Row]:
    """`{title, note, svg}` of every drawing there are numbers for. `matches` makes it a board game's."""
    from markupsafe import Markup

    from flows import figures

    led_here = [row for row in history if row["status"] != "abandoned"]
    left = [row for row in history if row["status"] == "abandoned"]
    shown = []
    measured = "Wins kept on test" if matches else "Solved on test"
    title = "Wins kept by generation" if matches else "Accuracy by generation"
    over = [line for key in keys if (line := _over_generations(led_here, key)).points]
    if over:
        aside = [line for key in keys[:1] if (line := _over_generations(left, key)).points]
        note = "Test problems solved by each student; shaded: 95 % interval."
        if matches:
            note = (
                "Test positions in which the move keeps the win, 1 minus the blunder rate, by the network alone "
                "(greedy) and by search; shaded: 95 % interval."
            )
        svg = figures.by_generation(over, aside, measured)
        shown.append({"title": title, "note": note, "svg": svg})
    if matches:
        shown += _ratings(matches)
    kind = next((kind for kind in ("best", "search") if budgets(led_here, kind)), "pass")
    lines = _over_budgets(_spread(led_here), kind)
    if any(point.x >= 1 for line in lines for point in line.points):
        words = {"best": "best of N by the reward", "search": "simulations a move"}.get(kind, "pass@N")
        few = "one line a generation" if len(led_here) <= LINES else f"{LINES} of {len(led_here)} generations"
        note = f"Greedy, then N {words}; {few}." if matches else f"Greedy, then N samples, {words}; {few}."
        axis = "Simulations a move" if matches else "Samples a problem at run time"
        svg = figures.by_budget(lines, kind, axis, measured)
        shown.append({"title": title.replace("generation", "runtime budget"), "note": note, "svg": svg})
    if costs:
        generations = sorted({row["generation"] for row in costs})
        stages: dict[str, list[float]] = {}
        for stage in _stage_order({row["stage"] for row in costs}):
            by = {row["generation"]: row["flops"] for row in costs if row["stage"] == stage}
            if any(by.values()):
                stages[stage] = [float(by.get(generation, 0.0)) for generation in generations]
        note = "Executed, padding and discarded attempts included."
        shown.append({"title": "Compute by stage", "note": note, "svg": figures.by_stage(generations, stages)})
    rows = _contenders(led_here, controls, kind)
    if len(rows) > 1:
        note = "Answers on test with 95 % intervals: the present student against what it has to beat."
        shown.append({"title": "Rivals and controls", "note": note, "svg": figures.comparison(rows, measured)})
    return [{**drawing, "svg": Markup(drawing["svg"])} for drawing in shown]


def costs(document: Row) -> list[Costs]:
    """The panels of `flows.amortize`'s curves: generations at equal accuracy, and ways at their own accuracies."""
    equal, own = document["curves"]["equal_accuracy"], document["curves"]["per_solved"]
    reached = [row["name"] for row in document["rows"] if row["reached"]]
    student = next((row["name"] for row in document["rows"] if row["student"]), "")
    named = [way for way in equal["ways"] if way["model"] in (reached[0], student)]
    between = [way for way in equal["ways"] if way not in named]
    # The student and what it is held against, and the two last of the others: more lines lie on top of one another.
    shown = [way for way in equal["ways"] if way in named or way in between[-2:]]
    kept = "a win kept" if document["board"] else "a solved query"
    what = f"All at {document['target']['value']:.1%} or more"
    age = {row["name"]: index / max(len(document["rows"]) - 1, 1) for index, row in enumerate(document["rows"])}
    # A way that solves nothing has no cost a solved query.
    solving = [way for way in own["ways"] if math.isfinite(way["value"][0])]
    panels = [_costs(equal["queries"], shown, age, what, "FLOPs in all")]
    if solving:
        title = "All at their own accuracies"
        panels.append(_costs(own["queries"], solving, age, title, f"FLOPs {kept}"))
    return panels


def _costs(queries: list[float], ways: list[Row], age: dict[str, float], title: str, measured: str) -> Costs:
    # A way that solves nothing in some draws has no upper bound.
    top = max(bound for way in ways for bound in (*way["value"], *way["high"]) if math.isfinite(bound))
    lines, crossings = [], []
    for way in ways:
        cells = zip(queries, way["value"], way["low"], [min(high, top) for high in way["high"]], strict=True)
        lines.append(Line(way["name"], tuple(Band(*cell) for cell in cells), ramp=age[way["model"]]))
        crossing = None
        if way["crossing_flops"] is not None:
            at = way["crossing"]["queries"]
            crossing = Crossing(at["value"], at["low"], at["high"], way["crossing_flops"])
        crossings.append(crossing)
    return Costs(title, measured, tuple(lines), tuple(crossings))


def _ratings(matches: list[Row]) -> list[Row]:
    """Elo over the generations from all games of the line together."""
    from flows import figures
    from flywheel.evaluation.ratings import rate

    counts = {(row["winner"], row["loser"]): float(row["count"]) for row in matches}
    players = {player for pair in counts for player in pair}
    anchor = "perfect" if "perfect" in players else "gen/0"
    if anchor not in players:
        return []
    lines: dict[str, list[Band]] = {}
    for player, elo in rate(counts, anchor).items():
        address, _, budget = player.partition("@")
        if address.startswith("gen/"):
            kind = f"{budget} simulations" if budget else "the network alone"
            lines.setdefault(kind, []).append(Band(int(address[4:]), elo.value, elo.low, elo.high))
    drawn = [Line(kind, tuple(sorted(points, key=lambda point: point.x))) for kind, points in sorted(lines.items())]
    words = "perfect play" if anchor == "perfect" else "generation 0's network"
    note = f"From all matches of the line together, by maximum likelihood; {words} at 0; shaded: 95 % interval."
    return [{"title": "Elo by generation", "note": note, "svg": figures.ratings(drawn, words)}]


def _over_generations(rows: list[Row], key: str) -> Line:
    points = [
        Band(row["generation"], metric["value"], metric["low"], metric["high"])
        for row in rows
        if (metric := on_test(row).get(key))
    ]
    return Line(key, tuple(points))


def _over_budgets(rows: list[Row], kind: str) -> list[Line]:
    """A line a generation; greedy stands at 1/2 on the log2 axis, where no number of samples is."""
    lines = []
    for index, row in enumerate(rows):
        test = on_test(row)
        found = [(0.5, test["greedy"])] if "greedy" in test else []
        found += [(n, test[f"{kind}@{n}"]) for n in budgets([row], kind)]
        points = tuple(Band(x, metric["value"], metric["low"], metric["high"]) for x, metric in found)
        lines.append(Line(name_of(row), points, ramp=index / max(len(rows) - 1, 1)))
    return lines


def _spread(rows: list[Row]) -> list[Row]:
    """At most LINES rows, first and last among them, evenly spread."""
    if len(rows) <= LINES:
        return rows
    return [rows[round(index * (len(rows) - 1) / (LINES - 1))] for index in range(LINES)]


def _stage_order(stages: set[str]) -> list[str]:
    usual = ["problems", "generate", "filter", "train", "evaluate", "publish"]
    return [stage for stage in usual if stage in stages] + sorted(stages - set(usual))


def _contenders(rows: list[Row], controls: list[Row], kind: str) -> list[tuple[str, Band]]:
    def band(metric: Row) -> Band:
        return Band(0.0, metric["value"], metric["low"], metric["high"])

    if not rows or "greedy" not in on_test(rows[-1]):
        return []
    shown = [(f"{name_of(rows[-1])} greedy", band(on_test(rows[-1])["greedy"]))]
    if len(rows) > 1:
        first = on_test(rows[0])
        keys = ["greedy", *(f"{kind}@{n}" for n in budgets(rows[:1], kind) if n > 1)]
        shown += [(f"{name_of(rows[0])} {key}", band(first[key])) for key in keys if key in first]
    for control in controls:
        if greedy := control["test"].get("greedy"):
            shown.append((control_name(control), band(greedy)))
    return shown


def control_name(control: Row) -> str:
    """`no_search`, seed 1 -> `no search, seed 1`."""
    seed = control.get("seed")
    return f"{str(control['name']).replace('_', ' ')}" + (f", seed {seed}" if seed is not None else "")
