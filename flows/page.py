"""The report's page from plain values: what is shown of each row, in which words and digits.

It knows neither the registry nor where the values come from. Everything from outside is escaped; the page loads nothing
from anywhere and says so in its content security policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flows.amortize import budget_words, queries_words
from flows.series import Row, collapse_of, control_name, costs, drawings, metric_keys, name_of, on_test, present_of


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page shows, as plain values."""

    name: str
    history: list[Row]
    """Rows of `storage.history.history`, oldest first."""
    costs: list[Row]
    """`generation`, `stage`, `flops` (executed), one row each."""
    controls: list[Row] = field(default_factory=list)
    """`{name, seed, test: {greedy: {value, low, high, count}}, flops}` each."""
    samples: list[Row] = field(default_factory=list)
    """Rows of `labels` with the problem's `payload`."""
    lineages: dict[int, str] = field(default_factory=dict)
    """Generation -> what its labels go back to, as text."""
    positions: list[Row] = field(default_factory=list)
    """Rows of `analyses` with the `reference` of their problem, of a board game."""
    matches: list[Row] = field(default_factory=list)
    """`winner`, `loser`, `count` over all generations of the line, of a board game."""
    amortization: Row | None = None
    """What `flows.amortize` says, where there is something to pay back."""


def render(facts: Facts, summary: dict[str, Any]) -> str:
    """The page as text. Everything from outside is escaped; plots are drawn here."""
    import importlib.resources

    from jinja2 import Environment, StrictUndefined

    from flows.figures import ramp_styles

    template = importlib.resources.files("flows").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    light, dark = ramp_styles()
    present = present_of(facts.history)
    keys = metric_keys(facts.history)
    return page.from_string(template).render(
        title=f"{facts.name}: {len(facts.history)} generation{'s' if len(facts.history) != 1 else ''}",
        sentence=(summary.get("sentence") or _sentence(present)).replace(" %", "\N{NO-BREAK SPACE}%"),
        facts=_headline(facts, present, keys),
        figures=drawings(facts.history, facts.costs, facts.controls, keys, facts.matches),
        positions=[_position(row) for row in facts.positions],
        game=bool(facts.matches),
        amortization=_amortization(facts.amortization) if facts.amortization else None,
        break_even=_break_even(summary.get("break_even") or []),
        generations=[_generation(row, keys, present["champion"]) for row in reversed(facts.history)],
        metric_keys=keys,
        controls=_controls_table(facts.controls),
        alarms=[f"{name_of(row)}: {alarm}" for row in facts.history for alarm in collapse_of(row).get("alarms") or []],
        collapse=_collapse_table(facts.history),
        samples=[_sample(row) for row in facts.samples],
        lineages=[
            {"generation": generation, "address": f"gen/{generation}/labels", "text": text}
            for generation, text in facts.lineages.items()
        ],
        ramp_light=light,
        ramp_dark=dark,
    )


def short(digest: str | None) -> str:
    """The first twelve digits of a digest: enough to find it by."""
    return digest[:12] if digest else "–"


def flops(value: float | None) -> str:
    """FLOPs with a decimal prefix: `12.3 TFLOP`."""
    if value is None:
        return "–"
    if value <= 0:
        return "0"
    step = min(math.floor(math.log10(value) / 3), 8) if value >= 1000 else 0
    return f"{value / 1000**step:.3g} {' kMGTPEZY'[step].strip()}FLOP"


def percent(value: float) -> str:
    """A share as it is read, with a space that no line breaks at."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _band(metric: Row) -> Row:
    return {"text": percent(metric["value"]), "interval": f"{100 * metric['low']:.1f} – {100 * metric['high']:.1f}"}


def _sentence(present: Row) -> str:
    greedy = on_test(present).get("greedy")
    if greedy is None:
        return f"The registry stands at {name_of(present)}."
    if "elo" in (present["metrics"] or {}):
        return (
            f"The network of {name_of(present)}, playing at once, keeps the win in {percent(greedy['value'])} of the "
            "test positions."
        )
    return (
        f"The student of {name_of(present)}, answering at once, solves {percent(greedy['value'])} of the test problems."
    )


def _headline(facts: Facts, present: Row, keys: list[str]) -> list[Row]:
    """The few figures under the headline."""
    shown = [{"name": "Generations", "value": str(len(facts.history))}]
    kept = sum(row["labels"] for row in facts.history)
    shown.append({"name": "Labels kept", "value": f"{kept:,}"})
    shown += [
        {"name": f"{name_of(present)}, {key}", "value": percent(on_test(present)[key]["value"])}
        for key in keys[:2]
        if key in on_test(present)
    ]
    shown.append({"name": "Compute executed", "value": flops(sum(row["flops"] for row in facts.costs))})
    return shown


def _generation(row: Row, keys: list[str], champion: int) -> Row:
    test = on_test(row)
    return {
        "generation": row["generation"],
        "tag": name_of(row),
        "status": row["status"],
        "champion": row["generation"] == champion,
        "reason": row.get("reason"),
        "parent": "–" if row["parent"] is None else row["parent"],
        "labels": f"{row['labels']:,}",
        "metrics": [_band(test[key]) if key in test else {"text": "–", "interval": ""} for key in keys],
        "flops": flops(sum(row["flops"].values())),
        "student": row["student"] or "",
        "student_short": short(row["student"]),
    }


def _sample(row: Row) -> Row:
    return {
        "generation": row["generation"],
        "tag": name_of(row),
        "problem": _problem(row["payload"]),
        "completion": _clipped(row["completion"].strip(), 400),
        "reward": f"{row['reward']:g}",
        "reward_source": row["reward_source"],
        "searcher": row["searcher"].replace("_", " "),
        "teacher": row["teacher"],
        "teacher_short": short(row["teacher"]),
        "label_id": row["label_id"],
        "label_short": short(row["label_id"]),
    }


def _position(row: Row) -> Row:
    """A position as the student sees it alone and by search: two drawings and what they say in words."""
    from markupsafe import Markup

    from flows.board_figures import board
    from flywheel.problems.hex import cell_of, name_of

    size = row["board"].count("/") + 1
    winning = {cell_of(name, size) for name in (row["reference"] or "").split()}
    mover = "X" if row["mover"] == 0 else "O"

    def seen(shares: list[float], value: float, words: str, best: int) -> Row:
        kept = "keeps the win" if best in winning else "loses it"
        return {
            "svg": Markup(board(row["board"], shares, winning, f"{words}, {mover} to move: {row['board']}")),
            "words": f"{words}: {name_of(best, size)} {kept}; it expects {value:+.2f}",
        }

    liked = max(range(size * size), key=lambda cell: row["prior"][cell])
    known = {1: ", a proven win", -1: ", a proven loss", 0: ""}[row["proven"]]
    return {
        "title": f"{mover} to move, {size * size - row['board'].count('.')} stones",
        "alone": seen(row["prior"], row["prior_value"], "The network alone", liked),
        "search": seen(
            row["policy"],
            row["value"],
            f"With {row['budget']} simulations{known}",
            cell_of(row["line"].split()[0], size),
        ),
        "line": row["line"],
    }


def _problem(payload: str) -> str:
    """A problem's payload in words: `{"numbers":[3,8],"target":24}` -> `numbers 3 8, target 24`."""
    value = json.loads(payload)
    if not isinstance(value, dict):
        return _clipped(payload, 200)
    parts = [
        f"{name.replace('_', ' ')} {' '.join(map(str, part)) if isinstance(part, list) else part}"
        for name, part in value.items()
    ]
    return _clipped(", ".join(parts), 200)


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _break_even(rows: list[Row]) -> Row:
    """A table of whatever columns the rows have; those of numbers are set to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _table("Against each budget of the first search", names, [[row.get(name) for name in names] for row in rows])


def _amortization(document: Row) -> Row:
    """Sentence, figure and table of what is paid back when."""
    from markupsafe import Markup

    from flows.figures import by_queries

    shown = amortization_rows(document)
    names = list(dict.fromkeys(name for row in shown for name in row))
    cells = [[row.get(name, "") for name in names] for row in shown]
    return {
        "sentence": document["sentence"].replace(" %", "\N{NO-BREAK SPACE}%"),
        "svg": Markup(by_queries(costs(document), "Moves" if document["board"] else "Queries")),
        "table": _table("When it pays for itself", names, cells, set(range(2, len(names)))),
        "beyond": beyond_reach(document),
        "note": f"{document['draws']} draws over {document['groups']} groups of {document['problems']} test problems",
    }


def amortization_rows(document: Row) -> list[Row]:
    """A row a generation that reaches the accuracy asked for, as it is read, with 95 % intervals."""
    first = document["rows"][0]
    unit, asked = ("move", "moves") if document["board"] else ("query", "queries")
    shown = []
    for row in document["rows"]:
        if not row["reached"]:
            continue
        budget = budget_words(row["budget"]["value"], document["board"])
        least, most = row["budget"]["low"], row["budget"]["high"]
        spread = f" ({f'{least:.1f}' if least else 'at once'} to {most:.1f})" if most - least > 0.05 else ""
        shown.append(
            {
                "generation": row["name"] + (" (student)" if row["student"] else ""),
                "search": f"{budget}{spread}",
                "on test": percent(row["accuracy"]["value"]),
                f"FLOPs a {unit}": _spread(row["flops"], flops),
                "invested": flops(row["investment_flops"]),
                **(
                    {
                        f"{asked} to pay back, against {first['name']}": _payback(row["against_first"]),
                        "never in draws": _share(row["against_first"]),
                    }
                    if first["reached"]
                    else {}
                ),
                "against the one before": _payback(row["against_before"]),
            }
        )
    return shown


def beyond_reach(document: Row) -> str:
    """Generations that no measured budget takes to the accuracy asked for, in words."""
    left = [f"{row['name']} {percent(row['most'])}" for row in document["rows"] if not row["reached"]]
    if not left:
        return ""
    return f"Not with any measured budget: {', '.join(left)} at most, of {percent(document['target']['value'])}."


def _payback(payback: Row | None) -> str:
    return _spread(payback["queries"], queries_words) if payback else "–"


def _share(payback: Row | None) -> str:
    return percent(payback["never"]) if payback else "–"


def _spread(estimate: Row, words: Callable[[float], str]) -> str:
    """A value with its interval, left out where it says the same."""
    value, low, high = (words(estimate[name]) for name in ("value", "low", "high"))
    return value if value == low == high else f"{value} ({low} to {high})"


def _controls_table(controls: list[Row]) -> Row:
    rows = []
    for control in controls:
        key, reached = next(iter(control["test"].items()))
        band = _band(reached)
        rows.append([control_name(control), key, band["text"], band["interval"], flops(control.get("flops"))])
    return _table("Controls", ["control", "measured", "on test", "95 % interval", "training"], rows, {2, 3, 4})


def _collapse_table(history: list[Row]) -> Row:
    measured = [(name_of(row), collapse_of(row)) for row in history]
    names = [
        name
        for name in dict.fromkeys(name for _, values in measured for name in values)
        if name != "alarms" and all(isinstance(values.get(name), int | float | None) for _, values in measured)
    ]
    if not names:
        return {"title": "", "columns": [], "rows": []}
    rows = [[tag, *(values.get(name) for name in names)] for tag, values in measured]
    return _table("Diversity by generation", ["generation", *names], rows)


def _table(title: str, names: list[str], rows: list[list[Any]], right: frozenset[int] | set[int] = frozenset()) -> Row:
    columns = []
    for index, name in enumerate(names):
        numeric = index in right or any(isinstance(row[index], int | float) for row in rows)
        words = name.replace("_", " ").replace("flops", "FLOPs")
        columns.append({"name": words[:1].upper() + words[1:], "number": numeric})
    cells = [[_cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows]
    return {"title": title, "columns": columns, "rows": cells}


def _cell(name: str, value: Any) -> str:
    """Digits that can be read: FLOPs with a prefix, large counts with separators, three figures for the rest."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return "never" if value > 0 else "–"
        if "flops" in name:
            return flops(value)
        return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
