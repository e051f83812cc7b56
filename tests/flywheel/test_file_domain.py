"""Problems of a user's own: files good and bad, splits, what is left out, and how a problem is put and judged."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel import sections
from flywheel.errors import ConfigError
from flywheel.problems import reading
from flywheel.problems.collection import Collection
from flywheel.problems.file import FileDomain
from flywheel.records import Problem

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Ann has {i} {thing} and buys {i * 7} more at the {place}. How many {thing} has she?",
     "answer": f"{i} + {i * 7} = {i * 8}\n#### {i * 8}"}
    for i, (thing, place) in enumerate(
        [(thing, place) for thing in ("apples", "marbles", "stamps", "books", "coins", "shells")
         for place in ("market", "fair", "corner shop", "museum", "station", "harbour", "bakery", "zoo")], 1)
]  # fmt: skip


def section(path: Path | None, **given: Any) -> sections.Problems:
    defaults = {"decontaminate": None, "near_duplicates": None, "shares": (0.6, 0.2, 0.2)}
    return sections.Problems(domain="file", path=str(path), **{**defaults, **given})


def json_lines(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def collected(path: Path, **given: Any) -> Collection:
    return FileDomain(section(path, **given)).collection


def contents(collection: Collection) -> list[Any]:
    return [collection.problems, [(one.row, one.reason, one.detail) for one in collection.excluded]]


def all_problems(collection: Collection) -> list[Problem]:
    return [problem for problems in collection.problems.values() for problem in problems]


def only(collection: Collection) -> Problem:
    (problem,) = all_problems(collection)
    return problem


def skipped(collection: Collection) -> dict[int, str]:
    return {one.row: one.detail for one in collection.excluded if one.reason == "skipped"}


def test_the_same_rows_in_any_kind_of_file_are_the_same_problems(tmp_path: Path) -> None:
    made = [json_lines(tmp_path / "a.jsonl", ROWS), json_lines(tmp_path / "a.jsonl.gz", ROWS)]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["answer", "prompt"])
        writer.writeheader()
        writer.writerows(ROWS)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    made += [tmp_path / "a.csv", tmp_path / "a.csv.gz", tmp_path / "a.parquet"]
    first = contents(collected(made[0]))
    assert sum(map(len, first[0].values())) == len(ROWS)
    for path in made[1:]:
        assert contents(collected(path)) == first, path.name


BAD: list[tuple[Any, str]] = [
    (b"{\"prompt\": \"\xff\", \"answer\": \"#### 1\"}", "not UTF-8"),
    (b"{\"prompt\": \"cut off", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    ([1, 2], "not a JSON object"),
    ({"prompt": "no answer?"}, "has no answer"),
    ({"prompt": "", "answer": "#### 1"}, "prompt is empty"),
    ({"prompt": " \n", "answer": "#### 1"}, "prompt is empty"),
    ({"prompt": None, "answer": "#### 1"}, "prompt is empty"),
    ({"prompt": "a?", "answer": ""}, "answer is empty"),
    ({"prompt": ["b"], "answer": "#### 1"}, "prompt is list, not text"),
    ({"prompt": "c?", "answer": True}, "answer is bool, not text"),
    (b"{\"prompt\": \"\\ud800?\", \"answer\": \"#### 1\"}", "prompt is not valid Unicode"),
    ({"prompt": "d?", "answer": "seven"}, "answer: no final answer that is a number"),
    ({"prompt": "e?", "answer": "3 + 4 = 7"}, "answer: no final answer that is a number"),
    ({"prompt": "f?", "answer": "#### 7\n#### 8"}, "answer: two final answers, '7' and '8'"),
    ({"prompt": "g?", "answer": "#### 7 or 8"}, "answer: '7 or 8' is not one number"),
]  # fmt: skip


def test_bad_rows_are_left_out_each_with_its_reason(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [*(row for row, _ in BAD), b"", b"  ", *ROWS])
    collection = collected(path)
    assert skipped(collection) == {number: reason for number, (_, reason) in enumerate(BAD, 1)}
    assert collection.counts() == {"skipped": len(BAD)}
    assert len(all_problems(collection)) == len(ROWS)
    assert len({one.excluded_id for one in collection.excluded}) == len(BAD)


def test_a_line_too_long_to_be_held_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(reading, "_PIECE", 64)
    long = {"prompt": "x" * 5000, "answer": "#### 1"}
    exact = {"prompt": "", "answer": "#### 1"}
    exact["prompt"] = "y" * (1000 - len(json.dumps(exact)))
    collection = collected(json_lines(tmp_path / "a.jsonl", [ROWS[0], long, exact, long]))
    assert skipped(collection) == {2: "longer than 0 MB", 4: "longer than 0 MB"}
    assert len(all_problems(collection)) == 2


def test_bad_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,answer\nok?,#### 1\nshort?\n\xff?,#### 1\n"two\nlines?",2\na?,#### 1,more\n\n')
    collection = collected(path)
    assert skipped(collection) == {
        2: "has 1 fields, the header has 2", 3: "not UTF-8", 5: "has 3 fields, the header has 2",
    }  # fmt: skip
    assert {p.payload["prompt"]: p.payload["answer"] for p in all_problems(collection)} == {
        "ok?": "1",
        "two\nlines?": "2",
    }
    path.write_bytes(b'prompt,answer\nok?,"#### 1\n')
    with pytest.raises(ConfigError, match=r"problems.path: .*a.csv, line 2, is not CSV: .*is a quote left open\?"):
        collected(path)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    bad = tmp_path / "x.jsonl"
    with pytest.raises(ConfigError, match=r"problems.path: .*x.jsonl is not there; expected a .jsonl") as caught:
        collected(bad, test_path=str(tmp_path / "y.jsonl"), valid_path=str(tmp_path))
    assert len(caught.value.problems) == 3, "all at once"
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"a.txt is of no known kind; expected .jsonl"):
        collected(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match=r"'package:nope' ships with Flywheel; there are package:gsm8k/test.jsonl.gz"):
        FileDomain(sections.Problems(domain="file", path="package:nope")).problems("train", 1)
    with pytest.raises(ConfigError, match="ships with Flywheel"):
        FileDomain(sections.Problems(domain="file", path="package:../../file.py")).problems("train", 1)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "answer": "1"}\n' * 9)[:-9])
    with pytest.raises(ConfigError, match=r"problems.path: .*a.jsonl.gz is damaged: .*copy it anew"):
        collected(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(ConfigError, match="is damaged"):
        collected(tmp_path / "b.jsonl.gz")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ConfigError, match=r"problems.path: .*a.parquet is not Parquet"):
        collected(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_of_other_names_are_told(tmp_path: Path, kind: str) -> None:
    rows = [{"question": row["prompt"], "answer": row["answer"]} for row in ROWS]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        json_lines(path, rows)
    elif kind == "csv":
        path.write_text("question,answer\na?,1\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ConfigError) as caught:
        collected(path)
    assert (
        "has no column prompt; its columns are question, answer; name the right ones by problems.prompt_column"
        in str(caught.value)
    )
    assert all_problems(collected(path, prompt_column="question"))


def test_numbers_in_a_file_are_what_is_written_there(tmp_path: Path) -> None:
    """No float on the way: 0.1 + 0.2 style digits and large integers stay exact."""
    written = ["0.1000000000000000055511151231257828", "12345678901234567890123", "1e2", "72.0", "-0.5"]
    lines = [f'{{"prompt": "p{i}", "answer": {number}}}'.encode() for i, number in enumerate(written)]
    found = {
        p.payload["prompt"]: p.payload["answer"]
        for p in all_problems(collected(json_lines(tmp_path / "a.jsonl", lines)))
    }
    assert list(map(found.get, ["p0", "p1", "p2", "p3", "p4"])) == [
        "0.1000000000000000055511151231257828", "12345678901234567890123", "100", "72", "-0.5",
    ]  # fmt: skip


def test_a_question_that_comes_again_is_kept_once_and_its_test_copy_wins(tmp_path: Path) -> None:
    train = json_lines(
        tmp_path / "train.jsonl", [ROWS[0], ROWS[1], ROWS[0], {**ROWS[1], "answer": "#### 5"}, ROWS[2], ROWS[3]]
    )
    valid = json_lines(tmp_path / "valid.jsonl", [ROWS[3], ROWS[4]])
    test = json_lines(tmp_path / "test.jsonl", [{**ROWS[2], "prompt": ROWS[2]["prompt"].replace(" ", "  ")}, ROWS[4]])
    collection = collected(train, valid_path=str(valid), test_path=str(test))
    assert [(one.source, one.row, one.reason, one.matched_split) for one in collection.excluded] == [
        ("path", 3, "duplicate", "train"),
        ("path", 4, "duplicate", "train"),
        ("path", 5, "decontaminated", "test"),
        ("path", 6, "decontaminated", "valid"),
        ("valid_path", 2, "decontaminated", "test"),
    ]
    assert "with another answer" in collection.excluded[1].detail
    assert {split: len(problems) for split, problems in collection.problems.items()} == {
        "train": 2,
        "valid": 1,
        "test": 2,
    }


def test_splits_are_by_hash_and_official_ones_are_kept(tmp_path: Path) -> None:
    path, extra = (
        json_lines(tmp_path / "a.jsonl", ROWS),
        json_lines(tmp_path / "b.jsonl", [{"prompt": "new?", "answer": "1"}]),
    )

    def split_of(**given: Any) -> dict[str, str]:
        problems = all_problems(collected(path, **given))
        return {problem.payload["prompt"]: problem.split for problem in problems}

    own = split_of()
    assert set(own.values()) == {"train", "valid", "test"}
    shuffled = json_lines(tmp_path / "c.jsonl", ROWS[::-1][:30])
    assert {p.payload["prompt"]: p.split for p in all_problems(collected(shuffled))} == {
        row["prompt"]: own[row["prompt"]] for row in ROWS[::-1][:30]
    }, "neither order nor other rows move a problem"
    with_test = split_of(test_path=str(extra))
    assert with_test.pop("new?") == "test"
    assert set(with_test.values()) == {"train", "valid"}
    with_both = split_of(
        test_path=str(extra), valid_path=str(json_lines(tmp_path / "d.jsonl", [{"prompt": "v?", "answer": "1"}]))
    )
    assert {with_both.pop("new?"), with_both.pop("v?")} == {"test", "valid"}
    assert set(with_both.values()) == {"train"}


def test_counts_are_maxima_and_a_smaller_draw_is_part_of_a_larger(tmp_path: Path) -> None:
    domain = FileDomain(section(json_lines(tmp_path / "a.jsonl", ROWS)))
    assert domain.problems("train", 5) == domain.problems("train", 1000)[:5]
    assert 20 < len(domain.problems("train", 1000)) < 40


def test_contaminated_and_near_duplicate_problems_are_dropped_with_their_evidence(tmp_path: Path) -> None:
    shared = "a farmer drives forty two sheep over the long stone bridge before the sun"
    story = "Every morning the old baker Tom carries {} trays with {} loaves each up the steep hill to his shop"
    rows = [
        {"prompt": f"At noon {shared} sets. How many legs cross?", "answer": "168"},
        {"prompt": story.format(3, 12) + ". How many loaves?", "answer": "36"},
        {"prompt": story.format(3, 12) + ". How many loaves, then?", "answer": "36"},
        {"prompt": "Something else entirely?", "answer": "1"},
    ]
    test = [
            {"prompt": f"Long ago {shared} rose. How many ears cross?", "answer": "84"},
            {"prompt": "Count to ten and then count down until you are back at three. Where?", "answer": "3"},
            {"prompt": "Count to ten and then count down until you are back at three. Where, Ann?", "answer": "3"},
    ]  # fmt: skip
    given = {"test_path": str(json_lines(tmp_path / "test.jsonl", test)), "shares": (0.98, 0.01, 0.01)}
    path = json_lines(tmp_path / "a.jsonl", rows)
    collection = collected(path, decontaminate=13, near_duplicates=0.7, **given)
    first, second = collection.excluded
    assert (first.row, first.reason, first.evidence) == (1, "decontaminated", " ".join(shared.split()[:13]))
    tests = {problem.payload["prompt"]: problem for problem in collection.problems["test"]}
    assert first.matched_id == tests[test[0]["prompt"]].problem_id
    assert (second.row, second.reason, second.matched_split) == (3, "near_duplicate", "train")
    assert second.similarity is not None
    assert 0.7 <= second.similarity < 1.0
    assert tests[test[2]["prompt"]].group == tests[test[1]["prompt"]].group != tests[test[0]["prompt"]].group
    assert [one.problem_id for one in collection.excluded if one.problem_id is None] == []
    assert contents(collected(path, decontaminate=None, near_duplicates=None, **given))[1] == []


def test_an_instruction_in_every_problem_is_pointed_out(tmp_path: Path) -> None:
    say = "Solve the following problem step by step and put the final answer in a box at the end: "
    rows = [{**row, "prompt": say + row["prompt"]} for row in ROWS]
    domain = FileDomain(section(json_lines(tmp_path / "a.jsonl", rows), decontaminate=13))
    assert domain.problems("train", 9) == []
    why = domain.why_empty("train")
    assert "decontaminated" in why
    assert "share the words 'solve the following problem step by step" in why
    assert "problems.template" in why


CHECKS = [
    ({"checker": "text"}, "It is in France.\nA: Paris", "The answer is paris.", "It is Paris."),
    ({"checker": "text", "extractor": "whole"}, "Yes", " yes. ", "no"),
    ({"extractor": "boxed"}, r"so \boxed{1{,}234}", r"\boxed{1234.0}", "#### 1234"),
    ({"extractor": "last_number"}, "7 and then 9", "it is 9", "9 or 8"),
    ({"extractor": "regex", "pattern": r"result=(\S+)"}, "x result=5", "result=5.0", "#### 5"),
    ({}, "72", "#### 72", "72"),
]


@pytest.mark.parametrize(("given", "reference", "right", "wrong"), CHECKS)
def test_a_reference_is_right_and_so_is_what_says_the_same(
    tmp_path: Path, given: dict[str, Any], reference: str, right: str, wrong: str
) -> None:
    domain = FileDomain(section(json_lines(tmp_path / "a.jsonl", [{"prompt": "q?", "answer": reference}]), **given))
    problem = only(domain.collection)
    assert domain.check(problem, right).right
    assert not domain.check(problem, wrong).right
    assert domain.check(problem, "").answer is None
    assert problem.reference is not None
    assert domain.check(problem, problem.reference).right
    assert domain.solutions(problem, 3) == [problem.reference]
    assert domain.solutions(problem, 0) == []


def test_a_bare_final_answer_is_taught_in_the_form_that_is_asked_for(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"prompt": "q?", "answer": "1 1/2"}])
    assert only(collected(path)).reference == "#### 1 1/2"
    assert only(collected(path, extractor="boxed")).reference == r"\boxed{1 1/2}"
    assert only(collected(path, extractor="last_number")).reference == "1 1/2"
    nothing = FileDomain(section(path, extractor="regex", pattern="result=(.+)"))
    assert only(nothing.collection).payload["answer"] == "1.5"
    assert only(nothing.collection).reference is None
    assert nothing.solutions(only(nothing.collection), 1) == []
    assert list(nothing.corpus()) in ([], ["q?\n"])


def test_the_checker_math(tmp_path: Path) -> None:
    answers = [r"It is \boxed{x}", r"\boxed{\frac{1}{2}}", r"\boxed{x = 5}"]
    rows = [{"prompt": f"q{number}?", "answer": answer} for number, answer in enumerate(answers)]
    domain = FileDomain(section(json_lines(tmp_path / "a.jsonl", rows), checker="math", extractor="boxed"))
    by_answer = {problem.payload["answer"]: problem for problem in all_problems(domain.collection)}
    half = by_answer[r"\frac{1}{2}"]
    assert domain.check(half, r"so \boxed{0.5}").right
    assert domain.check(half, r"\boxed{2/4}, that is \boxed{0.5}").right
    assert not domain.check(half, r"\boxed{0.25}").right
    assert not domain.check(half, r"\boxed{0.25}, no, \boxed{0.5}").right
    assert domain.check(half, "0.5").answer is None
    assert domain.check(by_answer["x = 5"], r"\boxed{5}, that is \boxed{x = 5}").right
    assert domain.check(by_answer["x"], r"\boxed{ x }").right
    bounded = FileDomain(domain.section, seconds=0.5)
    slow = bounded.check(half, r"\boxed{2003^{2002^{2001}}}")
    assert not slow.right


def test_how_a_problem_is_put(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"prompt": " What is {x}? ", "answer": "5"}])
    plain = FileDomain(section(path, template="Q: {prompt}\nBox it: \\boxed{}\nA:"))
    problem = only(plain.collection)
    assert plain.prompt(problem) == "Q: What is {x}?\nBox it: \\boxed{}\nA:"
    assert plain.messages(problem) is None
    chat = FileDomain(section(path, chat=True, system="Be brief."))
    assert chat.messages(problem) == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is {x}?"},
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"problems.template: 'Q' has no \{prompt\}"):
        FileDomain(section(path, template="Q"))


def test_problems_that_are_conversations(tmp_path: Path) -> None:
    def said(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in pairs]

    rows: list[tuple[Any, str | None]] = [
        (said(("user", "Hi?")), None),
        (json.dumps(said(("system", "Own."), ("user", "One?"), ("assistant", "1"), ("user", "And two?"))), None),
        ("no json", "messages is not JSON"),
        ([], "messages is not a list of messages"),
        ("{}", "messages is not a list of messages"),
        (said(("robot", "Hi?")), "messages has a message without role (system, user, assistant) and content (text)"),
        ([{"role": "user"}], "messages has a message without role (system, user, assistant) and content (text)"),
        (
            [{"role": ["user"], "content": "x"}],
            "messages has a message without role (system, user, assistant) and content (text)",
        ),
        (
            [{"role": "user", "content": [1]}],
            "messages has a message without role (system, user, assistant) and content (text)",
        ),
        (["Hi"], "messages has a message without role (system, user, assistant) and content (text)"),
        (said(("user", "Hi?"), ("assistant", "5")), "messages does not end with the user's message"),
        (said(("user", " ")), "messages is empty"),
        (None, "messages is not a list of messages"),
    ]
    path = json_lines(tmp_path / "a.jsonl", [{"messages": value, "answer": "5"} for value, _ in rows])
    domain = FileDomain(section(path, messages_column="messages", chat=True, system="Be brief."))
    assert skipped(domain.collection) == {number: why for number, (_, why) in enumerate(rows, 1) if why}
    asked = {problem.payload["messages"][-1]["content"]: problem for problem in all_problems(domain.collection)}
    assert domain.messages(asked["Hi?"]) == said(("system", "Be brief."), ("user", "Hi?"))
    assert domain.messages(asked["And two?"]) == json.loads(rows[1][0]), "a row's own system message stands"
    with pytest.raises(ConfigError, match=r"problems.messages_column: .*set problems.chat to true"):
        FileDomain(section(path, messages_column="messages"))


def test_paths_are_made_absolute_for_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_lines(tmp_path / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    given = section(Path("a.jsonl"), test_path="package:gsm8k/test.jsonl.gz", prompt_column="prompt")
    made = reading.absolute(given)
    assert made.path == str(tmp_path / "a.jsonl")
    assert made.test_path == given.test_path
    assert made.valid_path is None
    assert reading.absolute(sections.Problems()) == sections.Problems()
    monkeypatch.chdir("/")
    assert FileDomain(made.model_copy(update={"test_path": None})).problems("train", 3)


def test_what_a_label_teaches_is_the_way_not_the_number() -> None:
    domain = FileDomain(sections.Problems(domain="file", path="package:gsm8k/test.jsonl.gz"))
    assert domain.content("1 + 2 = 3\n#### 3", "3") == domain.content(" 1 + 2  = 3 \n\n#### 3\n", "3")
    assert domain.content("1 + 2 = 3\n#### 3", "3") != domain.content("2 + 1 = 3\n#### 3", "3")
    assert domain.steps("1 + 2 = 3\n\n #### 3\n") == ["1 + 2 = 3", "#### 3"]
