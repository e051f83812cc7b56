"""The recipe and the presets that Flywheel ships: `params.yaml`, `dvc.yaml`, `presets/*.yaml`.

In an installed wheel they lie in `storage/recipe/`, in a checkout at its top.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flywheel.errors import FlywheelError, InputError

if TYPE_CHECKING:
    from flywheel.params import Params

DEFAULT_PRESET = "countdown"
"""`params.yaml` itself."""


def recipe_text(params: Params | None = None, judge: bool = False) -> str:
    """The text of `dvc.yaml`: the stages of one generation with these params (none: as few as there can be).

    `judge` says whether an earlier generation's reward model goes in. Where neither the params nor a judge ask for
    more, it is the file as shipped.
    """
    text = (_folder() / "dvc.yaml").read_text(encoding="utf-8")
    supervised = params is not None and params.supervise.enabled
    judged = params is not None and params.reward.by_own_model
    paired = params is not None and params.train.preference != "none"
    boards = params is not None and params.problems.domain == "hex"
    if not (supervised or judged or paired or boards):
        return text
    assert params is not None
    recipe = yaml.safe_load(text)
    stages: dict[str, Any] = recipe["stages"]
    if boards:
        # The student plays against the champion before it.
        _depend(stages["evaluate"], "parent")
        stages["evaluate"]["params"] = ["seed", "generation", "problems", "generate", "evaluate"]
    if paired:
        _depend(stages["train"], "attempts")
        stages["train"]["params"] = [*stages["train"]["params"], "filter.threshold", "filter.per_problem"]
    # A judge that generate does not ask for may still be what the next reward model starts from.
    if judged and judge:
        _depend(stages["generate"], "judge")
    if supervised:
        stage = {key: list(value) if isinstance(value, list) else value for key, value in _SUPERVISE.items()}
        if judge and params.supervise.start == "previous":
            _depend(stage, "judge")
        before = list(stages).index("evaluate")
        entries = [*stages.items()]
        recipe["stages"] = stages = dict([*entries[:before], ("supervise", stage), *entries[before:]])
        _depend(stages["evaluate"], "reward_model")
    elif judge:
        _depend(stages["evaluate"], "judge")
    head = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
    return head + yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=120)


def wiring(text: str) -> dict[str, tuple[bool, ...]]:
    """What the params make of a `dvc.yaml`: for each stage that they touch, whether the judge, the new reward model,
    the attempts and the parent go in. A file edited by hand elsewhere has the wiring of the file as shipped."""
    values = yaml.safe_load(text)
    stages = (values.get("stages") if isinstance(values, dict) else None) or {}
    return {
        name: tuple(model in (stages[name].get("deps") or []) for model in _WIRED)
        for name in ("generate", "train", "supervise", "evaluate")
        if isinstance(stages.get(name), dict)
    }


def stages_of(text: str) -> set[str]:
    """Names of the stages of a `dvc.yaml`."""
    values = yaml.safe_load(text)
    return set((values.get("stages") if isinstance(values, dict) else None) or {})


_WIRED = ("judge", "reward_model", "attempts", "parent")
_SUPERVISE: dict[str, Any] = {
    "cmd": "python -P -m tasks.supervise",
    "deps": ["problems", "student"],
    "params": ["seed", "generation", "problems", "generate.max_new_tokens", "supervise", "reward.step_tag"],
    "outs": ["supervision", "reward_model"],
}
"""The stage that process supervision adds, between train and evaluate."""


def _depend(stage: dict[str, Any], name: str) -> None:
    stage["deps"] = [*stage["deps"], name]


def presets() -> list[str]:
    """Names of the shipped presets, the default first."""
    found = {path.stem for path in (_folder() / "presets").glob("*.yaml")}
    return [DEFAULT_PRESET, *sorted(found - {DEFAULT_PRESET})]


def sweeps_folder() -> Path:
    """Where the shipped sweeps lie."""
    return _folder() / "presets" / "sweeps"


def preset_for(preset: str, overrides: list[str]) -> str:
    """The preset to begin with: who asks for Hex and names none means the one for Hex."""
    if preset == DEFAULT_PRESET and "problems.domain=hex" in overrides:
        return "hex-5"
    return preset


def recipe(preset: str, overrides: list[str]) -> Params:
    """The params that a new registry starts with: a preset with its overrides, files named by their absolute paths,
    since a registry's stages run in another folder. Raises InputError, ConfigError."""
    from flywheel import params

    values = params.apply(load_preset(preset), overrides)
    return absolute(params.parse(values, f"preset {preset}"))


def absolute(params: Params) -> Params:
    """The params with files and local model folders named by their absolute paths, as seen from the current folder."""
    from flywheel.problems import reading

    update: dict[str, Any] = {"problems": reading.absolute(params.problems)}
    for section, key in (("model", "base"), ("generate", "teacher"), ("reward", "model"), ("supervise", "base")):
        held = getattr(params, section)
        source = getattr(held, key)
        # Anything else is a hub id, an address, or a word such as `champion`.
        if source is not None and (Path(source) / "config.json").is_file():
            update[section] = held.model_copy(update={key: str(Path(source).absolute())})
    return params.model_copy(update=update)


def load_preset(name: str = DEFAULT_PRESET) -> dict[str, Any]:
    """Values of `params.yaml` with those of `presets/<name>.yaml` put over them, section by section.

    Raises InputError for a name that is none of `presets()`. The values are checked by `flywheel.params.parse`.
    """
    if name not in presets():
        close = difflib.get_close_matches(name, presets(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(presets())}"
        raise InputError(f"got preset {name!r}, which does not exist; {hint}")
    values = _read(_folder() / "params.yaml")
    path = _folder() / "presets" / f"{name}.yaml"
    return _over(values, _read(path)) if path.exists() else values


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    for folder in (here / "recipe", here.parent):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise FlywheelError(f"params.yaml and dvc.yaml are neither in {here / 'recipe'} nor in {here.parent}; reinstall")


def _read(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def _over(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        result[key] = _over(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return result
