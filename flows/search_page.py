"""What a search table says: its figure, its page, and which of the field's findings hold in it.

The findings: a beam needs a quarter of best-of-N's samples (Beeching et al. 2024, *Scaling test-time compute*); search
by a process reward hurts the easy problems and does not help the hardest (Snell et al. 2024, *Scaling LLM test-time
compute optimally*, section 5.2); weighted best-of-N is above naive (Snell et al., appendix; Wang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flywheel.evaluation import intervals

Rows = Sequence[dict[str, Any]]
NAIVE, WEIGHTED, BEAM = "best_of_n, process", "best_of_n, process, weighted", "beam, process"
OUTCOME = "best_of_n, outcome"
_BINS = ((0.0, 0.0, "never solved"), (0.0, 0.25, "up to a quarter"), (0.25, 0.75, "middling"), (0.75, 1.0, "easy"))


def findings(rows: Rows) -> dict[str, Any]:
    """The field's findings, tested on the rows; each with its numbers, intervals paired by problem."""
    budgets = sorted({row["budget"] for row in rows})
    largest = budgets[-1]
    middle = budgets[len(budgets) // 2]
    return {
        "beam_efficiency": _efficiency(rows, budgets),
        "by_difficulty": [
            {
                "problems": label,
                "budget": budget,
                "count": len(pairs),
                **_difference(pairs),
            }
            for budget in dict.fromkeys((middle, largest))
            for low, high, label in _BINS
            if (pairs := _paired(rows, BEAM, NAIVE, budget, low, high))
        ],
        "weighted_minus_naive": [
            {"budget": budget, **_difference(_paired(rows, WEIGHTED, NAIVE, budget))}
            for budget in budgets
            if budget > 2
        ],
        "outcome_minus_process": [
            {"budget": budget, **_difference(_paired(rows, OUTCOME, NAIVE, budget))}
            for budget in budgets
            if budget > 1 and any(row["arm"] == OUTCOME for row in rows)
        ],
        "beam_minus_naive": [
            {"budget": budget, **_difference(_paired(rows, BEAM, NAIVE, budget))} for budget in budgets if budget > 1
        ],
    }


def _efficiency(rows: Rows, budgets: Sequence[int]) -> list[dict[str, Any]]:
    """For each budget of the beam: the smallest budget, and the FLOPs, at which best-of-N by the same reward is as
    good; None where it never is."""
    found = []
    naive = {budget: _mean(rows, NAIVE, budget) for budget in budgets}
    for budget in budgets:
        accuracy, flops = _mean(rows, BEAM, budget)
        reached = next((other for other in budgets if naive[other][0] >= accuracy), None)
        found.append(
            {
                "budget": budget,
                "accuracy": accuracy,
                "best_of_n_budget": reached,
                "samples_ratio": reached / budget if reached else None,
                "flops_ratio": naive[reached][1] / flops if reached else None,
            }
        )
    return found


def _mean(rows: Rows, arm: str, budget: int) -> tuple[float, float]:
    mine = [row for row in rows if row["arm"] == arm and row["budget"] == budget]
    return sum(row["value"] for row in mine) / len(mine), sum(row["flops"] for row in mine) / len(mine)


def _paired(
    rows: Rows, one: str, other: str, budget: int, low: float | None = None, high: float = 1.0
) -> list[tuple[float, str]]:
    """(difference, group) of each problem whose difficulty (pass rate) lies in (low, high], or is just `low`."""
    values: dict[str, dict[str, Any]] = {one: {}, other: {}}
    for row in rows:
        inside = low is None or (row["difficulty"] == low == high) or low < row["difficulty"] <= high
        if row["budget"] == budget and row["arm"] in values and inside:
            values[row["arm"]][row["problem_id"]] = row
    return [(row["value"] - values[other][name]["value"], row["group"]) for name, row in sorted(values[one].items())]


def _difference(pairs: Sequence[tuple[float, str]]) -> dict[str, Any]:
    return intervals.mean([value for value, _ in pairs], [group for _, group in pairs]).as_dict()


def picture(document: dict[str, Any]) -> str:
    """Accuracy against FLOPs a problem, a line an arm: searches that could be deployed, and bounds. SVG text."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        lines.setdefault(row["arm"], []).append(row)
    with mpl.rc_context({"svg.hashsalt": "flywheel", "svg.fonttype": "none", "font.size": 8.5}):
        figure = Figure(figsize=(9.6, 7.6), layout="constrained")
        panels = figure.subplots(2, 2)
        for axes, (title, belongs) in zip(panels.flat, _PANELS, strict=True):
            for index, name in enumerate(filter(belongs, lines)):
                rows = lines[name]
                x, y = [row["flops"] for row in rows], [row["value"] for row in rows]
                (line,) = axes.plot(x, y, marker="osD^vPX*"[index % 8], ms=3.5, lw=1.3, label=name)
                axes.fill_between(
                    x, [row["low"] for row in rows], [row["high"] for row in rows], color=line.get_color(), alpha=0.08
                )
            axes.set_xscale("log")
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("FLOPs a problem, prompt and reward included")
            axes.spines[["top", "right"]].set_visible(False)
            # A panel has a scale of its own; the upper third is for the legend.
            axes.set_ylim(0.0, 1.5 * axes.dataLim.y1)
            axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
        for axes in panels[:, 0]:
            axes.set_ylabel(f"share of {document['what']['problems']} test problems")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


_PANELS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Who knows: best-of-N by reward", lambda name: name.startswith("best_of_n")),
    ("Learned rewards, by searcher", lambda name: ", process" in name or ", outcome" in name),
    ("The exact checker, by searcher", lambda name: name.endswith((", exact", ", majority"))),
    ("Bounds: steps scored by the solver", lambda name: name.endswith("oracle_steps") or name == "best_of_n, exact"),
)


def page(document: dict[str, Any]) -> str:
    """The table and the findings as Markdown."""
    what = document["what"]
    budgets = what["budgets"]
    lines = [
        "# Searchers and rewards at equal budgets",
        "",
        f"Student `{what['student'][:12]}` of generation {what['generation']}, {what['problems']} test problems, 95 % "
        "intervals clustered by group. A budget is samples of best-of-N and adaptive (on average), beams of beam and "
        f"dvts, iterations of tree. {_costs(document['reward_models'])} "
        "`oracle_steps` looks at the solver: a bound, not a search that could be deployed.",
        "",
        "![Accuracy against FLOPs a problem](table.svg)",
        "",
        "| search | " + " | ".join(f"N = {budget}" for budget in budgets) + " |",
        "|---|" + "---|" * len(budgets),
    ]
    arms = list(dict.fromkeys(row["arm"] for row in document["rows"]))
    cells = {(row["arm"], row["budget"]): row for row in document["rows"]}
    for arm in arms:
        shown = [f"{cells[arm, b]['value']:.1%}<br>{cells[arm, b]['flops']:.2g}" for b in budgets]
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    lines += [
        "",
        "Share solved, and below it FLOPs a problem. Half the width of an interval is "
        f"{_half_width(document['rows']):.1%} at most.",
        "",
        "## The field's findings, here",
        "",
        *_said(document["findings"]),
    ]
    return "\n".join(lines) + "\n"


def _costs(reward_models: dict[str, dict[str, Any]]) -> str:
    return " ".join(
        f"The {name} model `{model['snapshot'][:12]}` has {model['parameters']:,} parameters (the student "
        f"{model['student_parameters']:,}); its labels and its training took {model['flops']:.3g} FLOPs, once."
        for name, model in reward_models.items()
    )


def _half_width(rows: Rows) -> float:
    return float(max((row["high"] - row["low"]) / 2 for row in rows))


def _said(found: dict[str, Any]) -> list[str]:
    lines = ["**A beam as good as best-of-N with four times the samples** (same reward):", ""]
    lines += ["| beams | solved | best-of-N needs | in samples | in FLOPs |", "|---|---|---|---|---|"]
    for row in found["beam_efficiency"]:
        reached = row["best_of_n_budget"]
        tail = f"N = {reached} | {row['samples_ratio']:.2g}x | {row['flops_ratio']:.2g}x" if reached else "more | | "
        lines.append(f"| {row['budget']} | {row['accuracy']:.1%} | {tail} |")
    lines += ["", "**Search hurts the easy problems, and does not help the hardest** (beam minus best-of-N):", ""]
    lines += ["| problems, by the student's own pass rate | N | count | difference | 95 % |", "|---|---|---|---|---|"]
    for row in found["by_difficulty"]:
        lines.append(f"| {row['problems']} | {row['budget']} | {row['count']} | {points(row)} |")
    lines += ["", "**Weighted above naive** (best-of-N by the process reward):", ""]
    lines += ["| N | difference | 95 % |", "|---|---|---|"]
    lines += [f"| {row['budget']} | {points(row)} |" for row in found["weighted_minus_naive"]]
    if found["outcome_minus_process"]:
        lines += ["", "**An outcome model in place of a process model** (naive best-of-N by each):", ""]
        lines += ["| N | difference | 95 % |", "|---|---|---|"]
        lines += [f"| {row['budget']} | {points(row)} |" for row in found["outcome_minus_process"]]
    return lines


def points(row: dict[str, Any]) -> str:
    """A difference and its interval as two cells of a table, in percentage points."""
    if row["low"] is None:
        return f"{100 * row['value']:+.1f} points | one group only"
    return f"{100 * row['value']:+.1f} points | {100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
