"""OpenLineage events of a registry, read back and held against git, dvc.lock and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from flywheel.errors import InputError
from flywheel.params import folder_name
from flywheel.records import digest
from storage import openlineage
from storage.history import published, published_many, tagged
from storage.layout import tag_name
from storage.registry import Registry
from storage.schemas import TABLES
from tests.storage.lineage_world import LARGE
from tests.storage.lineage_world import storied as storied

pytest.importorskip("openlineage.client")
Event = dict[str, Any]
STAGES = ["problems", "generate", "filter", "train", "evaluate"]
SUPERVISED = ["problems", "generate", "filter", "train", "supervise", "evaluate"]


@pytest.fixture(scope="module")
def told(storied: Registry, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    assert openlineage.export(storied, path) == {"events": 52, "generations": [0, 1, 2, 3, 4]}
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def generation_of(event: Event) -> int:
    return int(next(tag["value"] for tag in event["run"]["facets"]["tags"]["tags"] if tag["key"] == "generation"))


def of(told: list[Event], generation: int, stage: str) -> Event:
    (event,) = (
        event
        for event in told
        if (generation_of(event), event["job"]["name"], event["eventType"]) == (generation, stage, "COMPLETE")
    )
    return event


def versions(datasets: list[Event]) -> dict[str, str]:
    return {dataset["name"]: dataset["facets"]["version"]["datasetVersion"] for dataset in datasets}


def git(registry: Registry, *arguments: str) -> str:
    command = ["git", "-C", str(registry.root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_each_stage_of_each_generation_starts_and_completes(storied: Registry, told: list[Event]) -> None:
    wanted = [
        (generation, stage, state)
        for generation in range(5)
        for stage in (SUPERVISED if generation == 1 else STAGES)
        for state in ("START", "COMPLETE")
    ]
    assert [(generation_of(event), event["job"]["name"], event["eventType"]) for event in told] == wanted
    marker = json.loads(storied.layout.marker.read_text(encoding="utf-8"))
    spaces = {event["job"]["namespace"] for event in told}
    spaces |= {dataset["namespace"] for event in told for dataset in [*event["inputs"], *event["outputs"]]}
    assert spaces == {marker["registry_id"]}


def test_runs_belong_to_their_generation(storied: Registry, told: list[Event]) -> None:
    tags = tagged(storied)
    for event in told:
        tag = tags[generation_of(event)]
        run, facets = event["run"]["runId"], event["run"]["facets"]
        assert facets["parent"]["run"]["runId"] == str(uuid.UUID(tag.run))
        assert uuid.UUID(run) == uuid.uuid5(uuid.UUID(tag.run), event["job"]["name"])
        assert event["job"]["facets"]["sourceCodeLocation"]["version"] == tag.code_revision
        assert event["eventTime"] == git(storied, "show", "-s", "--format=%cI", tag.commit)
    assert len({event["run"]["runId"] for event in told}) == len(told) // 2


def test_outputs_are_those_of_dvc_lock_with_their_rows(storied: Registry, told: list[Event]) -> None:
    for generation in range(5):
        lock = yaml.safe_load(git(storied, "show", f"{tag_name(generation)}:dvc.lock"))
        tables = published(storied, generation)["tables"]
        for stage, entry in lock["stages"].items():
            event = of(told, generation, stage)
            written = {out["path"]: out for out in entry["outs"] if out["path"] != "metrics.json"}
            folder = folder_name(generation)
            names = {path if path.startswith("labels/") else f"{path}/{folder}": path for path in written}
            assert versions(event["outputs"]) == {name: written[path]["md5"] for name, path in names.items()}
            for dataset in event["outputs"]:
                out = written[names[dataset["name"]]]
                statistics = dataset["outputFacets"]["outputStatistics"]
                assert (statistics["size"], statistics["fileCount"]) == (out["size"], out["nfiles"])
        rows = {
            dataset["name"]: dataset["outputFacets"]["outputStatistics"].get("rowCount")
            for stage in ("filter", "train")
            for dataset in of(told, generation, stage)["outputs"]
        }
        learned = sum(file["rows"] for file in tables["trained_on"]["files"] if file["path"].startswith("training/"))
        assert rows == {
            f"labels/{folder}": tables["labels"]["rows"],
            f"training/{folder}": learned,
            f"student/{folder}": None,
        }


def test_inputs_are_the_data_that_went_in(storied: Registry, told: list[Event]) -> None:
    facts = published_many(storied, storied.generations())

    def made(output: str, generation: int) -> dict[str, str]:
        outputs, name = facts[generation]["outputs"], f"{output}/{folder_name(generation)}"
        return {name: outputs.get(output) or outputs[name]}

    # Generation 4 goes on from 1, whose student also searched; 2 was judged by the reward model of 1.
    trained = versions(of(told, 4, "train")["inputs"])
    wanted = made("problems", 4) | made("student", 1)
    assert trained == wanted | made("labels", 0) | made("labels", 1) | made("labels", 4)
    searched = versions(of(told, 2, "generate")["inputs"])
    assert searched == made("problems", 2) | made("student", 1) | made("reward_model", 1)
    external = versions(of(told, 3, "generate")["inputs"])
    assert external[f"model/{digest('external', LARGE)}"] == digest("external", LARGE)
    assert set(versions(of(told, 0, "train")["inputs"])) == {"parent/0000", "labels/0000", "problems/0000"}
    evaluated = versions(of(told, 4, "evaluate")["inputs"])
    assert evaluated == made("problems", 4) | made("student", 4) | made("evaluations", 1)


def test_the_schema_is_that_of_the_tables(told: list[Event]) -> None:
    (dataset,) = of(told, 0, "filter")["outputs"]
    fields = {
        field["name"]: [column["name"] for column in field["fields"]] for field in dataset["facets"]["schema"]["fields"]
    }
    assert fields == {name: TABLES[name].names for name in ("labels", "label_parents", "rejected")}


def test_the_clients_own_classes_read_them_back(told: list[Event]) -> None:
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.serde import Serde

    for event in told:
        again = RunEvent(
            eventTime=event["eventTime"],
            eventType=RunState(event["eventType"]),
            producer=event["producer"],
            run=Run(**event["run"]),
            job=Job(**event["job"]),
            inputs=[InputDataset(**dataset) for dataset in event["inputs"]],
            outputs=[OutputDataset(**dataset) for dataset in event["outputs"]],
        )
        assert json.loads(Serde.to_json(again)) == event
        facets = [*event["run"]["facets"].values(), *event["job"]["facets"].values()]
        facets += [facet for dataset in [*event["inputs"], *event["outputs"]] for facet in dataset["facets"].values()]
        assert all(
            facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/")
            for facet in facets
            if "_schemaURL" in facet
        )


def test_one_generation_is_added_or_exported_the_same_each_time(
    storied: Registry, told: list[Event], tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    openlineage.export(storied, path, 2)
    first = path.read_bytes()
    assert [json.loads(line) for line in first.splitlines()] == [event for event in told if generation_of(event) == 2]
    openlineage.export(storied, path, 2)
    assert path.read_bytes() == first
    assert openlineage.emit(storied, 3, path) == 10
    assert path.read_bytes().startswith(first)
    assert len(path.read_bytes().splitlines()) == 20
    assert list(tmp_path.iterdir()) == [path], "no draft is left"


def test_what_cannot_be_written_is_said(storied: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is a folder, expected a file"):
        openlineage.export(storied, tmp_path)
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    with pytest.raises(InputError, match="OPENLINEAGE_DISABLED"):
        openlineage.export(storied, tmp_path / "events.jsonl")
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    with pytest.raises(InputError, match=r"pip install 'flywheel-search\[openlineage\]'"):
        openlineage.export(storied, tmp_path / "events.jsonl")
    assert list(tmp_path.iterdir()) == []


OFFLINE = """
import sys
from pathlib import Path

def refuse(event, _):
    # A library may look, by a socket of its own, whether this machine speaks IPv6.
    if event in {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}:
        raise SystemExit(f"asked the network: {event}")

sys.addaudithook(refuse)
from storage.openlineage import export
from storage.registry import Registry

print(export(Registry.open(Path(sys.argv[1])), Path(sys.argv[2]), 4)["events"])
"""


def test_nothing_is_asked_of_the_network(storied: Registry, tmp_path: Path) -> None:
    top = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", OFFLINE, str(storied.root), str(tmp_path / "events.jsonl")]
    result = subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "10"), result.stderr
