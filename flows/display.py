"""What people see of a campaign: a line a generation, a bar for the stage at hand, plain lines in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.progress import Step
from storage.ledger import WORK

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from tasks.stage import Report

_PLAIN_EVERY_SECONDS = 10.0


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON document."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def columns(row: dict[str, Any]) -> dict[str, str]:
    """One generation in words: labels kept, accuracy on test at each runtime budget, executed FLOPs, time."""
    test = row["metrics"]["test"]
    stages = row["stages"]
    kind = next(
        kind for kind in ("best@", "oracle@", "majority@", "search@") if any(key.startswith(kind) for key in test)
    )
    shown = ["greedy", *(key for key in test if key.startswith(kind))]
    shown.sort(key=lambda key: int(key.partition("@")[2] or 0))
    seconds = row.get("seconds") or {}
    return {
        "generation": row["tag"],
        "labels": f"{row['labels']}",
        **{key: f"{test[key]['value']:.3f}" for key in shown if key in test},
        **{
            f"elo {key}": f"{entry['value']:.0f}"
            for key, entry in (row["metrics"].get("elo") or {}).items()
            if key != "random"
        },
        "search": f"{stages['generate']:.2g}",
        "training": f"{stages['train']:.2g}",
        **({"reward model": f"{stages['supervise']:.2g}"} if stages.get("supervise") else {}),
        "evaluation": f"{stages['evaluate']:.2g}",
        "time": f"{seconds['total']:.0f} s" if seconds else "",
        "champion": "yes" if row["promoted"] else "no",
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A markdown table of generations."""
    cells = [columns(row) for row in rows]
    names = list(dict.fromkeys(name for cell in cells for name in cell))
    lines = [names, ["---"] * len(names), *([cell.get(name, "") for name in names] for cell in cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Terminal:
    """Tells a campaign on a rich console. A bar shows the stage at hand where the console is a terminal; elsewhere a
    plain line says so every ten seconds. Lines of generations go to stdout, or nowhere if `quiet_rows`."""

    def __init__(self, console: Console, notes: Console, quiet_rows: bool = False) -> None:
        self._console = console
        self._notes = notes
        self._quiet_rows = quiet_rows
        self._widths: dict[str, int] | None = None
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._stage: tuple[int, str] | None = None
        self._said = 0.0

    @contextmanager
    def showing(self) -> Iterator[Terminal]:
        """Show progress while inside."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        if not self._notes.is_terminal:
            yield self
            return
        words = TextColumn("{task.description}")
        with Progress(
            words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self._notes, transient=True
        ) as self._progress:
            yield self
        self._progress = None

    def step(self, step: Step) -> None:
        stage = (step.generation, step.stage)
        words = f"generation {step.generation}: {step.stage}"
        if self._progress is not None:
            if stage != self._stage and self._bar is not None:
                self._progress.remove_task(self._bar)
                self._bar = None
            if self._bar is None:
                self._bar = self._progress.add_task(words, total=step.total or None)
            self._progress.update(self._bar, completed=step.done, total=step.total or None)
        elif step.total and time.monotonic() - self._said >= _PLAIN_EVERY_SECONDS:
            self._notes.print(f"{words} {step.done}/{step.total}", highlight=False)
            self._said = time.monotonic()
        if stage != self._stage:
            self._stage, self._said = stage, time.monotonic()

    def finished(self, report: Report) -> None:
        """Stages are told by their generation's line."""

    def published(self, row: dict[str, Any]) -> None:
        if self._quiet_rows:
            return
        cells = columns(row)
        if self._widths is None or self._widths.keys() != cells.keys():
            self._widths = {name: max(len(name), len(cell), 7) for name, cell in cells.items()}
            self._line({name: name for name in cells}, style="bold")
        self._line(cells)
        for alarm in row["metrics"]["collapse"]["alarms"]:
            self._notes.print(f"  alarm: {alarm}", style="yellow", highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._notes.print(text, highlight=False, soft_wrap=True)

    def _line(self, cells: dict[str, str], style: str | None = None) -> None:
        assert self._widths is not None
        text = "  ".join(cell.rjust(self._widths[name]) for name, cell in cells.items())
        self._console.print(text, style=style, highlight=False, soft_wrap=True)


def overhead_sentence(rows: list[dict[str, Any]]) -> str:
    """How the time of some generations was spent."""
    total = sum(row["seconds"]["total"] for row in rows)
    work = {name: sum(row["seconds"].get(name, 0.0) for row in rows) for name in WORK}
    rest = total - sum(work.values())
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in work.items() if seconds or name != "supervise")
    return (
        f"{len(rows)} generation{'s' if len(rows) != 1 else ''} in {total:.0f} s: {parts}; all else {rest:.0f} s "
        f"({rest / total:.0%}, {rest / len(rows):.1f} s a generation)."
    )


def comparison_text(result: dict[str, Any]) -> str:
    """A comparison as a markdown table."""
    seeds = len(result["seeds"])
    lines = [
        f"{result['problems']} test problems, {seeds} seed{'s' if seeds != 1 else ''}; intervals are 95 %, clustered.",
        "",
        "| | solved | 95 % interval | student minus it | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        difference = result["student_minus"].get(name)
        shown = (
            f"{100 * difference['value']:+.1f} points "
            f"| {100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}"
            if difference
            else " | "
        )
        lines.append(f"| {name} | {row['value']:.1%} | {row['low']:.1%} to {row['high']:.1%} | {shown} |")
    return "\n".join(lines)
