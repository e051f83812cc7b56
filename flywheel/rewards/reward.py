"""What a reward is, and how one is found by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flywheel import params
from flywheel.errors import ConfigError
from flywheel.problems.domain import Domain
from flywheel.records import Problem, Status, StopReason


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a reward says of one attempt."""

    reward: float | None
    """None only where the judge did not finish (`timeout`)."""
    status: Status
    answer: str | None
    """Canonical form, the key of votes and dedupe."""
    flops: float = 0.0


class Reward(Protocol):
    """Judges attempts. `needs_reference` says whether it looks at the reference answer: a search judged by such a
    reward could not be deployed, so what it reaches is reported as an oracle's."""

    name: str
    needs_reference: bool

    def judge(self, problem: Problem, output: str, stop_reason: StopReason) -> Judgement:
        """Judge one attempt. A malformed attempt is a judgement, never an exception."""


def load(section: params.Reward, domain: Domain) -> Reward:
    """The reward that a `reward` section names."""
    if section.name == "exact":
        from flywheel.rewards.exact import Exact

        return Exact(domain)
    raise ConfigError([f"reward.name: got {section.name!r}; known: exact"])
