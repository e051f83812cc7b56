r"""Where the final answer of a worked answer stands, and what two readings of it make of each other.

    #### 72        A: 72        Answer: 72        The answer is 72.        \boxed{72}

All places are looked at, not the last alone: an answer that gives two different final answers has not answered. A
value on the way is no final answer, however right it is. This finds text; what it means is said by `numbers`, by
`math_check`, or by `same_text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flywheel.errors import ConfigError
from flywheel.problems import numbers

Extractor = Literal["final", "boxed", "last_number", "regex", "whole"]

_MARK = re.compile(
    r"""
    (?P<hashes> (?<!\#)\#{4}(?!\#) )
  | (?P<boxed> \\(?:boxed|fbox)\s*\{ )
  | (?P<said> \banswer\b [*_]* \s* (?: (?:is|equals)\b | [:=] ) [*_]* \s* :? [*_]*
            | ^ [^\w\n]* (?-i:A|Ans|ANS) [*_]* \s* : [*_]* )
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=\S)[.;!?](?=\s|$)|,(?=\s+(?:since|because|as|so|which|not)\b)")
_MOST_TEXT = 100_000
"""Characters of an answer that are looked at, from its end: an answer's time is bounded, whatever a model writes."""
_LONGEST_BOX = 2_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that stands where final answers do."""

    text: str
    firm: bool
    """After `####` or in a box, or what an extractor other than `final` takes; not merely in a sentence."""


@dataclass(frozen=True, slots=True)
class Final:
    """What an answer comes to."""

    answer: str | None
    """Canonical form; None where there is no final answer, or more than one."""
    reason: str
    """Where there is none: why."""


def compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """The extractor `regex`'s pattern. Raises ConfigError unless it is a regular expression with a group."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ConfigError([f"problems.pattern: {pattern!r} is no regular expression: {error}"]) from None
    if compiled.groups < 1:
        raise ConfigError(
            [f"problems.pattern: {pattern!r} has no group; put the final answer's part in parentheses, as (.+)"]
        )
    return compiled


def candidates(output: str, extractor: Extractor, pattern: re.Pattern[str] | None = None) -> list[Candidate]:
    """The texts that stand where an answer's final answer does, in their order; none where it gives none."""
    output = output[-_MOST_TEXT:]
    if extractor == "whole":
        return [Candidate(output.strip(), True)] if output.strip() else []
    if extractor == "last_number":
        number = numbers.last(output)
        return [] if number is None else [Candidate(number, True)]
    if extractor == "regex":
        assert pattern is not None, "sections.Problems gives the extractor its pattern"
        found = [match[1] for match in pattern.finditer(output) if match[1] is not None]
        return [Candidate(text.strip(), True) for text in found if text.strip()]
    marked = [match for match in _MARK.finditer(output) if extractor == "final" or match["boxed"]]
    closings = _closings(output)
    made = []
    for match, following in zip(marked, [*(match.start() for match in marked), len(output)][1:], strict=False):
        if match["boxed"]:
            end = closings.get(match.end())
            if end is not None and end - match.end() <= _LONGEST_BOX:
                made.append(Candidate(output[match.end() : end].strip(), True))
            continue
        line_end = output.find("\n", match.end())
        line_end = len(output) if line_end < 0 else line_end
        text = output[match.end() : min(line_end, following)]
        if following < line_end and not _SENTENCE_END.search(text):
            continue  # `the answer is \boxed{72}`: the next mark says it
        if text.strip(" \t\r*_:$"):
            made.append(Candidate(text.strip(), match["hashes"] is not None))
    return made


def number(found: list[Candidate]) -> Final:
    """The one number that the candidates say. Prose among them is passed over, an unreadable number is not."""
    values = []
    for candidate in found:
        text = candidate.text
        if not candidate.firm:
            text = _SENTENCE_END.split(text, maxsplit=1)[0]
        value = numbers.read(text)
        if value is not None:
            values.append(numbers.canonical(value))
        elif candidate.firm and numbers.starts(text):
            return Final(None, f"{_short(text)} is not one number")
    return _one(values, "no final answer that is a number")


def text(found: list[Candidate]) -> Final:
    """The one text that the candidates say."""
    return _one([same_text(candidate.text) for candidate in found if same_text(candidate.text)], "no final answer")


def same_text(answer: str) -> str:
    """Equal for texts that are the same but for case, surrounding space and a closing period."""
    return answer.strip().rstrip(".").strip().casefold()


READERS: dict[str, Callable[[list[Candidate]], Final]] = {"number": number, "text": text}
"""By checker; that of `math` is a process of its own (`math_check`)."""


def _one(values: list[str], none: str) -> Final:
    if not values:
        return Final(None, none)
    other = next((value for value in values if value != values[-1]), None)
    if other is not None:
        return Final(None, f"two final answers, {_short(other)} and {_short(values[-1])}")
    return Final(values[-1], "")


def _closings(output: str) -> dict[int, int]:
    """For the position behind each opening brace that of the closing one that belongs to it."""
    closings, opened = {}, []
    # `\{` is a brace to be shown, in pairs like the others: counting both does no harm.
    for brace in re.finditer("[{}]", output):
        if brace[0] == "{":
            opened.append(brace.end())
        elif opened:
            closings[opened.pop()] = brace.start()
    return closings


def _short(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:37] + "...")
