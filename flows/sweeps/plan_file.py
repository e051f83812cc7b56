"""A plan as a file: what `flywheel plan --out` writes and `flywheel run --plan` reads.

A plan is put into effect by params alone, as `--set` would: they stand in `params.yaml` and in the lineage. A registry
that has generations takes over how many there are to be, and draws as many samples a problem in label search as its own
newest attempts say (`flows.sweeps.label_budget`), or else the plan; a new one also takes what its cell of the sweep
changes in the preset, the model's sizes and the learning rate among it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.sweeps import definition
from flows.sweeps.text_fits import TextTable
from flywheel import params as parameters
from flywheel.errors import InputError
from flywheel.params import Params
from flywheel.scaling.planner import Plan
from storage import recipes
from storage.tables import replace_text

_OF_THE_CELL = ("model.hidden_size", "model.layers", "model.intermediate_size", "train.learning_rate")
"""Written down whether or not the preset has the same."""
_NO_RECIPE = ("seed", "generation", "folder", "parent", "execution", "campaign")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Orders:
    """What a run has to do to follow a plan."""

    sweep: str
    family: str
    generations: int
    """In all, after generation 0."""
    samples: int
    """`generate.samples`."""
    hidden_size: int
    layers: int
    preset: str | None
    """Of a new registry; None where the sweep's recipe is not known."""
    recipe: dict[str, Any]
    """What a new registry changes in the preset, by dotted name."""

    def overrides_for_new(self, preset: str | None = None) -> list[str]:
        """Values of `--set` for a new registry. Raises InputError where the sweep's recipe is not known, or another
        preset than its own is asked for."""
        if self.preset is None:
            raise InputError(
                f"the plan does not say how the models of sweep {self.sweep} were made, as neither its registries nor "
                "a shipped sweep of its name did; make the registry first: flywheel init with that sweep's --set"
            )
        if preset not in (None, self.preset):
            raise InputError(f"got --preset {preset}, but the plan's sweep began with {self.preset}; leave it out")
        return [
            f"{name}={definition.on_one_line(value)}"
            for name, value in {**self.recipe, "generate.samples": self.samples}.items()
        ]

    def require(self, held: Params) -> None:
        """Raise InputError for a registry whose params make a model of another size."""
        got = (held.model.base, held.model.hidden_size, held.model.layers)
        if got != (None, self.hidden_size, self.layers):
            own = f"the model {held.model.base}" if held.model.base else f"a model {got[1]} wide, {got[2]} layers deep"
            raise InputError(
                f"the plan is for a model {self.hidden_size} wide, {self.layers} layers deep, the registry has {own}; "
                "name a new folder with --registry, or plan again"
            )

    def left(self, head: int | None) -> int:
        """Generations still to be made after the newest one, `head`; None before any."""
        return max(0, self.generations - (head or 0))


def orders(plan: Plan, table: TextTable, folder: Path) -> Orders:
    """What it takes to follow a plan made from a folder's table: the recipe is read from a registry of the sweep in
    `folder`, where there is one, else from the shipped sweep of that name."""
    wanted = int(plan.allocation.parameters)
    students = [row for row in table.rows if row["control"] is None and row["parameters"] == wanted]
    # The cell with the plan's own label search first.
    row = min(students, key=lambda row: abs(row["label_budget"] - plan.allocation.search))
    preset, made = _recipe(row, folder)
    changes: dict[str, Any] = {}
    if preset is not None and made is not None:
        shipped, own = _leaves(recipes.recipe(preset, [])), _leaves(made)
        changes = {name: value for name, value in own.items() if name in _OF_THE_CELL or value != shipped.get(name)}
    return Orders(
        sweep=table.sweep,
        family=table.family,
        generations=plan.allocation.generations,
        samples=int(plan.allocation.search),
        hidden_size=row["hidden_size"],
        layers=row["layers"],
        preset=preset,
        recipe=changes,
    )


def write(path: Path, document: dict[str, Any], held: Orders) -> None:
    """The plan's document with its orders, as JSON."""
    replace_text(path, json.dumps({"format": _FORMAT, **document, "orders": asdict(held)}, indent=1) + "\n")


def read(path: Path) -> Orders:
    """The orders of a plan's file. Raises InputError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Orders(**values["orders"])
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; `flywheel plan --out {path}` makes one") from None
    except (ValueError, KeyError, TypeError, IsADirectoryError):
        raise InputError(f"{path} is no plan; `flywheel plan --out FILE` makes one") from None


def _recipe(row: dict[str, Any], folder: Path) -> tuple[str | None, Params | None]:
    """Preset and params of a row's run."""
    root = folder / "runs" / row["run"]
    if (root / "params.yaml").is_file() and (root / "flywheel.json").is_file():
        preset = json.loads((root / "flywheel.json").read_text(encoding="utf-8")).get("preset")
        if preset in recipes.presets():
            return preset, parameters.load(root / "params.yaml")
    if (recipes.sweeps_folder() / f"{row['sweep']}.yaml").is_file():
        _, sweep = definition.load(row["sweep"])
        for run in sweep.runs():
            if run.name == row["run"]:
                return run.preset, run.params(len(run.legs) - 1)
    return None, None


def _leaves(params: Params) -> dict[str, Any]:
    """Values of the recipe by dotted name."""
    values = params.model_dump(mode="json")
    return {
        f"{section}.{key}": value
        for section, held in values.items()
        if section not in _NO_RECIPE
        for key, value in held.items()
    }
