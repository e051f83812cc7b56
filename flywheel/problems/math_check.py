"""Whether two final answers are the same mathematics: Math-Verify, in processes that can be killed.

Math-Verify bounds itself by SIGALRM, which needs the main thread, raises a BaseException, and does not interrupt a
power tower; so its own limits are off and the process is bounded from outside. An answer that takes too long, or over
which the checker breaks, has no verdict, which is not the same as a wrong one; nor has any answer to a reference that
cannot be read. What is compared, and how, is in `flywheel.problems.math_judge`, which those processes run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flywheel.errors import ConfigError
from flywheel.problems.isolated import Workers

_MOST_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class MathVerdict:
    """What came of comparing one answer."""

    right: bool
    answer: str | None
    """Canonical form: equal numbers have equal forms (1/2 and 0.5). None where it cannot be read."""
    unsure: Literal["timeout", "failed"] | None = None
    """Where there is no verdict; `right` then says nothing."""
    reason: str = ""


class MathChecker:
    """Compares final answers with references, in up to `processes` processes; each pair may take `seconds`, and a
    process `memory_mb` MiB. Raises ConfigError where the extra `math` is not installed."""

    def __init__(self, seconds: float, memory_mb: int, processes: int) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                ["problems.checker: math needs Math-Verify, which is not here: pip install 'flywheel-search[math]'"]
            )
        self._workers = Workers("flywheel.problems.math_judge:judge", seconds, memory_mb, processes)
        self._known: dict[tuple[str, str], MathVerdict] = {}

    def check(
        self, pairs: Sequence[tuple[str, str]], should_stop: Callable[[], None] = lambda: None
    ) -> list[MathVerdict]:
        """Compare (reference, answer) pairs; verdicts in their order. Equal pairs are compared once."""
        asked = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        found = dict(zip(asked, self._workers.call(asked, should_stop), strict=True))
        fresh = {
            pair: MathVerdict(False, None, reply.unsure, reply.reason) if reply.unsure else MathVerdict(**reply.value)
            for pair, reply in found.items()
        }
        verdicts = [fresh[pair] if pair in fresh else self._known[pair] for pair in pairs]
        if len(self._known) > _MOST_REMEMBERED:
            self._known.clear()
        # One without a verdict is tried again when it is asked for again.
        self._known.update({pair: verdict for pair, verdict in fresh.items() if verdict.unsure is None})
        return verdicts

    def close(self) -> None:
        """End the processes. They start again if needed."""
        self._workers.close()
