"""Pictures of a sweep of texts: accuracy by training compute with the law, what trades for what, and calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flows.figures import GREY
from flows.sweeps.drawing import drawing, log_axis, look, ramp
from flows.sweeps.text_calibration import Calibration
from flows.sweeps.text_fits import TextFits, TextTable, is_cell
from flywheel.scaling.law import Law

_END = 1e30
"""FLOPs, beyond any axis."""
_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def draw(fits: TextFits, table: TextTable, folder: Path) -> None:
    """Write law, exchange and, with cells held back, calibration, as SVG and PNG."""
    _law(fits, table, folder / "law")
    if {"training", "runtime"} <= set(fits.law.axes):
        _exchange(fits, table, folder / "exchange")
    if fits.calibration is not None:
        _calibration(fits.calibration, folder / "calibration")


def _law(fits: TextFits, table: TextTable, path: Path) -> None:
    """A panel for the greedy answer and one for the largest budget: a colour a cell, dots its seeds, a line the law."""
    rows = [row for row in table.rows if is_cell(row) and not row["held_back"]]
    budgets = sorted({row["budget"] for row in rows})
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    with drawing(path, columns=2, width=5.2, height=4.2) as columns:
        for axes, budget in zip(columns, (budgets[0], budgets[-1]), strict=True):
            for number, cell in enumerate(cells):
                mine = [row for row in rows if row["cell"] == cell and row["budget"] == budget]
                colour, marker = look(number)
                flops = np.array([row["invested"] for row in mine])
                axes.scatter(flops, [row["value"] for row in mine], s=12, color=colour, alpha=0.6, lw=0,
                             marker=marker, label=cell)  # fmt: skip
                grid = np.geomspace(flops.min(), flops.max(), 60)
                axes.plot(
                    grid, [fits.law.predict(_point(mine[0]) | {"training": x}) for x in grid], color=colour, lw=1.3
                )
            axes.set_xscale("log")
            log_axis(axes.xaxis)
            axes.set_title(
                f"{budget} samples with a checker" if budget else "one greedy answer", loc="left", fontsize=9.5
            )
            axes.set_xlabel("FLOPs of label search and training")
        columns[0].set_ylabel("share of test problems solved")
        columns[0].legend(frameon=False, fontsize=8)


def _exchange(fits: TextFits, table: TextTable, path: Path) -> None:
    """Lines of equal accuracy over training and runtime FLOPs, with bands of draws, at the middle of the rest."""
    law, rows = fits.law, [row for row in table.rows if is_cell(row) and not row["held_back"]]
    values = [row["value"] for row in rows]
    levels = [level for level in _LEVELS if min(values) < level < max(values)]
    invested = np.array([row["invested"] for row in rows])
    centre = dict(zip(law.axes, (10.0**law.centres).tolist(), strict=True))
    grid = np.geomspace(invested.min(), invested.max(), 40)
    with drawing(path, width=6.0, height=4.4) as [axes]:
        axes.scatter(invested, [row["query_flops"] for row in rows], s=7, color=GREY, alpha=0.5, lw=0, label="measured")
        for level, colour in zip(levels, ramp(len(levels)), strict=True):
            axes.plot(grid, _needed(law, centre, grid, level), color=colour, lw=1.7, label=f"{level:.0%} solved")
            if fits.draws is not None:
                drawn = np.array([_needed(each, centre, grid, level) for each in [*fits.draws.laws()][:100]])
                # A draw that never gets there takes more than any: beyond the picture's end.
                drawn = np.where(np.isnan(drawn), _END, drawn)
                low, high = np.quantile(drawn, (0.025, 0.975), axis=0, method="inverted_cdf")
                axes.fill_between(grid, low, high, color=colour, alpha=0.13, lw=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        log_axis(axes.xaxis)
        log_axis(axes.yaxis)
        runtime = [row["query_flops"] for row in rows]
        axes.set_ylim(min(runtime) / 3, max(runtime) * 3)
        axes.set_xlabel("FLOPs of label search and training")
        axes.set_ylabel("FLOPs a query at run time")
        axes.legend(frameon=False, fontsize=8)


def _needed(law: Law, centre: dict[str, float], training: Any, level: float) -> list[float]:
    """Runtime FLOPs at which the law comes to an accuracy, nan where it does not."""
    points = [law.at_accuracy(level, centre | {"training": float(x)}, "runtime") for x in training]
    return [float("nan") if point is None else point["runtime"] for point in points]


def _calibration(told: Calibration, path: Path) -> None:
    """Predicted, with its 95 % interval, against measured, of cells held back."""
    with drawing(path, width=4.8, height=4.4) as [axes]:
        names = [each.configuration for each in told.configurations]
        for number, name in enumerate(names):
            colour, marker = look(number)
            mine = [row for row in told.rows if row.configuration == name]
            x = np.array([row.predicted.value for row in mine])
            below = x - [row.predicted.low for row in mine]
            above = np.array([row.predicted.high for row in mine]) - x
            y = [row.measured for row in mine]
            axes.errorbar(x, y, xerr=[below, above], fmt=marker, ms=4, lw=0.8, color=colour, alpha=0.75, label=name)
        top = max(*(row.predicted.high for row in told.rows), *(row.measured for row in told.rows))
        axes.plot([0, top], [0, top], color=GREY, lw=0.9)
        axes.set_xlabel("predicted, with its 95 % interval for a new run")
        axes.set_ylabel("measured")
        axes.legend(frameon=False, fontsize=8, title="held back", title_fontsize=8)


def _point(row: dict[str, Any]) -> dict[str, float]:
    return {
        "parameters": row["parameters"], "training": row["invested"], "runtime": row["query_flops"],
        "search": row["label_budget"],
    }  # fmt: skip
