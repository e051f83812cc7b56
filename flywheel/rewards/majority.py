"""Majority vote as a reward: no checker and no reference, the answers of a problem judge each other.

Wang et al. 2023, *Self-consistency improves chain of thought reasoning in language models*; here the share of the vote
is the reward, so that a filter can ask for more than the most votes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel.problems.domain import Domain
from flywheel.records import Problem
from flywheel.rewards import form
from flywheel.rewards.reward import Answer, Judgement, NoSteps
from flywheel.rewards.vote import majority


class Majority(NoSteps):
    """An answer of the winning group is worth the group's share of the votes, any other 0. Only well-formed answers
    have a vote; ties go to the group seen first."""

    name = "majority"
    needs_reference = False
    verifies = False
    votes = True

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        judged = []
        for problem, answers in groups:
            should_stop()
            judged.append(self._count([form.canonical(self._domain, problem, answer) for answer in answers]))
        return judged

    def _count(self, forms: list[Judgement | str]) -> list[Judgement]:
        ballots = [one if isinstance(one, str) else None for one in forms]
        winner = majority(ballots)
        chosen = None if winner is None else ballots[winner]
        voted = sum(ballot is not None for ballot in ballots)
        return [
            Judgement(ballots.count(chosen) / voted if one == chosen else 0.0, "judged", one)
            if isinstance(one, str)
            else one
            for one in forms
        ]
