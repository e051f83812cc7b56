"""One comparison by Math-Verify, as `flywheel.problems.math_check` has it done in processes of its own.

Math-Verify is asymmetric (to the reference 5, `x = 5` is an answer; the other way round it depends on its version): the
reference comes first. Never import this elsewhere: nothing here ends by itself on 2003^2002^2001.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import sympy  # type: ignore[import-untyped,import-not-found,unused-ignore]
from math_verify import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    parse,
    verify,
)

_DELIMITED = re.compile(r"(?<!\\)\$.*(?<!\\)\$|\\boxed|\\\(|\\\[|\\begin\{(?:equation|align|gather|math)", re.DOTALL)

# It warns that its own limits are off.
logging.disable(logging.WARNING)


def judge(reference: str, answer: str) -> dict[str, Any]:
    """The fields of a `MathVerdict`."""
    gold = read(reference)
    if not gold:
        return _fields(False, None, "failed", f"the reference {reference[:100]!r} cannot be read as mathematics")
    given = read(answer)
    if not given:
        return _fields(False, None, None, "cannot be read as mathematics")
    # An error of the comparison is raised: it says nothing of the answer.
    right = bool(verify(gold, given, timeout_seconds=None, raise_on_error=True))
    return _fields(right, canonical(given[0]), None, "right" if right else "another value than the reference")


def _fields(right: bool, answer: str | None, unsure: str | None, reason: str) -> dict[str, Any]:
    return {"right": right, "answer": answer, "unsure": unsure, "reason": reason}


def read(text: str) -> list[Any]:
    """Expressions in a text, the likeliest first; none where it cannot be read."""
    # LaTeX is looked for between delimiters only: of a bare `2x + 1` the 2 would be taken.
    # A single dollar sign is money.
    delimited = text if _DELIMITED.search(text) else f"${text.replace(chr(92) + '$', '').replace('$', '')}$"
    try:
        # Without the fallback, which is the text itself where it could not be read.
        found: list[Any] = parse(delimited, parsing_timeout=None, fallback_mode="no_fallback", raise_on_error=True)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 (a text that breaks the parser cannot be read)
        return []
    return found


def canonical(expression: Any) -> str:
    """One text for equal numbers, `x = 5` among the fives; for other expressions, the text that sympy gives them."""
    if isinstance(expression, sympy.Eq) and isinstance(expression.lhs, sympy.Symbol):
        expression = expression.rhs
    if isinstance(expression, sympy.Expr) and (expression.is_number or expression.has(sympy.Float)):
        return str(sympy.nsimplify(expression.doit(), rational=True))
    return str(expression)


# The parser builds its tables at its first use, which is not to count against the first answer.
read("1")
