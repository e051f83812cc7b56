"""What is going on: told to whoever listens in this process, and kept in `.flywheel/progress.json` for `status`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from storage.layout import Layout
from storage.tables import replace_text
from tasks.stage import Report

_EVERY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """Where a campaign stands. `done` of `total` in the stage's own unit (problems, optimiser steps)."""

    generation: int
    stage: str
    done: int = 0
    total: int = 0


class Listener(Protocol):
    """Shows a campaign as it goes."""

    def step(self, step: Step) -> None: ...

    def finished(self, report: Report) -> None: ...

    def published(self, row: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell this listener of every campaign in this process while inside."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Tracker:
    """Passes news on; one a campaign."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.local / "progress.json"
        self._written = 0.0
        self._last: Step | None = None

    def step(self, step: Step) -> None:
        for listener in _listeners:
            listener.step(step)
        now = time.monotonic()
        new_stage = self._last is None or (self._last.generation, self._last.stage) != (step.generation, step.stage)
        if new_stage or now - self._written >= _EVERY_SECONDS:
            replace_text(self._path, json.dumps(asdict(step)))
            self._last, self._written = step, now

    def finished(self, report: Report) -> None:
        for listener in _listeners:
            listener.finished(report)

    def published(self, row: dict[str, Any]) -> None:
        for listener in _listeners:
            listener.published(row)

    def note(self, text: str) -> None:
        for listener in _listeners:
            listener.note(text)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def read(layout: Layout) -> Step | None:
    """Where the campaign that runs now stands, or the one that was killed stood; None if there is nothing to say."""
    try:
        return Step(**json.loads((layout.local / "progress.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
