r"""Final answers found and numbers read: what people write, what must not be guessed at, and what must not pass."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.errors import ConfigError
from flywheel.problems import answers, numbers
from flywheel.problems.answers import Extractor

READ = {
    "72": 72, "1,234": 1234, "1,234,567.50": Fraction(2469135, 2), "72.0": 72, "72.": 72, ".5": Fraction(1, 2),
    "007": 7, "-72": -72, "−72": -72, "- 72": -72, "+72": 72, "1/2": Fraction(1, 2), "-3/4": Fraction(-3, 4), "6/3": 2,
    "1 1/2": Fraction(3, 2), "-1 1/2": Fraction(-3, 2), "1.5e3": 1500, "5e-1": Fraction(1, 2), "0": 0, "-0": 0,
    "$72": 72, "-$72": -72, "$-72": -72, "$ 1,234.50": Fraction(2469, 2), "US$5": 5, "€5": 5, "Rs. 5": 5, "5 €": 5,
    "72 dollars": 72, "72%": 72, "72 percent": 72, "72 km/h": 72, "72 m²": 72, "72 m^2": 72, "72m": 72, "5 a day": 5,
    "72 dollars per square foot.": 72, "72-page": 72, "72\u00a0clips": 72, "７２": 72, "x = 72": 72,
    "3 million": 3_000_000, "3 thousand dollars": 3000, r"\frac{1}{2}": Fraction(1, 2),
    r"-\frac{1}{2}": Fraction(-1, 2), r"\dfrac12": Fraction(1, 2),
    r"\frac{-1}{2}": Fraction(-1, 2), r"1\frac{1}{2}": Fraction(3, 2), r"1{,}234": 1234, r"1\,234": 1234, "$72$": 72,
    "$x=72$": 72, r"72\text{ dollars}": 72, r"\$72": 72, r"72\%": 72, r"72^\circ": 72, r"\boxed{72}": 72, r"\(72\)": 72,
    r"72\text{ cm}^2": 72, "**72**": 72, "`72`": 72,
}  # fmt: skip
NOT_READ = [
    "", " ", "$", "-", "%", "five", "1,23", "12,3456", "1,2345", "1 234", "72 73", "3+4", "10 - 5", "72 or so",
    "72, 73",
    "7 and a half", "2x", "2 x", "3n", "5k", "5 M", "5^2", "7²", r"\sqrt{4}", "1/0", "5 6/0", "1/2/3", "--5", "1.2.3",
    "1..2", "0x10", "10:30", "72 = 73", "1e9999", "5e", "nan", "inf", "1_000", "٣", "(72)", "9" * 300, "72 to 80",
    "72 because she sold half as many clips", r"5 \pm 1", "1,,000", "72 times 2",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_number_is_read(text: str) -> None:
    assert numbers.read(text) == READ[text]


@pytest.mark.parametrize("text", NOT_READ)
def test_what_is_no_single_number_is_not_guessed_at(text: str) -> None:
    assert numbers.read(text) is None


@given(st.fractions(max_denominator=10**6))
def test_canonical_text_is_one_for_one_number_and_says_it(value: Fraction) -> None:
    text = numbers.canonical(value)
    assert Fraction(text) == value
    assert numbers.read(text) == value
    assert text == numbers.canonical(Fraction(text))
    assert text != "-0"


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4))
def test_decimals_are_exact_as_the_decimal_module_has_them(value: Decimal) -> None:
    assert numbers.read(f"{value:f}") == Fraction(value)
    assert numbers.read(f"{value:,f}") == Fraction(value)
    assert numbers.read(f"{value:f}1") != Fraction(value) or value == 0, "the last of many digits counts"


FINAL: dict[str, str | None] = {
    "#### 72": "72", "####72": "72", "#### $1,234.00": "1234", "#### -72": "-72", "#### **72**": "72", "A: 72": "72",
    "The answer is 72.": "72", "the ANSWER is: 72": "72", "**Answer:** 72 clips": "72", "Final Answer: 72": "72",
    "So the answer is 72 dollars per hour, since she sold 5.": "72", "The answer is **72**.": "72", "answer = 72": "72",
    "Final Answer: The final answer is $72$. I hope it is correct.": "72", r"\boxed{72}": "72",
    r"The answer is \boxed{72}.": "72", r"\[ \boxed{72} \]": "72", r"so \boxed{\frac{1}{2}}, done": "0.5",
    r"\boxed{\text{72 clips}}": "72", "#### The answer is 72": "72", "#### 72\nSo the answer is 72.0": "72",
    "#### Step 1: compute 5\n5 + 67 = 72\n#### 72": "72", "A: She has 24 and so 48. The answer is 72.": "72",
    "The answer is\n72": "72", "48 + 24 = 72\n#### 72\n": "72", "Plan A: 5\n#### 72": "72",
    # No final answer: a value on the way, a mark with nothing or with prose behind it, a box that is never closed.
    "72": None, "48 + 24 = 72": None, "": None, "#### ": None, "####\n": None, "#### seventy-two": None,
    "### 72": None, "##### 72": None, "The answer is not 72": None, r"\boxed{72": None, r"\boxed{}": None,
    # Two, or a choice.
    "#### 71\n#### 72": None, "The answer is 71. The answer is 72.": None, r"\boxed{71} or \boxed{72}": None,
    "#### 72 or 71": None, "#### 72 or 71\n#### 72": None, "#### 72, 71": None, "#### 72\nThe answer is 71.": None,
    "A: 71\nA: 72": None, "#### 7 and a half": None,
}  # fmt: skip


@pytest.mark.parametrize("output", FINAL)
def test_the_final_answer_is_found_or_there_is_none(output: str) -> None:
    final = answers.number(answers.candidates(output, "final"))
    assert final.answer == FINAL[output]
    assert (final.reason == "") == (final.answer is not None)


@pytest.mark.parametrize(
    ("extractor", "output", "answer"),
    [
        ("boxed", r"\boxed{72}", "72"),
        ("boxed", "#### 72", None),
        ("boxed", r"\boxed{\dfrac{1}{3}}", "1/3"),
        ("last_number", "48 + 24 = <<48+24=72>>72 clips", "72"),
        ("last_number", "it costs $1,234.50.", "1234.5"),
        ("last_number", "10-5", "5"),
        ("last_number", "is -5", "-5"),
        ("last_number", "only B12 and x2", None),
        ("last_number", "she has 1 1/2", "1.5"),
        ("whole", " 72 \n", "72"),
        ("whole", "it is 72", None),
        ("whole", "\n", None),
    ],
)
def test_other_places_of_a_final_answer(extractor: Extractor, output: str, answer: str | None) -> None:
    assert answers.number(answers.candidates(output, extractor)).answer == answer


def test_a_pattern_of_the_users_own() -> None:
    pattern = answers.compile_pattern(r"^result=(\S+)$")
    assert answers.number(answers.candidates("x\nresult=72\ny", "regex", pattern)).answer == "72"
    assert answers.number(answers.candidates("result=72\nresult=73", "regex", pattern)).answer is None
    assert answers.candidates("no", "regex", pattern) == []
    with pytest.raises(ConfigError, match=r"problems.pattern: '\(' is no regular expression"):
        answers.compile_pattern("(")
    with pytest.raises(ConfigError, match="has no group"):
        answers.compile_pattern("result=.*")


def test_texts_are_equal_but_for_case_space_and_a_period() -> None:
    final = answers.text(answers.candidates("The answer is  New York. ", "final"))
    assert final.answer == answers.same_text("new york") == "new york"
    assert answers.text(answers.candidates("A: Rome\nA: Paris", "final")).answer is None
    assert answers.text(answers.candidates("A: .", "final")).answer is None
    assert answers.text(answers.candidates("##### Paris", "final")).answer is None


@pytest.mark.parametrize(
    "hostile",
    ["\\boxed{" * 20_000, "#### " * 20_000, "answer is " * 10_000, "A: " * 30_000, "1," * 50_000, "9" * 100_000,
     "answer" + " " * 100_000, "*" * 100_000, "#### " + "1 " * 50_000, "\n" * 100_000, "1/" * 50_000, "-" * 100_000],
)  # fmt: skip
def test_no_answer_takes_long(hostile: str) -> None:
    start = time.monotonic()
    for extractor in ("final", "boxed", "last_number", "whole"):
        answers.number(answers.candidates(hostile, extractor))  # type: ignore[arg-type]
    assert time.monotonic() - start < 2.0
