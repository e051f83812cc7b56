"""The params of a generation: pydantic models that mirror `params.yaml`, one docstring a field.

Unknown keys are refused and every problem is reported at once (`ConfigError`). A function gets its own section, never
the whole. `execution` says how the work is run and is no part of the recipe: other shards, retries or runners give
the same labels and digests at equal `numerics`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flywheel.errors import ConfigError
from flywheel.records import digest

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class Problems(Section):
    domain: Literal["countdown"] = "countdown"
    """What is to be solved."""
    numbers: Annotated[int, Field(ge=2, le=6)] = 3
    """Countdown: how many numbers a hand has."""
    smallest: PositiveInt = 1
    """Countdown: the smallest number in a hand."""
    largest: PositiveInt = 16
    """Countdown: the largest number in a hand."""
    largest_target: PositiveInt = 100
    """Countdown: targets are integers from 1 to this."""
    train: PositiveInt = 6000
    """Training problems; fewer where the split's hands do not yield as many."""
    valid: PositiveInt = 128
    """Problems on which everything is chosen: stopping, temperature, champion."""
    test: PositiveInt = 256
    """Problems that are only reported."""
    shares: tuple[Share, Share, Share] = (0.6, 0.12, 0.28)
    """Share of the hands in train, valid and test, by hash of the hand."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest ({self.smallest}) is above largest ({self.largest}); give smallest <= largest")
        if self.numbers > self.largest - self.smallest + 1 and self.largest == self.smallest:
            raise ValueError(f"numbers ({self.numbers}) of a single value make one hand; widen smallest..largest")
        if abs(sum(self.shares) - 1.0) > 1e-9 or min(self.shares) <= 0.0:
            raise ValueError(f"shares {list(self.shares)} must be three positive numbers that add up to 1")
        return self


class SeedLabels(Section):
    problems: PositiveInt = 800
    """How many training problems the seed labeller (Countdown: the solver) solves for generation 0."""
    per_problem: PositiveInt = 1
    """Different solutions kept a problem."""


class Model(Section):
    base: str | None = None
    """A local folder or hub id of a pretrained causal LM; null makes a Llama from scratch with the sizes below."""
    hidden_size: PositiveInt = 64
    """From scratch: width of the residual stream."""
    layers: PositiveInt = 4
    """From scratch: decoder layers."""
    heads: PositiveInt = 4
    """From scratch: attention heads; divides hidden_size into even parts."""
    intermediate_size: PositiveInt = 176
    """From scratch: width of the gated feed-forward layer."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be heads ({self.heads}) times an even head size (rotary halves)"
            )
        return self


class Generate(Section):
    teacher: str = "champion"
    """Who searches: `champion` (the best student so far), or any causal LM by local folder or hub id."""
    searcher: Literal["best_of_n"] = "best_of_n"
    """How it searches. best_of_n: sample N answers, let the reward judge."""
    samples: PositiveInt = 16
    """Answers sampled a problem (ReST-EM: 32)."""
    temperature: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Sampling temperature (ReST-EM: 0.7)."""
    max_new_tokens: PositiveInt = 16
    """Tokens an answer may have; one cut off here has stop_reason `length` and no answer."""
    problems: PositiveInt = 2500
    """Training problems searched a generation, drawn anew each time."""
    unit: PositiveInt = 50
    """Problems a batch unit: they are padded and sampled together, so this is part of the recipe."""


class Reward(Section):
    name: Literal["exact"] = "exact"
    """What judges an answer. exact: the domain's own checker."""


class Filter(Section):
    threshold: float = 1.0
    """Rewards below this are rejected."""
    per_problem: PositiveInt | None = 4
    """At most so many labels a problem and generation (ReST-EM: 10); null keeps all."""
    window: PositiveInt | None = None
    """How many generations of labels a student trains on, newest first; null means all since the seed."""


class Train(Section):
    start: Literal["parent", "base"] = "parent"
    """Warm from the champion's weights, or restarted from the base each generation (ReST-EM)."""
    epochs: PositiveInt = 10
    """Passes over the window's labels a generation."""
    seed_epochs: PositiveInt = 60
    """Generation 0 trains at most so many passes over the seed labels ..."""
    patience: PositiveInt = 6
    """... and stops after so many evaluations of the valid loss without a new best; the best is kept."""
    batch_size: PositiveInt = 64
    """Labels an optimiser step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 4e-3
    """Peak learning rate of AdamW."""
    warmup_share: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How it falls after the warm-up; generation 0, whose end is not known before, holds it constant."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """AdamW's decoupled weight decay."""
    gradient_clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of the gradient."""
    dedupe: bool = True
    """A label found again in a later generation is learned once (same content id)."""


class Evaluate(Section):
    budgets: tuple[PositiveInt, ...] = (1, 4, 16, 64)
    """Runtime budgets: samples a problem."""
    temperature: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Sampling temperature of every budget; greedy has none."""
    margin: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """A student becomes champion unless its greedy valid accuracy is below the champion's by more than this."""

    @field_validator("budgets")
    @classmethod
    def _rising(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if not budgets or list(budgets) != sorted(set(budgets)):
            raise ValueError(f"budgets {list(budgets)} must be a rising list of at least one number, e.g. [1, 4, 16]")
        return budgets


class Campaign(Section):
    generations: PositiveInt = 5
    """How many `flywheel run` adds when not told."""
    plateau: PositiveInt | None = None
    """Stop after so many generations in a row without a new champion."""
    max_flops: Annotated[float, Field(gt=0.0)] | None = None
    """Stop before the next generation once the ledger's total passes this."""
    max_hours: Annotated[float, Field(gt=0.0)] | None = None
    """Stop before the next generation once this run has lasted so long."""
    max_disk_gb: Annotated[float, Field(gt=0.0)] | None = None
    """Stop before the next generation once the registry takes this much."""


class Execution(Section):
    """How the work is run, no part of the recipe. Shards, retries and the like change nothing at all; device and
    threads (which the `processes` runner shares out) are part of `numerics`: other last bits, the same distribution."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto takes CUDA where there is one."""
    threads: PositiveInt | None = None
    """Threads of a CPU model; null is the machine's cores. Part of `numerics`: other threads, other last bits."""
    shards: PositiveInt = 4
    """Task runs that generation and evaluation are cut into; any number gives the same rows."""
    runner: Literal["serial", "processes"] = "serial"
    """serial: a shard at a time with the library's own threads; processes: `workers` shards at once."""
    workers: PositiveInt = 2
    """Processes of the `processes` runner."""
    checkpoint_seconds: Annotated[float, Field(gt=0.0)] = 15.0
    """Training saves a checkpoint this often; a killed run goes on from the last."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Times a failed task is tried again."""
    on_failure: str | None = None
    """A command run when a generation fails; it finds FLYWHEEL_REGISTRY, _GENERATION and _ERROR in its environment."""


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
    evaluate: Evaluate = Evaluate()
    campaign: Campaign = Campaign()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.reward.name == "exact" and self.filter.threshold > 1.0:
            raise ValueError(
                f"filter.threshold ({self.filter.threshold}) is above 1, the highest reward of `exact`: none would pass"
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
        raise ConfigError([_explain(e) for e in error.errors()], source) from None


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
    return yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _deep_copy(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, dict) else value for key, value in values.items()}


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys(tuple(error["loc"][:-1]))
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in {"value_error", "missing"}:
        return f"{where}: {message}" if where else message
    return f"{where}: got {error['input']!r}; {message[0].lower() + message[1:]}"


def _keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Params
    for part in location:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
