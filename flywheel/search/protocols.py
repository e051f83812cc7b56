"""What a searcher needs to know of a model, a domain and the run it is part of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flywheel.compute import Cost
from flywheel.models.sampler import Sample
from flywheel.records import Problem


class Sampler(Protocol):
    """A model that continues prompts."""

    snapshot: str
    tokenizer_id: str

    def encode_prompt(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: npt.NDArray[np.uint64],
        *,
        temperature: float | None,
        max_new_tokens: int,
        should_stop: Callable[[], None],
    ) -> tuple[list[list[Sample]], Cost]:
        """Continuations of token ids; `keys` is [prompts, samples], a temperature of None is greedy."""


class Text(Protocol):
    """How a domain puts problems into words and cuts answers into steps."""

    def prompt(self, problem: Problem) -> str: ...

    def steps(self, output: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Run:
    """Where in the flywheel a search happens: part of each attempt's identity and of its noise."""

    seed: int
    generation: int
    purpose: str = "generate"
    """Keeps the noise of labels and of evaluations apart."""


def never_stop() -> None:
    """The default of `should_stop`: go on."""
