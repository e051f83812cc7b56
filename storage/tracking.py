"""When MLflow is told: after a generation is published, at once or later.

MLflow is a view. A generation is published without it, and a store that is away, locked or refuses stops nothing: the
record waits as JSON in `.flywheel/queue` and is sent, oldest first, before the next one. `pending` and the queue need
no MLflow.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from flywheel.errors import FlywheelError, RegistryError
from flywheel.params import folder_name
from storage import mlflow, mlflow_run
from storage.layout import Layout
from storage.tables import replace_text

initialise = mlflow.initialise
warm_up = mlflow.warm_up
store_uri = mlflow.store_uri

_QUEUED = re.compile(r"(\d{4,})(-alias)?\.json")
_log = logging.getLogger("flywheel.tracking")


def record(
    layout: Layout,
    published: dict[str, Any],
    metrics: dict[str, Any],
    params: dict[str, Any],
    run: str,
    tag: str,
    prefect_flow_run: str | None,
    seconds: float,
    tag_object: str = "",
) -> str:
    """Record a published generation; the id of its MLflow run. Doing it twice makes one run.

    `published` is lineage/NNNN.json; `metrics` is metrics.json or any nesting of numbers (`valid/greedy`); `params` are
    flattened to dotted keys; `run` is the commit's Flywheel-Run; `seconds` the generation's wall time; `tag_object`
    the id of the tag itself, by which a tag moved later is found. A metric's `@` becomes `_at_` (`test/best_at_16`):
    MLflow refuses `@`. Raises MLflow's, SQLAlchemy's and the system's errors.
    """
    client = mlflow.writable_client(layout)
    told = (published, metrics, params, run, tag, prefect_flow_run, seconds, tag_object)
    run_id = mlflow_run.log_generation(client, *told)
    _note(layout, int(published["generation"]), run_id, prefect_flow_run, seconds)
    return run_id


def queue(
    layout: Layout,
    published: dict[str, Any],
    metrics: dict[str, Any],
    params: dict[str, Any],
    run: str,
    tag: str,
    prefect_flow_run: str | None,
    seconds: float,
    tag_object: str = "",
) -> None:
    """Keep what `record` would be told in .flywheel/queue/NNNN.json."""
    generation = int(published["generation"])
    body = {
        "published": published,
        "metrics": metrics,
        "params": params,
        "run": run,
        "tag": tag,
        "prefect_flow_run": prefect_flow_run,
        "seconds": seconds,
        "tag_object": tag_object,
    }
    replace_text(_queue(layout) / f"{folder_name(generation)}.json", json.dumps(body) + "\n")
    _note(layout, generation, None, prefect_flow_run, seconds)


def record_or_queue(
    layout: Layout,
    published: dict[str, Any],
    metrics: dict[str, Any],
    params: dict[str, Any],
    run: str,
    tag: str,
    prefect_flow_run: str | None,
    seconds: float,
    tag_object: str = "",
) -> str | None:
    """Send what waits, then record; None if the store could not take it, so that it waits in the queue now."""
    told = (published, metrics, params, run, tag, prefect_flow_run, seconds, tag_object)
    send_queued(layout)
    if pending(layout):  # the store is still away, and order matters: the alias goes to the last champion
        queue(layout, *told)
        return None
    try:
        return record(layout, *told)
    except mlflow.away() as error:
        _log.warning("MLflow took no record of %s, it waits in %s: %s", tag, _queue(layout), _short(error))
        queue(layout, *told)
        return None


def send_queued(layout: Layout) -> list[int]:
    """Send what waits, oldest first, up to the first the store does not take; the generations that went.

    Raises RegistryError for a damaged file.
    """
    sent = []
    for path, generation, is_alias in _waiting(layout):
        body = _read(path)
        try:
            if is_alias:
                mlflow_run.move_alias(mlflow.writable_client(layout), body["snapshot"])
            else:
                record(layout, **body)
                sent.append(generation)
        except mlflow.away() as error:
            _log.warning("MLflow does not take what waits in %s: %s", _queue(layout), _short(error))
            break
        path.unlink()
    return sent


def set_alias(layout: Layout, snapshot: str) -> bool:
    """Point `champion` at the version with this snapshot, after a rollback. False if it waits in the queue now.

    A snapshot without a version (its record was lost with the database) leaves the alias and logs a warning.
    """
    send_queued(layout)
    if not pending(layout):
        try:
            mlflow_run.move_alias(mlflow.writable_client(layout), snapshot)
            return True
        except mlflow.away() as error:
            _log.warning("MLflow did not move its alias, that waits in %s: %s", _queue(layout), _short(error))
    queue_alias(layout, snapshot)
    return False


def queue_alias(layout: Layout, snapshot: str) -> None:
    """Let the alias move when what waits is sent: after the records of every generation there is, before those to
    come."""
    names = [path.stem for folder in ("runs", "queue") for path in (layout.local / folder).glob("[0-9]*.json")]
    newest = max((int(name.removesuffix("-alias")) for name in names), default=0)
    replace_text(_queue(layout) / f"{folder_name(newest)}-alias.json", json.dumps({"snapshot": snapshot}) + "\n")


def require_database(layout: Layout) -> None:
    """`initialise` for a service that cannot do without. Raises FlywheelError if there is no usable database then."""
    try:
        mlflow.writable_client(layout)
    except mlflow.away() as error:
        raise FlywheelError(
            f"MLflow's database {mlflow.database(layout)} cannot be used ({_short(error)}); "
            "move it away and a new one is made: what it showed is in git and DVC too"
        ) from error


def pending(layout: Layout) -> int:
    """How many records and alias moves wait to be sent."""
    return len(_waiting(layout))


def _queue(layout: Layout) -> Path:
    return layout.local / "queue"


def _waiting(layout: Layout) -> list[tuple[Path, int, bool]]:
    """Files that wait, with generation and whether it is an alias move, in the order they must be sent."""
    found = []
    for path in _queue(layout).glob("*.json"):
        match = _QUEUED.fullmatch(path.name)
        if match:
            found.append((path, int(match[1]), match[2] is not None))
    return sorted(found, key=lambda entry: entry[1:])


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RegistryError(
            f"{path} is damaged ({error}); remove it: the generation itself is in git and DVC"
        ) from error
    if not isinstance(body, dict):
        raise RegistryError(f"{path}: got {type(body).__name__}, expected an object; remove it")
    return body


def _note(layout: Layout, generation: int, mlflow_id: str | None, prefect_flow_run: str | None, seconds: float) -> None:
    """.flywheel/runs/NNNN.json, which `history` shows; without an MLflow run while the record waits."""
    body = {"mlflow_run": mlflow_id, "prefect_flow_run": prefect_flow_run, "seconds": seconds}
    replace_text(layout.local / "runs" / f"{folder_name(generation)}.json", json.dumps(body) + "\n")


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
