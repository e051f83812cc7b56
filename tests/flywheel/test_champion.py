"""Who is champion: paired on the same problems, never on a worse valid accuracy than the margin allows."""

from __future__ import annotations

import pytest
from scipy import stats

from flywheel.evaluation.champion import decide

NAMES = [f"p{i}" for i in range(8)]
GROUPS = {name: name for name in NAMES}
HALF = dict(zip(NAMES, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], strict=True))


def test_the_first_student_is_champion() -> None:
    decision = decide(HALF, {}, GROUPS, 0.0)
    assert (decision.promoted, decision.difference, decision.reason) == (True, None, "the first student")


def test_equal_is_not_worse() -> None:
    turned = dict(zip(NAMES, reversed(HALF.values()), strict=True))
    decision = decide(turned, HALF, GROUPS, 0.0)
    assert decision.promoted
    assert decision.difference is not None
    assert decision.difference.value == 0.0


def test_worse_is_not_promoted_unless_within_the_margin() -> None:
    worse = {**HALF, "p0": 0.0}
    decision = decide(worse, HALF, GROUPS, 0.0)
    assert not decision.promoted
    assert decision.reason == "greedy accuracy on valid changed by -0.125, below the margin of -0.000"
    assert decide(worse, HALF, GROUPS, 0.125).promoted
    assert not decide(worse, HALF, GROUPS, 0.12).promoted


def test_the_difference_is_paired() -> None:
    better = {**HALF, "p4": 1.0, "p5": 1.0}
    difference = decide(better, HALF, GROUPS, 0.0).difference
    assert difference is not None
    paired = [better[name] - HALF[name] for name in NAMES]
    expected = stats.ttest_1samp(paired, 0.0).confidence_interval(0.95)
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.25, expected.low, expected.high))


def test_other_problems_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"measured on different valid problems \(8 and 1\)"):
        decide(HALF, {"p0": 1.0}, GROUPS, 0.0)
