"""All of GSM8K: every reference judged right, and every way of being wrong that its own numbers offer judged wrong."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from decimal import Decimal

import pytest

from flywheel import sections
from flywheel.problems import reading
from flywheel.problems.file import FileDomain
from flywheel.records import Problem, Split

OFFICIAL = {"train": 7473, "test": 1319}
SECTION = sections.Problems(
    domain="file",
    path="package:gsm8k/train.jsonl.gz",
    test_path="package:gsm8k/test.jsonl.gz",
    prompt_column="question",
    decontaminate=None,
    near_duplicates=None,
    shares=(0.6, 0.12, 0.28),
)


def rows(split: str) -> list[dict[str, str]]:
    """The data as json and gzip read it, without Flywheel's reader."""
    with gzip.open(reading.files(SECTION)["path" if split == "train" else "test_path"], "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def domain() -> FileDomain:
    return FileDomain(SECTION)


def as_problem(row: dict[str, str]) -> tuple[Problem, str]:
    """A problem with its gold number as plain text: what stands behind the last `####`, without commas."""
    gold = row["answer"].rsplit("####", 1)[1].strip().replace(",", "")
    payload = {"prompt": row["question"], "answer": gold}
    return Problem("p", "file", 1, "train", 0.5, "p", payload, row["answer"]), gold


def wrong(answer: str, question: str, gold: str) -> Iterator[tuple[str, str]]:
    """(what is wrong, an output) made of a reference; outputs that happen to say the gold number are left out."""
    way = answer.rpartition("####")[0]
    value = Decimal(gold)
    digits = gold.lstrip("-")
    finals = {
        "sign": str(-value),
        "one more": str(value + 1),
        "one less": str(value - 1),
        "ten times": str(value * 10),
        "a tenth": str(value / 10),
        "first digit dropped": digits[1:],
        "last digit dropped": digits[:-1],
        "first digit doubled": digits[0] + digits,
        "last digit doubled": digits + digits[-1],
        "nearly": gold + ".5",
        "another unit's number": f"100 per {gold} kg",
        "a choice": f"{gold} or {value + 1}",
        "an equation": f"{gold} + 1",
    }
    for index, number in enumerate(dict.fromkeys(re.findall(r"=\s*(-?[0-9]+(?:\.[0-9]+)?)>>", way))):
        finals[f"value {index} on the way"] = number
    for index, number in enumerate(dict.fromkeys(re.findall(r"(?<![\w.,])[0-9]+(?![\w.,])", question))):
        finals[f"number {index} of the question"] = number
    for what, final in finals.items():
        number_only = re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", final)
        if number_only and Decimal(final) == value:
            continue
        yield what, f"{way}#### {final}"
    yield "two finals", f"{way}#### {gold}\n#### {value + 1}"
    yield "two finals, the right one last", f"{way}#### {value + 1}\n#### {gold}"
    yield "two finals in different words", f"{way}The answer is {value + 1}.\n#### {gold}"
    yield "no final", way
    yield "an empty final", f"{way}####"
    yield "only the number", gold
    yield "nothing", ""


@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.slow), "test"])
def test_every_reference_is_right_and_every_near_miss_wrong(domain: FileDomain, split: str) -> None:
    data = rows(split)
    assert len(data) == OFFICIAL[split]
    missed, fooled, tried = [], [], 0
    for row in data:
        problem, gold = as_problem(row)
        verdict = domain.check(problem, row["answer"])
        if not verdict.right or Decimal(str(verdict.answer)) != Decimal(gold):
            missed.append((row["answer"][-60:], verdict))
        for what, output in wrong(row["answer"], row["question"], gold):
            tried += 1
            if domain.check(problem, output).right:
                fooled.append((what, output[-60:], gold))
    assert not missed, missed[:5]
    assert not fooled, fooled[:5]
    assert tried > 15 * len(data)


def test_other_words_for_the_same_number_are_right(domain: FileDomain) -> None:
    for row in rows("test"):
        problem, gold = as_problem(row)
        for said in (
            f"#### {Decimal(gold):,}", f"#### ${gold}", f"#### {gold}.0", f"The answer is {gold}.", f"#### {gold}%",
            f"A: {gold} dollars", f"\\boxed{{{gold}}}", f"Answer: **{gold}**",
            f"#### {gold}\nThe answer is \\boxed{{{gold}}}",
        ):  # fmt: skip
            verdict = domain.check(problem, said)
            assert verdict.right, (said, gold, verdict)


def test_the_official_split_is_kept(domain: FileDomain) -> None:
    """Every test row is a test problem, none is anything else; valid is a share of train."""
    data = {split: {row["question"].strip() for row in rows(split)} for split in ("train", "test")}
    splits: tuple[Split, ...] = ("train", "valid", "test")
    found = {split: {p.payload["prompt"] for p in domain.problems(split, 10_000)} for split in splits}
    assert found["test"] == data["test"]
    assert found["train"] | found["valid"] == data["train"]
    assert not found["train"] & found["valid"]
    # A share by hash: five standard errors of 0.12 / 0.72 of 7473.
    assert abs(len(found["valid"]) - 7473 / 6) < 5 * (7473 * 1 / 6 * 5 / 6) ** 0.5
    assert domain.collection.counts() == {}


def test_what_is_left_out_of_gsm8k_is_little_and_has_its_evidence() -> None:
    domain = FileDomain(SECTION.model_copy(update={"decontaminate": 13, "near_duplicates": 0.8}))
    collection = domain.collection
    assert 0 < len(collection.excluded) < 40
    assert len(collection.problems["test"]) == OFFICIAL["test"]
    held = {p.problem_id: p for split in ("valid", "test") for p in collection.problems[split]}  # type: ignore[index]
    for one in collection.excluded:
        assert one.reason == "decontaminated"
        assert one.evidence is not None
        assert len(one.evidence.split()) == 13
        other = held[str(one.matched_id)]
        assert other.split == one.matched_split
        plain = " ".join(re.findall(r"[a-z0-9]+", other.payload["prompt"].lower()))
        assert " ".join(re.findall(r"[a-z0-9]+", one.evidence)) in plain
