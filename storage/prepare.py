"""Before a generation runs: its number, the model it starts from, and the lineage it is told of.

Every step can be killed and called again. What is decided stands in `.flywheel/state.json` before anything is written,
so that a generation cut off anywhere goes on under its number and its run id.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flywheel.errors import ConfigError, FlywheelError, RegistryBusy, RegistryError
from flywheel.params import Params, dump, folder_name
from flywheel.records import digest
from storage import cache, dvc, exclusions, git, judge, lock, recipes, remotes
from storage.history import published, published_many, window
from storage.layout import SUPERVISED, tag_name
from storage.registry import SHARED, ignored_lines, json_text, read_state, write_state
from storage.tables import replace_folder, replace_text

if TYPE_CHECKING:
    from storage.registry import Registry


def begin(
    registry: Registry,
    params: Params,
    make_base: Callable[[Path], str],
    external_teacher: Callable[[str], tuple[str, bool]],
    solver_snapshot: str,
) -> Params:
    """Ready the worktree for the next generation, or for the one that was cut off; the params that it must run with.

    `make_base(folder)` writes the base model into the empty `folder` and returns its snapshot digest; called for
    generation 0 only. `external_teacher(source)` returns (snapshot digest, verified) of `generate.teacher`.
    An unfinished generation goes on with its number, run id and finished work if the recipe is the same (`execution`
    and `campaign` apart); if the recipe changed it starts over under the same number. Raises RegistryBusy for tracked
    files edited by hand, RegistryError where an ancestor's objects cannot be had.
    """
    with lock.ensure(registry, "prepare a generation"):
        registry.check_clean()
        registry.require_newest_version()
        parent = registry.head_generation()
        params = params.for_generation(registry.next_generation(), parent)
        before = published(registry, parent) if parent is not None else None
        out = exclusions.read(registry)
        _require_same_ground(registry, params)
        # All that can be refused comes before anything is dropped or written.
        if parent is not None and before is not None:
            exclusions.require_clean(out, parent, before)
        documents = {
            "judge": judge.choose(registry, params, exclusions.models(out)),
            "teacher": _teacher(params, before, external_teacher, solver_snapshot),
            "champion": _champion(registry, before),
            "window": _window(registry, params, out),
            "tried": _tried(registry, params),
        }
        _require_not_excluded(documents["teacher"], out)
        entry = _decide(registry, params)
        entry = _place_recipe(registry, entry, params, documents["judge"] is not None)
        _place_parent(registry, entry, before, make_base)
        judge.place(registry, documents["judge"])
        _write(registry.layout.params, dump(params))
        for name, document in documents.items():
            path = registry.layout.lineage / f"{name}.json"
            if document is None:
                path.unlink(missing_ok=True)
            else:
                _write(path, json_text(document))
        return params


def unfinished(registry: Registry) -> dict[str, Any] | None:
    """The generation in progress: {"generation", "parent", "run", "recipe"}; None if the last one was published."""
    entry = read_state(registry).get("unfinished")
    if not isinstance(entry, dict) or entry["generation"] in registry.generations():
        return None
    return entry


def _require_same_ground(registry: Registry, params: Params) -> None:
    """Raise ConfigError if `problems` or `model` are not those of the generation before: students could neither be
    compared nor go on from one another."""
    if params.parent is None:
        return
    text = git.read_many(registry.root, [f"{tag_name(params.parent)}:params.yaml"])[0]
    held = yaml.safe_load(text or b"") or {}
    wanted, default = params.model_dump(mode="json"), type(params)().model_dump(mode="json")
    # What an earlier version did not know of was as it is by default.
    before = {section: {**default[section], **held.get(section, {})} for section in ("problems", "model")}
    changed = [
        f"{section}.{key}: got {value!r}, but {tag_name(params.parent)} was made with {before[section][key]!r}; "
        "it is fixed for the life of a registry, make another with `flywheel init`"
        for section in ("problems", "model")
        for key, value in wanted[section].items()
        if before[section][key] != value
    ]
    if changed:
        raise ConfigError(changed, "the recipe")


def _decide(registry: Registry, params: Params) -> dict[str, Any]:
    parent = registry.head_generation()
    number = registry.next_generation()
    if parent is None and number > 0:
        raise RegistryBusy(
            f"conflict: HEAD of {registry.root} holds no generation, although {tag_name(number - 1)} was published; "
            f"return to the newest commit of the branch (`git -C {registry.root} reflog` lists where it stood)"
        )
    recipe = digest(params.model_dump(mode="json", exclude={"execution", "campaign", "generation", "folder", "parent"}))
    entry = unfinished(registry)
    if entry and (entry["generation"], entry["parent"], entry["recipe"]) == (number, parent, recipe):
        return entry
    if registry.layout.work(number).exists():
        shutil.rmtree(registry.layout.work(number))
    # What the recipe before wrote may still lie there.
    wrote = {"wrote": entry["wrote"]} if entry and "wrote" in entry else {}
    entry = {"generation": number, "parent": parent, "run": uuid.uuid4().hex, "recipe": recipe, **wrote}
    write_state(registry, unfinished=entry)
    return entry


def _place_recipe(registry: Registry, entry: dict[str, Any], params: Params, judged: bool) -> dict[str, Any]:
    """Write dvc.yaml anew where process supervision or learning from pairs was switched on or off, or a judge came or
    went; else it stays as it was committed, edits of the user's included. The entry, with what was written noted."""
    committed = git.read_many(registry.root, ["HEAD:dvc.yaml", "HEAD:.gitignore"])
    held, ignored = ((text or b"").decode() for text in committed)
    recipe = recipes.recipe_text(params, judged)
    if recipes.wiring(held) == recipes.wiring(recipe):
        recipe = held
    # A registry made before there was process supervision does not ignore its folders.
    wanted = [*(SUPERVISED if params.supervise.enabled else ()), *(["judge"] if judged else [])]
    added = ignored_lines(name for name in wanted if f"/{name}/" not in ignored.splitlines())
    written = dict(zip(SHARED, (recipe, ignored + added), strict=True))
    marks = [hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for text in written.values()]
    if (recipe, added) != (held, "") or entry.get("wrote"):
        entry = {**entry, "wrote": sorted({*entry.get("wrote", []), *marks})}
        write_state(registry, unfinished=entry)
    for name, text in written.items():
        _write(registry.root / name, text)
    recorded = registry.root / "dvc.lock"
    if recorded.exists():
        text = recorded.read_text(encoding="utf-8")
        _write(recorded, cache.without_stages(text, recipes.stages_of(recipe)))
    if not params.supervise.enabled:
        for name in SUPERVISED:
            shutil.rmtree(registry.root / name, ignore_errors=True)
    return entry


def _place_parent(
    registry: Registry, entry: dict[str, Any], before: dict[str, Any] | None, make_base: Callable[[Path], str]
) -> None:
    layout = registry.layout
    pointer = registry.root / "parent.dvc"
    if before is None:
        ready = entry.get("base") and pointer.exists()
        if ready and cache.holds(registry, layout.parent, cache.pointed(pointer.read_text(encoding="utf-8"))):
            return
        draft = layout.tmp / f"base-{uuid.uuid4().hex[:8]}"
        draft.mkdir(parents=True)
        snapshot = make_base(draft)
        if not any(draft.iterdir()):
            raise FlywheelError(f"the base model {snapshot} has no files in {draft}; expected weights and a config")
        replace_folder(draft, layout.parent, layout.tmp)
        dvc.add(registry, "parent")
        write_state(registry, unfinished={**entry, "base": snapshot})
        return
    champion = int(before["champion"]["generation"])
    student = _student(registry, champion)
    _write(pointer, cache.pointer_text(student, "parent"))
    remotes.bring(
        registry, [student.md5], f"the student of {tag_name(champion)}, from which the next generation starts,"
    )
    if not cache.holds(registry, layout.parent, student):
        dvc.checkout(registry, "parent.dvc")


def _require_files(registry: Registry, files: list[dict[str, Any]], what: str = "the window's labels") -> None:
    """Bring older tables of which an object is not in the cache; raise RegistryError if they cannot be had."""
    remotes.bring(registry, [file["md5"] for file in files], f"{what}, tables of older generations,")


def _student(registry: Registry, generation: int) -> cache.Output:
    text = git.read_many(registry.root, [f"{tag_name(generation)}:dvc.lock"])[0]
    if text is None:
        raise RegistryError(f"{tag_name(generation)} holds no dvc.lock; the tag was not made by Flywheel")
    return cache.lock_outputs(text.decode())["student"]


def _teacher(
    params: Params,
    before: dict[str, Any] | None,
    external_teacher: Callable[[str], tuple[str, bool]],
    solver_snapshot: str,
) -> dict[str, Any]:
    if before is None:
        return _teacher_document("solver", solver_snapshot, None, "solver", True)
    if params.generate.teacher == "champion":
        champion = before["champion"]
        source = f"{tag_name(champion['generation'])}/student"
        return _teacher_document("champion", champion["snapshot"], champion["generation"], source, True)
    snapshot, verified = external_teacher(params.generate.teacher)
    return _teacher_document("external", snapshot, None, params.generate.teacher, verified)


def _teacher_document(kind: str, snapshot: str, generation: int | None, source: str, verified: bool) -> dict[str, Any]:
    return {"kind": kind, "snapshot": snapshot, "generation": generation, "source": source, "verified": verified}


def _require_not_excluded(teacher: dict[str, Any] | None, out: list[exclusions.Exclusion]) -> None:
    assert teacher is not None
    if entry := next((entry for entry in out if teacher["snapshot"] in entry.models), None):
        raise ConfigError(
            [
                f"generate.teacher: {teacher['source']} is model/{teacher['snapshot'][:12]}, which is excluded "
                f"({entry.reason}); name another, or take the exclusion back with `flywheel undo`"
            ],
            "the recipe",
        )


def _champion(registry: Registry, before: dict[str, Any] | None) -> dict[str, Any]:
    """The champion, what it reached on valid and, from its table `outcomes`, which valid problems it solves at once."""
    if before is None:
        return {"generation": None, "snapshot": None, "valid_greedy": {}, "metrics": None}
    import pyarrow.parquet as pq

    champion = before["champion"]
    solved: dict[str, float] = {}
    files = published(registry, champion["generation"])["tables"]["outcomes"]["files"]
    _require_files(registry, files, "what the champion solved")
    for file in files:
        path = cache.cache_path(registry, file["md5"])
        columns = ["problem_id", "split", "metric", "value", "snapshot"]
        rows = pq.read_table(path, columns=columns, partitioning=None).to_pylist()
        for row in rows:
            if (row["metric"], row["split"], row["snapshot"]) == ("greedy", "valid", champion["snapshot"]):
                solved[row["problem_id"]] = row["value"]
    text = git.read_many(registry.root, [f"{tag_name(champion['generation'])}:metrics.json"])[0]
    metrics = json.loads(text) if text is not None else {}
    return {
        "generation": champion["generation"],
        "snapshot": champion["snapshot"],
        "valid_greedy": solved,
        "metrics": {name: metrics[name] for name in ("valid", "collapse", "elo") if name in metrics},
    }


def _window(registry: Registry, params: Params, out: list[exclusions.Exclusion]) -> dict[str, Any]:
    """Labels tables of the generations before this one that its student may learn from, oldest first, and the models
    whose labels in them it may not."""
    older = window(registry, params.parent) if params.parent is not None else []
    older = sorted([*older, *exclusions.kept(exclusions.applying(out, older), older)])
    facts, bad = published_many(registry, older), exclusions.models(out)
    older = [number for number in older if exclusions.judged_by(facts[number]) not in bad]
    if params.filter.window is not None:
        older = older[len(older) - min(len(older), params.filter.window - 1) :]
    rows = [
        {
            "generation": number,
            "folder": folder_name(number),
            "files": tables["labels"]["files"],
            # What a label of a board game teaches stands in a table of its own.
            **({"targets": tables["targets"]["files"]} if "targets" in tables else {}),
        }
        for number in older
        for tables in [facts[number]["tables"]]
    ]
    _require_files(registry, [file for row in rows for name in ("files", "targets") for file in row.get(name, [])])
    excluded = {"excluded": sorted(exclusions.models(out))} if out else {}
    return {"generations": rows, **excluded}


def _tried(registry: Registry, params: Params) -> dict[str, Any]:
    """Attempts tables of all generations on the line after the seed, where a generation's problems are chosen by what
    became of them before (`generate.solved_share`); none where they are not."""
    line = window(registry, params.parent) if params.parent is not None else []
    older = [number for number in line if number > 0] if params.generate.solved_share is not None else []
    lineages = published_many(registry, older)
    tables = {number: lineages[number]["tables"]["attempts"]["files"] for number in older}
    _require_files(registry, [file for files in tables.values() for file in files], "what was tried")
    return {"generations": [{"generation": number, "files": files} for number, files in tables.items()]}


def _write(path: Path, text: str) -> None:
    """Replace a file unless it says so already: an untouched file keeps its time stamp, and DVC its digest."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        replace_text(path, text)
