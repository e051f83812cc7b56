"""Markdown: a table, an interval, and a section put between its marks in a page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval
from storage.tables import replace_text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as they are."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def spread(interval: Interval | None, form: str) -> str:
    """`low to high`, or nothing."""
    return "" if interval is None else f"{interval.low:{form}} to {interval.high:{form}}"


def points(value: Interval) -> str:
    """A difference of accuracies in points, with its interval where there is one; nothing where it is no number."""
    if not math.isfinite(value.value):
        return ""
    interval = f" ({100 * value.low:+.1f} to {100 * value.high:+.1f})" if math.isfinite(value.low) else ""
    return f"{100 * value.value:+.1f}{interval}"


def write_into(page: Path, name: str, text: str) -> None:
    """Put a section into a page, between `<!-- NAME -->` and `<!-- end of NAME -->`. Raises InputError without them."""
    require_place(page, name)
    begin, end = _marks(name)
    held = page.read_text(encoding="utf-8")
    replace_text(page, _between(name).sub(lambda _: f"{begin}\n{text}\n{end}", held))


def require_place(page: Path, name: str) -> None:
    """Raise InputError where a page has no place for a section."""
    if not page.is_file() or not _between(name).search(page.read_text(encoding="utf-8")):
        begin, end = _marks(name)
        raise InputError(f"{page} has no place for {name}; write the lines {begin} and {end} where it is to stand")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def _between(name: str) -> re.Pattern[str]:
    begin, end = map(re.escape, _marks(name))
    return re.compile(f"{begin}.*?{end}", re.DOTALL)
