"""Models as stages need them: found by what lineage names, loaded once a process, checked by digest."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from flywheel import params as parameters
from flywheel.errors import ModelError
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.models.sampler import TextSampler
from storage.layout import Layout
from tasks.stage import use_threads


def teacher(layout: Layout) -> dict[str, Any]:
    """lineage/teacher.json: who searches in this generation."""
    named: dict[str, Any] = json.loads((layout.lineage / "teacher.json").read_text(encoding="utf-8"))
    return named


def load_teacher(layout: Layout, execution: parameters.Execution) -> TextSampler:
    """The model that searches, as a sampler. Raises ModelError if its weights are not the ones lineage names."""
    named = teacher(layout)
    source = str(layout.parent) if named["kind"] == "champion" else str(named["source"])
    return load_sampler(source, named["snapshot"], execution)


def load_sampler(source: str, snapshot: str | None, execution: parameters.Execution) -> TextSampler:
    """A model folder or hub id as a sampler, its digest checked where one is expected."""
    use_threads(execution)
    loaded = _load(source, language.device_for(execution.device), snapshot)
    if snapshot is not None and loaded.snapshot != snapshot:
        raise ModelError(
            f"{source} holds weights {loaded.snapshot}, expected {snapshot} as lineage says; "
            "restore that model, or start the generation anew with generate.teacher set to the one wanted"
        )
    return TextSampler(loaded)


@lru_cache(maxsize=1)
def _load(source: str, device: str, _snapshot: str | None) -> LanguageModel:
    return language.load(source, device)


def forget() -> None:
    """Let go of the model in memory, before another is trained."""
    _load.cache_clear()
