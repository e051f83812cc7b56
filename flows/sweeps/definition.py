"""What a sweep runs, as a YAML file says it: `presets/sweeps/*.yaml`, or a file of the user's own.

    preset        the recipe that every run begins with
    set           what all runs change in it
    seeds         training seeds; each cell is run with each
    families      problems that are the same for all cells of a family (a board size); `set`, `cells`, `legs`
      cells       by name, what a cell changes: a model size, a label-search budget
      legs        stretches of a run, one after the other: so many generations, and what changes from there on. Growing
                  generations put the snapshots at even steps of log compute
      held_back   cells that no fit may see: they judge it
    contest       all cells cost about as much in all, and are held against its reference
      controls    what each run is compared with once it is made (`flywheel control`), at the FLOPs that it spent

A snapshot is a generation, so that a run's training compute is swept by its legs, and runtime budgets are
`evaluate.budgets`. Files and local models are named as seen from the YAML's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, model_validator

from flywheel import params as parameters
from flywheel.errors import ConfigError, InputError
from flywheel.params import Params, Problems
from flywheel.problems import domain, reading
from flywheel.records import digest
from flywheel.sections import Section
from storage import recipes

_FILES = tuple(f"problems.{key}" for key in reading.PATH_KEYS)
_MODELS = ("model.base", "generate.teacher", "reward.model", "supervise.base")
"""Local folders, or anything else that names a model."""
_SET_BY_SWEEPS = {
    "seed": "is what `seeds` lists",
    "execution.threads": "is 1, so that runs side by side do not slow each other down",
}


def _usable(changes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Changes with files and local models by absolute paths, as seen from the folder that the context names."""
    if refused := [f"{name} {why}; leave it out" for name, why in _SET_BY_SWEEPS.items() if name in changes]:
        raise ValueError("; ".join(refused))
    folder = (info.context or {}).get("folder")
    return changes if folder is None else {name: _seen_from(folder, name, value) for name, value in changes.items()}


def _seen_from(folder: Path, name: str, value: Any) -> Any:
    if name not in (*_FILES, *_MODELS) or not isinstance(value, str) or value.startswith(reading.PACKAGE):
        return value
    path = os.path.abspath(folder / os.path.expanduser(value))
    return path if name in _FILES or os.path.isfile(os.path.join(path, "config.json")) else value


Changes = Annotated[dict[str, Any], AfterValidator(_usable)]
"""Params by dotted name, as with `--set`."""
ControlName = Literal["no-search", "ceiling", "tuned-search"]
"""Those of `flows.controls`, which imports Prefect: too early here, before its server runs."""
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*$")]


class Leg(Section):
    generations: Annotated[int, Field(ge=1)]
    """How many more."""
    set: Changes = Field(default_factory=dict)
    """What changes from here on."""


class Family(Section):
    set: Changes = Field(default_factory=dict)
    cells: dict[_Name, Changes]
    legs: list[Leg]
    held_back: tuple[_Name, ...] = ()
    controls: tuple[ControlName, ...] = ()
    """Text domains."""


class Arena(Section):
    """Hex: who meets whom, to be rated."""

    budgets: tuple[Annotated[int, Field(ge=0)], ...] = (0, 4, 16, 64)
    """Simulations a move; 0 is the network alone."""
    openings: Annotated[int, Field(ge=1)] = 16
    """Each is played from both sides by each pair."""


class Contest(Section):
    """Cells that cost about as much are held against one of them."""

    reference: str
    """That cell."""
    queries: Annotated[float, Field(ge=0.0)] = 0.0
    """How many are answered: their FLOPs count too."""
    answers: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """By cell, with how many samples and a checker it answers a query; those not named answer at once."""


class Sweep(Section):
    note: str = ""
    """What is to be said with its results."""
    preset: str
    set: Changes = Field(default_factory=dict)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = (0, 1, 2)
    families: dict[_Name, Family]
    arena: Arena | None = None
    contest: Contest | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.families:
            raise ValueError("families: got none, expected one or more")
        for name, family in self.families.items():
            if not family.cells or not family.legs:
                raise ValueError(f"family {name} needs a cell and a leg at least")
            if unknown := sorted(set(family.held_back) - set(family.cells)):
                raise ValueError(f"family {name} holds back {', '.join(unknown)}, which are no cells of it")
        cells = [cell for family in self.families.values() for cell in family.cells]
        if self.contest is not None:
            named = [self.contest.reference, *self.contest.answers]
            if len(set(cells)) < len(cells) or not set(named) <= set(cells):
                raise ValueError(
                    f"contest: got cells {', '.join(named)}, expected some of {', '.join(cells)}, each once"
                )
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds {list(self.seeds)} must be one or more different numbers")
        names = [run.name for run in self.runs()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two runs would be called {twice[0]}; rename a family or a cell")
        return self

    def by_family(self) -> list[list[Run]]:
        """The runs of each family."""
        return [[run for run in self.runs() if run.family == family] for family in self.families]

    def runs(self) -> Iterator[Run]:
        """Every run, seed by seed, so that a sweep that is cut off has whole replicates."""
        for seed in self.seeds:
            for family_name, family in self.families.items():
                for cell, changes in family.cells.items():
                    first = {**self.set, **family.set, **changes, "seed": seed}
                    yield Run(
                        family_name,
                        cell,
                        seed,
                        cell in family.held_back,
                        self.preset,
                        tuple(Leg(generations=leg.generations, set={**leg.set}) for leg in family.legs),
                        first,
                        family.controls,
                    )


@dataclass(frozen=True, slots=True)
class Run:
    """One campaign of a sweep."""

    family: str
    cell: str
    seed: int
    held_back: bool
    preset: str
    legs: tuple[Leg, ...]
    changes: Changes
    """What its recipe changes in the preset from the start, the first leg's aside."""
    controls: tuple[str, ...] = ()
    """No part of the recipe: they may be asked for later."""

    @property
    def name(self) -> str:
        """Also its folder's."""
        return f"{self.family}-{self.cell}-seed-{self.seed}"

    @property
    def generations(self) -> int:
        """After generation 0."""
        return sum(leg.generations for leg in self.legs)

    def overrides(self, leg: int) -> list[str]:
        """The values of `--set` in a leg: those of the legs before it stay."""
        held = dict(self.changes)
        for earlier in self.legs[: leg + 1]:
            held |= earlier.set
        return [f"{name}={on_one_line(value)}" for name, value in held.items()]

    def params(self, leg: int) -> Params:
        """The recipe of a leg. Raises ConfigError."""
        return recipes.recipe(self.preset, self.overrides(leg))

    def digest(self) -> str:
        """Names the recipes of all legs."""
        return digest([[self.params(k).digest(), leg.generations] for k, leg in enumerate(self.legs)])


def load(name: str) -> tuple[str, Sweep]:
    """A sweep by the name of a shipped one or by its file; the name and what it says. Raises InputError, ConfigError,
    also for params of a run that are none."""
    folder = recipes.sweeps_folder()
    shipped = sorted(path.stem for path in folder.glob("*.yaml"))
    path = folder / f"{name}.yaml" if name in shipped else Path(name)
    if not path.is_file():
        raise InputError(f"got sweep {name!r}, expected a YAML file or one of: {', '.join(shipped)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"not YAML: {error}"], str(path)) from None
    try:
        sweep = Sweep.model_validate(values, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise ConfigError([parameters.explained(e, Sweep) for e in error.errors()], str(path)) from None
    if problems := list(dict.fromkeys(_problems(sweep))):
        raise ConfigError(problems, str(path))
    return path.stem, sweep


def _problems(sweep: Sweep) -> Iterator[str]:
    """What is wrong with a sweep's recipes together. Raises ConfigError for one that is none by itself."""
    compared: dict[str, tuple[str, Problems]] = {}
    for run in sweep.runs():
        if run.seed != sweep.seeds[0]:
            return  # The other seeds' recipes are the same.
        for leg in range(len(run.legs)):
            params = run.params(leg)
            # A contest compares across families too.
            group = run.family if sweep.contest is None else ""
            other, problems = compared.setdefault(group, (run.name, params.problems))
            if params.problems != problems:
                yield f"{run.name}: its `problems` differ from those of {other}, with which it is compared"
            if run.controls:
                domain.require_texts(params.problems)
            if sweep.arena is None:
                continue
            measured = [0, *params.evaluate.budgets]
            if params.problems.domain != "hex":
                yield f"arena: {run.name} has domain {params.problems.domain}, and only hex is played; leave it out"
            elif not set(measured).issuperset(sweep.arena.budgets):
                got = f"arena.budgets: got {list(sweep.arena.budgets)}"
                yield f"{got}, expected some of {measured}: 0, and what {run.name} evaluates"


def on_one_line(value: Any) -> str:
    """A value as `--set` reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def as_yaml(values: dict[str, Any]) -> str:
    """A sweep's file."""

    class Dumper(yaml.SafeDumper):
        """Writes what stands twice twice, as a person would."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(values, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=110)
