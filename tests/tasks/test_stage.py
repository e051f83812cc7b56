"""Fingerprints, stamps and reports: what voids a piece of work, and what does not."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from flywheel import params as parameters
from flywheel.compute import Cost
from flywheel.errors import FlywheelError, Interrupted
from storage.layout import Layout
from storage.schemas import LEDGER
from tasks import generate, stage
from tasks.stage import Report, Stamp, cost_of, fingerprint, folder_digest, main, my_units, sources_digest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of two files."""
    folder = tmp_path / "site" / "made_up_package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "work.py").write_text("x = 1\n")
    (folder / "notes.md").write_text("read me\n")
    monkeypatch.syspath_prepend(folder.parent)
    yield folder
    sys.modules.pop("made_up_package", None)
    sources_digest.cache_clear()


def sources(*names: str) -> str:
    """As a new process would see them."""
    sources_digest.cache_clear()
    return sources_digest(*names)


def test_an_edited_source_changes_the_digest_and_a_readme_does_not(package: Path) -> None:
    before = sources("made_up_package")
    (package / "notes.md").write_text("read me again\n")
    assert sources("made_up_package") == before
    (package / "inner" / "work.py").write_text("x = 2\n")
    edited = sources("made_up_package")
    assert edited != before
    (package / "inner" / "work.py").write_text("x = 1\n")
    assert sources("made_up_package") == before
    (package / "inner" / "work.py").rename(package / "inner" / "play.py")
    assert sources("made_up_package") not in {before, edited}


def test_a_run_keeps_the_sources_it_was_loaded_with(package: Path) -> None:
    before = sources("made_up_package")
    (package / "inner" / "work.py").write_text("x = 2\n")
    assert sources_digest("made_up_package") == before


def test_sources_of_one_module_or_many(package: Path) -> None:
    one = sources("flywheel.seeds")
    assert one != sources("flywheel.seeds", "made_up_package") == sources("made_up_package", "flywheel.seeds")
    with pytest.raises(FlywheelError, match=r"module flywheel\.no_such is not installed"):
        sources("flywheel.no_such")


def test_a_fingerprint_is_of_all_that_shapes_the_outcome(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").write_bytes(b"1")

    def mark(stage_name: str = "s", sections: object = (1, {"x": 2}), numbers: str = "n") -> str:
        return fingerprint(stage_name, ("flywheel.seeds",), sections, [data], numbers)

    first = mark()
    assert mark() == first
    assert len({first, mark("t"), mark(sections=[1, {"x": 3}]), mark(numbers="m")}) == 4
    (data / "a").write_bytes(b"2")
    assert mark() != first


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    def made(name: str, files: dict[str, bytes]) -> Path:
        for path, data in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        return tmp_path / name

    files = {"a": b"1", "b/c": b"2"}
    first = folder_digest(made("one", files))
    assert folder_digest(made("same", files)) == first
    others = [{"a": b"1", "b/c": b"3"}, {"a": b"1", "b/d": b"2"}, {"a": b"1"}, {"a": b"12", "b/c": b""}]
    digests = {folder_digest(made(f"other{i}", other)) for i, other in enumerate(others)}
    assert len(digests) == 4
    assert first not in digests


def stamp(layout: Layout, mark: str = "m") -> Stamp:
    return Stamp(layout, 1, "filter", mark, [layout.labels(1), layout.metrics])


@pytest.fixture
def stamped(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.labels(1).mkdir(parents=True)
    (layout.labels(1) / "part-00000.parquet").write_bytes(b"rows")
    layout.metrics.write_text("{}")
    stamp(layout).write(Report("filter", 1, cost=Cost(policy=2.0, tokens=3), rows_out=7, notes={"kept": 7}))
    return layout


def test_a_whole_output_is_reused(stamped: Layout) -> None:
    report = stamp(stamped).fresh()
    assert report == Report("filter", 1, cost=Cost(policy=2.0, tokens=3), rows_out=7, notes={"kept": 7}, reused=True)


def test_another_mark_voids_a_stamp(stamped: Layout) -> None:
    assert stamp(stamped, "other").fresh() is None


def test_a_flipped_byte_or_a_lost_file_voids_a_stamp(stamped: Layout) -> None:
    part = stamped.labels(1) / "part-00000.parquet"
    part.write_bytes(b"rowt")
    assert stamp(stamped).fresh() is None
    part.write_bytes(b"rows")
    assert stamp(stamped).fresh() is not None
    (stamped.labels(1) / "part-00001.parquet").write_bytes(b"")
    assert stamp(stamped).fresh() is None
    (stamped.labels(1) / "part-00001.parquet").unlink()
    stamped.metrics.unlink()
    assert stamp(stamped).fresh() is None


def test_no_stamp_no_reuse(tmp_path: Path) -> None:
    assert stamp(Layout(tmp_path)).fresh() is None


@pytest.mark.parametrize("count", [0, 1, 5, 7, 100])
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 150])
def test_shards_are_runs_of_whole_units_that_cover_all(count: int, shards: int) -> None:
    runs = [my_units(count, shard, shards) for shard in range(shards)]
    assert [unit for run in runs for unit in run] == list(range(count))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_a_report_is_a_ledger_row() -> None:
    cost = Cost(policy=1.0, reward=2.0, training=3.0, prefill=4.0, padding=5.0, tokens=6)
    row = Report("train", 4, "00001/00002", cost, 1.23456, 7, 8, "cpu").ledger_row()
    assert list(row) == LEDGER.names
    assert sum(value for name, value in row.items() if name.startswith("flops_")) == cost.executed
    assert (row["tokens"], row["seconds"], row["rows_in"], row["rows_out"]) == (6, 1.235, 7, 8)
    assert row["peak_memory_bytes"] > 1_000_000


def test_costs_kept_with_units_add_up() -> None:
    costs = [Cost(policy=1.5, tokens=2), Cost(prefill=3.0, padding=0.25)]
    total = Cost(policy=1.5, prefill=3.0, padding=0.25, tokens=2)
    assert cost_of([{"cost": asdict(cost)} for cost in costs]) == total
    assert cost_of([]) == Cost()


def test_threads_are_shared_out_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert stage.threads(parameters.Execution()) == 8
    assert stage.threads(parameters.Execution(runner="processes", workers=3)) == 2
    assert stage.threads(parameters.Execution(runner="processes", workers=30)) == 1
    assert stage.threads(parameters.Execution(threads=5, runner="processes")) == 5


def test_numerics_name_what_the_last_bits_depend_on() -> None:
    text = stage.numerics(parameters.Execution(device="cpu", threads=3))
    assert text.startswith("torch ")
    assert "3 threads" in text
    assert text != stage.numerics(parameters.Execution(device="cpu", threads=2))


def test_a_hand_run_reads_the_registry_it_stands_in(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(layout.root)
    monkeypatch.setattr(sys, "argv", ["filter"])
    seen: list[int] = []

    def run(params: parameters.Params, here: Layout, hooks: stage.Hooks) -> Report:
        assert here.root == layout.root
        seen.append(params.generation)
        return Report("filter", params.generation, rows_out=3, notes={"kept": 3})

    assert main(run) == 0
    assert seen == [1]
    out, err = capsys.readouterr()
    assert out == "", "stdout is left to data"
    assert err.startswith("filter of generation 1: 3 rows in 0.0 s")

    def stopped(*_: object) -> Report:
        raise Interrupted("stopped on request")

    assert main(stopped) == 130
    layout.params.write_text("generate: {samples: 0}")
    assert main(run) == 2
    assert "generate.samples: got 0" in capsys.readouterr().err


def test_a_hand_run_of_one_shard(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(layout.root)
    monkeypatch.setattr(sys, "argv", ["generate", "--shard", "1/3"])
    assert main(generate.run, generate.run_shard) == 0
    assert not layout.attempts.exists()
    assert "generate of generation 1: 12 rows" in capsys.readouterr().err
    for text in ("3/3", "-1/3", "x", "1/0", "1"):
        monkeypatch.setattr(sys, "argv", ["generate", f"--shard={text}"])
        with pytest.raises(SystemExit, match="2"):
            main(generate.run, generate.run_shard)
        assert f"got {text!r}, expected I/N" in capsys.readouterr().err
