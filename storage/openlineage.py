"""A generation as OpenLineage tells it: for each stage a run that started and completed, with what it read and wrote.

    train of gen/7   reads problems/0007, student/0006, labels/0006, labels/0007   writes student/0007, training/0007

Names and digests are those of the `dvc.lock` that the generation's commit holds; the namespace is the registry's id.
The same generation gives the same events: run ids are made from the generation's own, and the time is that of its
commit, for the stages' own clocks are not in git. Written by OpenLineage's client to a file; nothing is sent anywhere.
Source: the OpenLineage specification, object model and standard facets.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flywheel import __version__
from flywheel.errors import FlywheelError, InputError, RegistryError
from flywheel.params import folder_name
from storage import git
from storage.history import Tagged, published_many, tagged
from storage.layout import tag_name

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

    from storage.registry import Registry

STAGES = ("problems", "generate", "filter", "train", "supervise", "evaluate")
_PRODUCER = f"urn:flywheel-search:{__version__}"
_MAIN = {"training": "trained_on", "supervision": "step_labels"}
"""The table whose rows an output is counted by, where it is not of the output's own name."""
_SHARED = {"student": "parent", "reward_model": "judge"}
"""Under what name an older generation's output goes in."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A published generation: its tag, when it was committed, lineage/NNNN.json, dvc.lock and the lineage/*.json that
    went in."""

    tag: Tagged
    time: str
    facts: dict[str, Any]
    lock: dict[str, Any]
    inputs: dict[str, dict[str, Any]]


def export(registry: Registry, path: Path, generation: int | None = None) -> dict[str, Any]:
    """Write the events of one generation, or of all, to the file `path`, one a line; {"events", "generations"}.

    The file is replaced once all is written. Raises InputError where the package is missing or there is no generation.
    """
    numbers = [generation] if generation is not None else registry.generations()
    if not numbers:
        raise InputError(f"got a registry without generations at {registry.root}; make one with `flywheel run`")
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file to write events to, such as {path / 'events.jsonl'}")
    told = events(registry, numbers)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        _write(told, draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return {"events": len(told), "generations": numbers}


def emit(registry: Registry, generation: int, path: Path) -> int:
    """Add the events of a generation to the file `path`; how many. A generation told twice has the same run ids."""
    told = events(registry, [generation])
    _write(told, path)
    return len(told)


def events(registry: Registry, generations: list[int]) -> list[RunEvent]:
    """START and COMPLETE of each stage, in order. Raises InputError where the package is missing."""
    require()
    namespace = str(json.loads(registry.layout.marker.read_text(encoding="utf-8"))["registry_id"])
    facts = published_many(registry, registry.generations())
    told = []
    for made in _read(registry, generations, facts):
        # In the order of the work; a stage of another recipe comes last.
        stages = sorted(made.lock["stages"], key=lambda name: [*STAGES, name].index(name))
        for stage in stages:
            told += _stage(namespace, stage, made, facts)
    return told


def require() -> None:
    """Raise InputError where OpenLineage's client is not installed."""
    try:
        import openlineage.client  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            "got no package `openlineage-python`, which writes OpenLineage events; install it with "
            "`pip install 'flywheel-search[openlineage]'`"
        ) from None


def _read(registry: Registry, generations: list[int], facts: dict[int, dict[str, Any]]) -> list[_Made]:
    tags = tagged(registry)
    commits = [tags[number].commit for number in generations]
    lines = git.run(registry.root, "log", "--no-walk=unsorted", "--format=%H %cI", *commits).splitlines()
    times = dict(line.split(" ", 1) for line in lines)
    names = ("dvc.lock", *(f"lineage/{name}.json" for name in ("teacher", "champion", "window", "tried", "judge")))
    texts = git.read_many(registry.root, [f"{tag_name(number)}:{name}" for number in generations for name in names])
    made = []
    for index, number in enumerate(generations):
        lock, *inputs = texts[index * len(names) : (index + 1) * len(names)]
        if lock is None:
            raise RegistryError(f"{tag_name(number)} holds no dvc.lock; the tag was not made by Flywheel")
        given = {name: json.loads(text) for name, text in zip(names[1:], inputs, strict=True) if text is not None}
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        made.append(_Made(tags[number], times[tags[number].commit], facts[number], yaml.load(lock, loader), given))
    return made


def _stage(namespace: str, stage: str, made: _Made, facts: dict[int, dict[str, Any]]) -> list[RunEvent]:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import job_type_job, parent_run, source_code_location_job, tags_run

    owner = uuid.UUID(made.tag.run) if made.tag.run else uuid.uuid5(uuid.NAMESPACE_OID, made.tag.commit)
    revision, number = made.tag.code_revision, made.tag.generation
    told = {"generation": str(number), "tag": tag_name(number), "commit": made.tag.commit}
    run = Run(
        str(uuid.uuid5(owner, stage)),
        {
            "parent": parent_run.ParentRunFacet(
                run=parent_run.Run(runId=str(owner)),
                job=parent_run.Job(namespace=namespace, name="generation"),
                producer=_PRODUCER,
            ),
            "tags": tags_run.TagsRunFacet(
                tags=[tags_run.TagsRunFacetFields(key, value, "flywheel") for key, value in told.items()],
                producer=_PRODUCER,
            ),
        },
    )
    job = Job(
        namespace,
        stage,
        {
            "jobType": job_type_job.JobTypeJobFacet("BATCH", "FLYWHEEL", "STAGE", producer=_PRODUCER),
            "sourceCodeLocation": source_code_location_job.SourceCodeLocationJobFacet(
                type="flywheel", url=f"urn:flywheel-search:{revision}", version=revision, producer=_PRODUCER
            ),
        },
    )
    entry = made.lock["stages"][stage]
    inputs = [_input(namespace, *one) for one in _read_by(entry, made, facts)]
    outputs = [_output(namespace, one, made) for one in entry.get("outs", []) if one["path"] != "metrics.json"]
    return [
        RunEvent(
            eventTime=made.time,
            producer=_PRODUCER,
            eventType=state,
            run=run,
            job=job,
            inputs=inputs,
            outputs=outputs,
        )
        for state in (RunState.START, RunState.COMPLETE)
    ]


def _read_by(entry: dict[str, Any], made: _Made, facts: dict[int, dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, digest) of what a stage read; a lineage/*.json stands for the data that it names."""
    found: dict[str, str] = {}
    for one in entry.get("deps", []):
        path = one["path"]
        if path in made.inputs:
            found |= _named_by(path.removeprefix("lineage/").removesuffix(".json"), made.inputs[path], facts)
        else:
            found[_name(path, one["md5"], made.tag.generation, facts)] = one["md5"]
    return sorted(found.items())


def _named_by(name: str, document: dict[str, Any], facts: dict[int, dict[str, Any]]) -> dict[str, str]:
    older = [entry["generation"] for entry in document.get("generations", [])]
    if name == "window":
        return {_own("labels", number): _digest(facts, number, "labels") for number in older}
    if name == "tried":
        return {_own("attempts", number): _digest(facts, number, "attempts") for number in older}
    number = document["generation"]
    if name == "teacher" and number is None:
        return {f"model/{document['snapshot']}": document["snapshot"]}
    if number is None:  # no champion yet
        return {}
    output = {"teacher": "student", "champion": "evaluations", "judge": "reward_model"}[name]
    return {_own(output, number): _digest(facts, number, output)}


def _own(output: str, generation: int) -> str:
    """What a generation's output is called among those of all generations."""
    return f"{output}/{folder_name(generation)}"


def _digest(facts: dict[int, dict[str, Any]], generation: int, output: str) -> str:
    outputs = facts[generation]["outputs"]
    return str(outputs.get(output) or outputs[_own(output, generation)])


def _name(path: str, md5: str, generation: int, facts: dict[int, dict[str, Any]]) -> str:
    """What a folder that a stage read is called: `parent/` and `judge/` are older generations' outputs."""
    for output, alias in _SHARED.items():
        if path == alias:
            makers = [number for number, fact in facts.items() if fact["outputs"].get(output) == md5]
            older = [number for number in makers if number < generation]
            return _own(output, older[0]) if older else _own(alias, generation)
    return path if path.startswith("labels/") else _own(path, generation)


def _input(namespace: str, name: str, version: str) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset

    facet = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version, producer=_PRODUCER)
    return InputDataset(namespace, name, facets={"version": facet})


def _output(namespace: str, entry: dict[str, Any], made: _Made) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import (
        dataset_version_dataset,
        output_statistics_output_dataset,
        schema_dataset,
    )

    path, version = entry["path"], str(entry["md5"])
    kind = path.partition("/")[0]
    tables = {
        name: table
        for name, table in made.facts["tables"].items()
        if any(file["path"].startswith(f"{path}/") for file in table["files"])
    }
    facets: dict[str, Any] = {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version, producer=_PRODUCER)
    }
    if tables:
        fields = [_table(name, made) for name in tables]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields, producer=_PRODUCER)
    counted = tables.get(_MAIN.get(kind, kind))
    rows = sum(file["rows"] for file in counted["files"] if file["path"].startswith(path)) if counted else None
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=rows, size=entry.get("size"), fileCount=entry.get("nfiles"), producer=_PRODUCER
    )
    name = _name(path, version, made.tag.generation, {})
    return OutputDataset(namespace, name, facets=facets, outputFacets={"outputStatistics": statistics})


def _table(name: str, made: _Made) -> Any:
    """A table of a folder as a field of its schema, with the table's columns below it."""
    from openlineage.client.facet_v2 import schema_dataset

    from storage.schemas import BOARDS, SUPERVISION, TABLES

    schema = {**TABLES, **SUPERVISION, **BOARDS}[name]
    old = int(made.facts["version"]) < 2
    columns = [field for field in schema if not (old and name == "trained_on" and field.name == "generation")]
    fields = [schema_dataset.SchemaDatasetFacetFields(field.name, str(field.type)) for field in columns]
    return schema_dataset.SchemaDatasetFacetFields(name, "table", fields=fields)


def _write(told: list[RunEvent], path: Path) -> None:
    """Add events to a file by the client's file transport; no other is ever made."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport

    client = OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=str(path), append=True)))
    if client.transport.kind != FileTransport.kind:
        raise InputError("OpenLineage is switched off by OPENLINEAGE_DISABLED; unset it to write events")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for event in told:
            client.emit(event)
    except RuntimeError as error:  # what the transport makes of an OSError
        raise FlywheelError(f"could not write OpenLineage events to {path}: {error}") from error
    finally:
        client.close()
