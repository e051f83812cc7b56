"""Models and rewards as stages need them: found by what lineage names, loaded once a process, checked by digest."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from flywheel import sections
from flywheel.errors import ConfigError, ModelError
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.models.sampler import TextSampler
from flywheel.params import Params
from flywheel.problems import domain as domains
from flywheel.problems.domain import Domain
from flywheel.rewards import reward as rewards
from flywheel.rewards.reward import Reward
from flywheel.search.protocols import Sampler
from storage.layout import Layout
from tasks.stage import use_threads


def teacher(layout: Layout) -> dict[str, Any]:
    """lineage/teacher.json: who searches in this generation."""
    named: dict[str, Any] = json.loads((layout.lineage / "teacher.json").read_text(encoding="utf-8"))
    return named


def is_server(source: str) -> bool:
    """Whether `generate.teacher` is a server's address."""
    return source.startswith(("http://", "https://"))


def load_teacher(params: Params, layout: Layout) -> Sampler:
    """The model that searches, as a sampler. Raises ModelError if its weights are not the ones lineage names."""
    named = teacher(layout)
    if named["kind"] != "champion" and is_server(named["source"]):
        sampler = connect(params, layout.local / "answers")
        if sampler.snapshot != named["snapshot"]:
            raise ModelError(
                f"the server at {named['source']} now names its model {sampler.snapshot}, the generation began with "
                f"{named['snapshot']}; restore that model there, or change a param to start the generation anew"
            )
        return sampler
    source = str(layout.parent) if named["kind"] == "champion" else str(named["source"])
    return load_sampler(source, named["snapshot"], params.execution)


def identify_teacher(params: Params) -> tuple[str, bool]:
    """(snapshot, whether it was verified by its weights) of a `generate.teacher` from outside."""
    if params.problems.domain == "hex":
        from flywheel.models import board_net

        folder = Path(params.generate.teacher)
        board_net.require(
            board_net.shape_of(folder), params.problems.size, params.problems.swap, params.generate.teacher
        )
        return snapshot_of(folder), True
    if is_server(params.generate.teacher):
        return connect(params, None).snapshot, False
    return language.snapshot_of(params.generate.teacher), True


def connect(params: Params, answers: Path | None) -> Sampler:
    """The server that `generate.teacher` names; what it answers is kept in the folder `answers`."""
    section, execution = params.generate, params.execution
    return _connect(
        section.teacher, section.teacher_model, answers, execution.server_requests, execution.server_seconds,
        execution.server_retries,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _connect(
    address: str, model: str | None, answers: Path | None, requests: int, seconds: float, retries: int
) -> Sampler:
    from flywheel.models import server

    return server.connect(address, model, answers, requests, seconds, retries)


def load_sampler(source: str, snapshot: str | None, execution: sections.Execution) -> TextSampler:
    """A model folder or hub id as a sampler, its digest checked where one is expected."""
    use_threads(execution)
    sampler = _load(source, language.device_for(execution.device), snapshot)
    if snapshot is not None and sampler.snapshot != snapshot:
        raise ModelError(
            f"{source} holds weights {sampler.snapshot}, expected {snapshot} as lineage says; "
            "restore that model, or start the generation anew with generate.teacher set to the one wanted"
        )
    return sampler


@lru_cache(maxsize=1)
def _load(source: str, device: str, _snapshot: str | None) -> TextSampler:
    """One for all units of a process: each new one would try out anew what its model is suited for."""
    return TextSampler(language.load(source, device))


def reward_inputs(params: Params, own: Path) -> list[Path]:
    """Files that shape what the reward says, beyond params and Flywheel's sources: the weights of a reward model (the
    registry's own in `own`, or another), the module or package of a user's function, though not what that imports.
    Raises ConfigError where that module cannot be found."""
    section = params.reward
    if section.by_own_model:
        return [own]
    if section.name in {"outcome", "process"} and section.model is not None:
        return [language.folder_of(section.model)]
    if section.function is None or "function" not in {section.name, section.base if section.name == "noisy" else ""}:
        return []
    module = section.function.partition(":")[0]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            [
                f"reward.function: there is no module {module} in {os.getcwd()} or on PYTHONPATH; "
                "run from the folder that holds it, or add that folder to PYTHONPATH"
            ]
        )
    found = Path(spec.origin)
    return [found.parent if found.name == "__init__.py" else found]


def judge_snapshot(params: Params, own: Path) -> str:
    """Digest of the reward model that judges, `own` being the registry's; empty where none does."""
    if params.reward.name not in {"outcome", "process"}:
        return ""
    return snapshot_of(reward_inputs(params, own)[0])


def snapshot_of(folder: Path) -> str:
    """Digest of a model folder's weights, read once a process as long as its files stay what they are."""
    marks = tuple(
        (path.name, (held := path.stat()).st_ino, held.st_size, held.st_mtime_ns)
        for path in sorted(folder.glob("*.safetensors"))
    )
    return _snapshot(folder, marks)


@lru_cache(maxsize=8)
def _snapshot(folder: Path, _marks: tuple[tuple[str, int, int, int], ...]) -> str:
    return weights_digest(folder)


def newest_reward_model(params: Params, layout: Layout) -> Path:
    """The registry's own reward model once the stage `supervise` has had its turn."""
    return layout.reward_model if params.supervise.enabled else layout.judge


def load_reward(params: Params, domain: Domain, own: Path) -> Reward:
    """The reward of the params. `own` is the folder of the registry's own reward model, which serves where
    the section names no other."""
    section, execution = params.reward, params.execution
    wants_own = section.by_own_model
    if wants_own and not (own / "config.json").is_file():
        raise ConfigError(
            [
                f"reward.name: {section.name} without reward.model takes the registry's own reward model, and {own} "
                "holds none; set supervise.enabled in the generation before, or name a reward.model"
            ]
        )
    use_threads(execution)
    device = language.device_for(execution.device)
    snapshot = snapshot_of(own) if wants_own else None
    return _reward(section, params.problems, params.seed, str(own) if wants_own else None, snapshot, device,
                   execution.reward_processes)  # fmt: skip


@lru_cache(maxsize=8)
def _reward(
    section: sections.Reward, problems: sections.Problems, seed: int, model: str | None, _snapshot: str | None,
    device: str, processes: int,
) -> Reward:  # fmt: skip
    return rewards.load(section, domain_of(problems), seed, model, device, processes)


@lru_cache(maxsize=1)
def domain_of(section: sections.Problems) -> Domain:
    """The domain of a `problems` section, read once a process."""
    return domains.load(section)


def forget() -> None:
    """Let go of the models in memory, before another is trained."""
    _load.cache_clear()
    _reward.cache_clear()
