"""The domain's own checker as a reward: 1 for a right answer, 0 for a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel.problems.domain import Domain
from flywheel.records import Problem, StopReason
from flywheel.rewards import form
from flywheel.rewards.reward import Answer, Judgement, NoSteps


class Exact(NoSteps):
    """Judges by `Domain.check`. An answer that was cut off is no answer, whatever its first part says."""

    name = "exact"
    verifies = True
    votes = False

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.needs_reference = domain.needs_reference

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        judged = []
        for problem, answers in groups:
            should_stop()
            # Samples of one problem are often alike: each text is checked once.
            texts = dict.fromkeys((answer.output, answer.stop_reason) for answer in answers)
            known = {text: self._one(problem, *text) for text in texts}
            judged.append([known[answer.output, answer.stop_reason] for answer in answers])
        return judged

    def _one(self, problem: Problem, output: str, stop_reason: StopReason) -> Judgement:
        missing = form.no_answer(stop_reason)
        if missing is not None:
            return missing
        verdict = self._domain.check(problem, output)
        if verdict.unsure:
            return Judgement(None, verdict.unsure, verdict.answer, reason=verdict.reason)
        return form.malformed(verdict) or Judgement(1.0 if verdict.right else 0.0, "judged", verdict.answer)
