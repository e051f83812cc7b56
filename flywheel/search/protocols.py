"""What a searcher needs to know of a model, a domain and the run it is part of, and what it is itself.

A searcher works on one batch unit of problems at once. It opens a session on their prompts and asks the session, round
after round, to go on from some nodes of the problems' trees; what several nodes have in common is computed once.

    prompt 0 ──┬── node 3  "8 * 3 = 24"  ──┬── node 7  "24 - 5 = 19" (eos)
               │                           └── node 8  "24 + 5 = 29" (eos)
               └── node 4  "3 + 5 = 8"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flywheel.compute import Cost
from flywheel.models.protocols import Extension, Sampler, Sampling, Segment, SegmentStop, Session
from flywheel.records import Attempt, Problem
from flywheel.rewards.reward import Reward

__all__ = [
    "Extension",
    "Run",
    "Sampler",
    "Sampling",
    "Searcher",
    "Segment",
    "SegmentStop",
    "Session",
    "Text",
    "never_stop",
    "not_told",
]


class Text(Protocol):
    """How a domain puts problems into words and cuts answers into steps."""

    step_end: str

    def prompt(self, problem: Problem) -> str: ...

    def messages(self, problem: Problem) -> list[dict[str, str]] | None:
        """The question as chat messages, where the model's chat template is to be used; None: `prompt` as it is."""

    def steps(self, output: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Run:
    """Where in the flywheel a search happens: part of each attempt's identity and of its noise."""

    seed: int
    generation: int
    purpose: str = "generate"
    """Keeps the noise of labels and of evaluations apart."""


class Searcher(Protocol):
    """A way to spend inference: a frozen record of its settings, with one method."""

    name: str
    needs_steps: bool
    """Whether it stands on step scores (`Reward.gives_steps`)."""
    needs_decision: bool
    """Whether it stops early, which takes a reward that verifies or votes."""
    judges_alone: bool
    """Whether it asks for the reward of single answers while it searches, which a vote cannot give."""

    def params(self) -> dict[str, Any]:
        """What shapes an attempt, for its id and its row."""

    def search(
        self,
        problems: Sequence[Problem],
        text: Text,
        sampler: Sampler,
        reward: Reward,
        run: Run,
        *,
        should_stop: Callable[[], None],
        finished: Callable[[int, list[Attempt]], None],
    ) -> tuple[list[list[Attempt]], Cost]:
        """Search one batch unit; attempts for each problem, in the order of `problems`, and the unit's cost.

        `finished` is told (position in `problems`, its attempts) as soon as a problem is done, so that a stop loses
        none; `should_stop` is called often and may raise.
        """


def never_stop() -> None:
    """The default of `should_stop`: go on."""


def not_told(_position: int, _attempts: list[Attempt]) -> None:
    """The default of `finished`."""
