"""The report's plots: matplotlib drawn to SVG text that sits inside an HTML page and follows its light or dark theme.

Not pyplot: a `Figure` of one's own has no global state and no display. Text, grid and the ramp of generations are drawn
in marker colours that are replaced by CSS variables, so that one drawing serves both themes. Text stays text: it can be
read aloud, searched and copied. The same numbers give the same bytes: no date, fixed identifiers.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, _LEFT = 5.4, 3.5, 0.75
"""Inches. Small enough that the text is still readable when the drawing is scaled to a phone."""

_TEXT, _GRID, _PAPER, _RAMP = "#010203", "#040506", "#070809", "#f1e0"
_STEPS = 16
# Okabe and Ito's colours that hold a contrast of 3 against both the white and the dark page.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7d828b"
STAGE_COLOURS = {"generate": BLUE, "train": VERMILLION, "evaluate": GREEN, "filter": PURPLE}
_DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.2, 1.5, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of text, grid and paper, and of the ramp of generations from 0 (oldest) to 1 (newest)."""

    text: str
    grid: str
    paper: str
    ramp: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Band:
    """A measured value with its 95 % interval."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line; `ramp` from 0 (oldest) to 1 (newest) takes the colour from the ramp of generations."""

    name: str
    points: tuple[Band, ...]
    ramp: float | None = None


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a line gets below the first one of its panel: queries with their interval, infinite bounds for never."""

    queries: float
    low: float
    high: float
    flops: float


@dataclass(frozen=True, slots=True)
class Costs:
    """A panel of costs against queries: its title, lines, and each line's crossing, None where it has none."""

    title: str
    measured: str
    lines: tuple[Line, ...]
    crossings: tuple[Crossing | None, ...]


def by_generation(lines: list[Line], abandoned: list[Line], measured: str = "Solved on test") -> str:
    """Accuracy over the generations that led to the present one; rolled-back ones as hollow points beside the lines."""
    figure, axes = _axes("Generation", measured)
    for index, (line, colour) in enumerate(zip(lines, (BLUE, VERMILLION, GREEN, PURPLE), strict=False)):
        x = [point.x for point in line.points]
        axes.fill_between(
            x, [p.low for p in line.points], [p.high for p in line.points], color=colour, alpha=0.18, lw=0
        )
        axes.plot(x, [p.value for p in line.points], color=colour, marker=MARKERS[index], ms=5, lw=1.8, label=line.name)
    for index, line in enumerate(abandoned):
        axes.scatter(
            [p.x for p in line.points],
            [p.value for p in line.points],
            facecolors="none",
            edgecolors=GREY,
            s=26,
            label="rolled back" if index == 0 else None,
        )
    _whole_numbers(axes, [point.x for line in [*lines, *abandoned] for point in line.points])
    _percent(axes)
    _legend(axes, columns=2)
    return _svg(
        figure,
        "by-generation",
        "Accuracy by generation",
        "Share of test problems solved by each generation's student, with 95 % bands.",
    )


def by_budget(
    lines: list[Line], kind: str, budget: str = "Samples a problem at run time", measured: str = "Solved on test"
) -> str:
    """Accuracy over the samples drawn a problem (log2); x = 0.5 stands for the greedy answer, set apart by a gap."""
    figure, axes = _axes(budget, measured)
    budgets = sorted({point.x for line in lines for point in line.points})
    place = {x: math.log2(x) for x in budgets}
    for index, line in enumerate(lines):
        colour = _ramp_marker(line.ramp or 0.0)
        marker = MARKERS[index % len(MARKERS)]
        greedy = [point for point in line.points if point.x < 1]
        sampled = [point for point in line.points if point.x >= 1]
        x = [place[point.x] for point in sampled]
        axes.fill_between(x, [p.low for p in sampled], [p.high for p in sampled], color=colour, alpha=0.1, lw=0)
        axes.plot(x, [p.value for p in sampled], color=colour, marker=marker, ms=5, lw=1.8, label=line.name)
        for point in greedy:
            error = [[point.value - point.low], [point.high - point.value]]
            axes.errorbar([place[point.x]], [point.value], yerr=error, fmt=marker, color=colour, ms=6, lw=1.4)
    axes.set_xticks(
        list(place.values()), labels=["greedy" if budget < 1 else f"{budget:g}" for budget in budgets], fontsize=10
    )
    _percent(axes)
    _legend(axes, columns=3)
    return _svg(
        figure,
        "by-budget",
        "Accuracy by runtime budget",
        f"Share of test problems solved ({kind}) against the number of samples, one line a generation.",
    )


def by_stage(generations: list[int], stages: dict[str, list[float]]) -> str:
    """FLOPs by stage, stacked; `stages` maps a stage to one figure a generation, padding included."""
    from matplotlib.ticker import EngFormatter

    figure, axes = _axes("Generation", "Compute executed")
    below = [0.0] * len(generations)
    for stage, flops in stages.items():
        colour = STAGE_COLOURS.get(stage, GREY)
        axes.bar(
            generations, flops, bottom=below, color=colour, edgecolor=_PAPER, linewidth=0.6, width=0.72, label=stage
        )
        below = [low + value for low, value in zip(below, flops, strict=True)]
    _whole_numbers(axes, [float(generation) for generation in generations])
    axes.set_ylim(0, max([*below, 1.0]) * 1.08)
    axes.yaxis.set_major_formatter(EngFormatter(unit="FLOP", sep=" "))
    _legend(axes, columns=4)
    return _svg(
        figure, "by-stage", "Compute by stage", "FLOPs each stage of each generation executed, padding included."
    )


def ratings(lines: list[Line], anchor: str) -> str:
    """Elo over the generations; the anchor stands at 0."""
    figure, axes = _axes("Generation", f"Elo, {anchor} at 0")
    for index, (line, colour) in enumerate(zip(lines, (BLUE, VERMILLION, GREEN, PURPLE), strict=False)):
        x = [point.x for point in line.points]
        axes.fill_between(
            x, [p.low for p in line.points], [p.high for p in line.points], color=colour, alpha=0.18, lw=0
        )
        axes.plot(x, [p.value for p in line.points], color=colour, marker=MARKERS[index], ms=5, lw=1.8, label=line.name)
    axes.axhline(0.0, color=GREY, lw=1.2, ls="--")
    _whole_numbers(axes, [point.x for line in lines for point in line.points])
    _legend(axes, columns=2)
    return _svg(figure, "ratings", "Elo by generation", f"Elo of each generation's player, 95 % bands; {anchor} at 0.")


def comparison(rows: list[tuple[str, Band]], measured: str = "Solved on test") -> str:
    """One row a contender: its value and interval on a common axis, first row on top. `x` of a band is ignored."""
    figure, axes = _axes(measured, "", height=0.75 + 0.34 * len(rows))
    for index, (_, band) in enumerate(rows):
        colour = BLUE if index == 0 else GREY
        axes.errorbar(
            [band.value],
            [-index],
            xerr=[[band.value - band.low], [band.high - band.value]],
            fmt=MARKERS[0],
            color=colour,
            ms=6,
            lw=2,
        )
    axes.set_yticks([-index for index in range(len(rows))], labels=[_literal(name) for name, _ in rows], fontsize=10)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.grid(False, axis="y")
    _percent(axes, axis="x")
    return _svg(
        figure, "comparison", "The student, its rivals and its controls", "Share of test problems solved, 95 %."
    )


def by_queries(panels: Sequence[Costs], asked: str = "Queries") -> str:
    """Costs against queries, both by their logarithms, a panel above the other."""
    return _svg(
        _by_queries(panels, asked, _THEMED),
        "by-queries",
        "Cost against queries",
        "; ".join(f"{panel.title}: {', '.join(line.name for line in panel.lines)}" for panel in panels)
        + "; 95 % bands.",
    )


def by_queries_file(panels: Sequence[Costs], asked: str, kind: str) -> bytes:
    """The drawing as a file of its own: `svg`, which follows the reader's light or dark theme, or `png`."""
    if kind == "svg":
        return _standalone(by_queries(panels, asked)).encode()
    buffer = io.BytesIO()
    _by_queries(panels, asked, _light()).savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _by_queries(panels: Sequence[Costs], asked: str, palette: Palette) -> Any:
    from matplotlib.figure import Figure

    # Placed by hand, in inches: a layout that is solved for takes as long as the drawing.
    plot, below, right = 2.1, 0.52, 0.15
    heads = [0.35 + 0.205 * len(panel.lines) for panel in panels]
    height = sum(heads) + len(panels) * (plot + below)
    figure, top = Figure(figsize=(WIDTH, height), facecolor=palette.paper), height
    for head, panel in zip(heads, panels, strict=True):
        top -= head + plot
        axes: Any = figure.add_axes((_LEFT / WIDTH, top / height, 1 - (_LEFT + right) / WIDTH, plot / height))
        top -= below
        _dress(axes, asked, panel.measured, palette)
        for index, (line, crossing) in enumerate(zip(panel.lines, panel.crossings, strict=True)):
            colour = palette.ramp(line.ramp or 0.0)
            x = [point.x for point in line.points]
            axes.fill_between(
                x, [p.low for p in line.points], [p.high for p in line.points], color=colour, alpha=0.16, lw=0
            )
            name = line.name
            if crossing is not None:
                name += f": from {crossing.queries:,.0f} on"
                end = min(crossing.high, x[-1])
                axes.plot([max(crossing.low, x[0]), end], [crossing.flops] * 2, color=colour, lw=4, alpha=0.4)
                axes.plot([crossing.queries], [crossing.flops], MARKERS[index], color=colour, ms=7, zorder=5,
                          markeredgecolor=palette.paper, markeredgewidth=1.2)  # fmt: skip
            axes.plot(x, [p.value for p in line.points], color=colour, lw=1.8, ls=_DASHES[index], label=name)
        for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
            scale("log")
            axis.set_major_formatter(_prefixed())
            axis.set_minor_locator(_none())
        axes.tick_params(which="minor", length=0)
        axes.set_xlim(panel.lines[0].points[0].x, panel.lines[0].points[-1].x)
        _legend(axes, columns=1, palette=palette)
        axes.get_legend().set_title(panel.title, prop={"size": 10.5})
        axes.get_legend().get_title().set_color(palette.text)
    return figure


def _prefixed() -> Any:
    """Powers of ten as they are said: 100, 10k, 1M; what is larger than quadrillions as 1e+18."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _standalone(drawing: str) -> str:
    """An `<svg>` of a page as a document of its own."""
    light, dark = ramp_styles()
    light |= {"--text": "#1d2127", "--grid": "#d9dde3", "--card": "#ffffff"}
    dark |= {"--text": "#e4e7ec", "--grid": "#343b45", "--card": "#181c22"}
    told = ["".join(f"{name}:{colour};" for name, colour in theme.items()) for theme in (light, dark)]
    style = (
        f"<style>svg{{{told[0]}background:var(--card);font-family:system-ui,sans-serif}}"
        f"@media(prefers-color-scheme:dark){{svg{{{told[1]}}}}}</style>"
    )
    return drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "<title", f"{style}<title", 1
    )


def ramp_styles() -> tuple[dict[str, str], dict[str, str]]:
    """CSS variables of the ramp for a light and for a dark page: the newest stands out most on either."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    viridis = colormaps["viridis"]
    shares = {f"--g{step:02x}": step / (_STEPS - 1) for step in range(_STEPS)}
    light = {name: to_hex(viridis(0.78 - 0.70 * share)) for name, share in shares.items()}
    dark = {name: to_hex(viridis(0.38 + 0.60 * share)) for name, share in shares.items()}
    return light, dark


def _light() -> Palette:
    """A light page's colours, for a picture without style sheets."""
    light, _ = ramp_styles()
    return Palette("#1d2127", "#d9dde3", "#ffffff", lambda share: light[f"--g{round(share * (_STEPS - 1)):02x}"])


def _ramp_marker(share: float) -> str:
    return f"{_RAMP}{round(share * (_STEPS - 1)):02x}"


_THEMED = Palette(_TEXT, _GRID, _PAPER, _ramp_marker)


def _literal(text: str) -> str:
    """A dollar sign is a dollar sign, not the start of a formula."""
    return text.replace("$", r"\$")


def _axes(x: str, y: str, height: float = HEIGHT) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    _dress(axes, x, y, _THEMED)
    return figure, axes


def _dress(axes: Any, x: str, y: str, palette: Palette) -> None:
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=10.5, color=palette.text)
    axes.set_ylabel(y, fontsize=10.5, color=palette.text)
    axes.grid(color=palette.grid, lw=0.7)
    axes.tick_params(colors=palette.text, labelsize=10, length=0)
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.grid)


def _whole_numbers(axes: Any, values: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if values:
        axes.set_xlim(min(values) - 0.5, max(values) + 0.5)


def _percent(axes: Any, axis: str = "y") -> None:
    from matplotlib.ticker import PercentFormatter

    formatter = PercentFormatter(xmax=1.0, decimals=0)
    if axis == "y":
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(formatter)
    else:
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(formatter)


def _legend(axes: Any, columns: int, palette: Palette = _THEMED) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=min(columns, len(handles)),
            frameon=False,
            fontsize=10,
            labelcolor=palette.text,
        )


def _svg(figure: Any, name: str, title: str, description: str) -> str:
    """The drawing as an `<svg>` element for an HTML page: no prolog, no name spaces, own ids, the page's colours."""
    from matplotlib import rc_context

    figure.patch.set_alpha(0)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    # One page holds several drawings, and matplotlib calls the parts of each `figure_1`, `axes_1`, ...
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    # matplotlib's own style sheet would reach the whole page.
    text = re.sub(r"\s*<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    for marker, variable in ((_TEXT, "--text"), (_GRID, "--grid"), (_PAPER, "--card")):
        text = text.replace(marker, f"var({variable})")
    text = re.sub(re.escape(_RAMP) + r"([0-9a-f]{2})", r"var(--g\1)", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib wrote an SVG without a viewBox"
    labels = f'role="img" aria-labelledby="{name}-title {name}-description"'
    head = (
        f'<svg {box.group()} {labels}><title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-description">{html.escape(description)}</desc>'
    )
    return head + text[text.index(">") + 1 :]
