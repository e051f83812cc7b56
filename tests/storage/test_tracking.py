"""MLflow on real SQLite: what a record holds is read back with MLflow's own client and with plain SQL."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel.errors import FlywheelError, RegistryError
from storage import mlflow as store
from storage import tracking
from storage.layout import Layout

METRICS = {
    "valid": {"greedy": {"value": 0.5, "low": 0.4, "high": 0.6, "count": 128}},
    "test": {"best@16": {"value": 0.75, "low": 0.7, "high": 0.8, "count": 256}},
}
PARAMS = {"seed": 0, "train": {"epochs": 4, "start": "parent"}, "evaluate": {"budgets": [1, 4]}}


def snapshot(generation: int) -> str:
    return f"{generation:032x}"


def published(generation: int, champion: int | None = None) -> dict[str, Any]:
    first = generation == 0
    champion = generation if champion is None else champion
    solver = {
        "kind": "solver",
        "snapshot": "solver:countdown",
        "generation": None,
        "source": "solver",
        "verified": True,
    }
    student = {
        "kind": "student",
        "snapshot": snapshot(generation - 1),
        "generation": generation - 1,
        "source": f"gen/{generation - 1}/student",
        "verified": True,
    }
    return {
        "generation": generation,
        "parent": None if first else generation - 1,
        "teacher": solver if first else student,
        "student": {
            "snapshot": snapshot(generation),
            "initialised_from": None if first else snapshot(generation - 1),
            "parameters": 1000,
            "training_flops": 2e9,
        },
        "champion": {"generation": champion, "snapshot": snapshot(champion), "promoted": champion == generation},
        "params_digest": "d" * 32,
        "tables": {},
        "outputs": {"student": "a" * 32 + ".dir", f"labels/{generation:04d}": f"{generation + 100:032x}.dir"},
        "flops": {"policy": 1e9, "training": 2e9},
        "labels": {"kept": 10, "rejected": 3},
    }


def told(generation: int, champion: int | None = None) -> tuple[Any, ...]:
    facts = published(generation, champion)
    return facts, METRICS, PARAMS, f"run-{generation}", f"gen/{generation:04d}", f"flow-{generation}", 12.5


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without generations, made once; tests copy it."""
    layout = Layout(tmp_path_factory.mktemp("empty"))
    tracking.initialise(layout)
    return store.database(layout)


@pytest.fixture
def layout(tmp_path: Path, empty: Path) -> Iterator[Layout]:
    layout = Layout(tmp_path / "registry")
    layout.mlflow.mkdir(parents=True)
    store.database(layout).write_bytes(empty.read_bytes())
    yield layout
    store._clients.pop(store.database(layout), None)


def champion_source(layout: Layout) -> str:
    return str(store.client(layout).get_model_version_by_alias("flywheel", "champion").source)


def count(layout: Layout, table: str) -> int:
    with sqlite3.connect(store.database(layout)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_record_links_dataset_teacher_student_and_version(layout: Layout) -> None:
    first = tracking.record(layout, *told(0))
    second = tracking.record(layout, *told(1))

    client = store.client(layout)
    run = client.get_run(second)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["valid/greedy"] == 0.5
    assert run.data.metrics["valid/greedy/low"] == 0.4
    assert run.data.metrics["test/best_at_16"] == 0.75
    assert run.data.metrics["flops/training"] == 2e9
    assert run.data.metrics["labels/kept"] == 10
    assert run.data.params["train.epochs"] == "4"
    assert run.data.tags["Flywheel-Run"] == "run-1"
    assert run.data.tags["prefect_flow_run"] == "flow-1"
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("labels", f"{101:032x}")
    assert json.loads(dataset.source) == {"uri": "dvc://gen/0001/labels"}
    # The teacher of generation 1 is the very logged model that generation 0 put out.
    student_of_first = client.get_run(first).outputs.model_outputs[0].model_id
    assert [model.model_id for model in run.inputs.model_inputs] == [student_of_first]
    teacher_of_first = client.get_run(first).inputs.model_inputs[0].model_id
    assert client.get_logged_model(teacher_of_first).tags["snapshot"] == "solver:countdown"
    version = client.get_model_version_by_alias("flywheel", "champion")
    assert (version.source, version.run_id) == ("dvc://gen/0001/student", second)
    noted = json.loads((layout.local / "runs" / "0001.json").read_text())
    assert noted == {"mlflow_run": second, "prefect_flow_run": "flow-1", "seconds": 12.5}


def test_recording_twice_makes_one_run(layout: Layout) -> None:
    first = tracking.record(layout, *told(0))
    assert tracking.record(layout, *told(0)) == first
    assert [count(layout, table) for table in ("runs", "model_versions", "datasets")] == [1, 1, 1]


def test_a_record_cut_off_half_way_is_completed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    client = store.client(layout)

    def away(*_: Any, **__: Any) -> None:
        raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "create_model_version", away)
        with pytest.raises(OSError, match="went away"):
            tracking.record(layout, *told(0))
    assert count(layout, "runs") == 1
    run = tracking.record(layout, *told(0))
    assert client.get_run(run).info.status == "FINISHED"
    assert [count(layout, table) for table in ("runs", "logged_models", "model_versions")] == [1, 2, 1]


def test_an_unpromoted_student_leaves_the_alias(layout: Layout) -> None:
    tracking.record(layout, *told(0))
    tracking.record(layout, *told(1, champion=0))
    assert champion_source(layout) == "dvc://gen/0000/student"


def test_rollback_moves_the_alias(layout: Layout) -> None:
    for generation in range(3):
        tracking.record(layout, *told(generation))
    assert tracking.set_alias(layout, snapshot(1)) is True
    assert champion_source(layout) == "dvc://gen/0001/student"


def test_a_locked_database_queues_and_the_queue_keeps_order(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.05)
    tracking.record(layout, *told(0))
    blocker = sqlite3.connect(store.database(layout), isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    try:
        assert tracking.record_or_queue(layout, *told(1)) is None
        assert tracking.record_or_queue(layout, *told(2)) is None
        assert tracking.set_alias(layout, snapshot(0)) is False
        assert tracking.record_or_queue(layout, *told(3, champion=0)) is None
        assert tracking.pending(layout) == 4
        assert tracking.send_queued(layout) == []
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()
    assert json.loads((layout.local / "runs" / "0002.json").read_text())["mlflow_run"] is None
    assert tracking.send_queued(layout) == [1, 2, 3]
    assert tracking.pending(layout) == 0
    assert count(layout, "runs") == 4
    assert champion_source(layout) == "dvc://gen/0000/student"
    assert json.loads((layout.local / "runs" / "0002.json").read_text())["mlflow_run"] is not None


def test_a_database_that_is_none_queues(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.mlflow.mkdir(parents=True)
    store.database(layout).write_text("this is not a database, " * 100)
    assert tracking.record_or_queue(layout, *told(0)) is None
    assert tracking.pending(layout) == 1


def test_a_damaged_queue_entry_is_named(layout: Layout) -> None:
    entry = layout.local / "queue" / "0003.json"
    entry.parent.mkdir(parents=True)
    entry.write_text("{")
    with pytest.raises(RegistryError, match=r"0003\.json is damaged"):
        tracking.send_queued(layout)


def test_initialise_leaves_no_draft_and_does_nothing_the_second_time(empty: Path) -> None:
    before = empty.stat().st_mtime_ns
    tracking.initialise(Layout(empty.parent.parent.parent))
    assert empty.stat().st_mtime_ns == before
    assert not list(empty.parent.glob("draft-*"))
    with sqlite3.connect(empty) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_warming_up_makes_the_database_for_the_first_record(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    tracking.warm_up(layout).join(60)
    assert store.database(layout).exists()
    assert tracking.record_or_queue(layout, *told(0)) is not None
    store._clients.pop(store.database(layout))


def test_a_service_is_told_of_a_database_that_is_none(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.mlflow.mkdir(parents=True)
    store.database(layout).write_text("this is not a database, " * 100)
    with pytest.raises(FlywheelError, match=r"mlflow\.db cannot be used"):
        tracking.require_database(layout)


def test_pending_and_queueing_need_no_mlflow(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from storage import tracking; from storage.layout import Layout\n"
        "layout = Layout(Path(sys.argv[1])); tracking.pending(layout)\n"
        "bad = {'mlflow', 'sqlalchemy', 'prefect'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path(__file__).parents[2], timeout=60
    )
