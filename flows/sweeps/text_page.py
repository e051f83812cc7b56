"""What a sweep of texts says, as a section of markdown; every number comes from the fits."""

from __future__ import annotations

import math
from pathlib import Path

from flows.sweeps.markdown import points, spread, table
from flows.sweeps.text_fits import TextFits, coefficients
from flows.sweeps.text_gains import QUERIES, Gain
from flows.sweeps.text_rates import Rate


def section(fits: TextFits, pictures: Path) -> str:
    """Tables and figures; `pictures` is their folder as seen from the page."""
    parts = [
        f"![Share solved against FLOPs of label search and training, dots runs, lines the law]({pictures / 'law.svg'})",
        _law(fits),
        f"![Lines of equal accuracy over training and runtime FLOPs]({pictures / 'exchange.svg'})",
        _rates(fits),
    ]
    if fits.calibration is not None:
        parts.append(f"![Predicted against measured, of cells held back]({pictures / 'calibration.svg'})")
        parts.append(_calibration(fits))
    parts.append(_gains(fits))
    if fits.controls:
        parts.append(_controls(fits))
    parts += [f"Not identified: {name}: {reason}." for name, reason in fits.reasons.items()]
    return "\n\n".join(parts)


def _law(fits: TextFits) -> str:
    law = fits.law
    chosen = " Terms were chosen by leaving out a configuration in turn." if fits.scores else ""
    rows = [
        [
            " x ".join(each["term"]) or "constant", f"{each['value']:.2f}",
            f"{each['low']:.2f} to {each['high']:.2f}" if each["low"] is not None else "",
        ]
        for each in coefficients(law, fits.draws)
    ]  # fmt: skip
    return (
        table(["term, in decades from the centre", "of the logit", "95 %"], rows)
        + f"\n\nFloor {law.floor:.3f}, ceiling {law.ceiling:.3f}; {len(law.residuals)} cells, residuals of "
        f"{law.root_mean_square:.3f} (root mean square).{chosen}"
    )


def _rates(fits: TextFits) -> str:
    """A row an accuracy, a column a pair of axes."""
    by_accuracy: dict[float, list[Rate]] = {}
    for rate in fits.rates:
        by_accuracy.setdefault(rate.accuracy, []).append(rate)
    pairs = [f"{rate.give} in {rate.get}" for rate in next(iter(by_accuracy.values()), [])]
    rows = [
        [f"{accuracy:.2g}" + (", beyond the data" if any(rate.outside for rate in held) else ""), *map(_decades, held)]
        for accuracy, held in by_accuracy.items()
    ]
    return "What a decade is worth, in decades:\n\n" + table(["at accuracy", *pairs], rows)


def _decades(rate: Rate) -> str:
    value = rate.decades.value
    if math.isnan(value):
        return "not told"
    untold = rate.draws - rate.decades.count
    low, high = (f"{end:.2f}" if math.isfinite(end) else "any" for end in (rate.decades.low, rate.decades.high))
    told = f"more than any {rate.get}" if math.isinf(value) else f"{value:.2f}"
    told += f" ({low} to {high})" if rate.decades.count else ""
    return told + (f", {untold} of {rate.draws} draws do not tell" if untold else "")


def _calibration(fits: TextFits) -> str:
    told = fits.calibration
    assert told is not None
    rows = [
        [each.configuration, f"{each.cells}", f"{each.measured:.3f}", f"{each.predicted.value:.3f}",
         spread(each.predicted, ".3f"), f"{each.coverage:.0%}", f"{each.mean_absolute_error:.3f}"]
        for each in told.configurations
    ]  # fmt: skip
    head = [
        "held back",
        "cells",
        "measured, mean",
        "predicted",
        "95 %",
        "cells inside their 95 %",
        "mean absolute error",
    ]
    return (
        table(head, rows)
        + f"\n\nOf {len(told.rows)} cells held back, of {told.runs} runs, {told.coverage:.0%} lie inside the 95 % "
        f"interval for a new run; mean absolute error {told.mean_absolute_error:.3f}, measured less predicted "
        f"{told.bias:+.3f} on average. Cells of one run rise and fall together, so that they are hardly more "
        "observations than runs."
    )


def _gains(fits: TextFits) -> str:
    """A row a cell: what its generations gained a FLOP, and what all of them gained against search at run time."""
    by_cell: dict[str, list[Gain]] = {}
    for gain in fits.gains:
        by_cell.setdefault(gain.cell, []).append(gain)
    most = max(len(gains) for gains in by_cell.values())
    steps = [
        [
            cell,
            f"{min(gain.seeds for gain in gains)}",
            *(points(gain.per_1e12) for gain in gains),
            *[""] * (most - len(gains)),
        ]
        for cell, gains in by_cell.items()
    ]
    totals = [
        [cell, f"{gains[-1].seeds}", f"{gains[-1].accuracy.value:.1%}", f"{gains[-1].total_flops:.2g}",
         points(gains[-1].total), *_instead(gains[-1])]
        for cell, gains in by_cell.items()
    ]  # fmt: skip
    return (
        "Points of greedy accuracy that each generation gains a 10^12 FLOPs invested:\n\n"
        + table(["cell", "seeds", *(f"gen/{number}" for number in range(1, most + 1))], steps)
        + "\n\nAll generations together, and the same FLOPs as search by generation 0, spread over so many queries:\n\n"
        + table(
            ["cell", "seeds", "greedy", "FLOPs", "gain, points", *(f"{each:,.0f} queries" for each in QUERIES)], totals
        )
    )


def _instead(gain: Gain) -> list[str]:
    """What search by generation 0 gains, at each number of queries; blank where its search was not measured."""
    told = {each.queries: points(each.gain) + (" or more" if each.beyond else "") for each in gain.instead}
    return [told.get(queries, "") for queries in QUERIES]


def _controls(fits: TextFits) -> str:
    rows = [
        [each.cell, each.control, f"{each.seeds}", f"{each.control_flops:.3g}",
         f"{each.control_budget} samples" if each.control_budget else "at once", f"{each.control_accuracy.value:.1%}",
         f"{each.student_flops:.3g}", f"{each.student_accuracy.value:.1%}", points(each.difference),
         f"{each.ahead} of {each.seeds}"]
        for each in fits.controls
    ]  # fmt: skip
    head = ["cell", "control", "seeds", "its FLOPs", "it answers", "solved by it", "the flywheel's FLOPs",
            "solved by it at once", "flywheel less control, points", "seeds ahead"]  # fmt: skip
    return table(head, rows)
