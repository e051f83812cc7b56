"""Fits to a sweep of Hex as JSON: `fits.json`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flywheel.evaluation.intervals import Interval
from flywheel.scaling.frontier import Frontier, FrontierIntervals
from flywheel.scaling.tradeoff import TradeoffIntervals

if TYPE_CHECKING:
    from flows.sweeps.hex_fits import HexFits

_Floats = npt.NDArray[np.float64]


def as_dict(fits: HexFits) -> dict[str, Any]:
    """What was fitted, to what, with which intervals. Frontiers are by budget and then by the boards fitted to."""
    document: dict[str, Any] = {
        "boards": [
            {
                "family": each.family, "size": each.size, "anchor": each.anchor, "perfect_play": each.solved,
                "games": each.games,
            }
            for each in fits.rated
        ],
        "frontiers": {
            str(budget): {each.boards: _frontier_dict(each.law, each.intervals) for each in fits.frontiers_at(budget)}
            for budget in fits.budgets
        },
        "variants": [dataclasses.asdict(variant) for variant in fits.variants],
        "tradeoff_variants": [dataclasses.asdict(variant) for variant in fits.tradeoff_variants],
        "not identified": fits.reasons,
    }  # fmt: skip
    document["tradeoffs"] = {
        str(size): {
            "slope": line.slope, "within": line.within, "elo_slope": line.elo_slope,
            "offset": line.offset, "exchange": line.exchange,
            "root_mean_square": line.root_mean_square, "intervals": _intervals(intervals),
            "pairs": [
                {"level": level, "train_flops": train, "test_flops": test, "residual": residual}
                for level, train, test, residual in zip(
                    line.pairs.levels.tolist(), line.pairs.train_flops.tolist(), line.pairs.test_flops.tolist(),
                    line.residuals.tolist(), strict=True,
                )
            ],
        }
        for size, (line, intervals) in fits.tradeoffs.items()
    }  # fmt: skip
    return document


RATINGS = pa.schema(
    [
        ("family", pa.string()), ("size", pa.int64()), ("player", pa.string()), ("run", pa.string()),
        ("cell", pa.string()), ("seed", pa.int64()), ("held_back", pa.bool_()), ("generation", pa.int64()),
        ("snapshot", pa.string()), ("parameters", pa.int64()), ("budget", pa.int64()), ("label_flops", pa.float64()),
        ("train_flops", pa.float64()), ("test_flops", pa.float64()), ("elo", pa.float64()), ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)  # fmt: skip
"""`train_flops` is of label search and training up to the snapshot, `test_flops` a move's; intervals over openings."""


def ratings(fits: HexFits) -> pa.Table:
    """Elo of every player, a row each."""
    rows = [
        {**row, "family": each.family, "size": each.size, "elo": float(each.elo[0, k]), **_bounds(each.elo[1:, k])}
        for each in fits.rated
        for k, row in enumerate(each.rows)
    ]
    return pa.Table.from_pylist(rows, schema=RATINGS)


def _frontier_dict(fitted: Frontier, intervals: FrontierIntervals | None) -> dict[str, Any]:
    held = fitted.points
    return {
        "slope": fitted.slope, "size_slope": fitted.size_slope, "offset": fitted.offset,
        "compute_factor": fitted.compute_factor, "plateau_slope": fitted.plateau_slope,
        "plateau_offset": fitted.plateau_offset, "saturation": fitted.saturation,
        "root_mean_square": fitted.root_mean_square, "decades": fitted.decades, "intervals": _intervals(intervals),
        "points": [
            {
                "size": int(held.sizes[k]), "configuration": str(held.runs[k]), "generation": int(held.snapshots[k]),
                "flops": float(held.flops[k]), "elo": float(held.elo[k]), "used": bool(fitted.used[k]),
                "on_plateau": bool(fitted.on_plateau[k]),
                "residual": float(fitted.residuals[k]) if fitted.used[k] else None,
            }
            for k in range(len(held.sizes))
        ],
    }  # fmt: skip


def _bounds(drawn: _Floats) -> dict[str, float]:
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return {"low": low, "high": high}


def _intervals(intervals: FrontierIntervals | TradeoffIntervals | None) -> dict[str, Any] | None:
    if intervals is None:
        return None
    named = {field.name: getattr(intervals, field.name) for field in dataclasses.fields(intervals)}
    return {name: held.as_dict() if isinstance(held, Interval) else held for name, held in named.items()}
