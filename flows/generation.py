"""One generation: generate -> filter -> train -> (supervise) -> evaluate -> publish, as a Prefect flow.

Every stage is idempotent under its fingerprint, so the same flow starts a generation and goes on with one that was cut
off. The caller holds the registry's lock.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows import display, stages, stop
from flows.progress import Step, Tracker
from flywheel import params as parameters
from flywheel.params import Params
from storage import history, ledger, openlineage, prepare, publish, tracking
from storage.layout import Layout, tag_name
from storage.registry import Registry
from storage.tables import replace_text
from tasks import generate, models, train
from tasks.stage import Report, code_revision

_RUN = {
    "generate": stages.run_sharded,
    "supervise": stages.run_sharded_then_whole,
    "evaluate": stages.run_sharded,
}
"""How stages are run that are cut into shards."""


@flow(name="generation", flow_run_name="{name}", validate_parameters=False)
def generation(name: str, registry: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Make, or finish, the registry's next generation with this recipe; its row of `history`, with `seconds` by stage.

    `name` is for people only. Raises Interrupted on a stop request; calling again goes on from there.
    """
    start = time.monotonic()
    opened = Registry.open(Path(registry))
    layout, tracker = opened.layout, Tracker(opened.layout)
    wanted = parameters.parse(recipe)
    generate.check(wanted)
    params = prepare.begin(
        opened,
        wanted,
        make_base=lambda folder: train.make_base(wanted, folder),
        external_teacher=lambda source: models.identify_teacher(wanted),
        solver_snapshot=generate.solver_snapshot(wanted),
    )
    reports, worked = {}, {}
    supervise = ("supervise",) if params.supervise.enabled else ()
    for stage in ("problems", "generate", "filter", "train", *supervise, "evaluate"):
        began = time.monotonic()
        reports[stage] = _RUN.get(stage, stages.run_whole)(stage, layout, params, tracker)
        if stage in ledger.WORK:
            worked[stage] = time.monotonic() - began
    stop.check()
    overhead = time.monotonic() - start - sum(worked.values())
    waited = sum(waiting(stage, params, seconds, reports[stage].seconds) for stage, seconds in worked.items())
    ledger.record(layout, Report("overhead", params.generation, seconds=overhead + waited).ledger_row())
    _record_publishing(layout, params.generation)
    tracker.step(Step(params.generation, "publish"))
    run = str((prepare.unfinished(opened) or {}).get("run", ""))
    tag = publish.publish(opened, params, code_revision())
    seconds = time.monotonic() - start
    tracking.record_or_queue(
        layout,
        history.published(opened, params.generation),
        display.read_json(layout.metrics),
        params.model_dump(mode="json"),
        run,
        tag,
        flow_run.id,
        seconds,
        publish.tag_object(opened, params.generation),
    )
    _tell_openlineage(opened, params, tracker)
    row = next(row for row in history.history(opened) if row["generation"] == params.generation)
    row["seconds"] = {**worked, "total": time.monotonic() - start}
    create_markdown_artifact(display.markdown([row]), key=f"generation-{params.generation}", description=tag)
    tracker.published(row)
    told = {"generation": params.generation, "seconds": time.monotonic() - start - sum(worked.values()) - overhead}
    replace_text(layout.local / "publishing.json", json.dumps(told))
    row["seconds"]["total"] = time.monotonic() - start
    return row


def waiting(stage: str, params: Params, elapsed: float, seconds: float) -> float:
    """What a stage's processes took beyond their units (`seconds`, of all of them): to start, and to wait for the
    slowest. None where an earlier run had done the units."""
    execution, processes = params.execution, 1
    if stage == "train":
        processes = execution.training_processes
    elif execution.runner == "processes" and _RUN.get(stage) is stages.run_sharded:
        processes = min(execution.workers, execution.shards)
    return max(0.0, processes * elapsed - seconds)


def _tell_openlineage(opened: Registry, params: Params, tracker: Tracker) -> None:
    """Events are a view, as MLflow's records are: a file that cannot be written stops nothing, and
    `flywheel lineage --openlineage` writes all of them later."""
    if params.execution.openlineage is None:
        return
    path = opened.root / params.execution.openlineage
    try:
        openlineage.emit(opened, params.generation, path)
    except OSError as error:
        tracker.note(f"OpenLineage events were not written to {path} ({error.strerror or error})")


def _record_publishing(layout: Layout, generation: int) -> None:
    """What publishing the generation before took, which its own ledger had to close too early to hold."""
    path = layout.local / "publishing.json"
    if path.exists():
        told = display.read_json(path)
        report = Report("overhead", generation, f"publishing {tag_name(told['generation'])}", seconds=told["seconds"])
        ledger.record(layout, report.ledger_row())
