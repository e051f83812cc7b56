r"""Numbers as people and models write them, read exactly: fractions of integers, never floats.

    1,234   $72   -72   72.0   .5   1/2   1 1/2   \frac{1}{2}   1.5e3   72 dollars   72%   72 km/h   x = 72   3 million

What is read is one number with, at most, a name before it and a unit after it. A percent sign is a unit: 72% is 72.
Anything else, two numbers, `1,23`, `72 or so`, `7 and a half`, `2x`, `5k`, is not read rather than guessed at.
This is no parser of formulas; those are `math_check`'s.
"""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST = 200
"""Characters of a text that can be a number with its unit; also bounds the digits that are turned into integers."""

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = rf"""
    (?: (?P<whole>{_WHOLE})\ +(?P<part>[0-9]+)\ */\ *(?P<parts>[0-9]+)
      | (?P<above>{_DECIMAL})(?:[eE](?P<exponent>[+-]?[0-9]{{1,3}})(?![0-9]) | \ */\ *(?P<below>{_DECIMAL}))? )
"""
_CURRENCY = r"(?:(?:US|CA|AU)?\$|[€£¥₹]|(?:USD|EUR|GBP|INR|Rs\.?)(?=[\s0-9.-]))"
_QUANTITY = re.compile(
    rf"""
    \$? (?:[A-Za-z][A-Za-z_ ]{{0,30}}=)? \s*
    {_CURRENCY}? \s* (?P<sign>[+-]?) \s* {_CURRENCY}? \s*
    {_NUMBER} (?P<unit>.*)
    """,
    re.VERBOSE | re.DOTALL,
)
_NUMBER_IN_TEXT = re.compile(
    # A minus between two numbers is an operation. What stands glued to letters is none: B12, x2.
    rf"(?<![\w.,)/])-?(?:[0-9]+\ [0-9]+/[0-9]+|{_DECIMAL}(?:/{_DECIMAL})?)(?!\w)|(?<![\w.]){_DECIMAL}(?!\w)"
)
_STARTS = re.compile(rf"[-+$€£¥₹\s]*{_DECIMAL}")

_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNIT_WORDS = 4
"""Words a unit may have (`dollars per square foot`); more of them are a sentence."""
_UNIT_WORD = re.compile(r"[A-Za-zÀ-ÿµΩ][A-Za-zÀ-ÿ'’.-]*(?:\^?[23]|[²³])?")
_UNIT_LETTERS = frozenset("mgshlLVWANJCFda")
"""Single letters that are units, or the article; `x` and `n` are variables, `k` and `M` are scales."""
_NO_UNITS = frozenset(
    {"and", "or", "to", "plus", "minus", "times", "over", "divided", "by", "x", "is", "are", "not", "if", "half", "e"}
)
"""Words after which the number is not all that is meant."""

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "‐": "-", "‑": "-", "－": "-", "＋": "+", "⁄": "/", "／": "/", "，": ",", "．": ".",
     "＄": "$", "％": "%", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\t": " "}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)  # fmt: skip
_LATEX = [
    (re.compile(r"\\(?:left|right|!|displaystyle)"), ""),
    (re.compile(r"(?<=[0-9])(?:\\,|\{,\})(?=[0-9]{3})"), ","),
    (re.compile(r"\\(?:[,;: ]|quad|qquad)|~"), " "),
    (re.compile(r"\\[\[\]()]"), " "),
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])"), r" \1/\2"),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|fbox)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°"), " degrees"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\^\{([23])\}"), r"^\1"),
]  # fmt: skip


def read(text: str) -> Fraction | None:
    """The one number that a text is, with its unit if it has one; None where it is anything else."""
    if len(text) > _LONGEST:
        return None
    match = _QUANTITY.fullmatch(_bare(text))
    if match is None:
        return None
    scale = _scale(match["unit"])
    value = _value(match)
    if scale is None or value is None:
        return None
    return (-value if match["sign"] == "-" else value) * scale


def starts(text: str) -> bool:
    """Whether a text begins as a number does, be it one that `read` can make sense of or not."""
    return _STARTS.match(_bare(text[:_LONGEST])) is not None


def last(text: str) -> str | None:
    """The last number in a text, as it is written there; digits within words (`B12`) are none."""
    found = [match[0] for match in _NUMBER_IN_TEXT.finditer(text.translate(_CHARACTERS))]
    return found[-1].rstrip(",") if found else None


def canonical(value: Fraction) -> str:
    """One text for one number: `72`, `-0.5` where the decimal ends, `1/3` where it does not."""
    below, twos, fives = value.denominator, 0, 0
    while below % 2 == 0:
        below, twos = below // 2, twos + 1
    while below % 5 == 0:
        below, fives = below // 5, fives + 1
    if below != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}")


def _bare(text: str) -> str:
    """The text without LaTeX, typographic characters, emphasis and a closing period."""
    text = text.translate(_CHARACTERS)
    if "\\" in text or "°" in text or "^" in text or "{" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text.strip(" \r\n*_`'\"{}~:").rstrip(".!?;,").rstrip(" *_`'\"{}")


def _value(match: re.Match[str]) -> Fraction | None:
    if match["whole"] is not None:
        if int(match["parts"]) == 0:
            return None
        return int(match["whole"].replace(",", "")) + Fraction(int(match["part"]), int(match["parts"]))
    above = _decimal(match["above"])
    if match["exponent"] is not None:
        return above * Fraction(10) ** int(match["exponent"])
    if match["below"] is None:
        return above
    below = _decimal(match["below"])
    return above / below if below else None


def _decimal(text: str) -> Fraction:
    whole, _, digits = text.replace(",", "").partition(".")
    return Fraction(int((whole + digits) or "0"), 10 ** len(digits))


def _scale(unit: str) -> int | None:
    """What the words after a number multiply it by: 1 where they are a unit; None where they are no unit."""
    rest = unit.strip().lstrip("%$€£").strip()
    words = [word for word in re.split(r"[\s/]+|(?<![A-Za-z])-", rest) if word]
    scale = 1
    if words and words[0].lower() in _SCALES:
        scale = _SCALES[words.pop(0).lower()]
    if words and words[0].lower() in _NO_UNITS:
        return None
    if len(words) > _UNIT_WORDS or not all(map(_is_unit_word, words)):
        return None
    return scale


def _is_unit_word(word: str) -> bool:
    return _UNIT_WORD.fullmatch(word) is not None and (len(word.rstrip("^23²³")) > 1 or word[0] in _UNIT_LETTERS)
