"""Steps of Countdown judged by a solver: a bound on what step scores can do, and no search that could be deployed.

The score of the first k lines is 1 if the target can still be reached from the numbers at hand after them, each used
exactly once, else 0. Arithmetic is rational, as the checker's is: fractions and negative numbers on the way count. A
line that is malformed or breaks a rule makes its own score and all later ones 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from flywheel.problems import countdown_grammar as grammar
from flywheel.problems.countdown import Countdown
from flywheel.records import Problem
from flywheel.rewards.exact import Exact
from flywheel.rewards.reward import Answer, Judgement, NoPadding, StepScores


class OracleSteps(NoPadding):
    """Whole answers are judged by the checker, their steps by brute force."""

    name = "oracle_steps"
    needs_reference = True
    """It knows of each step what only the solution tells."""
    verifies = True
    votes = False
    gives_steps = True

    def __init__(self, domain: Countdown) -> None:
        self._exact = Exact(domain)

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        judged = []
        for (problem, answers), row in zip(groups, self._exact.judge(groups, should_stop), strict=True):
            should_stop()
            judged.append(
                [
                    replace(judgement, step_rewards=score(problem, answer.steps))
                    if judgement.status == "judged"
                    else judgement
                    for answer, judgement in zip(answers, row, strict=True)
                ]
            )
        return judged

    def score_steps(
        self, partial: Sequence[tuple[Problem, Sequence[str]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[StepScores]:
        scored = []
        for problem, steps in partial:
            should_stop()
            scored.append(StepScores(score(problem, steps)))
        return scored


def score(problem: Problem, steps: Sequence[str]) -> tuple[float, ...]:
    """1.0 or 0.0 for each step that is not blank."""
    target = Fraction(problem.payload["target"])
    lines: list[grammar.Line] = []
    scores: list[float] = []
    for step in steps:
        if not step.strip():
            continue
        try:
            lines += grammar.read(step)
            at_hand = grammar.follow(problem.payload["numbers"], lines)
        except (grammar.Malformed, grammar.Broken):
            return (*scores, *[0.0] * (sum(bool(one.strip()) for one in steps) - len(scores)))
        scores.append(float(reachable(tuple(sorted(Fraction(expression.value) for expression in at_hand)), target)))
    return tuple(scores)


@lru_cache(maxsize=1 << 16)
def reachable(values: tuple[Fraction, ...], target: Fraction) -> bool:
    """Whether + - * / make the target of these sorted values, each used exactly once."""
    if len(values) == 1:
        return values[0] == target
    for first in range(len(values)):
        for second in range(first + 1, len(values)):
            rest = [value for place, value in enumerate(values) if place not in (first, second)]
            for joined in set(_results(values[first], values[second])):
                if reachable(tuple(sorted([*rest, joined])), target):
                    return True
    return False


def _results(a: Fraction, b: Fraction) -> list[Fraction]:
    results = [a + b, a - b, b - a, a * b]
    if b:
        results.append(a / b)
    if a:
        results.append(b / a)
    return results
