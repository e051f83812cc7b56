"""One row of a user's file as a problem: its question, its reference, its name. Says why where it is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flywheel import sections
from flywheel.records import Problem, Split, digest

_ROLES = ("system", "user", "assistant")


class Unusable(Exception):  # noqa: N818 (a state of a row)
    """A row that is no problem; says why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a row's reference comes to."""

    final: str
    """The final answer, canonical where the checker knows a canonical form."""
    output: str | None
    """The text that a student can learn from and that checks right, where there is one."""
    steps: int


def as_problem(
    section: sections.Problems,
    values: dict[str, Any],
    name: str,
    version: int,
    split: Split,
    read_reference: Callable[[str], Reference],
) -> Problem:
    """A row as a problem of a split. `read_reference` raises Unusable, and so does this."""
    asked: dict[str, Any]
    if section.messages_column is not None:
        asked = {"messages": _messages(values[section.messages_column], section.messages_column)}
    else:
        asked = {"prompt": _text(values[section.prompt_column], section.prompt_column)}
    reference = read_reference(_text(values[section.answer_column], section.answer_column))
    payload = {**asked, "answer": reference.final}
    problem_id = digest("problem", name, version, payload)
    # More steps are harder; 1 step gives 0.5. A scale of the row alone, so that no other row moves it.
    difficulty = 1.0 - 1.0 / (1.0 + max(1, reference.steps))
    return Problem(problem_id, name, version, split, difficulty, problem_id, payload, reference.output)


def _text(value: Any, column: str) -> str:
    if isinstance(value, bool | bytes | list | dict):
        raise Unusable(f"{column} is {type(value).__name__}, not text")
    text = "" if value is None else str(value).strip()
    if not text:
        raise Unusable(f"{column} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Unusable(f"{column} is not valid Unicode")
    return text


def _messages(value: Any, column: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unusable(f"{column} is not JSON") from None
    if not isinstance(value, list) or not value:
        raise Unusable(f"{column} is not a list of messages")
    messages = []
    for one in value:
        if not isinstance(one, dict) or one.get("role") not in _ROLES or not isinstance(one.get("content"), str):
            raise Unusable(f"{column} has a message without role (system, user, assistant) and content (text)")
        messages.append({"role": one["role"], "content": _text(one["content"], column)})
    if messages[-1]["role"] != "user":
        raise Unusable(f"{column} does not end with the user's message")
    return messages
