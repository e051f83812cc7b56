"""Countdown's oracle of steps against a brute force of another kind: every expression tree, by evaluation of text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from flywheel import sections
from flywheel.errors import ConfigError
from flywheel.problems import domain as domains
from flywheel.problems.countdown import Countdown
from flywheel.problems.countdown_solver import as_steps, solve
from flywheel.records import Problem
from flywheel.rewards import reward as rewards
from flywheel.rewards.oracle_steps import OracleSteps, reachable, score
from flywheel.rewards.reward import Answer

DOMAIN = Countdown(3, 1, 16, 100, (0.6, 0.12, 0.28))


def problem(hand: list[int], target: int) -> Problem:
    return Problem("p", "countdown", 1, "train", 1.0, "g", {"numbers": hand, "target": target})


def trees(leaves: tuple[str, ...]) -> Iterator[str]:
    """Every full binary expression whose leaves, left to right, are these."""
    if len(leaves) == 1:
        yield leaves[0]
        return
    for cut in range(1, len(leaves)):
        for left, right in itertools.product(trees(leaves[:cut]), trees(leaves[cut:])):
            for operator in "+-*/":
                yield f"({left}{operator}{right})"


def values(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    found = set()
    for order in itertools.permutations(range(len(numbers))):
        for text in trees(tuple(f"n[{index}]" for index in order)):
            try:
                found.add(eval(text, {"n": numbers}))  # noqa: S307 (our own text, as an oracle)
            except ZeroDivisionError:
                continue
    return found


@pytest.mark.parametrize("hand", [(3,), (2, 5), (7, 7), (3, 5, 8), (2, 2, 9), (1, 6, 12), (0, 4, 4), (-3, 2, 9)])
def test_what_can_be_reached_is_what_every_expression_gives(hand: tuple[int, ...]) -> None:
    numbers = tuple(map(Fraction, sorted(hand)))
    expected = values(numbers)
    for target in {*map(Fraction, range(-20, 120)), *expected}:
        assert reachable(numbers, target) == (target in expected), target


@pytest.mark.parametrize(("hand", "target"), [((1, 5, 5, 5), 24), ((3, 3, 8, 8), 24), ((1, 1, 1, 1), 24)])
def test_famous_hands(hand: tuple[int, ...], target: int) -> None:
    """5 * (5 - 1/5) and 8 / (3 - 8/3) need fractions; four ones do not make 24."""
    assert reachable(tuple(map(Fraction, hand)), Fraction(target)) == (hand != (1, 1, 1, 1))


def test_a_step_after_which_only_fractions_help() -> None:
    """In floating point 8 / (3 - 8/3) is 23.99999999999999."""
    reachable.cache_clear()
    assert score(problem([1, 3, 3, 8, 8], 24), ["3 * 1 = 3"]) == (1.0,)


@pytest.mark.parametrize("hand", [(3, 5, 8), (2, 4, 7), (1, 6, 9)])
def test_first_steps_against_brute_force(hand: tuple[int, ...]) -> None:
    """Every first line of every kind, for every target that the domain has."""
    checked = 0
    for (i, a), (j, b) in itertools.permutations(enumerate(hand), 2):
        (rest,) = [number for place, number in enumerate(hand) if place not in (i, j)]
        for operator in "+-*/":
            result = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[operator]
            after = values((Fraction(result), Fraction(rest)))
            for target in range(1, 40):
                expected = float(Fraction(target) in after)
                assert score(problem(list(hand), target), [f"{a} {operator} {b} = {result}"]) == (expected,)
                checked += 1
    assert checked == 24 * 39


def test_every_step_of_a_solution_is_good() -> None:
    hand = (2, 3, 9)
    for target, expressions in solve(hand, 200).items():
        for expression in expressions:
            assert score(problem(list(hand), target), as_steps(expression)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["8 * 3 = 24", "24 - 5 = 19"], (1.0, 1.0)),
        (["8 * 3 = 24", "24 + 5 = 29"], (1.0, 0.0)),
        (["8 + 3 = 11", "11 + 5 = 16"], (0.0, 0.0)),
        (["8 * 3 - 5 = 19"], (1.0,)),
        (["8 * 3 = 25", "24 - 5 = 19"], (0.0, 0.0)),
        (["8 * 3 = 24", "24 - 4 = 20", "20 - 1 = 19"], (1.0, 0.0, 0.0)),
        (["8 * 3 =", "24 - 5 = 19"], (0.0, 0.0)),
        (["8 * 3 = 24", "", "24 - 5 = 19", " "], (1.0, 1.0)),
        (["", "8 * 3 =", "", "24 - 5 = 19"], (0.0, 0.0)),
        ([], ()),
    ],
)
def test_prefixes(steps: list[str], expected: tuple[float, ...]) -> None:
    assert score(problem([3, 5, 8], 19), steps) == expected
    (scored,) = OracleSteps(DOMAIN).score_steps([(problem([3, 5, 8], 19), steps)])
    assert (scored.scores, scored.flops) == (expected, 0.0)


def test_a_whole_answer_is_judged_by_the_checker() -> None:
    """One that stops where the target could still be reached is wrong, however good its step."""
    reward = OracleSteps(DOMAIN)
    texts = ["8 * 3 = 24\n24 - 5 = 19", "8 * 3 = 24"]
    answers = [Answer(text, "eos", tuple(text.split("\n"))) for text in texts]
    (judged,) = reward.judge([(problem([3, 5, 8], 19), answers)])
    assert [(j.reward, j.step_rewards) for j in judged] == [(1.0, (1.0, 1.0)), (0.0, (1.0,))]


def test_it_knows_no_other_domain(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(30)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = domains.load(sections.Problems(domain="file", path=str(tmp_path / "sums.jsonl")))
    with pytest.raises(ConfigError, match=r"oracle_steps knows Countdown alone, got problems\.domain file"):
        rewards.load(sections.Reward(name="oracle_steps"), other, 0, None, "cpu", 1)
