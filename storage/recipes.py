"""The recipe and the presets that Flywheel ships: `params.yaml`, `dvc.yaml`, `presets/*.yaml`.

In an installed wheel they lie in `storage/recipe/`, in a checkout at its top.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from flywheel.errors import FlywheelError, InputError

DEFAULT_PRESET = "countdown"
"""`params.yaml` itself."""


def recipe_text() -> str:
    """The text of `dvc.yaml`: the stages of one generation."""
    return (_folder() / "dvc.yaml").read_text(encoding="utf-8")


def presets() -> list[str]:
    """Names of the shipped presets, the default first."""
    found = {path.stem for path in (_folder() / "presets").glob("*.yaml")}
    return [DEFAULT_PRESET, *sorted(found - {DEFAULT_PRESET})]


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
