"""Every value a hand can reach, with solutions: brute force over subsets.

Intermediate results are positive integers, as in the game; fractions and negatives are left out (the checker accepts
them). `reach(subset)` joins the values of each two complementary parts, so a subset is worked out once.
"""

from __future__ import annotations

from fractions import Fraction

from flywheel.problems.countdown_grammar import Expression, canonical

MOST_SOLUTIONS = 16
"""Different solutions kept a value and subset; counts saturate here."""


def solve(hand: tuple[int, ...], largest_value: int) -> dict[int, list[Expression]]:
    """All values reachable with every number used once, each with up to MOST_SOLUTIONS different solutions.

    Values above `largest_value` are not followed. Solutions come in a fixed order: fewest large intermediates first.
    """
    count = len(hand)
    reached: dict[int, dict[int, dict[str, Expression]]] = {}
    for index, number in enumerate(hand):
        leaf = Expression(Fraction(number))
        reached[1 << index] = {number: {canonical(leaf): leaf}}
    for subset in sorted(range(1, 1 << count), key=lambda s: (s.bit_count(), s)):
        if subset.bit_count() == 1:
            continue
        values: dict[int, dict[str, Expression]] = {}
        part = (subset - 1) & subset
        while part > subset ^ part:
            for a, lefts in reached[part].items():
                for b, rights in reached[subset ^ part].items():
                    for value, operator, swap in _results(a, b):
                        if value <= largest_value:
                            _join(values.setdefault(value, {}), value, operator, lefts, rights, swap)
            part = (part - 1) & subset
        reached[subset] = values
    full = reached[(1 << count) - 1]
    return {value: list(found.values()) for value, found in sorted(full.items())}


def _results(a: int, b: int) -> list[tuple[int, str, bool]]:
    """(value, operator, operands swapped) for each way to join two values; the larger operand stands first."""
    large, small, swap = (a, b, False) if a >= b else (b, a, True)
    results = [(large + small, "+", swap), (large * small, "*", swap)]
    if large > small:
        results.append((large - small, "-", swap))
    if large % small == 0:
        results.append((large // small, "/", swap))
    return results


def _join(
    found: dict[str, Expression],
    value: int,
    operator: str,
    lefts: dict[str, Expression],
    rights: dict[str, Expression],
    swap: bool,
) -> None:
    for left in lefts.values():
        for right in rights.values():
            if len(found) >= MOST_SOLUTIONS:
                return
            operands = (right, left) if swap else (left, right)
            expression = Expression(Fraction(value), operator, operands)
            found.setdefault(canonical(expression), expression)


def as_steps(expression: Expression) -> list[str]:
    """A solution as lines `a op b = c`, operands before what uses them."""
    if not expression.operands:
        return []
    left, right = expression.operands
    line = f"{left.value} {expression.operator} {right.value} = {expression.value}"
    return [*as_steps(left), *as_steps(right), line]
