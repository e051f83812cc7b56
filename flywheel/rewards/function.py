"""A function of the user's own as a reward: `module:function(problem, answers) -> list of numbers in 0..1, or None`.

It runs in processes of its own (`flywheel.problems.isolated`), found from the working folder and PYTHONPATH. One call
gets the answers of one problem; if it hangs, crashes or returns nonsense, those have no verdict, with the reason, and
the others keep theirs. What it prints goes to stderr.

    problem   {"problem_id", "domain", "split", "difficulty", "group", "prompt", "payload", and "reference" where the
              domain's own checker looks at it too}
    answers   [{"output", "steps", "stop_reason", "answer": its canonical form by the domain}, ...]

Only well-formed answers are asked about: one that was cut off, or that the domain cannot read, is worth 0 anyhow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flywheel.errors import ConfigError, FlywheelError
from flywheel.problems.domain import Domain
from flywheel.problems.isolated import Reply, Workers
from flywheel.records import Problem
from flywheel.rewards import form
from flywheel.rewards.reward import Answer, Judgement, NoSteps

_FIRST_CALLS = 20
"""If so many fail without one success, the function is broken, not the answers."""


class Function(NoSteps):
    """Calls `target` for each problem; a call may take `seconds` and its process `memory_mb` MiB. Raises ConfigError
    where the function cannot be imported."""

    verifies = True
    votes = False

    def __init__(self, target: str, domain: Domain, seconds: float, memory_mb: int, processes: int) -> None:
        self._target = target
        self._domain = domain
        self.name = f"function({target})"
        self.needs_reference = domain.needs_reference
        self._workers = Workers(target, seconds, memory_mb, processes)
        self._failures: int | None = 0
        """So many calls failed and none succeeded; None once one has."""
        reason = self._workers.start()
        if reason is not None:
            raise ConfigError(
                [
                    f"reward.function: {target} cannot be used: {reason}; expected module:function, the module on "
                    "PYTHONPATH or in the working folder"
                ]
            )

    def close(self) -> None:
        """End the processes. They start again if needed."""
        self._workers.close()

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        forms = []
        for problem, answers in groups:
            should_stop()
            forms.append([form.canonical(self._domain, problem, answer) for answer in answers])
        requests, asked = [], []
        for place, ((problem, answers), row) in enumerate(zip(groups, forms, strict=True)):
            given = [(answer, one) for answer, one in zip(answers, row, strict=True) if isinstance(one, str)]
            if given:
                asked.append(place)
                requests.append([self._problem(problem), [_answer(answer, one) for answer, one in given]])
        replies: dict[int, Reply] = {}
        while len(replies) < len(requests):
            # The first few by themselves, so that a function that never works is noticed early.
            portion = len(requests) if self._failures is None else _FIRST_CALLS
            part = slice(len(replies), len(replies) + portion)
            for place, reply in zip(asked[part], self._workers.call(requests[part], should_stop), strict=True):
                replies[place] = reply
                self._count(reply)
        return [_judgements(row, replies.get(place)) for place, row in enumerate(forms)]

    def _problem(self, problem: Problem) -> dict[str, Any]:
        told = {
            "problem_id": problem.problem_id,
            "domain": problem.domain,
            "split": problem.split,
            "difficulty": problem.difficulty,
            "group": problem.group,
            "prompt": self._domain.prompt(problem),
            "payload": problem.payload,
        }
        # A function that saw a reference which the domain itself does without would make a search that could be
        # deployed into an oracle, unseen.
        return {**told, "reference": problem.reference} if self.needs_reference else told

    def _count(self, reply: Reply) -> None:
        if self._failures is None:
            return
        self._failures = self._failures + 1 if reply.unsure else None
        if self._failures == _FIRST_CALLS:
            raise FlywheelError(
                f"reward.function: {self._target} gave no verdict in any of its first {_FIRST_CALLS} calls; the last: "
                f"{reply.reason}. Mend it, or raise reward.seconds or reward.memory_mb if they are too small"
            )


def _answer(answer: Answer, canonical: str) -> dict[str, Any]:
    return {
        "output": answer.output,
        "steps": list(answer.steps),
        "stop_reason": answer.stop_reason,
        "answer": canonical,
    }


def _judgements(forms: list[Judgement | str], reply: Reply | None) -> list[Judgement]:
    """One problem's judgements: what was returned, in the places of the answers that were asked about."""
    canonical = [one for one in forms if isinstance(one, str)]
    judged = iter(_read(canonical, reply) if reply is not None else [])
    return [next(judged) if isinstance(one, str) else one for one in forms]


def _read(canonical: list[str], reply: Reply) -> list[Judgement]:
    if reply.unsure is not None:
        return [Judgement(None, reply.unsure, one, reason=reply.reason) for one in canonical]
    values = reply.value
    if not isinstance(values, list):
        return _nonsense(canonical, f"returned {_shown(values)}, expected a list with a number for each answer")
    if len(values) != len(canonical):
        return _nonsense(canonical, f"returned {len(values)} values for {len(canonical)} answers")
    return [_one(form, value) for form, value in zip(canonical, values, strict=True)]


def _one(canonical: str, value: Any) -> Judgement:
    if value is None:
        return Judgement(None, "failed", canonical, reason="the function cannot say")
    # True and False, which are numbers to Python, are 1 and 0 here too.
    if not isinstance(value, int | float):
        return _nonsense([canonical], f"returned {_shown(value)}, expected a number in 0..1 or None")[0]
    if math.isnan(value) or not 0 <= value <= 1:
        return _nonsense([canonical], f"returned {value}, expected a number in 0..1 or None")[0]
    return Judgement(float(value), "judged", canonical)


def _nonsense(canonical: list[str], reason: str) -> list[Judgement]:
    return [Judgement(None, "failed", one, reason=reason) for one in canonical]


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"
