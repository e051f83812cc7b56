"""Countdown: reach the target with + - * / from the numbers of a hand, each used exactly once.

    prompt   3 5 8 -> 19
    answer   8 * 3 = 24
             24 - 5 = 19

A hand is the same hand in any order. Splits are by hash of the hand, so that a test hand never occurs in training with
any target; intervals cluster by hand. The problems are the same for every run's seed, so that runs can be compared.
A problem's reference is one solution, which the checker never looks at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from flywheel.problems import countdown_grammar as grammar
from flywheel.problems.countdown_solver import as_steps, solve
from flywheel.problems.domain import Verdict
from flywheel.records import Problem, Split, digest
from flywheel.seeds import generator

_MOST_HANDS = 20_000
"""Above so many possible hands, hands are drawn instead of listed."""


class Countdown:
    """The domain, for hands of `numbers` numbers from `smallest` to `largest`, targets 1 to `largest_target`."""

    name = "countdown"
    version = 1
    needs_reference = False
    step_end = "\n"

    def __init__(
        self, numbers: int, smallest: int, largest: int, largest_target: int, shares: tuple[float, float, float]
    ) -> None:
        self.numbers = numbers
        self.smallest = smallest
        self.largest = largest
        self.largest_target = largest_target
        self.shares = shares
        self.largest_value = 2 * max(largest, largest_target)
        """Largest number a solution of the solver, and so a word-level vocabulary, holds."""

    def split_of(self, hand: tuple[int, ...]) -> Split:
        """The split a hand belongs to, by hash of its sorted numbers alone."""
        position = int(digest("countdown", "hand", sorted(hand))[:12], 16) / 16**12
        train, valid, _ = self.shares
        return "train" if position < train else "valid" if position < train + valid else "test"

    def problems(self, split: Split, count: int) -> list[Problem]:
        """Up to `count` (hand, target) pairs, spread evenly over the split's hands; difficulty is 1 / solutions."""
        hands = [hand for hand in self._hands() if self.split_of(hand) == split]
        hands.sort(key=lambda hand: digest("order", hand))
        ranked = []
        for hand in hands[:count]:
            solved = solve(hand, self.largest_value)
            targets = [target for target in solved if 1 <= target <= self.largest_target]
            targets.sort(key=lambda target: digest("order", hand, target))
            ranked += [(rank, hand, target, solved[target]) for rank, target in enumerate(targets)]
        ranked.sort(key=lambda row: (row[0], digest("order", row[1])))
        problems = [
            Problem(
                problem_id=digest("problem", self.name, self.version, {"numbers": hand, "target": target}),
                domain=self.name,
                domain_version=self.version,
                split=split,
                difficulty=1.0 / len(solutions),
                group=" ".join(map(str, hand)),
                payload={"numbers": list(hand), "target": target},
                reference="\n".join(as_steps(solutions[0])),
            )
            for _, hand, target, solutions in ranked[:count]
        ]
        return sorted(problems, key=lambda problem: problem.problem_id)

    def _hands(self) -> Iterator[tuple[int, ...]]:
        values = range(self.smallest, self.largest + 1)
        if math.comb(len(values) + self.numbers - 1, self.numbers) <= _MOST_HANDS:
            yield from itertools.combinations_with_replacement(values, self.numbers)
            return
        drawn = generator(0, "countdown", "hands").integers(
            self.smallest, self.largest + 1, size=(_MOST_HANDS, self.numbers)
        )
        yield from sorted({tuple(sorted(int(number) for number in row)) for row in drawn})

    def prompt(self, problem: Problem) -> str:
        return f"{' '.join(map(str, problem.payload['numbers']))} -> {problem.payload['target']}\n"

    def messages(self, problem: Problem) -> list[dict[str, str]] | None:
        return None

    def content(self, output: str, answer: str) -> str:
        return answer

    def check(self, problem: Problem, output: str) -> Verdict:
        try:
            lines = grammar.read(output)
        except grammar.Malformed as error:
            return Verdict(False, None, str(error))
        # A wrong answer is an answer too, and has a vote: it is known by how it reads.
        written = "\n".join(map(str, lines))
        try:
            at_hand = grammar.follow(problem.payload["numbers"], lines)
        except grammar.Broken as error:
            return Verdict(False, written, str(error))
        if len(at_hand) > 1:
            return Verdict(False, written, "numbers left unused")
        answer = grammar.canonical(at_hand[0])
        if at_hand[0].value != problem.payload["target"]:
            return Verdict(False, answer, f"reaches {at_hand[0].value}, not the target")
        return Verdict(True, answer, "right")

    def steps(self, output: str) -> list[str]:
        return [line.strip() for line in output.split("\n") if line.strip()]

    def solutions(self, problem: Problem, count: int) -> list[str]:
        hand = tuple(problem.payload["numbers"])
        found: dict[str | None, str] = {}
        for expression in solve(hand, self.largest_value).get(problem.payload["target"], []):
            # Where an intermediate result equals another number at hand, two expressions can read the same as text.
            text = "\n".join(as_steps(expression))
            found.setdefault(self.check(problem, text).answer, text)
        return list(found.values())[:count]

    def vocabulary(self) -> Iterator[str]:
        yield from ["\n", "->", "+", "-", "*", "/", "="]
        yield from map(str, range(self.largest_value + 1))

    def corpus(self) -> Iterator[str]:
        return iter(())
