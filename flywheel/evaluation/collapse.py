"""Signs that a model learns from itself too narrowly: fewer different solutions, less entropy, lengths that drift.

Measured on the valid attempts of the largest budget; alarms compare with the champion that the generation started from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from flywheel.records import Attempt

_DISTINCT_LOSS = 0.25
_ENTROPY_LOSS = 0.5
_LENGTH_DRIFT = 0.5
_PASS_LOSS = 0.02
_OVERRATED_GAIN = 0.1


@dataclass(frozen=True, slots=True)
class Health:
    """Averages over problems (distinct) and over samples (the others)."""

    distinct_solutions: float
    """Different right answers a problem."""
    distinct_answers: float
    """Different well-formed answers a problem, right or wrong."""
    entropy: float
    """Mean negative log-probability of a sampled token, nats."""
    length: float
    """Tokens a sample."""
    truncated: float
    """Share of samples cut off."""
    malformed: float
    """Share of samples that ended without a well-formed answer."""
    overrated: float
    """Share of samples that the reward lets pass and an exact check calls wrong: what a student may learn to please."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(slots=True)
class HealthTally:
    """Sums for `Health`, problem by problem, so that no stage has to hold all attempts."""

    problems: int = 0
    samples: int = 0
    tokens: int = 0
    solutions: int = 0
    answers: int = 0
    truncated: int = 0
    malformed: int = 0
    overrated: int = 0
    log_probability: float = 0.0

    def add(self, attempts: Sequence[Attempt], right: Sequence[bool | None], threshold: float) -> None:
        """Count one problem's attempts; rewards from `threshold` on pass. What an exact check could not decide is None,
        neither right nor overrated."""
        self.problems += 1
        self.samples += len(attempts)
        self.tokens += sum(attempt.tokens for attempt in attempts)
        self.solutions += len({attempt.answer for attempt, good in zip(attempts, right, strict=True) if good})
        self.answers += len({attempt.answer for attempt in attempts if attempt.answer is not None})
        self.truncated += sum(attempt.status == "truncated" for attempt in attempts)
        self.malformed += sum(attempt.status == "malformed" for attempt in attempts)
        self.overrated += sum(
            (attempt.reward or 0.0) >= threshold and good is False
            for attempt, good in zip(attempts, right, strict=True)
        )
        self.log_probability += sum(attempt.log_probability or 0.0 for attempt in attempts)

    def health(self) -> Health:
        return Health(
            distinct_solutions=self.solutions / self.problems,
            distinct_answers=self.answers / self.problems,
            entropy=-self.log_probability / max(1, self.tokens),
            length=self.tokens / max(1, self.samples),
            truncated=self.truncated / max(1, self.samples),
            malformed=self.malformed / max(1, self.samples),
            overrated=self.overrated / max(1, self.samples),
        )


def alarms(
    now: Mapping[str, float],
    before: Mapping[str, float] | None,
    accuracy: Mapping[str, float],
    accuracy_before: Mapping[str, float] | None,
    largest_budget: int,
) -> list[str]:
    """Sentences for what looks like collapse. Mappings are `Health.as_dict` and metric key to value, on valid."""
    found: list[str] = []
    if before is None or accuracy_before is None:
        return found
    key = f"pass@{largest_budget}"
    lost = accuracy_before.get(key, 0.0) - accuracy.get(key, 0.0)
    gained = accuracy.get("greedy", 0.0) - accuracy_before.get("greedy", 0.0)
    if lost > _PASS_LOSS and gained > 0.0:
        found.append(f"{key} fell by {lost:.3f} while greedy rose by {gained:.3f}: sharper, but it finds less")
    if now["distinct_solutions"] < (1.0 - _DISTINCT_LOSS) * before["distinct_solutions"]:
        found.append(
            f"distinct solutions a problem fell from {before['distinct_solutions']:.2f} "
            f"to {now['distinct_solutions']:.2f}"
        )
    if now["entropy"] < (1.0 - _ENTROPY_LOSS) * before["entropy"]:
        found.append(f"entropy a token fell from {before['entropy']:.3f} to {now['entropy']:.3f} nats")
    if abs(now["length"] - before["length"]) > _LENGTH_DRIFT * before["length"]:
        found.append(f"answer length moved from {before['length']:.1f} to {now['length']:.1f} tokens")
    # Missing where it was measured by another reward, or by an earlier version.
    if now["overrated"] - before.get("overrated", 1.0) > _OVERRATED_GAIN:
        found.append(
            f"wrong answers that the reward lets pass rose from {before['overrated']:.1%} to {now['overrated']:.1%} of "
            "samples: the student learns to please the reward"
        )
    return found
