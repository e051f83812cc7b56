"""Every error Flywheel raises on purpose, and the exit code each becomes.

FlywheelError                 1   the work failed
├── InputError                2   what the user gave cannot be used
│   ├── ConfigError           2   params: every problem found, at once
│   ├── ModelError            2   a folder or id that holds no usable model
│   └── RegistryError         2   missing, foreign, damaged or newer registry
├── RegistryBusy              3   another process holds the registry, or it is in conflict
├── StorageFull               1   not enough space to go on safely
├── EngineError               1   an outside engine that cannot be started, died, or broke its protocol
└── Interrupted             130   stopped on request; what was finished is kept

A message says what was got, what was expected, and what to do. A malformed *attempt* is data with a reason
(`status`, `stop_reason`), never an exception.
"""

from __future__ import annotations

from collections.abc import Sequence


class FlywheelError(Exception):
    """Root of the tree: the work failed."""

    exit_code = 1


class InputError(FlywheelError):
    """What the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """Params that do not fit; carries every problem found."""

    def __init__(self, problems: list[str], source: str = "params.yaml") -> None:
        self.problems = problems
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{source} has {len(problems)} problem{'s' if len(problems) != 1 else ''}:\n{lines}")


class ModelError(InputError):
    """A folder or id that holds no usable model."""


class RegistryError(InputError):
    """A registry that is missing, foreign, damaged, or written by a newer version."""


class RegistryBusy(FlywheelError):  # noqa: N818 (a state, as users say it)
    """Another process holds the registry, or its state conflicts with the request."""

    exit_code = 3


class StorageFull(FlywheelError):  # noqa: N818
    """Not enough space to go on safely; nothing was half-written."""


class EngineError(FlywheelError):
    """An outside engine that cannot be started, died, was too slow, or did not keep to its protocol."""


class Interrupted(FlywheelError):  # noqa: N818
    """Stopped on request. Finished shards and checkpoints are kept."""

    exit_code = 130


def joined(failed: Sequence[FlywheelError]) -> FlywheelError:
    """One error that says what all of several say, with the first one's exit code; the only one as it is."""
    if len(failed) == 1:
        return failed[0]
    error = FlywheelError("\n".join(map(str, failed)))
    error.exit_code = failed[0].exit_code
    return error
