"""What all rewards agree on: which attempts are answers at all, and what an answer is known by.

The domain reads the answer; whether it finds it right is not looked at here.
"""

from __future__ import annotations

from flywheel.problems.domain import Domain, Verdict
from flywheel.records import Problem, StopReason
from flywheel.rewards.reward import Answer, Judgement


def no_answer(stop_reason: StopReason) -> Judgement | None:
    """The judgement of an attempt that did not come to its end, whatever its first part says; None of one that did."""
    if stop_reason == "length":
        return Judgement(0.0, "truncated", None)
    if stop_reason == "failed":
        return Judgement(None, "failed", None, reason="the model gave no answer")
    return None


def malformed(verdict: Verdict) -> Judgement | None:
    """The judgement of what the domain cannot read as an answer; None of what it can."""
    if verdict.answer is not None:
        return None
    if verdict.unsure:
        return Judgement(None, verdict.unsure, None, reason=verdict.reason)
    return Judgement(0.0, "malformed", None, reason=verdict.reason)


def canonical(domain: Domain, problem: Problem, answer: Answer) -> Judgement | str:
    """The canonical form of an answer, for rewards that judge well-formed answers in their own way; or the judgement
    of what is none."""
    missing = no_answer(answer.stop_reason)
    if missing is not None:
        return missing
    verdict = domain.check(problem, answer.output)
    missing = malformed(verdict)
    if missing is not None:
        return missing
    assert verdict.answer is not None
    return verdict.answer
