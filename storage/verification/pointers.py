"""What points into the history from outside it: MLflow's runs and aliases, and what waits in `.flywheel`.

Only generations that were tagged when the verification began are looked at; a registry cloned from elsewhere has no
MLflow database, which is no failure.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flywheel.errors import FlywheelError, RegistryError
from storage import git, lock, mlflow, mlflow_run, tracking
from storage.layout import tag_name
from storage.registry import read_state
from storage.verification.findings import Findings
from storage.verification.generations import Generation
from storage.verification.tags import History, Tag

if TYPE_CHECKING:
    from storage.registry import Registry

_MOVED = "if a clone has the tag that was, fetch it: `git fetch COPY +refs/tags/gen/*:refs/tags/gen/*`"
_RESEND = "`flywheel run` sends what waits; or move the database away, and a new one is made"


def check_state(registry: Registry, tags: dict[int, Tag], findings: Findings) -> set[int]:
    """`.flywheel/state.json` and the queue are sound; generations that a process is about to publish."""
    _check_queue(registry, findings)
    try:
        state = read_state(registry)
    except RegistryError as error:
        findings.fail("pointer", ".flywheel/state.json", str(error), f"remove {registry.layout.state}")
        return set()
    underway: set[int] = set()
    fix = f"`flywheel recover`, or remove {registry.layout.state}: published generations do not need it"
    entry, back, pull = state.get("unfinished"), state.get("rollback"), state.get("pull")
    # Read anew: a run may have published since the tags were read.
    newest = max(registry.generations(), default=-1)
    if entry is not None:
        try:
            number, parent = int(entry["generation"]), entry["parent"]
            underway.add(number)
            if number > newest + 1 or not entry["run"] or not (parent is None or parent in range(number)):
                why = f"it says that gen/{number} from gen/{parent} is in progress; the newest is gen/{newest}"
                findings.fail("pointer", ".flywheel/state.json", why, fix)
        except (KeyError, TypeError, ValueError) as error:
            findings.fail("pointer", ".flywheel/state.json", f"its entry `unfinished` lacks {error!r}", fix)
    if pull is not None:
        findings.note("a pull is under way or was cut off, so the work tree was not looked at; `flywheel pull` ends it")
    if back is not None:
        try:
            known = {int(back["from"]), int(back["to"])} <= set(registry.generations())
            base = git.attempt(registry.root, "rev-parse", "-q", "--verify", f"{back['base']}^{{commit}}")
            if not known or base is None:
                why = f"it says that a rollback from gen/{back['from']} to gen/{back['to']} is under way; there is none"
                findings.fail("pointer", ".flywheel/state.json", why, fix)
            findings.note("a rollback is under way or was cut off; `flywheel recover` ends it")
        except (KeyError, TypeError, ValueError) as error:
            findings.fail("pointer", ".flywheel/state.json", f"its entry `rollback` lacks {error!r}", fix)
    return underway


def _check_queue(registry: Registry, findings: Findings) -> None:
    for folder in ("queue", "runs"):
        for path in sorted((registry.layout.local / folder).glob("*.json")):
            try:
                sound = isinstance(json.loads(path.read_bytes()), dict)
            except FileNotFoundError:  # sent meanwhile
                continue
            except ValueError:
                sound = False
            if not sound:
                where = path.relative_to(registry.root).as_posix()
                findings.fail("pointer", where, "it is no JSON object", "remove it: it only tells MLflow")


def check_mlflow(
    registry: Registry, generations: dict[int, Generation], tags: dict[int, Tag], history: History, findings: Findings
) -> None:
    """Runs hold the tags' ids, aliases name students that there are, `champion` the head's champion."""
    if not mlflow.database(registry.layout).exists():
        findings.note("not anchored by MLflow here: there is no database, so nothing holds the newest tag")
        return
    try:
        client = mlflow.client(registry.layout)
        _check_runs(registry, client, tags, history, findings)
        _check_aliases(registry, client, generations, findings)
    except mlflow.away() as error:
        where = mlflow.database(registry.layout).relative_to(registry.root).as_posix()
        why = f"MLflow's database cannot be read: {str(error).splitlines()[0][:200]}"
        findings.fail("pointer", where, why, "move it away, and a new one is made: git and DVC have what it shows")


def _check_runs(registry: Registry, client: Any, tags: dict[int, Tag], history: History, findings: Findings) -> None:
    experiment = client.get_experiment_by_name(mlflow.EXPERIMENT)
    runs = _all_runs(client, [experiment.experiment_id] if experiment is not None else [])
    # Asked after MLflow: of all that it knows there is a tag by now.
    published = set(registry.generations())
    anchored: set[int] = set()
    newest = max(tags, default=-1)
    for run in runs:
        told = run.data.tags
        number = told.get("Flywheel-Generation", "")
        if not number.isdigit():
            continue
        tag, wanted = tags.get(int(number)), told.get("Flywheel-Tag-Object")
        if tag is None:
            if int(number) not in published:
                why = f"it is gone, although MLflow has run {run.info.run_id} of it"
                findings.fail("tag", tag_name(int(number)), why, _MOVED)
            continue
        trailers = history.trailers.get(tag.commit, {})
        if wanted is not None and wanted != tag.object:
            why = f"it was moved or made anew: its object is {tag.object[:12]}, MLflow holds {wanted[:12]}"
            findings.fail("tag", tag.name, why, _MOVED)
        elif trailers and told.get("Flywheel-Run") != trailers.get("Flywheel-Run"):
            why = f"its commit has run id {trailers.get('Flywheel-Run')}, MLflow {told.get('Flywheel-Run')}"
            findings.fail("tag", tag.name, why, _MOVED)
        elif wanted is not None:
            anchored.add(int(number))
            findings.count("anchors")
    if tags and newest not in anchored and not findings.failed("tag", tag_name(newest)):
        findings.note(f"{tag_name(newest)}, the newest tag, is not anchored: MLflow holds no id of it")


def _all_runs(client: Any, experiments: list[str]) -> list[Any]:
    found: list[Any] = []
    token = None
    while experiments:
        page = client.search_runs(experiments, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return found


def _check_aliases(registry: Registry, client: Any, generations: dict[int, Generation], findings: Findings) -> None:
    models = client.search_registered_models(f"name = '{mlflow_run.MODEL}'", max_results=1)
    for alias, version in (dict(models[0].aliases) if models else {}).items():
        findings.count("aliases")
        told = client.get_model_version(mlflow_run.MODEL, version).tags
        number, snapshot = told.get("generation", ""), told.get("snapshot")
        where = f"alias {alias} of {mlflow_run.MODEL}"
        made = generations.get(int(number)) if number.isdigit() else None
        if made is None:
            if not number.isdigit() or int(number) not in registry.generations():
                why = f"it points at version {version}, of gen/{number}, which there is not"
                findings.fail("pointer", where, why, "move the alias in MLflow, or `flywheel rollback`, which does")
            continue
        if made.lineage["student"]["snapshot"] != snapshot:
            why = f"version {version} has snapshot {snapshot}, the student of {made.name} is another"
            findings.fail("pointer", where, why, "move the database away: git and DVC have what it shows")
        if alias == mlflow_run.ALIAS:
            _check_champion(registry, client, generations, where, findings)


def _check_champion(
    registry: Registry, client: Any, generations: dict[int, Generation], where: str, findings: Findings
) -> None:
    # In this order: a run moves the alias last, and holds the lock until it has.
    is_held = lock.holder(registry) is not None
    try:
        head = registry.head_generation()
    except FlywheelError:  # said elsewhere
        return
    held = str(client.get_model_version_by_alias(mlflow_run.MODEL, mlflow_run.ALIAS).tags.get("snapshot"))
    if head is None or head not in generations:
        return
    wanted = str(generations[head].lineage["champion"]["snapshot"])
    if held == wanted:
        return
    chosen = f"name = '{mlflow_run.MODEL}' AND tags.snapshot = '{wanted}'"
    if tracking.pending(registry.layout) or is_held or lock.holder(registry) is not None:
        findings.note("the alias champion is about to move: what MLflow is to be told waits")
    elif not client.search_model_versions(chosen, max_results=1):
        findings.note(f"MLflow was not told of model/{wanted[:12]}, the champion; the next `flywheel run` tells it")
    else:
        why = f"it points at model/{held[:12]}, the champion at gen/{head} is model/{wanted[:12]}"
        findings.fail("pointer", where, why, _RESEND)
