"""One generation: generate -> filter -> train -> evaluate -> publish, as a Prefect flow.

Every stage is idempotent under its fingerprint, so the same flow starts a generation and goes on with one that was cut
off. The caller holds the registry's lock.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows import display, stages, stop
from flows.progress import Step, Tracker
from flywheel import __version__
from flywheel import params as parameters
from flywheel.models import language
from storage import history, ledger, prepare, publish, tracking
from storage.registry import Registry
from tasks import generate, train
from tasks.stage import Report, sources_digest

WORK = ("generate", "train", "evaluate")
"""Stages that are the point; the time of all else is overhead."""


@flow(name="generation", flow_run_name="{name}", validate_parameters=False)
def generation(name: str, registry: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Make, or finish, the registry's next generation with this recipe; its row of `history`, with `seconds` by stage.

    `name` is for people only. Raises Interrupted on a stop request; calling again goes on from there.
    """
    start = time.monotonic()
    opened = Registry.open(Path(registry))
    layout, tracker = opened.layout, Tracker(opened.layout)
    wanted = parameters.parse(recipe)
    params = prepare.begin(
        opened,
        wanted,
        make_base=lambda folder: train.make_base(wanted, folder),
        external_teacher=lambda source: (language.load(source, "cpu").snapshot, True),
        solver_snapshot=generate.solver_snapshot(wanted),
    )
    reports = [
        stages.run_whole("problems", layout, params, tracker),
        stages.run_sharded("generate", layout, params, tracker),
        stages.run_whole("filter", layout, params, tracker),
        stages.run_whole("train", layout, params, tracker),
        stages.run_sharded("evaluate", layout, params, tracker),
    ]
    stop.check()
    worked = {report.stage: report.seconds for report in reports if report.stage in WORK and not report.reused}
    overhead = time.monotonic() - start - sum(worked.values())
    ledger.record(layout, Report("overhead", params.generation, seconds=overhead).ledger_row())
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
    )
    row = next(row for row in history.history(opened) if row["generation"] == params.generation)
    row["seconds"] = {**worked, "total": time.monotonic() - start}
    row["kept"] = next(report.notes for report in reports if report.stage == "filter")["kept"]
    create_markdown_artifact(display.markdown([row]), key=f"generation-{params.generation}", description=tag)
    tracker.published(row)
    return row


def code_revision() -> str:
    """Version, and digest of the sources that decide what a generation holds."""
    return f"{__version__}+sources.{sources_digest('flywheel', 'storage', 'tasks')[:12]}"
