"""What a verification has looked at, and what it found wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

What = Literal["git", "tag", "manifest", "file", "object", "model", "table", "pointer"]
"""`git`: an object, a ref or the repository itself; `tag`: a generation's tag or its commit; `manifest`: what tracked
files say, of themselves and of each other; `file`: a tracked file in the work tree; `object`: one in DVC's cache;
`pointer`: an alias of MLflow, or a file in `.flywheel` that says what waits."""

Tell = Callable[[str, int, int], None]
"""Hears of progress: (what is done, how much of it, of how much)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that is not what it says. `where`: an address, or a path in the registry; `fix`: what to do."""

    what: What
    where: str
    why: str
    fix: str


@dataclass(slots=True)
class Findings:
    """Filled by the parts of a verification, by several threads at once."""

    checked: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be proved here and is no failure."""
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, what: What, where: str, why: str, fix: str) -> None:
        failure = Failure(what, where, why, fix)
        with self._guard:
            if failure not in self.failures:
                self.failures.append(failure)

    def count(self, name: str, number: int = 1) -> None:
        with self._guard:
            self.checked[name] += number

    def note(self, text: str) -> None:
        with self._guard:
            if text not in self.notes:
                self.notes.append(text)

    def failed(self, what: What, where: str) -> bool:
        """Whether something there was found wrong before."""
        return any((failure.what, failure.where) == (what, where) for failure in self.failures)
