"""What a domain is, and how one is found by name.

A new domain implements `Domain`; the conformance test in `tests/flywheel/test_domains.py` runs over every one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from flywheel import sections
from flywheel.errors import InputError
from flywheel.records import Problem, Split


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checker says of an answer."""

    right: bool
    answer: str | None
    """Canonical form of a well-formed answer, right or wrong: equal solutions have equal forms. None if malformed."""
    reason: str
    """`right`, or what is wrong, in a few words."""
    unsure: Literal["timeout", "failed"] | None = None
    """Where the checker came to no verdict: it took too long, or broke. `right` then says nothing."""


class Domain(Protocol):
    """A source of problems with an exact checker."""

    name: str
    version: int
    needs_reference: bool
    """Whether `check` looks at the problem's reference answer; if not, anyone can check an answer at run time."""
    step_end: str
    """What ends a step of an answer."""

    def problems(self, split: Split, count: int) -> list[Problem]:
        """Up to `count` problems of a split, always the same ones, ordered by id."""

    def prompt(self, problem: Problem) -> str:
        """The text a model is given."""

    def messages(self, problem: Problem) -> list[dict[str, str]] | None:
        """The question as chat messages, where the model's own chat template is to be used; else None."""

    def check(self, problem: Problem, output: str) -> Verdict:
        """Judge an answer. Never raises: a malformed answer is a verdict."""

    def steps(self, output: str) -> list[str]:
        """An answer cut into the steps a search can stand on."""

    def solutions(self, problem: Problem, count: int) -> list[str]:
        """Up to `count` different right answers by the domain's own solver: seed labels and the ceiling."""

    def content(self, output: str, answer: str) -> str:
        """What a right answer teaches, the key of dedupe and diffs: equal solutions have equal contents. `answer` is
        its canonical form, which may say less (a number, however it was arrived at)."""

    def vocabulary(self) -> Iterator[str] | None:
        """Every word a model trained from scratch may need, for a word-level tokenizer; None where `corpus` is to
        be learned from."""

    def corpus(self) -> Iterator[str]:
        """Texts from which a byte-pair vocabulary is learned, where there is no word list."""


def require_texts(section: sections.Problems) -> None:
    """Raise InputError for a game, of which what is about questions and answers knows nothing."""
    if section.domain == "hex":
        raise InputError(
            "got a registry or preset of domain hex, expected one of questions and answers; "
            "what a game's snapshots are worth is told by `flywheel arena` and `flywheel report`"
        )


def load(section: sections.Problems) -> Domain:
    """The domain of questions and answers that a `problems` section describes. Raises InputError for a game, which is
    `flywheel.problems.hex_positions`."""
    require_texts(section)
    if section.domain == "countdown":
        from flywheel.problems.countdown import Countdown

        return Countdown(section.numbers, section.smallest, section.largest, section.largest_target, section.shares)
    from flywheel.problems.file import FileDomain

    return FileDomain(section)
