"""What was published, read with git alone: a handful of child processes however many generations there are.

Imports neither DVC, MLflow, Prefect nor torch, so that reading commands answer at once. Readers go by tags: a commit
without its tag is not published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flywheel.errors import RegistryError
from flywheel.params import folder_name
from storage import git
from storage.cache import cache_path as cache_path
from storage.changes import changed_params
from storage.layout import tag_name

if TYPE_CHECKING:
    from storage.registry import Registry


@dataclass(frozen=True, slots=True)
class Tagged:
    """A generation's tag: the commit it names and that commit's trailers."""

    generation: int
    parent: int | None
    commit: str
    run: str
    code_revision: str
    object: str
    """The id of the tag itself."""


def tagged(registry: Registry) -> dict[int, Tagged]:
    """Every published generation, in order of number."""
    fields = (
        "refname:short",
        "objectname",
        "*objectname",
        "contents:trailers:only,unfold",
        "*contents:trailers:only,unfold",
    )
    form = "%00".join(f"%({field})" for field in fields) + "%00%01"
    text = git.run(registry.root, "for-each-ref", f"--format={form}", "refs/tags/gen/")
    found = {}
    for record in text.split("\x01"):
        parts = record.strip("\n").split("\0")
        if len(parts) < len(fields) or not parts[0][4:].isdigit():
            continue
        name, own, commit, own_trailers, trailers = parts[: len(fields)]
        # A lightweight tag is the commit itself.
        values = git.parse_trailers(trailers if commit else own_trailers)
        generation = int(name[4:])
        parent = values.get("Flywheel-Parent", "none")
        found[generation] = Tagged(
            generation,
            int(parent) if parent.isdigit() else None,
            commit or own,
            values.get("Flywheel-Run", ""),
            values.get("Code-Revision", ""),
            own,
        )
    return dict(sorted(found.items()))


def history(registry: Registry) -> list[dict[str, Any]]:
    """A row for each published generation, oldest first.

    {generation, tag, parent, status: current|ancestor|abandoned, labels: number kept, teacher: snapshot, student:
    snapshot, metrics: metrics.json, flops by kind, stages: executed FLOPs by stage, mlflow_run, prefect_flow_run,
    reason, why, changed, champion: number, promoted, commit}. `reason` is that of the rollback or exclusion which
    abandoned it, or why it did not become champion, else None; `why` says where it goes on from, `changed` which params
    differ from its parent's: {dotted key: [before, now]}.
    """
    tags = tagged(registry)
    current = registry.head_generation()
    line = set(_chain(tags, current))
    commits = git.commits_with(registry.root, "Flywheel-Generation", "Flywheel-Rollback")[::-1]
    abandoned, origins = _reasons(commits, tags), _origins(commits)
    files = ("metrics.json", "params.yaml")
    names = [f"{tag_name(g)}:{path}" for g in tags for path in (f"lineage/{folder_name(g)}.json", *files)]
    texts = dict(zip(names, git.read_many(registry.root, names), strict=True))
    rows = []
    for generation, tag in tags.items():
        name = tag_name(generation)
        lineage, metrics = (
            _json(path, texts[path])
            for path in (f"{name}:lineage/{folder_name(generation)}.json", f"{name}:metrics.json")
        )
        before = texts[f"{tag_name(tag.parent)}:params.yaml"] if tag.parent is not None else None
        changed = changed_params(before, texts[f"{name}:params.yaml"] or b"") if before is not None else {}
        runs = _runs(registry, generation)
        status = "current" if generation == current else "ancestor" if generation in line else "abandoned"
        rows.append(
            {
                "generation": generation,
                "tag": tag_name(generation),
                "parent": tag.parent,
                "status": status,
                "labels": lineage["labels"]["kept"],
                "teacher": lineage["teacher"]["snapshot"],
                "student": lineage["student"]["snapshot"],
                "metrics": metrics,
                "flops": lineage["flops"],
                "stages": lineage["stages"],
                "mlflow_run": runs.get("mlflow_run"),
                "prefect_flow_run": runs.get("prefect_flow_run"),
                "reason": abandoned.get(generation) if status == "abandoned" else _not_promoted(lineage, metrics),
                "why": _why(tag.parent, origins.get(generation)),
                "changed": changed,
                "champion": lineage["champion"]["generation"],
                "promoted": lineage["champion"]["promoted"],
                "commit": tag.commit,
            }
        )
    return rows


def published(registry: Registry, generation: int) -> dict[str, Any]:
    """A generation's `lineage/NNNN.json` as its tag holds it. Raises RegistryError if there is none."""
    return published_many(registry, [generation])[generation]


def published_many(registry: Registry, generations: list[int]) -> dict[int, dict[str, Any]]:
    """`published` of several, by one git process."""
    names = [f"{tag_name(g)}:lineage/{folder_name(g)}.json" for g in generations]
    texts = git.read_many(registry.root, names)
    return {g: _json(name, text) for g, name, text in zip(generations, names, texts, strict=True)}


def window(registry: Registry, generation: int | None) -> list[int]:
    """The generation with its ancestors, oldest first; None stands for HEAD's; [] before the first."""
    tags = tagged(registry)
    return _chain(tags, registry.head_generation() if generation is None else generation)


def _chain(tags: dict[int, Tagged], generation: int | None) -> list[int]:
    chain: list[int] = []
    while generation is not None:
        if generation not in tags or generation in chain:
            raise RegistryError(
                f"{tag_name(generation)} is named as a parent but no tag says so: it was deleted or moved; "
                "`flywheel verify` says where it stood"
            )
        chain.append(generation)
        generation = tags[generation].parent
    return chain[::-1]


def _reasons(commits: list[git.Commit], tags: dict[int, Tagged]) -> dict[int, str]:
    """Why each generation was left behind: the reason of the newest rollback that left it. `commits`: oldest first."""
    reasons = {}
    for commit in commits:
        if "Flywheel-Rollback" not in commit.trailers:
            continue
        source, target = int(commit.trailers["Flywheel-From"]), int(commit.trailers["Flywheel-Rollback"])
        if source in tags and target in tags:
            left = set(_chain(tags, source)) - set(_chain(tags, target))
            model, reason = commit.trailers.get("Flywheel-Exclude"), commit.trailers.get("Flywheel-Reason", "")
            reasons.update(dict.fromkeys(left, f"model/{model[:12]} excluded: {reason}" if model else reason))
    return reasons


def _origins(commits: list[git.Commit]) -> dict[int, dict[str, str]]:
    """The trailers of the rollback or exclusion right before each generation that there was one before."""
    origins, last = {}, None
    for commit in commits:
        if "Flywheel-Rollback" in commit.trailers:
            last = commit.trailers
        elif commit.trailers["Flywheel-Generation"].isdigit() and last is not None:
            origins[int(commit.trailers["Flywheel-Generation"])] = last
            last = None
    return origins


def _why(parent: int | None, origin: dict[str, str] | None) -> str:
    if parent is None:
        return "the seed"
    on = f"goes on from {tag_name(parent)}"
    if origin is None or int(origin["Flywheel-Rollback"]) != parent:
        return on
    model, reason = origin.get("Flywheel-Exclude"), origin.get("Flywheel-Reason", "")
    if model is not None:
        return f"{on}, model/{model[:12]} being excluded: {reason}"
    if "Flywheel-Undo" in origin:
        return f"{on}, to which {reason} returned"
    return f"{on}, rolled back to from {tag_name(int(origin['Flywheel-From']))}: {reason}"


def _not_promoted(lineage: dict[str, Any], metrics: dict[str, Any]) -> str | None:
    champion = lineage["champion"]
    if champion["promoted"]:
        return None
    if "elo" in metrics:  # of a game, where matches decide
        return f"not promoted: {metrics['champion']['reason']}"
    difference = (metrics.get("champion") or {}).get("difference") or {}
    by = f" by {-difference['value']:.3f}" if isinstance(difference.get("value"), float) else ""
    return f"not promoted: worse{by} on valid than {tag_name(champion['generation'])}"


def _runs(registry: Registry, generation: int) -> dict[str, Any]:
    path = registry.layout.local / "runs" / f"{folder_name(generation)}.json"
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # made on another machine
        return {}
    except ValueError as error:
        raise RegistryError(f"{path} is damaged ({error}); remove it: it only names tracking runs") from error
    return runs if isinstance(runs, dict) else {}


def _json(name: str, text: bytes | None) -> dict[str, Any]:
    if text is None:
        raise RegistryError(f"git has no {name}; the tag was not made by Flywheel or its commit is damaged")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RegistryError(f"{name} is not JSON ({error}); its commit is damaged") from error
    if not isinstance(value, dict):
        raise RegistryError(f"{name}: got {type(value).__name__}, expected an object; its commit is damaged")
    return value
