"""The domain's own checker as a reward: 1 for a right answer, 0 for a wrong one."""

from __future__ import annotations

from flywheel.problems.domain import Domain
from flywheel.records import Problem, Status, StopReason
from flywheel.rewards.reward import Judgement


class Exact:
    """Judges by `Domain.check`. An answer that was cut off is no answer, whatever its first part says."""

    name = "exact"

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.needs_reference = domain.needs_reference

    def judge(self, problem: Problem, output: str, stop_reason: StopReason) -> Judgement:
        if stop_reason == "length":
            return Judgement(0.0, "truncated", None)
        verdict = self._domain.check(problem, output)
        status: Status = "judged" if verdict.answer is not None else "malformed"
        return Judgement(1.0 if verdict.right else 0.0, status, verdict.answer)
