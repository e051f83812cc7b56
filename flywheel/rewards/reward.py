"""What a reward is, and how one is found by name.

A reward judges all of a unit's attempts at once, grouped by problem: a vote needs the group, a reward model the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel import sections
from flywheel.errors import ConfigError
from flywheel.problems.domain import Domain
from flywheel.records import Problem, Status, StopReason


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt, as a reward sees it."""

    output: str
    stop_reason: StopReason
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a reward says of one attempt."""

    reward: float | None
    """In 0..1, higher is better; None only where there is no verdict (`timeout`, `failed`), never a silent zero."""
    status: Status
    answer: str | None
    """Canonical form, the key of votes and dedupe; None where there is no well-formed answer."""
    flops: float = 0.0
    step_rewards: tuple[float, ...] = ()
    """One for each step, where the reward gives step scores."""
    reason: str = ""
    """Where there is no verdict: why, in a few words."""


@dataclass(frozen=True, slots=True)
class StepScores:
    """Scores of the steps of one answer so far: each in 0..1, the chance that the answer comes right from there."""

    scores: tuple[float, ...]
    flops: float = 0.0


class Reward(Protocol):
    """Judges attempts. `needs_reference` says whether it looks at the reference answer: a search judged by such a
    reward could not be deployed, so what it reaches is reported as an oracle's."""

    name: str
    needs_reference: bool
    verifies: bool
    """A reward of 1 is proof that the answer is right (as far as this reward knows): a search may stop there."""
    votes: bool
    """Answers of one problem judge each other: a reward of a single answer means nothing."""
    gives_steps: bool
    """Whether `score_steps` is there, and judgements carry step rewards."""

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        """Judge the attempts of some problems. A malformed attempt is a judgement, never an exception."""

    def score_steps(
        self, partial: Sequence[tuple[Problem, Sequence[str]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[StepScores]:
        """Score the steps of answers so far, finished or not. Raises TypeError where `gives_steps` is false."""

    def take_padding(self) -> float:
        """FLOPs that a network's batches took on padding since this was last asked; they are no answer's own."""


class NoPadding:
    """For rewards without a network."""

    def take_padding(self) -> float:
        return 0.0


class NoSteps(NoPadding):
    """For rewards that know whole answers only."""

    name: str
    gives_steps = False

    def score_steps(
        self, partial: Sequence[tuple[Problem, Sequence[str]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[StepScores]:
        raise TypeError(f"reward {self.name} has no step scores; ask `gives_steps` first")


class Facts(Protocol):
    """What a searcher asks of a reward before it begins."""

    verifies: bool
    votes: bool
    gives_steps: bool


def facts(section: sections.Reward) -> Facts:
    """What the reward that a section names can do, without loading it. Noise changes nothing of that."""
    from flywheel.rewards import exact, function, majority, oracle_steps, outcome, process

    known: dict[str, Facts] = {
        "exact": exact.Exact, "function": function.Function, "majority": majority.Majority,
        "oracle_steps": oracle_steps.OracleSteps, "outcome": outcome.Outcome, "process": process.Process,
    }  # fmt: skip
    return known[section.base if section.name == "noisy" else section.name]


def load(section: sections.Reward, domain: Domain, seed: int, model: str | None, device: str, processes: int) -> Reward:
    """The reward that a `reward` section names. `model` is the folder of the registry's own reward model, for a
    section that names no other; `processes` is how many run a user's function. Raises ConfigError where
    the section does not fit the domain or the function cannot be used, ModelError where a reward model cannot."""
    if section.name == "noisy":
        from flywheel.rewards.noisy import Noisy

        base = load(section.model_copy(update={"name": section.base}), domain, seed, model, device, processes)
        return Noisy(base, section.flip, seed)
    if section.name in {"outcome", "process"}:
        return _network(section, domain, section.model or model, device)
    if section.name == "function":
        from flywheel.rewards.function import Function

        assert section.function is not None
        return Function(section.function, domain, section.seconds, section.memory_mb, processes)
    if section.name == "majority":
        from flywheel.rewards.majority import Majority

        return Majority(domain)
    if section.name == "oracle_steps":
        from flywheel.problems.countdown import Countdown
        from flywheel.rewards.oracle_steps import OracleSteps

        if not isinstance(domain, Countdown):
            raise ConfigError(
                [f"reward.name: oracle_steps knows Countdown alone, got problems.domain {domain.name}; take process"]
            )
        return OracleSteps(domain)
    from flywheel.rewards.exact import Exact

    assert section.name == "exact"
    return Exact(domain)


def _network(section: sections.Reward, domain: Domain, source: str | None, device: str) -> Reward:
    from flywheel.models import reward_model
    from flywheel.rewards.outcome import Outcome
    from flywheel.rewards.process import Process

    if source is None:
        raise ConfigError(
            [
                f"reward.model: {section.name} without a model takes the registry's own, and there is none yet; set "
                "supervise.enabled, or name a folder or hub id"
            ]
        )
    loaded = reward_model.load(source, device, section)
    if section.name == "outcome":
        return Outcome(loaded, domain, section.step_tag, section.batch_size)
    return Process(loaded, domain, section.step_tag, section.aggregate, section.batch_size)
