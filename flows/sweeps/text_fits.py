"""Fits to a sweep of texts (Countdown): accuracy as a law of compute, what its axes exchange at, and what it foretells.

    parameters   of the model
    training     FLOPs invested up to the generation: label search, training, reward models
    runtime      FLOPs a query: the prompt and the greedy answer, or the prompt and all k samples
    search       samples a problem in the search for labels

A cell is a snapshot of generation 1 or later with a runtime budget: 0 is its greedy answer, k >= 4 is pass@k, so many
samples with a checker. (One sample is no budget of this axis: it costs what the greedy answer does and is worse.)
`runtime` is the full price of k samples. A checker ends sampling at the first right answer, but that expected price
falls as accuracy rises: the axis would depend on what it is to explain. Costs by the full one are upper bounds.

Cells held back enter neither the fit nor the choice of its terms: they judge it. The law is `flywheel.scaling.law`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.plain import plain
from flows.sweeps import results
from flows.sweeps.text_calibration import Calibration, calibrate
from flows.sweeps.text_gains import Against, Gain, against_controls, gains
from flows.sweeps.text_rates import Rate, rates
from flywheel.errors import InputError
from flywheel.scaling import law as laws
from flywheel.scaling.law import Cells, Law, Term
from flywheel.scaling.selection import Score, choose_terms
from flywheel.scaling.uncertainty import Draws, bootstrap
from flywheel.seeds import generator

AXES = ("parameters", "training", "runtime", "search")
LEAST_SAMPLES = 4
"""The smallest k of pass@k that is a cell."""
_INVESTED = ("label_flops", "training_flops", "reward_model_flops")
_STEPS: tuple[tuple[Term, ...], ...] = (
    (("training", "training"),),
    (("runtime", "training"),),
    (("parameters", "training"),),
    (("parameters", "parameters"), ("search", "search")),
)


@dataclass(frozen=True, slots=True)
class TextTable:
    """The rows of one family, controls among them."""

    sweep: str
    family: str
    rows: list[dict[str, Any]]
    """Of `results.RESULTS`, with `invested`, FLOPs up to the generation, `control`, its name or None, and `beginning`,
    the first cell with the same models of generation 0."""
    groups: tuple[str, ...]
    """Of the test problems, in the order of `outcomes`."""


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """The law of the cells that were not held back."""

    cells: Cells
    terms: tuple[Term, ...]
    scores: tuple[Score, ...]
    """Of the sets of terms that were tried, with a configuration left out in turn; none where there are too few."""
    law: Law
    draws: Draws | None
    reasons: dict[str, str]
    """What could not be identified, and why."""


@dataclass(frozen=True, slots=True)
class TextFits:
    """What a sweep of texts says; what the data cannot identify is None or empty, and `reasons` says why."""

    sweep: str
    family: str
    law: Law
    draws: Draws | None
    terms: tuple[Term, ...]
    scores: tuple[Score, ...]
    rates: tuple[Rate, ...]
    calibration: Calibration | None
    gains: tuple[Gain, ...]
    controls: tuple[Against, ...]
    reasons: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """JSON: numbers that are none are null."""
        intervals = coefficients(self.law, self.draws)
        document: dict[str, Any] = plain(
            {
                "sweep": self.sweep,
                "family": self.family,
                "law": {
                    "axes": self.law.axes,
                    "centres": (10.0**self.law.centres).tolist(),
                    "coefficients": intervals,
                    "floor": self.law.floor,
                    "ceiling": self.law.ceiling,
                    "root_mean_square": self.law.root_mean_square,
                    "spread": self.law.spread,
                    "ranges": self.law.ranges,
                    "cells": len(self.law.residuals),
                    "draws": len(self.draws.floors) if self.draws is not None else 0,
                },
                "scores": self.scores,
                "rates": [plain(rate) | {"words": rate.words} for rate in self.rates],
                "calibration": self.calibration.as_dict() if self.calibration is not None else None,
                "gains": self.gains,
                "controls": self.controls,
                "reasons": self.reasons,
            }
        )
        return document


def fit(folder: Path, draws: int = 400, seed: int = 0, family: str | None = None) -> TextFits:
    """All fits to the tables in a folder. Raises InputError as `read` and `fit_law` do."""
    table = read(folder, family)
    fitted = fit_law(table, draws, seed)
    reasons, told = dict(fitted.reasons), None
    held = [row for row in table.rows if is_cell(row) and row["held_back"]]
    if not held:
        reasons["calibration"] = "no cell was held back"
    elif fitted.draws is None:
        reasons["calibration"] = fitted.reasons["intervals"]
    else:
        try:
            noise = generator(seed, "text fits", table.family, "calibration")
            again = bootstrap(fitted.cells, fitted.terms, draws, noise, resample_problems=False)
            told = calibrate(again, cells_of(held, table.groups), [row["generation"] for row in held],
                             [row["budget"] for row in held], noise)  # fmt: skip
        except InputError as error:
            reasons["calibration"] = str(error)
    controls = against_controls(table.rows)
    if not controls:
        reasons["controls"] = "no control was run: a sweep's family names them under `controls`"
    return TextFits(
        sweep=table.sweep,
        family=table.family,
        law=fitted.law,
        draws=fitted.draws,
        terms=fitted.terms,
        scores=fitted.scores,
        rates=rates(fitted.law, fitted.draws, fitted.cells.accuracies),
        calibration=told,
        gains=gains(table.rows),
        controls=controls,
        reasons=reasons,
    )


def read(folder: Path, family: str | None = None) -> TextTable:
    """The table of a family, of the only one if none is named. Raises InputError for a folder without tables, for Hex,
    and where a family has to be named."""
    if not ((folder / "results.parquet").is_file() and (folder / "problems.parquet").is_file()):
        raise InputError(f"{folder} holds no results.parquet and problems.parquet; `flywheel sweep` makes them there")
    table = results.read(folder)
    texts = table.filter(pc.not_equal(table["domain"], "hex"))
    families = sorted(set(texts["family"].to_pylist()))
    if not families:
        raise InputError(f"{folder} holds no rows of questions and answers; a sweep of Hex is fitted by itself")
    if (family is None and len(families) > 1) or family not in (None, *families):
        raise InputError(f"got family {family}, expected one of {', '.join(families)}, whose problems differ")
    family = family or families[0]
    rows = texts.filter(pc.equal(texts["family"], family)).to_pylist()
    problems = pq.read_table(folder / "problems.parquet", schema=results.PROBLEMS)
    groups = tuple(problems.filter(pc.equal(problems["family"], family))["group"].to_pylist())
    for row in rows:
        row["invested"] = sum(row[name] for name in _INVESTED)
        row["cell"], _, control = row["cell"].partition("+")
        row["control"] = control or None
    begun = _beginnings(rows)
    for row in rows:
        row["beginning"] = begun[row["cell"]]
    return TextTable(rows[0]["sweep"], family, rows, groups)


def _beginnings(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of each cell the first one that shares its model of generation 0 in some seed, itself perhaps."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for row in rows:
        if row["generation"] == 0:
            owner = first.setdefault(row["snapshot"], found.get(row["cell"], row["cell"]))
            found.setdefault(row["cell"], owner)
    return {row["cell"]: found.get(row["cell"], row["cell"]) for row in rows}


def is_cell(row: dict[str, Any]) -> bool:
    """Whether a row is one that a law is about, held back or not."""
    budgeted = row["metric"] == "greedy" or (row["metric"] == "pass" and row["budget"] >= LEAST_SAMPLES)
    return row["control"] is None and row["generation"] >= 1 and budgeted


def cells_of(rows: Sequence[dict[str, Any]], groups: tuple[str, ...], axes: tuple[str, ...] = AXES) -> Cells:
    """Rows as cells. Raises InputError for values that are not positive or outcomes of other problems."""
    columns = {"parameters": "parameters", "training": "invested", "runtime": "query_flops", "search": "label_budget"}
    if wrong := [row["run"] for row in rows if len(row["outcomes"]) != len(groups)]:
        raise InputError(f"{wrong[0]} has other problems than problems.parquet lists; make the tables again")
    return Cells(
        axes,
        np.array([[row[columns[axis]] for axis in axes] for row in rows], np.float64).reshape(len(rows), len(axes)),
        tuple(row["cell"] for row in rows),
        tuple(row["seed"] for row in rows),
        np.array([row["outcomes"] for row in rows], np.float64).reshape(len(rows), len(groups)),
        groups,
        tuple(row["beginning"] for row in rows),
    )


def fit_law(table: TextTable, draws: int, seed: int) -> FittedLaw:
    """Choose terms, fit, and draw. Raises InputError where not even a law linear in its axes can be fitted."""
    rows = [row for row in table.rows if is_cell(row) and not row["held_back"]]
    if not rows:
        raise InputError(f"family {table.family} has no cell to fit: run a generation, and hold back fewer cells")
    every = cells_of(rows, table.groups)
    axes = tuple(axis for axis, column in zip(AXES, every.values.T, strict=True) if len(set(column.tolist())) > 1)
    reasons = {axis: "every cell has the same, so that its effect cannot be known" for axis in AXES if axis not in axes}
    cells = cells_of(rows, table.groups, axes)
    sets = candidates(cells)
    terms, scores, drawn = sets[0], list[Score](), None
    try:
        terms, scores = choose_terms(cells, sets)
    except InputError as error:
        reasons["terms"] = f"{error}; the law is linear"
    law = laws.fit(cells, terms)
    try:
        drawn = bootstrap(cells, terms, draws, generator(seed, "text fits", table.family, "draws"))
    except InputError as error:
        reasons["intervals"] = str(error)
    return FittedLaw(cells, terms, tuple(scores), law, drawn, reasons)


def candidates(cells: Cells) -> list[tuple[Term, ...]]:
    """Nested sets of terms: linear in all axes, then curvature of training, its products with runtime and parameters,
    and curvature of parameters and label search, each where its axes are there and a square's has three values."""
    sets: list[tuple[Term, ...]] = [((), *((axis,) for axis in cells.axes))]
    values = {axis: len(set(column.tolist())) for axis, column in zip(cells.axes, cells.values.T, strict=True)}
    for step in _STEPS:
        added = tuple(term for term in step if all(values.get(axis, 0) > term.count(axis) for axis in term))
        if added:
            sets.append((*sets[-1], *added))
    return sets


def coefficients(law: Law, draws: Draws | None) -> list[dict[str, Any]]:
    """By term {term, value, low, high}: with the 95 % interval of its draws, null without."""
    found = []
    for at, term in enumerate(law.terms):
        low, high = None, None
        if draws is not None:
            low, high = np.quantile(draws.coefficients[:, at], [0.025, 0.975]).tolist()
        found.append({"term": term, "value": float(law.coefficients[at]), "low": low, "high": high})
    return found
