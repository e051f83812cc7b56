"""Pictures of a sweep of Hex: strength by training compute with the fitted frontier, and training against search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flows.figures import GREY
from flows.sweeps.drawing import drawing, log_axis, look, ramp, scale
from flows.sweeps.hex_fits import HexFits, Rated

_LINES = ("--", ":")
"""Of the law to be relied on, and of the other."""


def draw(fits: HexFits, folder: Path) -> list[Path]:
    """Write what can be drawn; the SVG files."""
    shown = [budget for budget in (fits.budgets[0], fits.budgets[-1]) if fits.frontiers_at(budget)] or fits.budgets[:1]
    drawn = [_frontier(fits, shown, folder / "frontier")]
    if fits.tradeoffs:
        drawn.append(_tradeoffs(fits, folder / "tradeoff"))
    return drawn


def _frontier(fits: HexFits, budgets: list[int], path: Path) -> Path:
    with drawing(path, columns=len(budgets), width=5.6, height=4.4) as columns:
        for axes, budget in zip(columns, budgets, strict=True):
            for number, each in enumerate(fits.rated):
                _board(axes, fits, each, budget, *look(number))
            for found, line in zip(fits.frontiers_at(budget), _LINES, strict=False):
                axes.plot([], [], line, color=GREY, label=f"law of {found.boards}")
            axes.set_xscale("log")
            log_axis(axes.xaxis)
            axes.set_title(f"{budget} simulations a move" if budget else "the network alone", loc="left", fontsize=9.5)
            axes.set_xlabel("FLOPs of label search and training, up to the snapshot")
        columns[0].set_ylabel("Elo, 0 at perfect play" if all(each.solved for each in fits.rated) else "Elo")
        columns[0].legend(frameon=False, fontsize=8.5)
    return path.with_suffix(".svg")


def _board(axes: Any, fits: HexFits, each: Rated, budget: int, colour: str, marker: str) -> None:
    chosen = each.select(budget)
    flops = np.array([each.rows[k]["train_flops"] for k in chosen])
    low, high = np.quantile(each.elo[1:, chosen], (0.025, 0.975), axis=0)
    axes.vlines(flops, low, high, color=colour, alpha=0.15, lw=1)
    axes.scatter(flops, each.elo[0, chosen], s=8, color=colour, alpha=0.4, lw=0)
    axes.plot(
        [], [], marker, color=colour, label=f"{each.size}x{each.size}{'' if each.solved else ', 0: a trained player'}"
    )
    laws = [found.law for found in fits.frontiers_at(budget)]
    held = next((law for law in laws if each.size in law.points.sizes), None)
    if held is None:
        return
    mine = held.points.sizes == each.size
    used = mine & held.used
    axes.plot(held.points.flops[mine], held.points.elo[mine], color=colour, lw=0.9, alpha=0.7)
    axes.plot(held.points.flops[used], held.points.elo[used], marker, color=colour, ms=5, ls="")
    grid = np.geomspace(held.points.flops[mine].min() / 1.5, held.points.flops[mine].max() * 1.5, 200)
    for law, line in zip(laws, _LINES, strict=False):
        axes.plot(grid, law.predict(each.size, grid), line, color=colour, lw=1.5)


def _tradeoffs(fits: HexFits, path: Path) -> Path:
    every = sorted({level for line, _ in fits.tradeoffs.values() for level in line.pairs.levels.tolist()})
    colours = dict(zip(every, ramp(len(every)), strict=True))
    with drawing(path, columns=len(fits.tradeoffs), width=3.9, height=3.9) as columns:
        for axes, (size, (line, _)) in zip(columns, fits.tradeoffs.items(), strict=True):
            for level in sorted(set(line.pairs.levels.tolist())):
                mine = line.pairs.levels == level
                train, test = line.pairs.train_flops[mine], line.pairs.test_flops[mine]
                axes.plot(train, test, "o", color=colours[level], ms=4)
                ends = np.log10([train.min(), train.max()])
                height = np.log10(test).mean() + line.within * (ends - np.log10(train).mean())
                axes.plot(10.0**ends, 10.0**height, color=colours[level], lw=1.3)
            axes.set_xscale("log")
            axes.set_yscale("log")
            log_axis(axes.xaxis)
            log_axis(axes.yaxis)
            title = f"{size}x{size}: slope {line.within:.2f} within levels, {line.slope:.2f} over all"
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.set_xlabel("training FLOPs")
        columns[0].set_ylabel("FLOPs a move at play")
        scale(columns, every, "Elo")
    return path.with_suffix(".svg")
