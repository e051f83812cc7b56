"""Figures of a sweep as files: matplotlib, SVG for pages and PNG for slides, the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.figures import BLUE, GREEN, GREY, MARKERS, PURPLE, VERMILLION
from storage.tables import replace_bytes

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, "#e69f00", "#56b4e9", GREY)
"""Okabe and Ito's."""
_PALEST = 0.88
"""Of a colour map that ends in yellow: what is still seen on white."""


@contextmanager
def drawing(path: Path, columns: int = 1, width: float = 6.4, height: float = 4.2) -> Iterator[list[Any]]:
    """Axes in a row to draw on; on leaving the figure is written to `path` with the endings .svg and .png."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "flywheel", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        axes = [*figure.subplots(1, columns, squeeze=False)[0]]
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.grid(True, color="#d9dde3", linewidth=0.6)
            each.set_axisbelow(True)
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=160, metadata=metadata)
            replace_bytes(path.with_suffix(f".{ending}"), buffer.getvalue())


def look(number: int) -> tuple[str, str]:
    """Colour and marker of the so manieth of some things without an order: 42 differ."""
    return _COLOURS[number % len(_COLOURS)], MARKERS[number % len(MARKERS)]


def ramp(count: int) -> list[str]:
    """Colours of so many things in an order, from dark to pale."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](_PALEST * number / max(1, count - 1))) for number in range(count)]


def scale(columns: list[Any], values: list[float], name: str) -> None:
    """A bar beside the last of the axes that says which of `ramp`'s colours stands for which of some rising values."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    steps = [*range(len(values) + 1)]
    mapped = ScalarMappable(BoundaryNorm(steps, len(values)), ListedColormap(ramp(len(values))))
    shown = range(0, len(values), max(1, len(values) // 8))
    bar = columns[-1].figure.colorbar(mapped, ax=columns, ticks=[at + 0.5 for at in shown], label=name, aspect=30)
    bar.ax.set_yticklabels([f"{values[at]:g}" for at in shown])
    bar.outline.set_visible(False)


def log_axis(axis: Any) -> None:
    """Powers of ten, written as 10^n."""
    from matplotlib.ticker import LogFormatterMathtext, LogLocator

    axis.set_major_locator(LogLocator(10.0, numticks=12))
    axis.set_major_formatter(LogFormatterMathtext(10.0))
    # Over less than a decade these are labelled too; more of them would run into each other.
    axis.set_minor_locator(LogLocator(10.0, subs=(2.0, 4.0, 6.0)))
