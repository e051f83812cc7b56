"""Going back to a published generation, leaving a bad model behind, and undoing either. Nothing is deleted and no
number is used again.

A rollback is a new commit with the target's recorded files (the ledger stays: spent is spent); the worktree's folders
follow. What is intended stands in `.flywheel/state.json` from before the first change to after the last, so that a
kill in between is finished or undone by `storage.recovery`. After a rollback from 7 to 4 the next generation is 8 with
parent 4. An exclusion is a rollback to the newest generation that is clean of a model, and an entry in
`exclusions.json` by which later windows keep the clean labels and leave out the others (`storage.exclusions`).
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from flywheel.errors import FlywheelError, InputError, StorageFull
from storage import cache, dvc, exclusions, git, lock, mlflow, remotes, tracking
from storage.addresses import Address, resolve
from storage.contents import POINTERS
from storage.history import published, published_many, window
from storage.layout import SUPERVISED, tag_name
from storage.registry import read_state, recorded_paths, require_generation, write_state
from storage.tables import replace_text

if TYPE_CHECKING:
    from storage.registry import Registry


def plan(registry: Registry, generation: int) -> dict[str, Any]:
    """What `rollback` to `generation` would do; changes nothing.

    {"from", "to": generations, "rows_dropped", "rows_kept": label rows that later students no longer or still learn
    from, "models_abandoned": snapshots, "alias": {"from", "to"}: the champion's generation, "bytes_to_fetch",
    "unfinished": a generation in progress whose work would be dropped, or None, "undo": the command that takes it
    back}. Raises InputError for a generation that was never published or is the current one.
    """
    current = registry.head_generation()
    tag = require_generation(registry, generation)
    if current is None or current == generation:
        raise InputError(f"the registry already stands at {tag}; name an earlier generation to go back to")
    return _plan(registry, current, generation)


def _plan(registry: Registry, current: int, generation: int) -> dict[str, Any]:
    tag = tag_name(generation)
    old, new = window(registry, current), window(registry, generation)
    lineages = published_many(registry, sorted({*old, *new}))
    dropped = [number for number in old if number not in new]
    entry = read_state(registry).get("unfinished")
    absent = cache.missing(registry, _outputs(registry, tag))
    return {
        "from": current,
        "to": generation,
        "rows_dropped": sum(lineages[number]["labels"]["kept"] for number in dropped),
        "rows_kept": sum(lineages[number]["labels"]["kept"] for number in new),
        "models_abandoned": [
            lineages[number][role]["snapshot"]
            for number in dropped
            for role in ("student", "reward_model")
            if role in lineages[number]
        ],
        "alias": {
            "from": lineages[current]["champion"]["generation"],
            "to": lineages[generation]["champion"]["generation"],
        },
        "bytes_to_fetch": sum(output.size for output in absent),
        "unfinished": entry["generation"] if entry else None,
        "undo": "flywheel undo",
    }


def rollback(registry: Registry, generation: int, reason: str) -> dict[str, Any]:
    """Go back to `generation`; what `plan` says, with "reason" and "commit".

    Raises InputError as `plan` does and for an empty reason, RegistryBusy for files edited by hand, FlywheelError if
    objects of the target can neither be found nor fetched. A generation in progress is dropped.
    """
    with lock.ensure(registry, f"roll back to {tag_name(generation)}"):
        _ready(registry, reason)
        planned = plan(registry, generation)
        exclusions.require_clean_line(registry, exclusions.read(registry), generation)
        return _go(registry, planned, reason, {})


def plan_exclusion(registry: Registry, model: str, reason: str = "") -> dict[str, Any]:
    """What `exclude` would do; changes nothing.

    As `plan`, with "model", "models_excluded": it and all that came of it, "rows_dropped" and "rows_kept": label rows
    that later students may no longer or still learn from, "labels_kept": generations that are left and whose clean
    labels stay. Raises InputError for a model that no generation made or used, that is excluded already, or that
    leaves no clean generation.
    """
    return _plan_exclusion(registry, model, reason)[1]


def exclude(registry: Registry, model: str, reason: str) -> dict[str, Any]:
    """Put the labels that `model` (a digest or a unique prefix) made, and all that came of them, out of every later
    generation, and go back to the newest clean one; what `plan_exclusion` says, with "reason" and "commit".

    Raises as `plan_exclusion` and `rollback` do.
    """
    with lock.ensure(registry, f"exclude model/{model[:12]}"):
        _ready(registry, reason)
        entry, planned = _plan_exclusion(registry, model, reason)
        entries = [*exclusions.read(registry), entry]
        return _go(registry, planned, reason, {"Flywheel-Exclude": entry.model}, exclusions.text(entries))


def _plan_exclusion(registry: Registry, model: str, reason: str) -> tuple[exclusions.Exclusion, dict[str, Any]]:
    digest = resolve(registry, Address("model", None, model)).digest
    assert digest is not None
    if held := next((held for held in exclusions.read(registry) if digest in held.models), None):
        raise InputError(f"model/{digest[:12]} is excluded already, with model/{held.model[:12]}: {held.reason}")
    entry, rows = exclusions.find(registry, digest, reason)
    planned = {
        **_plan(registry, entry.source, entry.to),
        "model": digest,
        "models_excluded": list(entry.models),
        "rows_dropped": rows["dropped"],
        "rows_kept": rows["kept"],
        "labels_kept": list(entry.labels_kept),
    }
    return entry, planned


def undo(registry: Registry) -> dict[str, Any]:
    """Take the last rollback or exclusion back: return to the generation that it left; as `rollback`. Each is undone
    at most once.

    Raises InputError where there is nothing to undo.
    """
    with lock.ensure(registry, "undo"):
        undone = set()
        for commit in git.commits_with(registry.root, "Flywheel-Rollback"):
            if "Flywheel-Undo" in commit.trailers:
                undone.add(commit.trailers["Flywheel-Undo"])
            elif commit.sha not in undone:
                return _take_back(registry, commit)
    raise InputError("there is nothing to undo: no rollback was made since the last one was undone")


def _take_back(registry: Registry, commit: git.Commit) -> dict[str, Any]:
    target, model = commit.trailers["Flywheel-Rollback"], commit.trailers.get("Flywheel-Exclude")
    what = f"rollback to {tag_name(int(target))}" if model is None else f"exclusion of model/{model[:12]}"
    reason = f"undo of the {what}"
    _ready(registry, reason)
    current, source = registry.head_generation(), int(commit.trailers["Flywheel-From"])
    assert current is not None
    if current != source:
        planned = plan(registry, source)
    elif model is not None:
        planned = _plan(registry, current, source)
    else:
        raise InputError(f"the registry already stands at {tag_name(source)}, which the last rollback left")
    text = None
    if model is not None:
        # Later ones were undone before, so the file is what it was before this one.
        before = git.read_many(registry.root, [f"{commit.sha}^:{exclusions.FILE}"])[0]
        text = (before or exclusions.text([]).encode()).decode()
    return _go(registry, planned, reason, {"Flywheel-Undo": commit.sha}, text)


def settle(registry: Registry) -> str | None:
    """Finish a rollback that was cut off, if its commit exists, else take back what it had begun; what was done."""
    intent = read_state(registry).get("rollback")
    if intent is None:
        return None
    tag = tag_name(int(intent["to"]))
    if git.attempt(registry.root, "rev-parse", "-q", "--verify", "HEAD^") == intent["base"]:
        # Whoever ends this, now or after a kill, finds that the alias is to follow.
        champion = published(registry, int(intent["to"]))["champion"]
        if mlflow.database(registry.layout).exists():
            tracking.queue_alias(registry.layout, champion["snapshot"])
        _checkout(registry)
        write_state(registry, rollback=None)
        return f"finished the rollback to {tag}"
    _restore(registry, "HEAD")
    _restore_exclusions(registry)
    write_state(registry, rollback=None)
    return f"took back a rollback to {tag} that was cut off before its commit; ask for it again"


def _ready(registry: Registry, reason: str) -> None:
    if not reason.strip():
        raise InputError("got an empty reason; say why, history keeps it (--reason TEXT)")
    from storage.recovery import recover

    registry.require_newest_version()
    recover(registry)
    registry.check_clean()


def _go(
    registry: Registry, planned: dict[str, Any], reason: str, trailers: dict[str, str], excluded: str | None = None
) -> dict[str, Any]:
    """Carry out a plan: `trailers` and the text of exclusions.json are what sets an exclusion and an undo apart."""
    generation = planned["to"]
    _bring(registry, planned)
    base = git.run(registry.root, "rev-parse", "HEAD")
    write_state(registry, unfinished=None, rollback={"from": planned["from"], "to": generation, "base": base})
    if planned["unfinished"] is not None:
        shutil.rmtree(registry.layout.work(planned["unfinished"]), ignore_errors=True)
    _restore(registry, tag_name(generation))
    if excluded is not None:
        replace_text(registry.root / exclusions.FILE, excluded)
        git.run(registry.root, "add", "--", exclusions.FILE)
    named = {
        "Flywheel-Rollback": str(generation),
        "Flywheel-From": str(planned["from"]),
        "Flywheel-Reason": reason,
        **trailers,
    }
    text = git.message(f"Roll back to generation {generation}", named)
    git.run(registry.root, "commit", "-q", "--allow-empty", "--cleanup=verbatim", "-F", "-", stdin=text)
    try:
        settle(registry)
    except (FlywheelError, OSError) as error:
        raise FlywheelError(
            f"the rollback to {tag_name(generation)} is committed (labels, params and champion are "
            f"those of {tag_name(generation)}), but the folders of models and tables did not follow: {error}. Mend "
            "that, then finish it with `flywheel recover`; nothing is lost"
        ) from error
    return {**planned, "reason": reason, "commit": git.run(registry.root, "rev-parse", "HEAD")}


def _restore_exclusions(registry: Registry) -> None:
    path = registry.root / exclusions.FILE
    if git.attempt(registry.root, "cat-file", "-e", f"HEAD:{exclusions.FILE}") is not None:
        git.run(registry.root, "restore", "--source=HEAD", "--staged", "--worktree", "--", exclusions.FILE)
    elif path.exists():
        git.run(registry.root, "rm", "-q", "--cached", "--ignore-unmatch", "--", exclusions.FILE)
        path.unlink()


def _restore(registry: Registry, source: str) -> None:
    paths = recorded_paths(registry, source)
    git.run(registry.root, "restore", f"--source={source}", "--staged", "--worktree", "--", *paths)
    if git.attempt(registry.root, "ls-files", "--error-unmatch", "--", "judge.dvc") is None:
        # A generation in progress may have put one in that no commit knows; DVC would follow it.
        (registry.root / "judge.dvc").unlink(missing_ok=True)


def _checkout(registry: Registry) -> None:
    """Make the folders what the restored files say, and drop those that they know nothing of."""
    # By name: files that a user keeps with DVC stay as they are, here or not.
    dvc.checkout(registry, "dvc.yaml", *(name for name in POINTERS if (registry.root / name).exists()))
    outputs = cache.lock_outputs((registry.root / "dvc.lock").read_text(encoding="utf-8"))
    for name in SUPERVISED:
        if name not in outputs:
            shutil.rmtree(registry.root / name, ignore_errors=True)
    if not (registry.root / "judge.dvc").exists():
        shutil.rmtree(registry.layout.judge, ignore_errors=True)


def _outputs(registry: Registry, tag: str) -> list[cache.Output]:
    names = [f"{tag}:{name}" for name in ("dvc.lock", "parent.dvc", "judge.dvc")]
    lock_text, parent, judge = git.read_many(registry.root, names)
    if lock_text is None or parent is None:
        raise FlywheelError(f"{tag} holds no dvc.lock or parent.dvc; it was not made by Flywheel")
    outputs = [*cache.lock_outputs(lock_text.decode()).values(), cache.pointed(parent.decode())]
    return [*outputs, cache.pointed(judge.decode(), "judge.dvc")] if judge is not None else outputs


def _bring(registry: Registry, planned: dict[str, Any]) -> None:
    """Have in the cache what the target's folders hold, before anything changes."""
    tag, size = tag_name(planned["to"]), planned["bytes_to_fetch"]
    absent = cache.missing(registry, _outputs(registry, tag))
    free = shutil.disk_usage(registry.root).free
    if size > free:
        raise StorageFull(f"{tag} needs {size} bytes from the remote, {registry.root} has {free} left; free some")
    remotes.bring(
        registry, [output.md5 for output in absent], f"{', '.join(output.path for output in absent)} of {tag}"
    )
