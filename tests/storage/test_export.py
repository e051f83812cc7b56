"""Exported data sets: rows against the registry's own files, cards against git, bytes against themselves."""

from __future__ import annotations

import collections
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from flywheel.errors import InputError, RegistryError
from flywheel.params import load as load_params
from flywheel.params import parse
from flywheel.records import canonical_json, digest
from storage import cache, export_rows, git
from storage import export as exports
from storage.export import Wanted, export
from storage.export_source import Source
from storage.history import published
from storage.lineage import lineage
from storage.registry import Registry
from storage.schemas import STEP_LABELS
from storage.tables import TableWriter, count_rows, file_md5
from storage.views import query
from tests.storage import sample
from tests.storage.conftest import copy_of
from tests.storage.forked import forked as forked

Fresh = Callable[[int], Registry]
Rows = list[dict[str, Any]]
LINE = (0, 1, 4)
"""The generations whose labels the forked registry's newest student could learn from."""


def load(folder: Path, split: str = "train") -> Rows:
    """The rows as the datasets library reads the folder."""
    import datasets

    datasets.disable_progress_bars()
    return list(datasets.load_dataset(str(folder), split=split, cache_dir=str(folder.parent / "hf")))


def tables(registry: Registry, table: str, generations: tuple[int, ...]) -> Rows:
    """A table's rows in the order of its files, read by DuckDB from the files that dvc.lock's folders list."""
    rows: Rows = []
    for generation in generations:
        lock = yaml.safe_load(git.run(registry.root, "show", f"gen/{generation:04d}:dvc.lock"))
        outs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
        where = f"labels/{generation:04d}" if table == "labels" else table
        listed = json.loads((registry.root / f".dvc/cache/files/md5/{outs[where][:2]}/{outs[where][2:]}").read_text())
        folder = table if table == "labels" else ""
        for entry in sorted(listed, key=lambda entry: str(entry["relpath"])):
            if str(entry["relpath"]).rpartition("/")[0] == folder:
                path = registry.root / f".dvc/cache/files/md5/{entry['md5'][:2]}/{entry['md5'][2:]}"
                found = duckdb.sql(f"SELECT * FROM read_parquet('{path}')")
                rows += [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    return rows


def _repeating(params: Any) -> dict[str, Rows]:
    """Rows of a generation whose first label teaches the same as every generation's, of problems that carry chat
    messages. Generation 0 has no wrong answer; generation 1 has some more at the first problem: one whose text is a
    label's, two alike, another, and three that are not wrong: cut off, without an answer, not judged."""
    made = _plain(params)
    made["labels"][0]["content_id"] = digest("content", "again")
    for problem in made["problems"]:
        payload = {**json.loads(problem["payload"]), "messages": [{"role": "user", "content": problem["group"]}]}
        problem["payload"] = canonical_json(payload)
    if params.generation == 0:
        for attempt in made["attempts"]:
            attempt["reward"] = 1.0
        return made
    first = made["attempts"][0]
    wrong: list[tuple[str, dict[str, Any]]] = [
        (made["labels"][0]["completion"], {}), ("wrong", {}), ("wrong", {}), ("also wrong", {}),
        ("cut off", {"stop_reason": "length"}), ("no answer", {"answer": None}), ("unjudged", {"reward": None}),
    ]  # fmt: skip
    for index, (text, more) in enumerate(wrong, start=50):
        row = {**first, "attempt_id": digest("wrong", index), "output": text, "index": index, "reward": 0.0, **more}
        made["attempts"].append(row)
    return made


_plain = sample._rows


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two generations of `_repeating`; for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        patch.setattr(sample, "_rows", _repeating)
        registry = sample.new_registry(tmp_path_factory.mktemp("repeating") / "registry")
        for _ in range(2):
            sample.make_generation(registry)
    return registry


@pytest.mark.parametrize("file_type", exports.FILE_TYPES)
def test_a_generations_labels_as_datasets_reads_them(forked: Registry, file_type: str, tmp_path: Path) -> None:
    done = export(forked, "gen/4", tmp_path / "out", Wanted(file_type=file_type))
    names = ["prompt", "completion", *(name for name, _ in export_rows.PROVENANCE)]
    expected = [{name: row[name] for name in names} for row in tables(forked, "labels", (4,))]
    assert load(tmp_path / "out") == expected
    assert done["rows"] == {"train": len(expected)} == {"train": sample.LABELS + 4}
    for file in done["files"]:
        assert file["md5"] == file_md5(tmp_path / "out" / file["path"])


def test_the_window_is_the_line_with_each_content_once(forked: Registry, repeating: Registry, tmp_path: Path) -> None:
    export(forked, "gen/4/labels", tmp_path / "forked", Wanted(window=True))
    assert [row["label_id"] for row in load(tmp_path / "forked")] == [
        row["label_id"] for row in tables(forked, "labels", LINE)
    ]
    export(repeating, "gen/1", tmp_path / "repeating", Wanted(window=True))
    first = {row["content_id"]: row["label_id"] for row in reversed(tables(repeating, "labels", (0, 1)))}
    found = [row["label_id"] for row in load(tmp_path / "repeating")]
    assert sorted(found) == sorted(first.values())
    assert len(found) == 2 * sample.LABELS + 1 - 1


def test_pairs_are_a_label_and_a_wrong_attempt_at_the_same_problem(repeating: Registry, tmp_path: Path) -> None:
    export(repeating, "gen/1", tmp_path / "one", Wanted(form="preference"))
    export(repeating, "gen/1", tmp_path / "all", Wanted(form="preference", pairs=100))
    right: dict[str, set[str]] = collections.defaultdict(set)
    wrong: dict[str, set[str]] = collections.defaultdict(set)
    for row in tables(repeating, "labels", (1,)):
        right[row["problem_id"]].add(row["completion"])
    for row in tables(repeating, "attempts", (1,)):
        judged = row["reward"] is not None and row["answer"] is not None
        if judged and row["reward"] < 1.0 and row["stop_reason"] == "eos":
            wrong[row["problem_id"]].add(row["output"])
    expected = {
        (problem, chosen, rejected)
        for problem in right
        for chosen, rejected in itertools.product(right[problem], wrong[problem] - right[problem])
    }
    found = [(row["problem_id"], row["chosen"], row["rejected"]) for row in load(tmp_path / "all")]
    assert set(found) == expected
    assert len(found) == len(expected) >= 6
    once = load(tmp_path / "one")
    assert {row["problem_id"] for row in once} == {problem for problem, *_ in expected}
    assert len(once) == len({row["problem_id"] for row in once})
    attempts = {row["attempt_id"]: row for row in tables(repeating, "attempts", (1,))}
    for row in once:
        assert attempts[row["rejected_attempt_id"]]["output"] == row["rejected"] != row["chosen"]
        assert attempts[row["rejected_attempt_id"]]["problem_id"] == row["problem_id"]


@pytest.mark.parametrize(("rights", "wrongs"), [(r, w) for r in range(5) for w in range(5)])
def test_every_combination_comes_once_and_the_first_ones_differ_in_both(rights: int, wrongs: int) -> None:
    right, wrong = ([{"text": f"{kind}{index}"} for index in range(n)] for kind, n in (("r", rights), ("w", wrongs)))
    pairs = [(a["text"], b["text"]) for a, b in export_rows._matched(right, wrong, 100)]
    assert sorted(pairs) == sorted(itertools.product([a["text"] for a in right], [b["text"] for b in wrong]))
    few = pairs[: min(rights, wrongs)]
    assert len({a for a, _ in few}) == len({b for _, b in few}) == len(few)


def test_messages_are_the_problems_own_or_the_prompt(forked: Registry, repeating: Registry, tmp_path: Path) -> None:
    export(forked, "gen/1", tmp_path / "plain", Wanted(form="messages"))
    for row, label in zip(load(tmp_path / "plain"), tables(forked, "labels", (1,)), strict=True):
        assert row["messages"] == [
            {"role": "user", "content": label["prompt"]}, {"role": "assistant", "content": label["completion"]},
        ]  # fmt: skip
    export(repeating, "gen/1", tmp_path / "own", Wanted(form="messages", file_type="jsonl"))
    groups = {row["problem_id"]: row["group"] for row in tables(repeating, "problems", (1,))}
    for row in load(tmp_path / "own"):
        assert row["messages"][0] == {"role": "user", "content": groups[row["problem_id"]]}
    assert export_rows.conversation(None, "1 2 -> 3\n", "1 + 2 = 3")[0]["content"] == "1 2 -> 3"


def test_valid_and_test_come_only_when_asked_and_as_references(forked: Registry, tmp_path: Path) -> None:
    export(forked, "gen/4", tmp_path / "train", Wanted(window=True))
    problems = {row["problem_id"]: row for row in tables(forked, "problems", (4,))}
    assert {problems[row["problem_id"]]["split"] for row in load(tmp_path / "train")} == {"train"}
    assert [path.name for path in (tmp_path / "train" / "data").iterdir()] == ["train"]
    for file_type in exports.FILE_TYPES:
        out = tmp_path / file_type
        export(forked, "gen/4", out, Wanted(file_type=file_type, splits=("valid", "train", "test")))
        for split, name in (("valid", "validation"), ("test", "test")):
            rows = load(out, name)
            expected = [row for row in problems.values() if row["split"] == split]
            assert [row["completion"] for row in rows] == [row["reference"] for row in expected]
            assert all(
                row["prompt"].startswith(row_problem["group"]) for row, row_problem in zip(rows, expected, strict=True)
            )
            assert {row["label_id"] for row in rows} == {None}
    with pytest.raises(InputError, match="preference has only `train`"):
        export(forked, "gen/4", tmp_path / "none", Wanted(form="preference", splits=("train", "test")))


def test_a_label_outside_the_training_split_stops_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sample._rows

    def rows(params: Any) -> dict[str, Rows]:
        made = plain(params)
        made["labels"][-1]["problem_id"] = next(row for row in made["problems"] if row["split"] == "test")["problem_id"]
        return made

    monkeypatch.setattr(sample, "_rows", rows)
    registry = sample.new_registry(tmp_path / "registry")
    sample.make_generation(registry)
    for form in ("prompt-completion", "messages", "preference"):
        with pytest.raises(AssertionError, match="outside the training split"):
            export(registry, "gen/0", tmp_path / "out", Wanted(form=form))
    assert [path.name for path in tmp_path.iterdir()] == ["registry"]


def test_step_labels_become_bools_and_keep_their_scores(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(1)
    train = [row["problem_id"] for row in tables(registry, "problems", (0,)) if row["split"] == "train"]
    row = {
        "problem_id": train[0], "generation": 0, "policy": "p", "prompt": "problem 0\n", "rollouts": 8,
        "estimate": "soft", "tokenizer": "words",
    }  # fmt: skip
    scores = [[1.0, 0.25, 0.0], [0.5, 0.75], [1.0, None]]
    rows = [
        {**row, "step_label_id": str(index), "steps": [f"step {n}" for n in range(len(given))], "scores": given,
         "right": [0] * len(given), "judged": [8] * len(given)}
        for index, given in enumerate(scores)
    ]  # fmt: skip
    with TableWriter(tmp_path / "table", STEP_LABELS) as writer:
        writer.write(rows)
    part = tmp_path / "table" / "part-00000.parquet"
    md5 = file_md5(part)
    cached = cache.cache_path(registry, md5)
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(part.read_bytes())
    facts = published(registry, 0)
    facts["tables"]["step_labels"] = {"files": [{"path": "supervision/step_labels/part-00000.parquet", "md5": md5}]}
    source = Source(registry, 0, exports._source(registry, 0, False).params, {0: facts})
    found = list(export_rows.train_rows(source, "stepwise", 1, 0.5))
    assert [row["labels"] for row in found] == [[True, False, False], [False, True]]
    assert [row["scores"] for row in found] == scores[:2]
    assert found[0]["completions"] == ["step 0", "step 1", "step 2"]
    any_right = list(export_rows.train_rows(source, "stepwise", 1, 0.0))
    assert [row["labels"] for row in any_right] == [[True, True, False], [True, True]]
    with pytest.raises(InputError, match=r"supervise\.enabled=true"):
        export(registry, "gen/0", tmp_path / "out", Wanted(form="stepwise"))


def test_a_supervised_generations_step_labels(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(1)
    values = load_params(registry.layout.params).model_dump(mode="json")
    values["supervise"]["enabled"] = True
    sample.make_generation(registry, parse(values))
    export(registry, "gen/1", tmp_path / "out", Wanted(form="stepwise", window=True, step_threshold=0.25))
    held = list(query(registry, "SELECT * FROM step_labels").rows)
    assert [(row["prompt"], row["completions"], row["scores"]) for row in load(tmp_path / "out")] == [
        (row["prompt"], row["steps"], row["scores"]) for row in held
    ]
    assert [row["labels"] for row in load(tmp_path / "out")] == [[score > 0.25 for score in held[0]["scores"]]]
    _, text = front_and_text(tmp_path / "out")
    assert cache.lock_outputs(git.run(registry.root, "show", "gen/0001:dvc.lock"))["supervision"].md5 in text
    assert "8 rollouts a step, soft" in text
    assert "its score is above 0.25" in text
    values["supervise"]["estimate"] = "outcome"
    sample.make_generation(registry, parse(values))
    export(registry, "gen/2", tmp_path / "outcome", Wanted(form="stepwise"))
    _, text = front_and_text(tmp_path / "outcome")
    assert "the answers' own verdicts" in text
    assert "rollouts a step," not in text


def front_and_text(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_cards_digests_are_those_of_git_and_lineage(forked: Registry, tmp_path: Path) -> None:
    export(forked, "gen/4", tmp_path / "out", Wanted(window=True))
    front, text = front_and_text(tmp_path / "out")
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train/part-*.parquet"}]
    assert front["size_categories"] == ["n<1K"]
    commits = {g: git.run(forked.root, "rev-parse", f"gen/{g:04d}^{{commit}}").strip() for g in range(5)}
    assert f"commit `{commits[4]}`" in text
    nodes = {node["address"]: node for node in lineage(forked, "gen/4/student").nodes}
    for generation in LINE:
        line = next(
            line for line in text.splitlines() if line.startswith(f"| `gen/{generation:04d}` | `{commits[generation]}`")
        )
        assert f"`{nodes[f'gen/{generation}/student']['digest']}`" in line
        labels = next(line for line in text.splitlines() if nodes[f"gen/{generation}/labels"]["digest"] in line)
        assert f"| {sample.LABELS + generation} |" in labels
        assert (sample.SOLVER if generation == 0 else published(forked, generation)["teacher"]["snapshot"]) in labels
    assert "gen/0002" not in text
    spent = 0.0
    for generation in LINE:
        for line in git.run(forked.root, "show", f"HEAD:ledger/{generation:04d}.jsonl").splitlines():
            entry = json.loads(line)
            spent += entry["flops_policy"] if entry["stage"] == "generate" else 0.0
    assert f"took {spent:.4g} FLOPs" in text
    values = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    held = yaml.safe_load(git.run(forked.root, "show", "gen/0004:params.yaml"))
    assert values["generate"] == held["generate"]


@pytest.mark.parametrize("form", ["prompt-completion", "messages", "preference"])
def test_the_same_tag_gives_the_same_bytes(
    forked: Registry, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(forked, "gen/1", tmp_path / "first", Wanted(form=form))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    copied = copy_of(forked, tmp_path / "elsewhere")
    second = export(copied, "gen/0001", tmp_path / "second", Wanted(form=form))
    assert first["files"] == second["files"]
    assert first["digest"] == second["digest"]
    assert str(tmp_path) not in (tmp_path / "second" / "README.md").read_text()


def test_parts_have_a_fixed_number_of_rows(forked: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {}
    for file_type in exports.FILE_TYPES:
        export(forked, "gen/4", tmp_path / f"one-{file_type}", Wanted(file_type=file_type))
        whole[file_type] = load(tmp_path / f"one-{file_type}")
    monkeypatch.setattr(exports, "ROWS_PER_PART", 3)
    for file_type in exports.FILE_TYPES:
        done = export(forked, "gen/4", tmp_path / file_type, Wanted(file_type=file_type))
        assert [file["rows"] for file in done["files"][1:]] == [3, 3, 2]
        assert load(tmp_path / file_type) == whole[file_type]
    assert count_rows(tmp_path / "parquet" / "data" / "train") == 8


@pytest.mark.parametrize(
    ("address", "wanted", "words"),
    [
        ("gen/9", Wanted(), "never published; there are: gen/0"),
        ("gen/1/student", Wanted(), "expected a generation's labels"),
        ("gen/1", Wanted(form="chat"), "expected one of prompt-completion"),
        ("gen/1", Wanted(file_type="csv"), "expected one of parquet, jsonl"),
        ("gen/1", Wanted(splits=("validation",)), "expected one of train, valid, test"),
        ("gen/1", Wanted(form="stepwise", step_threshold=1.0), "expected a share"),
        ("gen/1", Wanted(form="stepwise"), "no step labels"),
    ],
)
def test_bad_wishes_are_refused_and_leave_nothing(
    forked: Registry, address: str, wanted: Wanted, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        export(forked, address, tmp_path / "out", wanted)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_left_alone_and_exports_replaced_by_force(forked: Registry, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    for force in (False, True):
        with pytest.raises(InputError, match="no earlier export"):
            export(forked, "gen/1", mine, Wanted(), force=force)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="lies in the registry"):
        export(forked, "gen/1", forked.root / "labels" / "out", Wanted())
    out = tmp_path / "out"
    out.mkdir()
    export(forked, "gen/1", out, Wanted())
    with pytest.raises(InputError, match="--force"):
        export(forked, "gen/4", out, Wanted())
    assert len(load(out)) == sample.LABELS + 1
    export(forked, "gen/4", out, Wanted(file_type="jsonl"), force=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf") == ["mine", "out"]
    assert [path.name for path in (out / "data" / "train").iterdir()] == ["part-00000.jsonl"]


def test_a_missing_file_leaves_the_earlier_export_whole(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(4)
    export(registry, "gen/3", tmp_path / "out", Wanted(window=True))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    file = published(registry, 1)["tables"]["labels"]["files"][0]
    cache.cache_path(registry, file["md5"]).unlink()
    with pytest.raises(RegistryError, match=r"gen/1, is not in the cache"):
        export(registry, "gen/3", tmp_path / "out", Wanted(window=True), force=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_generation_without_pairs_says_so(repeating: Registry, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both a label and a wrong answer"):
        export(repeating, "gen/0", tmp_path / "out", Wanted(form="preference"))
    export(repeating, "gen/1", tmp_path / "alone", Wanted(form="preference", pairs=9))
    export(repeating, "gen/1", tmp_path / "window", Wanted(form="preference", pairs=9, window=True))
    # The first label teaches what generation 0's did: it is not the window's, and its pairs go with it.
    again = tables(repeating, "labels", (1,))[0]["label_id"]
    alone, window = ({canonical_json(row) for row in load(tmp_path / name)} for name in ("alone", "window"))
    assert window == {row for row in alone if json.loads(row)["label_id"] != again} < alone
