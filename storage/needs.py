"""Which objects are needed for what: a generation as a whole, or the head to go on with the next one.

Names only; nothing is fetched here. A `x.dir` stands for the list and its files, as in `storage.remotes.bring`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from storage import cache, contents, exclusions, git
from storage.history import published_many, window

if TYPE_CHECKING:
    from storage.registry import Registry

_RECORDS = ("dvc.lock", *contents.POINTERS)


def whole(registry: Registry, generations: Iterable[int]) -> set[str]:
    """Everything that these generations put in and brought out."""
    return {md5 for one in contents.of(registry, generations).values() for md5 in one.roots()}


def recorded_at(registry: Registry, revision: str) -> set[str]:
    """What a commit's dvc.lock, parent.dvc and judge.dvc name: the worktree's folders there."""
    return _recorded(git.read_many(registry.root, [f"{revision}:{name}" for name in _RECORDS]))


def recorded_here(registry: Registry) -> set[str]:
    """As `recorded_at`, of the files in the worktree."""
    paths = [registry.root / name for name in _RECORDS]
    return _recorded([path.read_bytes() if path.exists() else None for path in paths])


def _recorded(texts: list[bytes | None]) -> set[str]:
    recorded, *pointers = texts
    outputs = list(cache.lock_outputs(recorded.decode()).values()) if recorded is not None else []
    outputs += [
        cache.pointed(text.decode(), name)
        for name, text in zip(contents.POINTERS, pointers, strict=True)
        if text is not None
    ]
    return {output.md5 for output in outputs if output.cached}


def to_go_on(registry: Registry) -> set[str]:
    """What the head needs for the next generation: the worktree's folders, labels in the window, attempts that decide
    what is tried again, the champion's student and outcomes, the newest reward model. Nothing before generation 0."""
    wanted = recorded_at(registry, "HEAD")
    head = registry.head_generation()
    if head is None:
        return wanted
    recipe = _recipe(registry)
    line = window(registry, head)
    entries = exclusions.read(registry)
    learned = sorted([*line, *exclusions.kept(exclusions.applying(entries, line), line)])
    width = (recipe.get("filter") or {}).get("window")
    if width is not None:
        learned = learned[len(learned) - min(len(learned), width - 1) :]
    tried = [number for number in line if number > 0]
    if (recipe.get("generate") or {}).get("solved_share") is None:
        tried = []
    lineages = published_many(registry, sorted({*line, *learned}))
    champion = int(lineages[head]["champion"]["generation"])
    out = exclusions.models(entries)
    trained = {number: lineages[number].get("reward_model") for number in line}
    judges = [number for number, model in trained.items() if model is not None and model["snapshot"] not in out][-1:]
    known = contents.of(registry, {*judges, champion})
    wanted |= {known[number].outputs["reward_model"].md5 for number in judges}
    wanted |= {known[champion].outputs["student"].md5} | known[champion].files("outcomes")
    for numbers, tables in ((learned, ("labels", "targets")), (tried, ("attempts",))):
        for name in tables:
            found = [lineages[number]["tables"].get(name, {"files": []}) for number in numbers]
            wanted |= {file["md5"] for table in found for file in table["files"]}
    return wanted


def _recipe(registry: Registry) -> dict[str, Any]:
    text = git.read_many(registry.root, ["HEAD:params.yaml"])[0]
    return cache.yaml_mapping((text or b"{}").decode(), "params.yaml")
