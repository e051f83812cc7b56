"""SQL over real registries: which rows are there at which generation, and that nothing but rows can be had."""

from __future__ import annotations

import json
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flywheel.errors import InputError, RegistryError
from storage import cache, git, views
from storage.history import published
from storage.registry import Registry
from storage.schemas import LEDGER, TABLES
from storage.views import connect, query
from tests.storage import sample
from tests.storage.conftest import copy_of
from tests.storage.forked import forked as forked

Fresh = Callable[[int], Registry]


def generations_of(registry: Registry, table: str, at: int | None = None) -> list[int]:
    sql = f"SELECT DISTINCT generation FROM {table} ORDER BY generation"
    return [row["generation"] for row in query(registry, sql, at).rows]


@pytest.mark.parametrize("table", ["attempts", "labels", "snapshots", "evaluations", "outcomes"])
@pytest.mark.parametrize(
    ("at", "expected"), [(None, [0, 1, 4]), (4, [0, 1, 4]), (3, [0, 1, 2, 3]), (1, [0, 1]), (0, [0])]
)
def test_rows_are_those_of_the_ancestors(forked: Registry, table: str, at: int | None, expected: list[int]) -> None:
    assert generations_of(forked, table, at) == expected


def test_every_row_of_every_table_is_there_once(forked: Registry) -> None:
    for table, schema in TABLES.items():
        line = [4] if table in {"problems", "excluded"} else [0, 1, 4]
        expected = sum(published(forked, generation)["tables"][table]["rows"] for generation in line)
        result = query(forked, f"SELECT * FROM {table}")
        assert result.columns == schema.names
        assert len(list(result.rows)) == expected > 0, table


def test_labels_join_their_attempts_and_problems(forked: Registry) -> None:
    sql = (
        "SELECT l.generation, a.output = l.completion AS same, p.split FROM labels l "
        "JOIN label_parents USING (label_id) JOIN attempts a ON parent_id = attempt_id "
        "JOIN problems p ON p.problem_id = l.problem_id"
    )
    rows = list(query(forked, sql).rows)
    assert len(rows) == sum(sample.LABELS + generation for generation in (0, 1, 4))
    assert all(row["same"] and row["split"] == "train" for row in rows)


def test_types_are_those_of_the_schema_with_rows_and_without(made: dict[int, Registry]) -> None:
    for table in [*TABLES, "ledger", "generations"]:
        with connect(made[0]) as empty, connect(made[1]) as full:
            columns = empty.execute(f"DESCRIBE {table}").fetchall()
            assert [row[:2] for row in columns] == [row[:2] for row in full.execute(f"DESCRIBE {table}").fetchall()]
            assert empty.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]


def test_ledger_keeps_what_was_spent_on_abandoned_generations(forked: Registry) -> None:
    rows = list(query(forked, "SELECT * FROM ledger").rows)
    assert set(rows[0]) == set(LEDGER.names)
    assert [(row["generation"], row["stage"]) for row in rows] == [
        (generation, stage) for generation in range(5) for stage in ("generate", "train")
    ]
    assert sum(row["flops_policy"] + row["flops_training"] for row in rows) == 5 * 3e6
    assert generations_of(forked, "ledger", 2) == [0, 1, 2]


def test_generations_as_they_stand_and_as_they_stood(forked: Registry) -> None:
    sql = "SELECT *, metrics ->> '$.test.greedy.value' AS g FROM generations"
    now = list(query(forked, sql).rows)
    assert [row["status"] for row in now] == ["ancestor", "ancestor", "abandoned", "abandoned", "current"]
    assert [row["parent"] for row in now] == [None, 0, 1, 2, 1]
    assert now[3]["reason"] == "bad labels"
    assert [float(row["g"]) for row in now] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert {row["flops_policy"] for row in now} == {1e6}
    then = list(query(forked, "SELECT status FROM generations", at=3).rows)
    assert [row["status"] for row in then] == ["ancestor", "ancestor", "ancestor", "current"]


def test_unknown_generation_names_those_there_are(forked: Registry) -> None:
    with pytest.raises(InputError, match=r"gen/9.*gen/0, gen/1, gen/2, gen/3, gen/4"):
        query(forked, "SELECT 1", at=9)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM ledger",
        "CREATE TABLE mine AS SELECT 1",
        "INSERT INTO ledger SELECT * FROM ledger",
        "UPDATE ledger SET tokens = 1",
        "DROP VIEW labels",
        "COPY labels TO '{cache}/stolen.csv'",
        "EXPLAIN ANALYZE COPY labels TO '{cache}/stolen.csv'",
        "COPY (FROM labels) TO '{cache}/stolen.csv'",
        "ATTACH '{cache}/other.db'",
        "INSTALL httpfs",
        "SET threads = 1",
        "PREPARE p AS DELETE FROM ledger",
        "CALL force_checkpoint()",
        "VACUUM",
        "PRAGMA database_list",
        "EXPORT DATABASE '{cache}/all'",
    ],
)
def test_statements_that_do_not_read_are_refused(made: dict[int, Registry], sql: str) -> None:
    folder = cache.cache_folder(made[1].root)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=r"got a statement of kind \w+, expected one that reads"):
        query(made[1], sql.format(cache=folder / "files" / "md5"))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '{root}/metrics.json'",
        "SELECT * FROM read_csv('{root}/dvc.yaml')",
        "SELECT * FROM glob('{root}/*')",
        "SELECT * FROM read_parquet('{root}/attempts/*.parquet')",
        "SELECT * FROM read_text('{root}/.dvc/cache/../config')",
        "SELECT * FROM read_parquet('https://example.org/x.parquet')",
    ],
)
def test_nothing_outside_the_cache_can_be_read(made: dict[int, Registry], sql: str) -> None:
    with pytest.raises(InputError):
        list(query(made[1], sql.format(root=made[1].root)).rows)


@pytest.mark.parametrize("sql", ["", "-- nothing", "SELECT 1; SELECT 2", "SELECT 1; DROP VIEW labels"])
def test_one_statement_at_a_time(made: dict[int, Registry], sql: str) -> None:
    with pytest.raises(InputError, match="expected exactly one"):
        query(made[1], sql)


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nope FROM labels", "SELECT * FROM nope", "SELECT 1 +"])
def test_wrong_sql_is_explained_with_the_tables(made: dict[int, Registry], sql: str) -> None:
    with pytest.raises(InputError, match=r"Error: .*\n(.*\n)*tables: problems, excluded, attempts, labels"):
        query(made[1], sql)


def test_an_error_among_the_rows_is_an_input_error(made: dict[int, Registry]) -> None:
    with pytest.raises(InputError, match="Conversion Error"):
        list(query(made[1], "SELECT CAST(output AS INTEGER) AS n FROM attempts").rows)


@pytest.mark.parametrize(
    "sql",
    [
        "FROM labels",
        "DESCRIBE labels",
        "SHOW TABLES",
        "SUMMARIZE labels",
        "VALUES (1)",
        "WITH l AS (FROM labels) FROM l",
        "PIVOT ledger ON stage USING sum(tokens) GROUP BY generation",
        "  /* why */ SELECT 1",
    ],
)
def test_what_reads_is_let_through(made: dict[int, Registry], sql: str) -> None:
    assert list(query(made[1], sql).rows)


def test_columns_of_one_name_are_told_apart(made: dict[int, Registry]) -> None:
    result = query(made[1], "SELECT 1 AS a, 2 AS a, 3 AS a_1")
    assert result.columns == ["a", "a_1", "a_1_1"]
    assert list(result.rows) == [{"a": 1, "a_1": 2, "a_1_1": 3}]


def test_a_missing_file_is_named_and_other_tables_still_answer(fresh: Fresh) -> None:
    registry = fresh(1)
    file = published(registry, 0)["tables"]["attempts"]["files"][0]
    cache.cache_path(registry, file["md5"]).unlink()
    shutil.rmtree(registry.root / "attempts")
    words = r"attempts/part-00000\.parquet.*table attempts of gen/0.*flywheel pull"
    with pytest.raises(RegistryError, match=words):
        query(registry, 'SELECT count(*) FROM "Attempts"')
    with pytest.raises(RegistryError, match=words):
        connect(registry)
    assert list(query(registry, "SELECT count(*) AS n FROM labels").rows) == [{"n": sample.LABELS}]


def test_a_damaged_file_is_an_error_of_the_registry(fresh: Fresh) -> None:
    registry = fresh(1)
    path = cache.cache_path(registry, published(registry, 0)["tables"]["labels"]["files"][0]["md5"])
    path.unlink()
    path.write_bytes(b"not Parquet")
    with pytest.raises(RegistryError, match="table labels cannot be read"):
        query(registry, "SELECT 1")


def test_the_work_tree_is_not_read(fresh: Fresh) -> None:
    registry = fresh(4)
    before = list(query(registry, "FROM labels ORDER BY label_id").rows)
    for name in ("problems", "attempts", "labels", "training", "evaluations", "lineage", "ledger"):
        shutil.rmtree(registry.root / name)
    assert list(query(registry, "FROM labels ORDER BY label_id").rows) == before
    assert len(list(query(registry, "FROM ledger").rows)) == 8


@pytest.mark.parametrize("name", ["it's", "a[b]c", "x=1", "100%", "two words"])
def test_a_registry_may_lie_anywhere(made: dict[int, Registry], tmp_path: Path, name: str) -> None:
    registry = copy_of(made[1], tmp_path / name)
    assert len(list(query(registry, "FROM attempts").rows)) == sample.LABELS + 2


def test_rows_stream(made: dict[int, Registry]) -> None:
    def peak_megabytes() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    rows: Iterator[dict[str, object]] = query(
        made[1], "SELECT i, repeat('x', 400) AS text FROM range(4000000) t(i)"
    ).rows
    next(rows)
    before = peak_megabytes()
    assert sum(1 for _ in zip(rows, range(500_000), strict=False)) == 500_000
    assert peak_megabytes() - before < 100, "half a million rows are 200 MB of text alone"


@pytest.mark.parametrize("ran_here", [True, False])
def test_what_memory_cannot_hold_goes_to_disk_and_is_removed(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ran_here: bool
) -> None:
    monkeypatch.setattr(views, "MEMORY_LIMIT", "150MB")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    registry = fresh(1)
    scratch = registry.layout.tmp if ran_here else tmp_path
    shutil.rmtree(registry.layout.tmp, ignore_errors=True)
    if ran_here:
        registry.layout.tmp.mkdir()
    rows = query(registry, "SELECT md5(i::VARCHAR) AS m FROM range(5000000) t(i) ORDER BY m").rows
    first = next(rows)["m"]
    assert any(scratch.glob("query-*/*")), "it spilled"
    assert str(first) < str(next(rows)["m"])
    rows.close()  # type: ignore[attr-defined]
    assert list(scratch.glob("query-*")) == []


def test_nothing_is_left_in_the_registry(fresh: Fresh) -> None:
    registry = fresh(4)
    before = sorted(registry.root.rglob("*"))
    list(query(registry, "FROM labels").rows)
    assert sorted(registry.root.rglob("*")) == before


def test_many_files_open_quickly(fresh: Fresh) -> None:
    """A table of a thousand parts: listed in lineage, one view, counted without a second of waiting."""
    import time

    registry = fresh(1)
    name = "lineage/0000.json"
    lineage = json.loads((registry.root / name).read_text())
    lineage["tables"]["attempts"]["files"] *= 1000
    (registry.root / name).write_text(json.dumps(lineage))
    git.run(registry.root, "commit", "-qam", "A large table")
    git.run(registry.root, "tag", "-f", "-a", "-m", "Generation 0", "gen/0000")
    start = time.perf_counter()
    counted = list(query(registry, "SELECT count(*) AS n FROM attempts").rows)
    assert counted == [{"n": 1000 * (sample.LABELS + 2)}]
    assert time.perf_counter() - start < 3
    assert re.fullmatch(r"\d+", str(counted[0]["n"]))
