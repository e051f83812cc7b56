"""Health figures counted by hand, and each alarm with a case on either side of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel.evaluation.collapse import HealthTally, alarms
from tests.flywheel.test_metrics import BLANK

BEFORE = {"distinct_solutions": 4.0, "entropy": 0.8, "length": 10.0, "overrated": 0.05}
ACCURACY = {"greedy": 0.5, "pass@16": 0.9}


def test_health_of_two_problems() -> None:
    tally = HealthTally()
    first = [
        replace(BLANK, answer="a", tokens=4, log_probability=-1.0),
        replace(BLANK, answer="a", tokens=4, log_probability=-1.0),
        replace(BLANK, answer="b", reward=0.5, tokens=4, log_probability=-2.0),
        replace(BLANK, answer=None, status="malformed", tokens=2, log_probability=-3.0),
    ]
    tally.add(first, [True, True, False, False], 0.5)
    second = [
        replace(BLANK, answer="c", tokens=3, log_probability=-0.5),
        replace(BLANK, answer="d", tokens=3, log_probability=-0.5),
        replace(BLANK, answer=None, status="truncated", stop_reason="length", tokens=8, log_probability=-4.0),
        replace(BLANK, answer=None, status="truncated", stop_reason="length", tokens=8, log_probability=-4.0),
    ]
    tally.add(second, [True, True, False, False], 0.5)
    assert tally.health().as_dict() == pytest.approx(
        {
            "distinct_solutions": (1 + 2) / 2,
            "distinct_answers": (2 + 2) / 2,
            "entropy": 16.0 / 36,
            "length": 36 / 8,
            "truncated": 2 / 8,
            "malformed": 1 / 8,
            "overrated": 1 / 8,
        }
    )


def test_no_champion_no_alarm() -> None:
    assert alarms({**BEFORE, "entropy": 0.0}, None, {}, None, 16) == []


def test_small_changes_are_no_alarm() -> None:
    now = {"distinct_solutions": 3.1, "entropy": 0.41, "length": 14.9, "overrated": 0.14}
    assert alarms(now, BEFORE, {"greedy": 0.6, "pass@16": 0.89}, ACCURACY, 16) == []
    assert alarms(BEFORE, BEFORE, {"greedy": 0.4, "pass@16": 0.5}, ACCURACY, 16) == [], "worse, but not collapsed"


@pytest.mark.parametrize(
    ("now", "accuracy", "says"),
    [
        ({}, {"greedy": 0.6, "pass@16": 0.8}, "pass@16 fell by 0.100 while greedy rose by 0.100"),
        ({"distinct_solutions": 2.9}, ACCURACY, "distinct solutions a problem fell from 4.00 to 2.90"),
        ({"entropy": 0.3}, ACCURACY, "entropy a token fell from 0.800 to 0.300 nats"),
        ({"length": 16.0}, ACCURACY, "answer length moved from 10.0 to 16.0 tokens"),
        ({"length": 4.0}, ACCURACY, "answer length moved from 10.0 to 4.0 tokens"),
        ({"overrated": 0.2}, ACCURACY, "wrong answers that the reward lets pass rose from 5.0% to 20.0% of samples"),
    ],
)
def test_each_alarm(now: dict[str, float], accuracy: dict[str, float], says: str) -> None:
    (alarm,) = alarms({**BEFORE, **now}, BEFORE, accuracy, ACCURACY, 16)
    assert says in alarm
