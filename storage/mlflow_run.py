"""What MLflow is told of a generation, and how it is kept from being told twice.

    run gen/0007 ── inputs ──> dataset `labels` (digest: DVC's md5) and the teacher's logged model
                 └─ outputs ─> the student's logged model ── version of `flywheel`, alias `champion`

Bytes stay in DVC; MLflow keeps pointers (`dvc://gen/0007/student`). Every step looks for what it would make, by
Flywheel-Run, snapshot or source, so that a record cut off half-way is completed by the next.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

from flywheel.params import folder_name
from storage.layout import tag_name
from storage.mlflow import experiment as experiment_of

MODEL = "flywheel"
"""Name of the registered model; a version of it is a generation's student."""
ALIAS = "champion"
_MOST_PARAMS = 100
"""What MLflow takes in one call."""
_LONGEST_PARAM = 6000
_log = logging.getLogger("flywheel.tracking")
_ELSEWHERE = {"mlflow.model.isExternal": "true"}
"""MLflow's own word for a logged model whose bytes it does not hold."""


def log_generation(
    client: Any,
    published: dict[str, Any],
    metrics: dict[str, Any],
    params: dict[str, Any],
    run: str,
    tag: str,
    prefect_flow_run: str | None,
    seconds: float,
    tag_object: str = "",
) -> str:
    """Make or complete the MLflow run of a generation and move the alias; the run's id. See `tracking.record`."""
    experiment = experiment_of(client)
    found = client.search_runs([experiment], f"tags.`Flywheel-Run` = '{_quoted(run)}'", max_results=1)
    if found and found[0].info.status == "FINISHED":
        run_id = str(found[0].info.run_id)
    else:
        run_id = (
            str(found[0].info.run_id)
            if found
            else _new_run(client, experiment, published, run, tag, seconds, tag_object)
        )
        if prefect_flow_run:
            client.set_tag(run_id, "prefect_flow_run", prefect_flow_run)
        _log_numbers(client, run_id, published, metrics, params, seconds)
        _log_lineage(client, experiment, run_id, published)
        client.set_terminated(run_id, "FINISHED")
    move_alias(client, str(published["champion"]["snapshot"]))
    return run_id


def move_alias(client: Any, snapshot: str) -> bool:
    """Point `champion` at the version with this snapshot. False if no recorded version has it."""
    found = client.search_model_versions(f"name = '{MODEL}' AND tags.snapshot = '{_quoted(snapshot)}'", max_results=1)
    if not found:
        # The record that made it was lost with a database.
        _log.warning("MLflow has no version of snapshot %s; alias %s was not moved", snapshot, ALIAS)
        return False
    client.set_registered_model_alias(MODEL, ALIAS, found[0].version)
    return True


def _new_run(
    client: Any, experiment: str, published: dict[str, Any], run: str, tag: str, seconds: float, tag_object: str
) -> str:
    generation = int(published["generation"])
    started = int((time.time() - seconds) * 1000)
    tags: dict[str, str] = {
        "Flywheel-Run": run,
        "Flywheel-Generation": str(generation),
        "Flywheel-Parent": str(published.get("parent")),
        "Flywheel-Tag": tag,
        **({"Flywheel-Tag-Object": tag_object} if tag_object else {}),
        "promoted": str(bool(published["champion"].get("promoted"))).lower(),
    }
    tags |= {role: str(published[role]["snapshot"]) for role in ("judge", "reward_model") if role in published}
    made = client.create_run(experiment, start_time=started, tags=tags, run_name=tag_name(generation))
    return str(made.info.run_id)


def _log_numbers(
    client: Any,
    run_id: str,
    published: dict[str, Any],
    metrics: dict[str, Any],
    params: dict[str, Any],
    seconds: float,
) -> None:
    from mlflow.entities import Metric, Param

    generation, now = int(published["generation"]), int(time.time() * 1000)
    numbers = dict(_numbers("", metrics))
    numbers |= dict(_numbers("flops", published.get("flops") or {}))
    numbers |= dict(_numbers("labels", published.get("labels") or {}))
    numbers["seconds"] = float(seconds)
    flat = [Param(key, text[:_LONGEST_PARAM]) for key, text in _texts("", params)]
    client.log_batch(run_id, metrics=[Metric(key, value, now, generation) for key, value in numbers.items()])
    for start in range(0, len(flat), _MOST_PARAMS):
        client.log_batch(run_id, params=flat[start : start + _MOST_PARAMS])


def _log_lineage(client: Any, experiment: str, run_id: str, published: dict[str, Any]) -> None:
    """The dataset and the teacher as inputs, the student as output, and its registered version."""
    from mlflow.entities import Dataset, DatasetInput, LoggedModelInput, LoggedModelOutput

    generation = int(published["generation"])
    labels = f"labels/{folder_name(generation)}"
    digest = published["outputs"][labels].removesuffix(".dir")
    source = f"dvc://{tag_name(generation)}/labels"
    dataset = Dataset(name="labels", digest=digest, source_type="dvc", source=json.dumps({"uri": source}))
    teacher = _teacher(client, experiment, published["teacher"])
    # MLflow refuses a link it has; those of a record that was cut off are kept.
    known = client.get_run(run_id)
    if not known.inputs.model_inputs:
        client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset)], models=[LoggedModelInput(teacher)])
    student = _student(client, experiment, run_id, published)
    if not known.outputs.model_outputs:
        client.log_outputs(run_id, [LoggedModelOutput(student, step=generation)])
    _version(client, run_id, student, published)


def _teacher(client: Any, experiment: str, teacher: dict[str, Any]) -> str:
    """The logged model that taught: an earlier student's, else a pointer to a model from elsewhere (or a solver)."""
    from mlflow.entities import LoggedModelStatus

    snapshot = str(teacher["snapshot"])
    found = _logged_model(client, experiment, snapshot)
    if found is not None:
        return found
    tags = {name: str(value) for name, value in teacher.items() if value is not None}
    made = client.create_logged_model(
        experiment, name=_model_name("teacher", snapshot), tags=tags | _ELSEWHERE, model_type=str(teacher["kind"])
    )
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    return str(made.model_id)


def _student(client: Any, experiment: str, run_id: str, published: dict[str, Any]) -> str:
    from mlflow.entities import LoggedModelStatus

    generation, student = int(published["generation"]), published["student"]
    found = _logged_model(client, experiment, str(student["snapshot"]), generation)
    if found is not None:
        return found
    tags = {
        "snapshot": str(student["snapshot"]),
        "generation": str(generation),
        "source": f"dvc://{tag_name(generation)}/student",
        "dvc": str(published["outputs"]["student"]),
    }
    facts = {name: str(value) for name, value in student.items() if value is not None}
    made = client.create_logged_model(
        experiment,
        name=f"student-{folder_name(generation)}",
        source_run_id=run_id,
        tags=tags | _ELSEWHERE,
        params=facts | {"params_digest": str(published["params_digest"])},
        model_type="student",
    )
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    return str(made.model_id)


def _logged_model(client: Any, experiment: str, snapshot: str, generation: int | None = None) -> str | None:
    wanted = f"tags.snapshot = '{_quoted(snapshot)}'"
    if generation is not None:
        wanted += f" AND tags.generation = '{generation}'"
    found = client.search_logged_models([experiment], wanted, max_results=1)
    return str(found[0].model_id) if found else None


def _version(client: Any, run_id: str, model_id: str, published: dict[str, Any]) -> None:
    generation = int(published["generation"])
    source = f"dvc://{tag_name(generation)}/student"
    if not client.search_registered_models(f"name = '{MODEL}'", max_results=1):
        client.create_registered_model(MODEL, description="The student of each generation; the bytes are in DVC.")
    if client.search_model_versions(f"name = '{MODEL}' AND source_path = '{source}'", max_results=1):
        return
    tags = {"snapshot": str(published["student"]["snapshot"]), "generation": str(generation)}
    client.create_model_version(MODEL, source, run_id=run_id, tags=tags, model_id=model_id, await_creation_for=0)


def _numbers(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    """Leaves that are numbers, by slashed key; the `value` of {value, low, high, count} stands under the key itself."""
    if isinstance(value, dict):
        for name, inner in value.items():
            key = prefix if name == "value" and prefix else f"{prefix}/{name}".lstrip("/")
            yield from _numbers(key.replace("@", "_at_"), inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, float(value)


def _texts(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _texts(f"{prefix}.{name}".lstrip("."), inner)
    else:
        yield prefix, str(value)


def _model_name(role: str, snapshot: str) -> str:
    """A name MLflow takes; the snapshot itself is in the tags."""
    return f"{role}-" + re.sub(r"[^\w-]+", "-", snapshot)[:32]


def _quoted(text: str) -> str:
    return text.replace("'", "")
