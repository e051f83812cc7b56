"""The language of Countdown answers and its strict, exact checker. A parser of its own: nothing is evaluated as code.

    answer  := line { newline line }
    line    := sum "=" value
    sum     := product { ("+" | "-") product }
    product := factor { ("*" | "/") factor }
    factor  := number | "(" sum ")"
    number  := ["-"] digits                 a number at hand: of the hand, or the result of an earlier line
    value   := ["-"] digits ["/" digits]    the exact result, as an integer or a fraction

Each line takes the numbers it uses from those at hand and puts its result back. An answer is right if every stated
result is exact, every number at hand is used exactly once, and the one number left is the target. `8 * 3 = 24` is the
usual line; a whole solution on one line, with parentheses, is as good. Arithmetic is rational throughout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

_TOKEN = re.compile(r"\s*(?:(?P<digits>\d+)|(?P<symbol>[-+*/()=]))", re.ASCII)
_VALUE = re.compile(r"\s*(-?\d+)(?:/(\d+))?\s*", re.ASCII)
_LONGEST_NUMBER = 40
"""Digits; Python refuses to read or write integers of thousands, and no hand makes them."""
_DEEPEST = 50
_MOST_TOKENS = 400
"""A line; what is longer is no answer, and would nest deeper than Python follows."""


class Malformed(ValueError):  # noqa: N818 (a name for what the answer is)
    """The text is no sentence of the grammar. Carries the reason."""


class Broken(ValueError):  # noqa: N818 (named, as Malformed, for what the answer is)
    """A sentence of the grammar that breaks a rule: a wrong result, a number not at hand. Carries the reason."""


Node: TypeAlias = "int | tuple[str, Node, Node]"
"""What a line calculates: a number, or an operator with its two sides."""


Number: TypeAlias = "int | Fraction"
"""Exact; an integer where it can be, for those are many times faster."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it reads: what is calculated, and the result that it states."""

    calculated: Node
    stated: Number

    def __str__(self) -> str:
        return f"{_written(self.calculated)} = {self.stated}"


@dataclass(frozen=True, slots=True)
class Expression:
    """A value and how it was made; `operands` is empty for a number of the hand."""

    value: Number
    operator: str = ""
    operands: tuple[Expression, ...] = ()


def canonical(expression: Expression) -> str:
    """Normal form: sums and products are flattened and sorted, so `3 * 8 - 5` and `8 * 3 - 5` are one solution."""
    if not expression.operands:
        return str(expression.value)
    additive = expression.operator in "+-"
    terms: list[tuple[str, bool]] = []
    _flatten(expression, additive, False, terms)
    plus, minus = ("+", "-") if additive else ("*", "/")
    return "(" + "".join((minus if inverse else plus) + text for text, inverse in sorted(terms)) + ")"


def _flatten(expression: Expression, additive: bool, inverse: bool, terms: list[tuple[str, bool]]) -> None:
    if expression.operands and (expression.operator in "+-") == additive:
        left, right = expression.operands
        _flatten(left, additive, inverse, terms)
        _flatten(right, additive, inverse != (expression.operator in "-/"), terms)
    else:
        terms.append((canonical(expression), inverse))


def combine(operator: str, left: Expression, right: Expression) -> Expression:
    """Apply an operator exactly. Raises Broken on division by zero."""
    a, b = left.value, right.value
    value: Number
    if operator == "+":
        value = a + b
    elif operator == "-":
        value = a - b
    elif operator == "*":
        value = a * b
    elif b == 0:
        raise Broken("division by zero")
    else:
        value = a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else Fraction(a, b)
    return Expression(value, operator, (left, right))


def read(text: str) -> list[Line]:
    """Read an answer as it stands, right or wrong. Raises Malformed with the reason."""
    if not text.strip():
        raise Malformed("empty answer")
    lines = []
    # Only a newline ends a line: str.splitlines knows ten more characters that would.
    for number, line in enumerate(text.strip().split("\n"), 1):
        left, equals, right = line.rpartition("=")
        stated = _VALUE.fullmatch(right)
        if not equals or stated is None or (stated[2] is not None and not stated[2].strip("0")):
            raise Malformed(f"line {number} does not end in '= result'")
        if len(right.strip()) > _LONGEST_NUMBER:
            raise Malformed("a number of too many digits")
        calculated = _Parser(left).parse()
        if isinstance(calculated, int):
            raise Malformed(f"line {number} has no operation")
        value = int(stated[1])
        lines.append(Line(calculated, Fraction(value, int(stated[2])) if stated[2] else value))
    return lines


def follow(hand: list[int], lines: list[Line]) -> list[Expression]:
    """Follow an answer line by line; returns what is at hand after the last. Raises Broken with the reason."""
    at_hand = [Expression(number) for number in hand]
    for number, line in enumerate(lines, 1):
        result = _calculate(line.calculated, at_hand)
        if result.value != line.stated:
            raise Broken(f"line {number} states a wrong result")
        at_hand.append(result)
    return at_hand


def _calculate(node: Node, at_hand: list[Expression]) -> Expression:
    """Take the numbers that a line uses from those at hand, in the order they stand in."""
    if isinstance(node, int):
        for index, expression in enumerate(at_hand):
            if expression.value == node:
                return at_hand.pop(index)
        raise Broken(f"{node} is not at hand")
    operator, left, right = node
    return combine(operator, _calculate(left, at_hand), _calculate(right, at_hand))


def _written(node: Node) -> str:
    return str(node) if isinstance(node, int) else f"({_written(node[1])} {node[0]} {_written(node[2])})"


class _Parser:
    """Recursive descent over one line's left side."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokenise(text)
        if len(self._tokens) > _MOST_TOKENS:
            raise Malformed(f"a line of more than {_MOST_TOKENS} numbers and signs")
        self._position = 0
        self._depth = 0

    def parse(self) -> Node:
        result = self._sum()
        if self._peek() is not None:
            raise Malformed(f"unexpected {self._peek()!r}")
        return result

    def _peek(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self) -> str | None:
        token = self._peek()
        self._position += 1
        return token

    def _sum(self) -> Node:
        result = self._product()
        while self._peek() in {"+", "-"}:
            result = (str(self._take()), result, self._product())
        return result

    def _product(self) -> Node:
        result = self._factor()
        while self._peek() in {"*", "/"}:
            result = (str(self._take()), result, self._factor())
        return result

    def _factor(self) -> Node:
        token = self._take()
        if token == "(":
            self._depth += 1
            if self._depth > _DEEPEST:
                raise Malformed("nested too deeply")
            result = self._sum()
            if self._take() != ")":
                raise Malformed("unbalanced parentheses")
            self._depth -= 1
            return result
        negative = token == "-"
        if negative:
            token = self._take()
        if token is None or not token.isdigit():
            raise Malformed("a number is missing" if token is None else f"unexpected {token!r}")
        return -int(token) if negative else int(token)


def _tokenise(text: str) -> list[str]:
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Malformed(f"unexpected {text[position:].strip()[:1]!r}")
        token = match["digits"] or match["symbol"]
        if len(token) > _LONGEST_NUMBER:
            raise Malformed("a number of too many digits")
        tokens.append(token)
        position = match.end()
    return tokens
