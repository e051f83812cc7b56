"""What runs, what holds the registry, what is next: the answer to "why is my scheduled run not running?"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows import progress
from flows.state import read_services
from flows.ticks import read_schedule
from storage import lock, prepare
from storage.layout import tag_name
from storage.registry import Registry


@dataclass(frozen=True, slots=True)
class Status:
    """`document` is {state, holder, generation, stage, done, total, published, next, waiting, services}."""

    document: dict[str, Any]
    lines: list[str]


def status(registry: Registry) -> Status:
    """Look at lock, progress, services and queue; takes nothing and changes nothing."""
    holder = lock.holder(registry)
    step = progress.read(registry.layout)
    unfinished = prepare.unfinished(registry)
    head = registry.head_generation()
    services = {name: service.process.alive for name, service in read_services(registry.layout).items()}
    waiting = len(list((registry.layout.local / "queue").glob("*.json")))
    planned = read_schedule(registry.layout)
    if holder is not None:
        state = "running" if step is not None else "held"
    else:
        state = "interrupted" if unfinished is not None else "idle"
    upcoming = planned.next(1)[0] if planned is not None else None
    document = {
        "state": state,
        "holder": holder,
        "generation": step.generation if step and holder else unfinished["generation"] if unfinished else None,
        "stage": step.stage if step and holder else None,
        "done": step.done if step and holder else None,
        "total": step.total if step and holder else None,
        "published": head,
        "next": upcoming,
        "waiting_for_mlflow": waiting,
        "services": services,
    }
    return Status(document, _lines(document, step, planned is not None))


def _lines(document: dict[str, Any], step: progress.Step | None, scheduled: bool) -> list[str]:
    holder, head = document["holder"], document["published"]
    lines = []
    if document["state"] == "running" and step is not None:
        amount = f", {step.done} of {step.total}" if step.total else ""
        lines.append(f"running: generation {step.generation}, {step.stage}{amount}")
    elif document["state"] == "interrupted":
        lines.append(f"interrupted: generation {document['generation']} was cut off; `flywheel run` goes on with it")
    else:
        lines.append("idle" if holder is None else "held: starting, or at something that tells no progress")
    if holder is not None:
        lines.append(f"held by PID {holder['pid']} on {holder['host']} since {holder['since']}: {holder['purpose']}")
    lines.append(
        f"published: {tag_name(head) if head is not None else 'nothing yet; `flywheel run` makes generation 0'}"
    )
    if scheduled:
        serving = document["services"].get("serve", False)
        lines.append(
            f"next scheduled run: {document['next']}"
            if serving
            else "scheduled, but not served: the services do not run; start them with `flywheel up`"
        )
    else:
        lines.append("no schedule")
    if document["waiting_for_mlflow"]:
        lines.append(f"{document['waiting_for_mlflow']} records wait for MLflow; the next run sends them")
    return lines
