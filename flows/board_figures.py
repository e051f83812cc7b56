"""Boards of Hex as SVG inside the report: stones, where the moves go, which of them win.

Drawn by hand, as a board is a dozen lines of polygons. Colours are those of the report's plots; text follows the page's
theme.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from flows.figures import BLUE, GREEN, VERMILLION
from flywheel.problems.hex import name_of

_RADIUS = 18.0
_WIDTH = _RADIUS * math.sqrt(3.0)
_MARGIN = 20.0


def board(text: str, shares: Sequence[float], winning: set[int], title: str) -> str:
    """A position `.X./OXO/...` with the shares of a policy on its empty cells: the greener, the likelier, in percent
    from 1 on. Cells of `winning` have a ring."""
    size = text.count("/") + 1
    cells = text.replace("/", "")
    parts = [_edges(size)]
    for cell, mark in enumerate(cells):
        x, y = _centre(cell, size)
        parts.append(f'<polygon points="{_hexagon(x, y, _RADIUS)}" fill="none" stroke="var(--grid)"/>')
        if mark == ".":
            share = shares[cell]
            if share > 0.004:
                heat = f'fill="{GREEN}" fill-opacity="{0.12 + 0.78 * share:.2f}"'
                parts.append(f'<polygon points="{_hexagon(x, y, _RADIUS - 1.5)}" {heat}/>')
            if cell in winning:
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="13" fill="none" stroke="var(--text)" stroke-width="1.6"/>'
                )
            if share >= 0.01:
                parts.append(_words(x, y, f"{100 * share:.0f}", 10.5))
        else:
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="12.5" fill="{VERMILLION if mark == "X" else BLUE}"/>'
                f'<text x="{x:.1f}" y="{y + 4:.1f}" font-size="11" text-anchor="middle" fill="#fff">{mark}</text>'
            )
    for line in range(size):
        x, y = _centre(line, size)
        parts.append(_words(x - _WIDTH / 4, y - _RADIUS - 11, name_of(line, size)[0], 9.5))
        x, y = _centre(line * size, size)
        parts.append(_words(x - _WIDTH / 2 - 13, y + 3, str(line + 1), 9.5))
    right, bottom = _centre(size * size - 1, size)
    view = f"{-_MARGIN:.0f} {-_MARGIN:.0f} {right + _WIDTH / 2 + 2 * _MARGIN:.0f} {bottom + _RADIUS + 2 * _MARGIN:.0f}"
    return (
        f'<svg viewBox="{view}" role="img" aria-label="{html.escape(title)}"><title>{html.escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _centre(cell: int, size: int) -> tuple[float, float]:
    row, column = divmod(cell, size)
    return _WIDTH * (column + row / 2 + 0.5) + 6.0, 1.5 * _RADIUS * row + _RADIUS + 6.0


def _hexagon(x: float, y: float, radius: float) -> str:
    """A corner on top."""
    corners = ((x + radius * math.sin(k * math.pi / 3), y - radius * math.cos(k * math.pi / 3)) for k in range(6))
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)


def _edges(size: int) -> str:
    """Whose edges they are: X joins top and bottom, O left and right."""
    reach = _RADIUS + 3.0
    top = [_centre(column, size) for column in range(size)]
    left = [_centre(row * size, size) for row in range(size)]
    shift_x, shift_y = _centre(size * size - 1, size)[0] - top[-1][0], _centre(size * size - 1, size)[1] - top[-1][1]
    across = top[-1][0] - top[0][0]
    lines = []
    for colour, points in (
        (VERMILLION, [(x, y - reach) for x, y in top]),
        (VERMILLION, [(x + shift_x, y + shift_y + reach) for x, y in top]),
        (BLUE, [(x - reach, y) for x, y in left]),
        (BLUE, [(x + across + reach, y) for x, y in left]),
    ):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="3"/>')
    return "".join(lines)


def _words(x: float, y: float, text: str, size: float) -> str:
    return (
        f'<text x="{x:.1f}" y="{y + size / 3:.1f}" font-size="{size}" text-anchor="middle" '
        f'fill="var(--text)">{html.escape(text)}</text>'
    )
