"""What changed between two generations, against both label sets read into Python and compared there."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import t

from flows.commands.comparing import diff as diff_command
from flywheel.errors import InputError, RegistryError
from flywheel.params import Params, load, parse
from flywheel.records import digest
from storage import cache, diff_figures, diff_rows, dvc, lock
from storage.addresses import resolve
from storage.diff import diff
from storage.diff_rows import File, Side
from storage.history import published, window
from storage.publish import publish
from storage.registry import Registry
from storage.rollback import exclude, rollback
from storage.schemas import ATTEMPTS, LABELS, OUTCOMES, PROBLEMS, REJECTED
from storage.tables import file_md5, read_rows, write_file
from storage.views import query
from tests.storage import sample
from tests.storage.conftest import copy_of
from tests.storage.forked import forked as forked

Row = dict[str, Any]
SAID = ("kind", "reward", "weight", "teacher")
HEAVY = {"dvc", "mlflow", "prefect", "torch", "transformers", "pandas", "matplotlib", "accelerate"}


def brute(before: list[Row], after: list[Row]) -> dict[str, Any]:
    """The counts that `compare` gives, from plain rows: by label id and by content id, files unknown."""

    def oldest(rows: list[Row]) -> dict[str, Row]:
        first: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: (row["generation"], row["label_id"])):
            first.setdefault(row["content_id"], row)
        return first

    both = {row["label_id"] for row in before} & {row["label_id"] for row in after}
    shared = {row["content_id"] for row in before if row["label_id"] in both}
    gone, come = (
        {content: row for content, row in oldest([row for row in rows if row["label_id"] not in both]).items()
         if content not in shared}
        for rows in (before, after)
    )  # fmt: skip
    classes = dict.fromkeys(gone.keys() - come.keys(), "removed")
    classes |= dict.fromkeys(come.keys() - gone.keys(), "added")
    for content in gone.keys() & come.keys():
        same = all(gone[content][name] == come[content][name] for name in SAID)
        classes[content] = "equal" if same else "changed"
    by = []
    for side, rows, firsts, kinds in (
        ("from", before, gone, ("removed", "changed", "equal")),
        ("to", after, come, ("added", "changed", "equal")),
    ):
        own = [row for row in rows if row["label_id"] not in both]
        for generation, teacher in sorted({(row["generation"], row["teacher"]) for row in own}):
            mine = [row for row in own if (row["generation"], row["teacher"]) == (generation, teacher)]
            told = [classes[row["content_id"]] for row in mine if row in firsts.values()]
            line = {name: told.count(name) for name in kinds}
            rest = {"rows": len(mine), "repeated": len(mine) - len(told)}
            by.append({"on": side, "generation": generation, "maker": teacher, **line, **rest})
    total = {name: list(classes.values()).count(name) for name in ("added", "removed", "changed", "equal")}
    return {
        "rows": {"from": len(before), "to": len(after)},
        "same": len(both),
        **total,
        "repeated": {"from": len(before) - len(both) - len(gone), "to": len(after) - len(both) - len(come)},
        "by": by,
    }


def counts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in brute([], [])}


def label(generation: int, number: int, content: int, chance: random.Random) -> Row:
    """A label of few contents, teachers and rewards, so that the same is said again and otherwise."""
    return {
        "label_id": digest("label", generation, number),
        "content_id": digest("content", content),
        "kind": chance.choice(["seed", "policy"]) if generation == 0 else "policy",
        "problem_id": digest("problem", content % 4),
        "generation": generation,
        "teacher": chance.choice(["good", "good", "good", "bad", "worse"]),
        "searcher": "best_of_n",
        "reward": chance.choice([0.5, 1.0]),
        "reward_source": "exact",
        "weight": 1.0,
        "prompt": f"content {content % 4}",
        "completion": f"said in {generation}",
        "prompt_ids": [1],
        "completion_ids": [2, content],
        "tokenizer": "words",
    }


def table_of(generation: int, chance: random.Random) -> list[Row]:
    return [label(generation, number, chance.randrange(10), chance) for number in range(chance.randrange(3, 12))]


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:")


@pytest.mark.parametrize("seed", range(40))
def test_any_two_sets_of_files_as_by_brute_force(
    seed: int, tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    chance = random.Random(seed)
    files: dict[int, list[File]] = {}
    rows: dict[int, list[Row]] = {}
    for generation in range(6):
        rows[generation] = table_of(generation, chance)
        files[generation] = []
        for part in range(2):
            path = tmp_path / f"{generation}-{part}.parquet"
            written = write_file(path, rows[generation][part::2], LABELS)
            files[generation].append(File(generation, file_md5(path), written, path))
    chosen = [sorted(chance.sample(range(6), chance.randrange(7))) for _ in range(2)]
    outs = [frozenset(chance.sample(["bad", "worse"], chance.choice([0, 0, 1, 2]))) for _ in range(2)]
    sides = [Side(tuple(file for g in held for file in files[g]), out) for held, out in zip(chosen, outs, strict=True)]
    seen = [
        [row for g in held for row in rows[g] if row["teacher"] not in out]
        for held, out in zip(chosen, outs, strict=True)
    ]
    found = diff_rows.compare(connection, "labels", sides[0], sides[1], limit=100)
    assert counts(found) == brute(*seen)
    examples = found["examples"]
    assert [len(examples[name]) for name in ("added", "removed", "changed")] == [
        found[name] for name in ("added", "removed", "changed")
    ]
    contents = [{row["content_id"] for row in own} for own in seen]
    assert all(row["content_id"] not in contents[0] for row in examples["added"])
    assert all(row["content_id"] not in contents[1] for row in examples["removed"])
    for pair in examples["changed"]:
        assert pair["from"]["content_id"] == pair["to"]["content_id"]
        assert any(pair["from"][name] != pair["to"][name] for name in SAID)


@pytest.fixture(scope="module")
def lines(made: dict[int, Registry]) -> Registry:
    """Lines 0 -- 1 -- 2 and 0 -- 3, whose labels say the same again and otherwise; 3 with other params. For reading
    only."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        registry = copy_of(made[1], made[1].root.parent / "lines")
        chance = random.Random(8)
        generation_of(registry, chance)
        generation_of(registry, chance)
        rollback(registry, 0, "another way")
        values = load(registry.layout.params).model_dump(mode="json")
        values["generate"]["samples"] = 99
        generation_of(registry, chance, parse(values))
    return registry


def generation_of(registry: Registry, chance: random.Random, params: Params | None = None) -> None:
    """A sample generation whose labels and outcomes are drawn by chance."""
    with lock.hold(registry, "make"):
        params = sample.begin_generation(registry, params)
        sample.write_outputs(registry, params)
        folder = registry.layout.labels(params.generation)
        write_file(folder / "labels" / "part-00000.parquet", table_of(params.generation, chance), LABELS)
        path = registry.layout.evaluations / "outcomes" / "part-00000.parquet"
        rows = read_rows(path.parent, OUTCOMES)
        for row in rows:
            row["value"] = float(chance.randrange(2))
        # In an order of its own: pairs are found by problem.
        write_file(path, chance.sample(rows, len(rows)), OUTCOMES)
        metrics = json.loads(registry.layout.metrics.read_text())
        metrics["valid"]["greedy"]["value"] = sum(row["value"] for row in rows) / len(rows)
        registry.layout.metrics.write_text(json.dumps(metrics))
        publish(registry, params, f"revision-{params.generation % 2}")


def labels_at(registry: Registry, generation: int) -> list[Row]:
    return list(query(registry, "FROM labels", at=generation).rows)


PAIRS = [(0, 2), (1, 2), (2, 1), (2, 3), (3, 2), (3, 1)]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_generations_of_two_lines_as_query_sees_them(lines: Registry, before: int, after: int) -> None:
    found = diff(lines, before, after)["labels"]
    old, new = labels_at(lines, before), labels_at(lines, after)
    assert counts(found) == brute(old, new)
    own = [[row for row in rows if row["generation"] == at] for rows, at in ((old, before), (new, after))]
    assert found["own"] == {name: value for name, value in brute(*own).items() if name != "by"}
    for row in (*found["examples"]["added"], *found["examples"]["removed"]):
        assert resolve(lines, row["address"]).digest == row["label_id"]


def test_the_lines_have_every_kind_of_change(lines: Registry) -> None:
    """Else the comparison by brute force would say little."""
    found = diff(lines, 2, 3)["labels"]
    for name in ("added", "removed", "changed", "equal"):
        assert found[name], name
    assert found["repeated"]["from"]


@pytest.mark.parametrize("generation", [0, 3])
def test_a_generation_and_itself_differ_in_nothing(lines: Registry, generation: int) -> None:
    found = diff(lines, generation, generation)
    rows = found["labels"]
    assert found["relation"] == "same"
    assert rows["same"] == rows["rows"]["from"] == rows["rows"]["to"]
    assert not any(rows[name] for name in ("added", "removed", "changed", "equal", "by"))
    assert found["params"] == {}
    assert all(sides["from"] == sides["to"] for sides in found["models"].values())
    assert all(sides["difference"] == 0 for sides in found["flops"].values())
    assert all(cell["difference"]["value"] == 0 for split in found["metrics"].values() for cell in split.values())


@pytest.mark.parametrize(
    ("before", "after", "relation", "common"),
    [(0, 2, "descendant", 0), (2, 1, "ancestor", 1), (2, 3, "fork", 0)],
)
def test_how_two_generations_are_related(lines: Registry, before: int, after: int, relation: str, common: int) -> None:
    found = diff(lines, before, after)
    assert (found["relation"], found["common"]) == (relation, common)


def test_params_code_and_models(lines: Registry) -> None:
    found = diff(lines, 2, 3)
    assert found["params"] == {"generate.samples": {"from": load_samples(lines), "to": 99}}
    assert found["code"] == {"from": "revision-0", "to": "revision-1"}
    assert found["models"]["student"]["to"] == {"snapshot": sample.snapshot_of(3)}
    assert found["models"]["teacher"]["from"] == {"snapshot": sample.snapshot_of(1), "source": "gen/0001/student"}
    assert found["models"]["champion"]["to"] == {"snapshot": sample.snapshot_of(3), "generation": 3}
    assert diff(lines, 1, 2)["params"] == {}
    assert found["flops"]["total"] == {"from": 3e6, "to": 3e6, "difference": 0.0}


def load_samples(registry: Registry) -> int:
    from storage.recipes import load_preset

    return int(load_preset()["generate"]["samples"])


def test_tables_are_counted_by_their_files(forked: Registry) -> None:
    found = diff(forked, 3, 4)["tables"]
    facts = {number: published(forked, number)["tables"] for number in range(5)}
    for table in ("attempts", "labels", "rejected"):
        assert found[table]["rows"] == {
            "from": sum(facts[number][table]["rows"] for number in (0, 1, 2, 3)),
            "to": sum(facts[number][table]["rows"] for number in (0, 1, 4)),
            "same": sum(facts[number][table]["rows"] for number in (0, 1)),
        }
        assert found[table]["files"] == {"from": 4, "to": 3, "same": 2}
    assert found["problems"]["rows"] == dict.fromkeys(("from", "to", "same"), sample.PROBLEMS)
    assert "rollouts" not in found


@pytest.mark.parametrize("table", ["attempts", "problems"])
def test_rows_of_other_tables(forked: Registry, table: str) -> None:
    found = diff(forked, 1, 3, table)[table]
    keys = {at: {row[f"{table[:-1]}_id"] for row in query(forked, f"FROM {table}", at=at).rows} for at in (1, 3)}
    assert found["added"] == len(keys[3] - keys[1])
    assert found["removed"] == len(keys[1] - keys[3]) == 0
    assert found["same"] == len(keys[1] & keys[3])
    assert {row[f"{table[:-1]}_id"] for row in found["examples"]["added"]} <= keys[3] - keys[1]


def test_a_problem_that_is_told_otherwise_is_changed(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection, forked: Registry
) -> None:
    path = cache.cache_path(forked, published(forked, 0)["tables"]["problems"]["files"][0]["md5"])
    told = pq.read_table(path, partitioning=None).to_pylist()
    told[3]["reference"], told[5]["split"] = "otherwise", "valid"
    new = tmp_path / "problems.parquet"
    write_file(new, told[:-1], PROBLEMS)
    found = diff_rows.compare(
        connection,
        "problems",
        Side((File(0, "a", len(told), path),)),
        Side((File(1, "b", len(told) - 1, new),)),
        5,
    )
    assert (found["changed"], found["removed"], found["added"]) == (2, 1, 0)
    assert found["equal"] == len(told) - 3
    first = next(pair for pair in found["examples"]["changed"] if pair["to"]["reference"] == "otherwise")
    assert first["from"]["reference"] == "1 + 2 = 3\n3 + 3 = 6"


def test_labels_of_an_excluded_model_are_not_there(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    exclude(registry, sample.snapshot_of(1), "it learned nonsense")
    sample.make_generation(registry)
    line = window(registry, 4)
    assert 1 not in line
    for before, after in ((3, 4), (4, 3), (0, 4)):
        found = diff(registry, before, after)["labels"]
        assert counts(found) == brute(labels_at(registry, before), labels_at(registry, after))


def test_rewards_are_spread_as_numpy_says(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    chance = np.random.default_rng(3)
    values = [[*chance.random(200).tolist(), None, 1.0, 0.0], [*(chance.random(50) * 3 - 1).tolist(), None, None]]
    sides = []
    for index, held in enumerate(values):
        rows = [{**attempt(number), "reward": reward} for number, reward in enumerate(held)]
        path = tmp_path / f"{index}.parquet"
        write_file(path, rows, ATTEMPTS)
        sides.append([File(0, str(index), len(rows), path)])
    found = diff_figures.rewards(connection, sides[0], sides[1])
    given = [np.array([value for value in held if value is not None]) for held in values]
    first, last = min(0.0, given[1].min()), max(1.0, given[1].max())
    assert found["bins"] == [first, last]
    for side, held in (("from", given[0]), ("to", given[1])):
        one = found[side]
        assert (one["count"], one["without"]) == (len(held), 1 if side == "from" else 2)
        assert one["mean"] == pytest.approx(held.mean(), abs=1e-12)
        assert (one["low"], one["high"]) == (held.min(), held.max())
        assert list(one["quantiles"].values()) == pytest.approx(np.quantile(held, diff_figures.QUANTILES).tolist())
        assert one["histogram"] == np.histogram(held, bins=10, range=(first, last))[0].tolist()
    alone = diff_figures.rewards(connection, sides[0], [])
    assert alone["bins"] == [0.0, 1.0]
    assert alone["to"] == {
        "count": 0, "without": 0, "mean": None, "low": None, "high": None,
        "quantiles": dict.fromkeys(map(str, diff_figures.QUANTILES)), "histogram": [0] * 10,
    }  # fmt: skip


def attempt(number: int) -> Row:
    row: Row = dict.fromkeys(ATTEMPTS.names, "")
    row |= dict.fromkeys(("generation", "seed", "index", "flops_policy", "flops_reward", "tokens"), 0)
    return row | {name: [] for name in ("prompt_ids", "token_ids", "steps", "step_rewards")} | {
        "attempt_id": digest(number), "log_probability": None,
    }  # fmt: skip


def test_reasons_of_board_games_leave_the_ply_out(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    reasons = [["below threshold", "ply 3: below threshold", "ply 12: below threshold"], ["a ply 3: odd", "truncated"]]
    files = []
    for index, held in enumerate(reasons):
        path = tmp_path / f"{index}.parquet"
        write_file(path, [{"attempt_id": digest(n), "reason": reason} for n, reason in enumerate(held)], REJECTED)
        files.append([File(0, str(index), len(held), path)])
    assert diff_figures.reasons(connection, files[0], files[1]) == {
        "below threshold": {"from": 3, "to": 0},
        "a ply 3: odd": {"from": 0, "to": 1},
        "truncated": {"from": 0, "to": 1},
    }


def test_metrics_are_paired_by_problem_and_clustered_by_group(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    chance = random.Random(5)
    groups = {f"p{number}": f"hand {number % 7}" for number in range(40)}
    values = [{name: float(chance.randrange(2)) for name in groups} for _ in range(2)]
    files = [[outcomes(tmp_path / f"{side}.parquet", values[side], groups, chance)] for side in range(2)]
    cells = [{"value": sum(held.values()) / 40, "low": 0.0, "high": 1.0, "count": 40} for held in values]
    documents = [{"valid": {"greedy": cell, "pass@4": cell}, "elo": {"greedy": {**cell, "value": side}}}
                 for side, cell in enumerate(cells)]  # fmt: skip
    documents[1]["valid"]["best@4"] = cells[1]
    found = diff_figures.metrics(connection, documents[0], documents[1], (files[0], files[1]))
    difference = found["valid"]["greedy"]["difference"]
    # Miller 2024, section 2.2: sums of the clusters' residuals, with G / (G - 1).
    each = {name: values[1][name] - values[0][name] for name in groups}
    mean = sum(each.values()) / 40
    sums = [sum(each[name] - mean for name in groups if groups[name] == group) for group in set(groups.values())]
    error = math.sqrt(sum(total**2 for total in sums) * 7 / 6) / 40
    half = t.ppf(0.975, 6) * error
    assert difference["value"] == pytest.approx(cells[1]["value"] - cells[0]["value"]) == pytest.approx(mean)
    assert (difference["low"], difference["high"]) == pytest.approx((mean - half, mean + half))
    assert (difference["count"], difference["paired"]) == (40, True)
    # Not in the outcomes, of one side only, and of matches.
    assert found["valid"]["pass@4"]["difference"]["paired"] is False
    assert found["valid"]["best@4"] == {"from": None, "to": cells[1], "difference": None}
    assert found["elo"]["greedy"]["difference"] == {
        "value": 1, "low": None, "high": None, "count": None, "paired": False,
    }  # fmt: skip
    # Of other problems: nothing to pair.
    del values[1]["p3"]
    other = outcomes(tmp_path / "other.parquet", values[1], groups, chance)
    found = diff_figures.metrics(connection, documents[0], documents[1], (files[0], [other]))
    assert found["valid"]["greedy"]["difference"]["paired"] is False


def outcomes(path: Path, values: dict[str, float], groups: dict[str, str], chance: random.Random) -> File:
    common = {"snapshot": "s", "generation": 0, "split": "valid", "metric": "greedy", "budget": 1, "flops": 1.0}
    rows = [{**common, "problem_id": name, "group": groups[name], "value": value} for name, value in values.items()]
    return File(0, path.name, write_file(path, chance.sample(rows, len(rows)), OUTCOMES), path)


def test_the_value_in_metrics_and_the_paired_difference_agree(lines: Registry) -> None:
    cell = diff(lines, 2, 3)["metrics"]["valid"]["greedy"]
    assert cell["difference"]["paired"] is True
    assert cell["difference"]["value"] == pytest.approx(cell["to"]["value"] - cell["from"]["value"])


def test_files_of_both_sides_are_not_read_where_nothing_is_new(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    whole = diff(registry, 1, 3)
    facts = {number: published(registry, number)["tables"] for number in range(4)}
    for number, table in ((0, "attempts"), (0, "rejected"), (0, "outcomes"), (2, "attempts"), (2, "problems")):
        for file in facts[number][table]["files"]:
            if table != "problems":
                cache.cache_path(registry, file["md5"]).unlink()
    assert diff(registry, 1, 3) == whole
    for file in facts[0]["labels"]["files"]:
        cache.cache_path(registry, file["md5"]).unlink()
    assert diff(registry, 3, 3)["labels"]["same"] == sum(facts[number]["labels"]["rows"] for number in range(4))
    with pytest.raises(RegistryError, match=r"table labels of gen/0\b.*no remote"):
        diff(registry, 1, 3)


def test_a_missing_table_is_brought_from_the_remote(fresh: Callable[[int], Registry], tmp_path: Path) -> None:
    registry = fresh(4)
    whole = diff(registry, 2, 3)
    dvc.run(registry, "remote", "add", "-d", "-q", "away", str(tmp_path / "away"))
    dvc.run(registry, "push", "-q", "--all-tags")
    for table in ("labels", "attempts"):
        cache.cache_path(registry, published(registry, 3)["tables"][table]["files"][0]["md5"]).unlink()
    assert diff(registry, 2, 3) == whole


def test_a_damaged_file_is_an_error_of_the_registry(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    path = cache.cache_path(registry, published(registry, 0)["tables"]["labels"]["files"][0]["md5"])
    path.unlink()
    path.write_bytes(b"not Parquet")
    with pytest.raises(RegistryError, match="a file of it is damaged"):
        diff(registry, 0, 0)


def test_the_work_tree_is_not_read_and_nothing_is_written(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    whole = diff(registry, 0, 3)
    for name in ("problems", "attempts", "labels", "training", "evaluations", "lineage", "ledger", "student"):
        shutil.rmtree(registry.root / name)
    before = {path: path.stat().st_mtime_ns for path in registry.root.rglob("*")}
    assert diff(registry, 0, 3) == whole
    assert {path: path.stat().st_mtime_ns for path in registry.root.rglob("*")} == before


def test_what_cannot_be_compared_is_said(forked: Registry) -> None:
    with pytest.raises(InputError, match=r"gen/0009.*never published"):
        diff(forked, 0, 9)
    with pytest.raises(InputError, match=r"got table 'outcomes', expected .*labels, attempts, step_labels, problems"):
        diff(forked, 0, 1, "outcomes")
    assert diff(forked, 0, 1, "step_labels")["step_labels"]["rows"] == {"from": 0, "to": 0}


def test_the_command_tells_the_document_and_says_it_in_words(
    lines: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    diff_command("gen/2", "gen/3", lines.root, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(diff(lines, 2, 3)))
    diff_command("gen/2", "gen/3", lines.root)
    text = capsys.readouterr().out
    assert "From gen/2 to gen/3, on another line from gen/0 on" in text
    rows = found["labels"]
    assert f"labels: {rows['rows']['from']} -> {rows['rows']['to']} ({rows['added']} added" in text
    assert f"+ {rows['examples']['added'][0]['address']}  kind policy" in text
    for words in ("generate.samples", "valid greedy", "95 % interval", "rewards of", "FLOPs, total", "revision-0"):
        assert words in text
    with pytest.raises(InputError, match="expected a generation"):
        diff_command("gen/2/labels", "gen/3", lines.root)


def test_it_imports_nothing_heavy(made: dict[int, Registry]) -> None:
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom flows.commands.comparing import diff\n"
        "diff('gen/0', 'gen/0', Path(sys.argv[1]))\n"
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    top = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(made[1].root)]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, check=True)
    packages = set(json.loads(done.stdout.splitlines()[-1]))
    assert "duckdb" in packages
    assert packages & HEAVY == set()
