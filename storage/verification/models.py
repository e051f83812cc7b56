"""Models are the weights that lineage names: their digest, taken from the cached files, is the snapshot.

`flywheel.models.checkpoints.weights_digest` reads a folder; one of links to the cache stands for it, so that there is
one definition. Language models and board networks are safetensors both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flywheel.errors import ModelError
from flywheel.models.checkpoints import weights_digest
from storage import cache
from storage.verification.findings import Tell
from storage.verification.generations import Generation
from storage.verification.objects import Objects


def check(objects: Objects, generations: Iterable[Generation], jobs: int, tell: Tell) -> None:
    """Students, reward models, and the base that generation 0 starts from."""
    todo: dict[tuple[str, str], tuple[str, str, dict[str, str]]] = {}
    for generation in generations:
        for where, output, snapshot in _models(generation):
            files = objects.files(output)
            if files is not None:  # else it is missing or damaged, which was said, or elsewhere
                todo.setdefault((output.md5, snapshot), (generation.name, where, files))
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda entry: _digest(objects, entry[2]), todo.values())
        for done, ((_, snapshot), (name, where, _), digest) in enumerate(zip(*_pairs(todo), found, strict=True), 1):
            objects.findings.count("models")
            tell("weighing models", done, len(todo))
            if digest != snapshot:
                why = f"its weights are {digest}, lineage says {snapshot}"
                fix = f"restore it from a copy, or leave what came of it: `flywheel rollback` to before {name}"
                objects.findings.fail("model", f"{name}/{where}", why, fix)


def _pairs(
    todo: dict[tuple[str, str], tuple[str, str, dict[str, str]]],
) -> tuple[list[tuple[str, str]], list[tuple[str, str, dict[str, str]]]]:
    return list(todo.keys()), list(todo.values())


def _models(generation: Generation) -> Iterator[tuple[str, cache.Output, str]]:
    lineage = generation.lineage
    yield "student", generation.outputs["student"], str(lineage["student"]["snapshot"])
    if generation.is_supervised:
        yield "reward_model", generation.outputs["reward_model"], str(lineage["reward_model"]["snapshot"])
    if lineage["parent"] is None and lineage["student"]["initialised_from"] is not None:
        yield "parent", generation.parent, str(lineage["student"]["initialised_from"])


def _digest(objects: Objects, files: dict[str, str]) -> str:
    with tempfile.TemporaryDirectory(prefix="flywheel-verify-") as folder:
        for inside, md5 in files.items():
            if inside.endswith(".safetensors") and "/" not in inside:
                (Path(folder) / inside).symlink_to(objects.path(md5))
        try:
            return weights_digest(Path(folder))
        except ModelError as error:
            return f"not to be had ({str(error).replace(folder, 'the model')})"
