"""Comparing mathematics: known pairs, the power tower that hangs peers, and what has no verdict."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator

import pytest

from flywheel.errors import ConfigError
from flywheel.problems.math_check import MathChecker

TOWER = "2003^{2002^{2001}}"


@pytest.fixture(scope="module")
def checker() -> Iterator[MathChecker]:
    made = MathChecker(20.0, 2048, 2)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("72", "72", True),
        ("72", "72.0", True),
        ("72", "72 apples", True),
        ("72", "27", False),
        ("12", "1", False),
        ("1", "12", False),
        ("1,234", "1234", True),
        (r"\frac{1}{2}", "0.5", True),
        ("0.5", r"\dfrac{1}{2}", True),
        ("1/2", "1/3", False),
        (r"\sqrt{12}", r"2\sqrt{3}", True),
        ("2x+1", "1+2x", True),
        ("2x+1", "2", False),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(1,2)", "(1,2)", True),
        ("(1,2)", "(2,1)", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"\boxed{7}", "$7$", True),
        ("5", "x = 5", True),
        ("-3", "3", False),
        (r"\$18.50", "18.5", True),
        ("18.50", "$18.5", True),
        ("5", r"$\$5$", True),
        ("10^{10}", "10000000000", True),
        ("5", "", False),
        ("5", r"\frac{", False),
    ],
)
def test_known_pairs(checker: MathChecker, reference: str, answer: str, right: bool) -> None:
    (verdict,) = checker.check([(reference, answer)])
    assert verdict.unsure is None, verdict
    assert verdict.right == right, verdict
    assert (verdict.answer is None) == (answer in {"", r"\frac{"})


def test_the_reference_comes_first(checker: MathChecker) -> None:
    """Math-Verify is not symmetric: an interval answers an inequality, not the other way round."""
    there, back = checker.check([("1 < x < 2", "(1,2)"), ("(1,2)", "1 < x < 2")])
    assert (there.right, back.right) == (True, False)


def test_equal_answers_have_equal_forms(checker: MathChecker) -> None:
    """They are one group in a vote, right or wrong."""
    groups = [
        ["1/2", "0.5", r"\frac{1}{2}", r"$\frac12$", "x = 1/2", "2/4"],
        ["7", "7.0", r"\boxed{7}", "07"],
        ["-7"],
        ["x+1", "1+x"],
        [r"\sqrt{12}", r"2\sqrt{3}"],
    ]
    forms = [{verdict.answer for verdict in checker.check([("100", text) for text in group])} for group in groups]
    assert all(len(group) == 1 and None not in group for group in forms), forms
    assert len(set.union(*forms)) == len(groups)


def test_a_power_tower_is_a_timeout_and_its_neighbours_lose_nothing() -> None:
    """Queued behind it for longer than an answer may take."""
    checker = MathChecker(1.0, 2048, 2)
    towers = [TOWER, "2003^2002^2001", f"{TOWER} + 1"]
    pairs = [("72", text) for text in [*towers, *(str(70 + i) for i in range(8))]]
    began = time.monotonic()
    verdicts = checker.check(pairs)
    assert time.monotonic() - began < 15.0
    assert [(v.unsure, v.answer, v.reason) for v in verdicts[:3]] == [("timeout", None, "took longer than 1 s")] * 3
    assert [v.unsure for v in verdicts[3:]] == [None] * 8
    assert [v.right for v in verdicts[3:]] == [i == 2 for i in range(8)]
    checker.close()


@pytest.mark.parametrize("reference", [r"\frac{", "", "()"])
def test_a_reference_that_cannot_be_read_is_no_zero(checker: MathChecker, reference: str) -> None:
    (verdict,) = checker.check([(reference, "5")])
    assert (verdict.unsure, verdict.right) == ("failed", False)
    assert "cannot be read as mathematics" in verdict.reason


def test_verdicts_stand_in_the_order_of_their_pairs(checker: MathChecker) -> None:
    """Equal pairs among them, and pairs known from before."""
    first = [("3", "3"), ("3", "4"), ("3", "3"), ("4", "3")]
    second = [("4", "3"), ("4", "4"), ("3", "3")]
    assert [v.right for v in checker.check(first)] == [True, False, True, False]
    assert [v.right for v in checker.check(second)] == [False, True, True]
    assert checker.check([]) == []


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flywheel-search\[math\]'"):
        MathChecker(1.0, 2048, 1)
