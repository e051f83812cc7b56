"""The params of a generation: the sections of `flywheel.sections` put together, read, overridden and explained.

Unknown keys are refused and every problem is reported at once (`ConfigError`). A function gets its own section, never
the whole. `execution` says how the work is run and is no part of the recipe: other shards, retries or runners give
the same labels and digests at equal `numerics`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from flywheel.errors import ConfigError
from flywheel.records import digest
from flywheel.sections import (
    BOARD_SEARCHERS,
    Campaign,
    Evaluate,
    Execution,
    Filter,
    Generate,
    Model,
    Problems,
    Reward,
    Section,
    SeedLabels,
    Supervise,
    Train,
    check_heads,
)

__all__ = [
    "Campaign", "Evaluate", "Execution", "Filter", "Generate", "Model", "Params", "Problems", "Reward", "Section",
    "SeedLabels", "Supervise", "Train", "apply", "dump", "folder_name", "load", "parse",
]  # fmt: skip


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The run's seed; every random draw is a function of it and of the draw's address."""
    generation: Annotated[int, Field(ge=0)] = 0
    """Written by the campaign: the generation these params made."""
    folder: str = "0000"
    """Written by the campaign: the generation's folder name under labels/."""
    parent: Annotated[int, Field(ge=0)] | None = None
    """Written by the campaign: the generation it followed."""
    problems: Problems = Problems()
    seed_labels: SeedLabels = SeedLabels()
    model: Model = Model()
    generate: Generate = Generate()
    reward: Reward = Reward()
    filter: Filter = Filter()
    train: Train = Train()
    supervise: Supervise = Supervise()
    evaluate: Evaluate = Evaluate()
    campaign: Campaign = Campaign()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        """Boards and texts share the sections, not everything in them."""
        board = self.problems.domain == "hex"
        if board != (self.generate.searcher in BOARD_SEARCHERS):
            others = ", ".join(BOARD_SEARCHERS) if board else "best_of_n, adaptive, beam, dvts, tree"
            raise ValueError(
                f"generate.searcher {self.generate.searcher} does not search domain {self.problems.domain}; "
                f"take one of {others}" + (", or begin with --preset hex-5" if board else "")
            )
        if not board:
            check_heads(self.model.hidden_size, self.model.heads, "model.")
            return self
        asked = {
            "reward.name": (self.reward.name, "exact"),
            "seed_labels.problems": (self.seed_labels.problems, 0),
            "model.base": (self.model.base, None),
            "train.method": (self.train.method, "full"),
            "train.preference": (self.train.preference, "none"),
            "supervise.enabled": (self.supervise.enabled, False),
            "generate.solved_share": (self.generate.solved_share, None),
            "generate.max_flops": (self.generate.max_flops, None),
            "filter.per_problem": (self.filter.per_problem, None),
            "filter.pass_rate": (self.filter.pass_rate, None),
            "train.seed_share": (self.train.seed_share, None),
        }
        wrong = [f"{name}: got {got!r}, expected {wanted!r}" for name, (got, wanted) in asked.items() if got != wanted]
        if wrong:
            raise ValueError(f"domain hex learns from nothing but its own games: {'; '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.filter.threshold > 1.0:
            raise ValueError(
                f"filter.threshold ({self.filter.threshold}) is above 1, the highest reward there is: none would pass"
            )
        if self.reward.name in {"process", "outcome"} and self.filter.threshold == 1.0:
            raise ValueError(
                f"filter.threshold is 1.0, which the scores of a reward model ({self.reward.name}) hardly ever reach; "
                "give a lower one, such as 0.7"
            )
        return self

    def digest(self) -> str:
        """Names the recipe: every value but `execution` and `campaign`."""
        return digest(self.model_dump(mode="json", exclude={"execution", "campaign"}))

    def for_generation(self, generation: int, parent: int | None) -> Params:
        """The same recipe, for this generation."""
        return self.model_copy(update={"generation": generation, "folder": folder_name(generation), "parent": parent})


def folder_name(generation: int) -> str:
    """`7` -> `0007`: names of folders and tags sort as numbers do."""
    return f"{generation:04d}"


def parse(values: dict[str, Any], source: str = "params.yaml") -> Params:
    """Validate a mapping; raises ConfigError with every problem at once."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ConfigError([explained(e) for e in error.errors()], source) from None


def load(path: Path, overrides: list[str] | None = None) -> Params:
    """Read `params.yaml`, apply `a.b=v` overrides (v is YAML), validate. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"there is no file {path}; `flywheel init` makes one"], str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"not YAML: {error}"], str(path)) from None
    if not isinstance(values, dict):
        raise ConfigError([f"got {type(values).__name__}, expected sections such as `generate:`"], str(path))
    return parse(apply(values, overrides or []), str(path))


def apply(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=v` set; a new key is caught later, by `parse`."""
    result = _deep_copy(values)
    problems = []
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            problems.append(f"--set {override!r}: expected section.key=value, e.g. generate.samples=32")
            continue
        if name.strip() in {"generation", "folder", "parent"}:
            problems.append(f"--set {override!r}: {name.strip()} is written by the campaign, not by hand")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(f"--set {override!r}: the value is not YAML: {error}")
            continue
        section = result
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                problems.append(f"--set {override!r}: {key} is a value, not a section")
                break
        else:
            section[keys[-1]] = value
    if problems:
        raise ConfigError(problems, "--set")
    return result


def dump(params: Params) -> str:
    """The params as YAML, in the order of the model."""
    return yaml.dump(params.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


_LIKE_NUMBERS = tuple("0123456789+-.")


class _Dumper(yaml.SafeDumper):
    """Text that may read like a number is put in quotes. PyYAML goes by YAML 1.1, where 0008 is text, as it is no octal
    number; DVC goes by YAML 1.2, where it is the number 8."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style='"' if value.startswith(_LIKE_NUMBERS) else None
    )


_Dumper.add_representer(str, _text)


def _deep_copy(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, dict) else value for key, value in values.items()}


def explained(error: Any, model: type[BaseModel] = Params) -> str:
    """One error of pydantic's about values of a model, in words."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys(tuple(error["loc"][:-1]), model)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}" if known else ""
        return f"{where}: unknown key" + (f"; {hint}" if hint else "")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in {"value_error", "missing"}:
        return f"{where}: {message}" if where else message
    return f"{where}: got {error['input']!r}; {message[0].lower() + message[1:]}"


def _keys(location: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    for part in location:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
