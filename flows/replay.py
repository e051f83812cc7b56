"""A published generation made again from what went into it, in a scratch clone, and compared with what was recorded.

Run are Flywheel's own stage modules: nothing that a registry holds is executed, its dvc.yaml neither. Only a reward
function that its params name is code from outside; in a clone of another's registry it takes `trusted`. No lock is
taken and nothing is published: a replay's FLOPs stand in no ledger.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from flows import replay_stages
from flows.replay_stages import STAGES, Done
from flywheel import params as parameters
from flywheel.errors import ConfigError, InputError, RegistryError
from flywheel.params import Params, folder_name
from flywheel.problems import reading
from storage import cache, equivalence, git, remotes, scratch, trust
from storage import replay as replays
from storage.history import published
from storage.layout import Layout, tag_name
from storage.registry import Registry, require_generation
from storage.replay import Recorded
from storage.schemas import table_folder
from tasks import models
from tasks.stage import code_revision


def _nothing(_done: Done) -> None:
    """The default listener."""


def replay(
    registry: Registry,
    generation: int,
    keep: Path | None = None,
    trusted: bool = False,
    overrides: list[str] | None = None,
    tell: Callable[[Done], None] = _nothing,
) -> dict[str, Any]:
    """Make `generation` again; whether it came out as recorded.

    {"result": identical, equivalent or different, "generation", "seconds", "flops": executed here, "numerics", "code":
    {"recorded", "here"}, "outputs": {name: {"recorded", "here"}} by DVC's digest, models by their weights too,
    "leeway": why other bytes need not mean another distribution, "tests" of `storage.equivalence`, "level": the p value
    below which a test tells the two apart, "differences" of `storage.replay`, "kept": the clone's folder, or null}.

    Identical: all digests are the same. Equivalent: they are not, but there is leeway and no test tells the two apart.
    `keep`: a folder to make the clone in and leave it; else it is removed, whatever happens. `overrides`: changes of
    `execution`, which is no part of the recipe. `tell` hears of each stage as it ends. Raises InputError for what
    cannot be made again here, FlywheelError where a stage fails, Interrupted on a stop request.
    """
    start = time.monotonic()
    params = _params(registry, generation, overrides or [])
    _require_trust(registry, params, trusted)
    _require_files(params)
    recorded = replays.recorded(registry, generation)
    with _folder(keep) as folder:
        layout = scratch.prepare(registry, generation, folder)
        if overrides:
            layout.params.write_text(parameters.dump(params), encoding="utf-8")
        done = []
        for stage in STAGES:
            if stage != "supervise" or params.supervise.enabled:
                done.append(replay_stages.run(stage, layout, params))
                tell(done[-1])
        numerics = {one.stage: one.numerics for one in done if one.numerics}
        found = verdict(registry, layout, params, recorded, numerics)
    return {
        **found,
        "generation": generation,
        "seconds": time.monotonic() - start,
        "flops": sum(one.flops for one in done),
        "kept": str(folder) if keep is not None else None,
    }


def _params(registry: Registry, generation: int, overrides: list[str]) -> Params:
    """The generation's params as its tag has them, but for the overrides."""
    tag = require_generation(registry, generation)
    if wrong := [text for text in overrides if not text.strip().startswith("execution.")]:
        raise InputError(f"got --set {wrong[0]}, expected execution.NAME=VALUE; all else is what {tag} was made with")
    text = git.read_many(registry.root, [f"{tag}:params.yaml"])[0]
    values = yaml.safe_load(text or b"")
    if not isinstance(values, dict):
        raise RegistryError(f"{tag} holds no params.yaml; it was not made by Flywheel")
    params = parameters.parse(parameters.apply(values, overrides), f"params.yaml of {tag}")
    if (params.generation, params.folder) != (generation, folder_name(generation)):
        raise RegistryError(f"params.yaml of {tag} is that of generation {params.generation}; its commit is damaged")
    return params


def _require_trust(registry: Registry, params: Params, trusted: bool) -> None:
    # The command for failures is not run here.
    quiet = params.model_copy(update={"execution": params.execution.model_copy(update={"on_failure": None})})
    try:
        trust.require(registry, quiet)
    except ConfigError as error:
        if not trusted:
            raise InputError(f"{error}\n  - or run it for this replay alone, with --trust") from error


def _require_files(params: Params) -> None:
    """Raise ConfigError where a file or folder of the user's that the params name is not here."""
    if params.problems.domain == "file":
        reading.files(params.problems)
    named = {
        "generate.teacher": params.generate.teacher if params.generation > 0 else None,
        "model.base": params.model.base if params.train.start == "base" else None,
        "reward.model": params.reward.model,
        "supervise.base": params.supervise.base if params.supervise.enabled else None,
    }
    missing = [
        f"{key}: there is no {source} on this machine; put that model back there"
        for key, source in named.items()
        if source is not None and Path(source).is_absolute() and not Path(source).exists()
    ]
    if missing:
        raise ConfigError(missing, f"the recipe of {tag_name(params.generation)}")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """An empty folder for the clone."""
    if keep is not None:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise InputError(f"{keep} exists and is not an empty folder; name a new one with --keep")
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="flywheel-replay-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def verdict(
    registry: Registry, layout: Layout, params: Params, recorded: Recorded, numerics: dict[str, str]
) -> dict[str, Any]:
    """What `replay` says of a clone in which all stages were run, `numerics` being those of each stage."""
    made, weighed = replays.digests(layout, recorded.outputs), replays.weights(layout, recorded.weights)
    outputs = {
        **{name: {"recorded": md5, "here": made[name]} for name, md5 in recorded.outputs.items()},
        **{f"{role} weights": {"recorded": one, "here": weighed[role]} for role, one in recorded.weights.items()},
    }
    unlike = [name for name in recorded.outputs if made[name] != recorded.outputs[name]]
    # A record that is at odds with itself cannot be reproduced whole.
    odd = recorded.at_odds + [
        {"output": role, "why": f"dvc.lock names these very files, but lineage says that their weights are {one}"}
        for role, one in recorded.weights.items()
        if role not in unlike and weighed[role] != one
    ]
    differences = odd + replays.differences(registry, params.generation, layout, unlike)
    recorded_files = _recorded_files(registry, params.generation)
    old = {table: [cache.cache_path(registry, md5) for md5 in listed] for table, listed in recorded_files.items()}
    new = {name: sorted((layout.root / table_folder(name, params.folder)).glob("*.parquet")) for name in old}
    leeway = _leeway(params, recorded, numerics)
    if equivalence.timeouts(old) or equivalence.timeouts(new):
        leeway.append("a reward did not finish in time, which another time it may")
    tests: list[dict[str, Any]] = []
    others = any(one.get("table") == "problems" and one["first"] is not None for one in differences)
    if unlike and leeway and not odd and not others:
        if all("table" in one and one["first"] is None for one in differences):
            tests = [equivalence.same_rows(sum(one["rows"]["here"] for one in differences))]
        else:
            files = [md5 for listed in recorded_files.values() for md5 in listed]
            remotes.bring(registry, files, f"tables of {tag_name(params.generation)}")
            tests = equivalence.tests(old, new, layout.tmp)
    result = "identical" if not (unlike or odd) else "equivalent" if equivalence.agree(tests) else "different"
    return {
        "result": result,
        "numerics": {"recorded": recorded.numerics, "here": numerics},
        "code": {"recorded": recorded.code, "here": code_revision()},
        "outputs": outputs,
        "leeway": leeway,
        "tests": tests,
        "level": equivalence.LEVEL / len(tests) if tests else None,
        "differences": differences,
    }


def _leeway(params: Params, recorded: Recorded, numerics: dict[str, str]) -> list[str]:
    """Why other bytes need not mean another distribution; none where equal bytes are promised."""
    found: list[str] = []
    unlike: dict[tuple[str, str], list[str]] = {}
    for stage, here in numerics.items():
        if recorded.numerics.get(stage) != here:
            unlike.setdefault((recorded.numerics.get(stage, ""), here), []).append(stage)
    for (then, now), stages in unlike.items():
        old, new = then.split(", "), now.split(", ")
        before = ", ".join(part for part in old if part not in new) or "not recorded"
        found.append(f"{', '.join(stages)}: {before}; here {', '.join(part for part in new if part not in old)}")
    if recorded.code != code_revision():
        found.append(f"the code was {recorded.code}; here it is {code_revision()}")
    if any("cuda" in here for here in numerics.values()):
        found.append("a GPU does not add up in a fixed order")
    if params.generation > 0 and models.is_server(params.generate.teacher):
        found.append("the teacher is a server, whose answers nobody can pin")
    if params.reward.function is not None:
        found.append("the reward is a function whose code the registry does not hold")
    return found


def _recorded_files(registry: Registry, generation: int) -> dict[str, list[str]]:
    """MD5s of the files of each table that is tested, as lineage lists them."""
    facts = published(registry, generation)["tables"]
    return {table: [file["md5"] for file in facts[table]["files"]] for table in equivalence.TABLES if table in facts}
