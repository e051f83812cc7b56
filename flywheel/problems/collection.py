"""From the rows of a user's files to problems in splits: what is left out, why, and by what evidence.

    rows ── unusable ──> skipped        1. each row by itself
         ── same text ─> duplicate      2. rows with the same question: the first stays, test before valid before train
         ── n words ───> decontaminated 3. training problems that share words with a held-out one
         ── alike ─────> near_duplicate 4. training problems like an earlier one; held-out ones are grouped, not dropped

Official test and valid files are kept as they are but for rows that cannot be used and repeated ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from flywheel import sections
from flywheel.problems import decontamination, reading
from flywheel.problems.problem_rows import Reference, Unusable, as_problem
from flywheel.records import Problem, Split, digest

Reason = Literal["skipped", "duplicate", "decontaminated", "near_duplicate"]
_SPLITS: dict[str, Split] = {"test_path": "test", "valid_path": "valid", "path": "train"}
"""In the order in which a question that stands in several files is kept."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """A row that did not become a problem, or not one to train on."""

    source: str
    """The key of its file: path, valid_path or test_path."""
    row: int
    reason: Reason
    detail: str
    """Why it was skipped, or how it was alike."""
    problem_id: str | None = None
    """The problem that it would have been."""
    evidence: str | None = None
    """The words that it has in common with the problem it matched."""
    matched_id: str | None = None
    matched_split: Split | None = None
    similarity: float | None = None

    @property
    def excluded_id(self) -> str:
        return digest("excluded", self.source, self.row)


@dataclass(frozen=True, slots=True)
class Collection:
    """Everything that a user's files hold: all problems by split, ordered by id, and what was left out."""

    problems: dict[Split, list[Problem]]
    excluded: list[Excluded]

    def counts(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return dict(sorted(Counter(one.reason for one in self.excluded).items()))


@dataclass(frozen=True, slots=True)
class _Entry:
    source: str
    row: int
    question: str
    problem: Problem


def question(problem: Problem) -> str:
    """A problem's text as it is compared with others': its prompt, or what its messages say but the system's."""
    if "prompt" in problem.payload:
        return str(problem.payload["prompt"])
    return "\n".join(one["content"] for one in problem.payload["messages"] if one["role"] != "system")


def gather(
    section: sections.Problems,
    name: str,
    version: int,
    read_reference: Callable[[str], Reference],
    refused: Callable[[list[str]], list[str | None]],
) -> Collection:
    """Read, split and clean. `read_reference` raises Unusable; `refused` says for each of many final answers why the
    checker cannot use it as a reference, or None. Raises ConfigError for a file that cannot be used."""
    excluded: list[Excluded] = []
    entries: list[_Entry] = []
    found = reading.files(section)
    for source in [source for source in _SPLITS if source in found]:
        columns = [section.messages_column or section.prompt_column, section.answer_column]
        for row in reading.read(found[source], columns, source):
            if isinstance(row, reading.Skipped):
                excluded.append(Excluded(source, row.number, "skipped", row.reason))
                continue
            try:
                problem = as_problem(section, row.values, name, version, _SPLITS[source], read_reference)
            except Unusable as error:
                excluded.append(Excluded(source, row.number, "skipped", str(error)))
            else:
                entries.append(_Entry(source, row.number, question(problem), problem))
    entries = _checked(entries, refused, excluded)
    entries = [_placed(entry, section) for entry in _different(entries, excluded)]
    held_out = [entry for entry in entries if entry.problem.split != "train"]
    training = [entry for entry in entries if entry.problem.split == "train"]
    if section.decontaminate is not None:
        training = _decontaminated(training, held_out, section.decontaminate, excluded)
    if section.near_duplicates is not None:
        training = _distinct(training, section.near_duplicates, excluded)
    problems: dict[Split, list[Problem]] = {"train": [entry.problem for entry in training], "valid": [], "test": []}
    for entry in held_out:
        problems[entry.problem.split].append(entry.problem)
    for split, its in problems.items():
        if section.near_duplicates is not None and split != "train":
            its = _grouped(its, section.near_duplicates)
        problems[split] = sorted(its, key=lambda problem: problem.problem_id)
    order = list(reading.PATH_KEYS)
    excluded.sort(key=lambda one: (order.index(one.source), one.row))
    return Collection(problems, excluded)


def explain(collection: Collection, section: sections.Problems, split: Split) -> str:
    """Why a split has no problem, in a line."""
    own = next(key for key, its in _SPLITS.items() if its == split)
    source = own if getattr(section, own) is not None else "path"
    left_out = [one for one in collection.excluded if one.source == source]
    why = Counter(f"{one.reason}: {one.detail}" if one.reason == "skipped" else one.reason for one in left_out)
    if not why:
        return f"problems.{source} has no rows for it"
    shown = ", ".join(f"{count} {reason}" for reason, count in why.most_common(3))
    common = Counter(one.evidence for one in left_out if one.reason == "decontaminated").most_common(1)
    if split == "train" and common and common[0][1] > 1:
        shown += (
            f"; {common[0][1]} share the words {common[0][0]!r} with a held-out problem: an instruction that every "
            "problem repeats belongs into problems.template or problems.system"
        )
    return shown


def _checked(
    entries: list[_Entry], refused: Callable[[list[str]], list[str | None]], excluded: list[Excluded]
) -> list[_Entry]:
    reasons = refused([entry.problem.payload["answer"] for entry in entries])
    kept = []
    for entry, reason in zip(entries, reasons, strict=True):
        if reason is None:
            kept.append(entry)
        else:
            excluded.append(Excluded(entry.source, entry.row, "skipped", f"unusable reference: {reason}"))
    return kept


def _different(entries: Iterable[_Entry], excluded: list[Excluded]) -> list[_Entry]:
    """One entry for each text. In one file a repetition is a duplicate; of another file's, a contamination."""
    first: dict[str, _Entry] = {}
    for entry in entries:
        text = " ".join(entry.question.split())
        kept = first.setdefault(text, entry)
        if kept is entry:
            continue
        same = kept.problem.payload["answer"] == entry.problem.payload["answer"]
        excluded.append(
            Excluded(
                entry.source,
                entry.row,
                "duplicate" if kept.source == entry.source else "decontaminated",
                f"the text of row {kept.row} of {kept.source}" + ("" if same else ", with another answer"),
                entry.problem.problem_id,
                text[:200],
                kept.problem.problem_id,
                kept.problem.split,
                1.0,
            )
        )
    return list(first.values())


def _placed(entry: _Entry, section: sections.Problems) -> _Entry:
    """In its split: its file's, or, of the file `path`, a share by hash for each held-out split without a file."""
    if entry.source != "path":
        return entry
    train, valid, test = section.shares
    valid = 0.0 if section.valid_path is not None else valid
    test = 0.0 if section.test_path is not None else test
    position = int(digest("file", "split", " ".join(entry.question.split()))[:12], 16) / 16**12 * (train + valid + test)
    split: Split = "train" if position < train else "valid" if position < train + valid else "test"
    return replace(entry, problem=replace(entry.problem, split=split))


def _decontaminated(
    training: list[_Entry], held_out: list[_Entry], size: int, excluded: list[Excluded]
) -> list[_Entry]:
    matches = decontamination.contaminated([e.question for e in training], [e.question for e in held_out], size)
    return _without(training, held_out, matches, "decontaminated", "words in a row in common", excluded)


def _distinct(training: list[_Entry], threshold: float, excluded: list[Excluded]) -> list[_Entry]:
    matches = decontamination.near_duplicates([entry.question for entry in training], threshold)
    return _without(training, training, matches, "near_duplicate", "most words in common", excluded)


def _without(
    entries: list[_Entry],
    others: list[_Entry],
    matches: dict[int, decontamination.Match],
    reason: Reason,
    detail: str,
    excluded: list[Excluded],
) -> list[_Entry]:
    for position, match in matches.items():
        entry, other = entries[position], others[match.other]
        excluded.append(
            Excluded(
                entry.source,
                entry.row,
                reason,
                f"{detail} with row {other.row} of {other.source}",
                entry.problem.problem_id,
                match.evidence,
                other.problem.problem_id,
                other.problem.split,
                match.similarity,
            )
        )
    return [entry for position, entry in enumerate(entries) if position not in matches]


def _grouped(problems: list[Problem], threshold: float) -> list[Problem]:
    """Near-duplicates in a held-out split are no independent trials: intervals cluster them."""
    matches = decontamination.near_duplicates([question(problem) for problem in problems], threshold)
    return [
        replace(problem, group=problems[matches[position].other].problem_id) if position in matches else problem
        for position, problem in enumerate(problems)
    ]
