"""The reward model that goes into a generation: the one that its newest ancestor trained, brought in by `judge.dvc`.

    gen/3: train -> supervise -> reward_model/ ... dvc.lock
                                                      └── copied into judge.dvc ── dvc checkout ──> judge/ of gen/4

A stage may not depend on its own output of an earlier revision, so the reward model that searches (`judge/`) and the
one that is trained (`reward_model/`) are two things for DVC, as `parent/` and `student/` are. `lineage/judge.json`
names the judge by its digest; a generation that asks for none has neither.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from flywheel.errors import ConfigError, ModelError, RegistryError
from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params
from storage import cache, dvc, git, remotes
from storage.history import published_many, window
from storage.layout import Layout, tag_name
from storage.tables import replace_text

if TYPE_CHECKING:
    from storage.registry import Registry


def choose(registry: Registry, params: Params, excluded: set[str]) -> dict[str, Any] | None:
    """What lineage/judge.json says, or None where the generation needs no judge, or may go without; never a model of
    `excluded`.

    {"snapshot", "generation", "source": `gen/0003/reward_model`, "judges": whether the search is judged by it; if not,
    the next reward model starts from it}. Raises ConfigError where the search needs one and no ancestor trained one.
    """
    judges = params.reward.by_own_model
    if params.parent is None:
        if judges and not params.supervise.enabled:
            raise _none(params, "generation 0 would have nothing to evaluate with; set supervise.enabled=true")
        return None
    if not (judges or (params.supervise.enabled and params.supervise.start == "previous")):
        return None
    line = window(registry, params.parent)
    lineages = published_many(registry, line)
    made = {number: lineages[number].get("reward_model") for number in line}
    trained = [number for number, model in made.items() if model is not None and model["snapshot"] not in excluded]
    if not trained:
        if judges:
            raise _none(
                params,
                f"no generation up to {tag_name(params.parent)} trained one; run a generation with "
                "supervise.enabled=true and another reward.name first",
            )
        return None
    snapshot = lineages[trained[-1]]["reward_model"]["snapshot"]
    source = f"{tag_name(trained[-1])}/reward_model"
    return {"snapshot": snapshot, "generation": trained[-1], "source": source, "judges": judges}


def _none(params: Params, why: str) -> ConfigError:
    message = f"reward.name: {params.reward.name} without reward.model takes the registry's own reward model, and {why}"
    return ConfigError([f"{message}; or name a reward.model"], "the recipe")


def place(registry: Registry, chosen: dict[str, Any] | None) -> None:
    """Make judge.dvc and judge/ what `choose` said; no byte is copied or hashed again. Can be killed and called again.

    Raises RegistryError where the model's objects cannot be had.
    """
    pointer, folder = registry.root / "judge.dvc", registry.layout.judge
    if chosen is None:
        pointer.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return
    tag = tag_name(int(chosen["generation"]))
    text = git.read_many(registry.root, [f"{tag}:dvc.lock"])[0]
    output = cache.lock_outputs(text.decode()).get("reward_model") if text is not None else None
    if output is None:
        raise RegistryError(f"dvc.lock of {tag} names no reward_model, but its lineage does; its commit is damaged")
    wanted = cache.pointer_text(output, "judge")
    if not pointer.exists() or pointer.read_text(encoding="utf-8") != wanted:
        replace_text(pointer, wanted)
    remotes.bring(registry, [output.md5], f"the reward model of {tag}, which the next generation needs,")
    if not cache.holds(registry, folder, output):
        dvc.checkout(registry, pointer.name)


def named(layout: Layout) -> dict[str, Any] | None:
    """lineage/judge.json; None where the generation has no judge."""
    try:
        value: dict[str, Any] = json.loads((layout.lineage / "judge.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value


def verify(layout: Layout) -> str | None:
    """The snapshot of the judge in place; None where there is none. Raises ModelError if it is not the one that
    lineage names."""
    document = named(layout)
    if document is None:
        return None
    snapshot = weights_digest(layout.judge)
    if snapshot != document["snapshot"]:
        raise ModelError(
            f"{layout.judge} holds weights {snapshot}, expected {document['snapshot']} as lineage/judge.json says; "
            "restore them with `dvc checkout -f judge.dvc`"
        )
    return snapshot
