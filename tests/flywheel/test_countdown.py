"""The Countdown checker against the mistakes that checkers make, and against arithmetic done another way."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flywheel.problems.countdown import Countdown
from flywheel.problems.countdown_grammar import Expression, canonical, combine
from flywheel.problems.domain import Verdict
from flywheel.records import Problem
from flywheel.rewards.exact import Exact
from flywheel.rewards.reward import Answer

DOMAIN = Countdown(3, 1, 16, 100, (0.6, 0.12, 0.28))


def problem(hand: list[int], target: int) -> Problem:
    return Problem("p", "countdown", 1, "train", 1.0, "g", {"numbers": hand, "target": target})


def check(hand: list[int], target: int, text: str) -> Verdict:
    return DOMAIN.check(problem(hand, target), text)


@pytest.mark.parametrize(
    ("hand", "target", "text"),
    [
        ([3, 5, 8], 19, "8 * 3 = 24\n24 - 5 = 19"),
        ([3, 5, 8], 19, "8 * 3 = 24\n24 - 5 = 19\n"),
        ([3, 5, 8], 19, "8*3=24\r\n24-5=19"),
        ([3, 5, 8], 19, "  (8 * 3) - 5 = 19"),
        ([3, 5, 8], 19, "8 * 3 - 5 = 19"),
        ([3, 5, 8], 19, "((8) * ((3)) - 5) = 19"),
        ([3, 3, 3], 6, "3 * 3 = 9\n9 - 3 = 6"),
        # Fractions and negatives on the way are exact, not truncated.
        ([1, 5, 5, 5], 24, "(5 - 1 / 5) * 5 = 24"),
        ([2, 3, 4], 6, "3 / 2 * 4 = 6"),
        ([2, 5, 9], 6, "2 - 5 = -3\n-3 + 9 = 6"),
        ([2, 4, 7], 14, "7 * 4 / 2 = 28/2"),
        # Multi-line answers whose steps do not hang together one after the other.
        ([1, 2, 3, 4], 10, "1 + 2 = 3\n3 + 4 = 7\n7 + 3 = 10"),
        ([2, 3, 4, 5], 26, "2 * 3 = 6\n4 * 5 = 20\n6 + 20 = 26"),
    ],
)
def test_right_answers_pass(hand: list[int], target: int, text: str) -> None:
    verdict = check(hand, target, text)
    assert verdict.right, verdict
    assert verdict.answer is not None


@pytest.mark.parametrize(
    ("hand", "target", "text", "reason"),
    [
        ([3, 5, 8], 16, "8 + 8 = 16", "8 is not at hand"),
        ([3, 5, 8], 19, "8 * 3 = 24", "numbers left unused"),
        ([2, 3, 9], 17, "2**3 + 9 = 17", "unexpected '*'"),
        ([2, 3, 7], 6, "7//2 + 3 = 6", "unexpected '/'"),
        ([1, 2, 9], 21, "12 + 9 = 21", "12 is not at hand"),
        ([1, 2, 9], 21, "1 2 + 9 = 21", "unexpected '2'"),
        ([9, 81], 81, "81 * 1 = 81", "1 is not at hand"),
        ([2, 7, 9], 12, "7 / 2 = 3\n3 + 9 = 12", "states a wrong result"),
        ([2, 7, 9], 12, "7 / 2 + 9 = 12", "states a wrong result"),
        ([2, 7, 9], 12, "7 / 2 = 3.5\n3.5 + 9 = 12.5", "does not end in '= result'"),
        ([2, 7], 5, "", "empty answer"),
        ([2, 7], 5, " \n ", "empty answer"),
        ([2, 7], 5, "5", "does not end in '= result'"),
        ([2, 7], 7, "7 = 7", "has no operation"),
        ([2, 7], 5, "7 - 2 =", "does not end in '= result'"),
        ([2, 7], 5, "= 5", "a number is missing"),
        ([2, 7], 5, "7 - 2 = 5 = 5", "unexpected '='"),
        ([2, 7], 5, "(7 - 2 = 5", "unbalanced parentheses"),
        ([2, 7], 5, "7 - 2) = 5", "unexpected ')'"),
        ([2, 7], 5, "7 - 2 = 5\nso the answer is 5", "line 2 does not end in '= result'"),
        ([2, 7], 5, "x = 7 - 2", "does not end in '= result'"),
        ([2, 7], 5, "7 - 2 = 5/0", "does not end in '= result'"),
        ([5, 5, 2], 1, "2 / (5 - 5) = 1", "division by zero"),
        ([2, 7], 5, "7 - -2 = 5", "-2 is not at hand"),
        ([2, 7], 5, "-2 + 7 = 5", "-2 is not at hand"),
        ([2, 7], 5, "abs(2 - 7) = 5", "unexpected 'a'"),
        ([2, 7], 5, "7 − 2 = 5", "unexpected '−'"),
        ([2, 7], 9, "7 + ² = 9", "unexpected '²'"),
        ([2, 7], 9, "７ + 2 = 9", "unexpected '７'"),
        ([2, 7], 9, "7 + 2 = ９", "does not end in '= result'"),
        ([3, 5, 8], 19, "8 * 3 = 24\u202824 - 5 = 19", "unexpected '2'"),
        ([2, 7], 9, "7 + 2 = 9\0", "does not end in '= result'"),
        ([2, 7], 9, f"7 + {'2' * 5000} = 9", "too many digits"),
        ([2, 7], 9, f"7 + 2 = {'9' * 5000}", "too many digits"),
        ([2, 7], 9, f"7 + 2 = 9/{'9' * 5000}", "too many digits"),
        ([2, 7], 9, "(" * 100 + "7 + 2 = 9", "nested too deeply"),
        ([2, 7], 9, "7" + " + 2" * 20_000 + " = 9", "more than"),
    ],
)
def test_wrong_answers_fail_with_a_reason(hand: list[int], target: int, text: str, reason: str) -> None:
    verdict = check(hand, target, text)
    assert not verdict.right
    assert reason in verdict.reason
    # Only a text that can be read as an answer has a vote.
    broken_rules = ("not at hand", "left unused", "wrong result", "division by zero")
    assert (verdict.answer is not None) == any(words in reason for words in broken_rules)


def test_a_well_formed_wrong_answer_keeps_its_form() -> None:
    """It has a vote and counts as distinct, though it reaches another value."""
    verdict = check([3, 5, 8], 20, "8 * 3 = 24\n24 - 5 = 19")
    assert (verdict.right, verdict.reason) == (False, "reaches 19, not the target")
    assert verdict.answer == check([3, 5, 8], 19, "3 * 8 - 5 = 19").answer


def test_a_truncated_attempt_is_no_answer() -> None:
    """Even where what was written so far would be right."""
    exact, task = Exact(DOMAIN), problem([3, 5, 8], 19)
    right = "8 * 3 = 24\n24 - 5 = 19"
    attempts = [
        Answer(right, "length", ()),
        Answer(right, "eos", ()),
        Answer("8 *", "eos", ()),
        Answer("", "failed", ()),
    ]
    ((cut, whole, broken, lost),) = exact.judge([(task, attempts)])
    assert (cut.reward, cut.status, cut.answer) == (0.0, "truncated", None)
    assert (whole.reward, whole.status) == (1.0, "judged")
    assert (broken.reward, broken.status, broken.answer) == (0.0, "malformed", None)
    assert (lost.reward, lost.status) == (None, "failed")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text("0123456789+-*/()= \n", max_size=60)))
@example("1/0=1/00")
@example("=" * 1000)
def test_never_raises_and_never_passes_noise(text: str) -> None:
    verdict = check([3, 5, 8], 7919, text)
    assert not verdict.right


@st.composite
def trees(draw: st.DrawFn, hand: list[int]) -> Expression:
    """An expression over the whole hand, any shape, any operators that can be applied."""
    parts = [Expression(Fraction(number)) for number in draw(st.permutations(hand))]
    while len(parts) > 1:
        at = draw(st.integers(0, len(parts) - 2))
        left, right = parts[at], parts[at + 1]
        operators = "+-*/" if right.value != 0 else "+-*"
        parts[at : at + 2] = [combine(draw(st.sampled_from(operators)), left, right)]
    return parts[0]


def infix(expression: Expression) -> str:
    if not expression.operands:
        return str(expression.value)
    left, right = map(infix, expression.operands)
    return f"({left} {expression.operator} {right})"


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.integers(1, 30), min_size=2, max_size=6))
def test_the_parser_agrees_with_pythons_arithmetic(data: st.DataObject, hand: list[int]) -> None:
    text = infix(data.draw(trees(hand)))
    value = eval(re.sub(r"\d+", r"Fraction(\g<0>)", text), {"Fraction": Fraction})  # noqa: S307 (our own text, as an oracle)
    verdict = check(hand, 7919, f"{text} = {value}")
    assert verdict.answer is not None, (text, verdict)
    assert verdict.right == (value == 7919)
    wrong = check(hand, 7919, f"{text} = {value + 1}")
    assert (wrong.right, wrong.reason) == (False, "line 1 states a wrong result")
    # It groups with its like in a vote, and with nothing else.
    assert wrong.answer == check(hand, 7919, f" {text}={value + 1}").answer != verdict.answer


def rearranged(expression: Expression, draw: st.DrawFn) -> Expression:
    """The same solution written another way: operands of + and * swapped, chains bracketed otherwise."""
    if not expression.operands:
        return expression
    left, right = (rearranged(part, draw) for part in expression.operands)
    operator = expression.operator
    if operator in "+*" and draw(st.booleans()):
        left, right = right, left
    # (a o b) p c = a o (b p' c): for + - as for * /, p' is p after an inverting o else swapped.
    if left.operands and draw(st.booleans()):
        a, b = left.operands
        inner = left.operator
        same = {inner, operator} <= set("+-") or {inner, operator} <= set("*/")
        plus, minus = ("+", "-") if operator in "+-" else ("*", "/")
        turned = operator if inner == plus else (minus if operator == plus else plus)
        if same and (turned in "+-*" or right.value != 0):
            joined = combine(turned, b, right)
            if inner != "/" or joined.value != 0:
                return combine(inner, a, joined)
    return combine(operator, left, right)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.integers(1, 12), min_size=2, max_size=5))
def test_equal_solutions_have_one_canonical_form(data: st.DataObject, hand: list[int]) -> None:
    tree = data.draw(trees(hand))
    other = rearranged(tree, data.draw(st.just(data.draw)))
    assert other.value == tree.value
    assert canonical(other) == canonical(tree)


def test_different_solutions_have_different_forms() -> None:
    forms = {
        check([2, 3, 6], target, text).answer
        for target, text in [(9, "2 * 6 - 3 = 9"), (9, "6 / 2 * 3 = 9"), (9, "6 + 3 * 2 = 12"), (0, "6 / 2 - 3 = 0")]
    }
    assert len(forms) == 4
