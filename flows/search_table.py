"""Every searcher and reward on one generation's student, at equal budgets: a table, a figure and a page in a folder.

The work is cut into cells, a Prefect task run each, kept in `cells/` of the folder; a call that is cut off goes on
where it was. Accuracy is on test, with intervals clustered by group; the arms see the same problems, so that their
differences are paired. The process reward is the generation's own reward model; an outcome model comes from a second
registry whose generation of the same number has the same student.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import search_page, stop
from flows.controls import copy_model
from flows.progress import Step, Tracker
from flywheel import params as parameters
from flywheel.errors import InputError
from flywheel.evaluation import intervals
from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params
from flywheel.problems import domain
from storage import git, lock
from storage.history import published
from storage.layout import tag_name
from storage.registry import Registry
from storage.rows import read_problems
from storage.tables import replace_text
from tasks import models, search_table
from tasks.search_table import Cell
from tasks.stage import Hooks, numerics, sources_digest, use_threads

_ROWS = pa.schema(
    [
        ("arm", pa.string()), ("budget", pa.int64()), ("problem_id", pa.string()), ("group", pa.string()),
        ("difficulty", pa.float64()), ("value", pa.float64()), ("flops", pa.float64()), ("flops_policy", pa.float64()),
        ("flops_reward", pa.float64()), ("samples", pa.int64()),
    ]
)  # fmt: skip
_SOURCES = (
    "flywheel.compute", "flywheel.evaluation", "flywheel.models", "flywheel.problems", "flywheel.records",
    "flywheel.rewards", "flywheel.search", "flywheel.seeds", "tasks.evaluate", "tasks.models", "tasks.search_table",
)  # fmt: skip


@flow(name="search table", flow_run_name="search table of gen/{generation}", validate_parameters=False)
def search_table_of(
    registry: str,
    generation: int,
    out: str,
    budgets: Sequence[int],
    problems: int | None,
    overrides: Sequence[str],
    outcome_from: str | None = None,
) -> dict[str, Any]:
    """Measure what is not measured yet; the document of `table.json`. Writes table.json, outcomes.parquet, table.svg
    and README.md to `out`. `problems` is how many of the test problems are taken, in the order of their ids."""
    opened, folder = Registry.open(Path(registry)), Path(out)
    with lock.ensure(opened, "measure searchers"):
        tracker = Tracker(opened.layout)
        params = _params(opened, generation, overrides)
        domain.require_texts(params.problems)
        trainers = _trainers(opened, generation, params, outcome_from)
        # In this registry alone, which is held: a run in the other one would clear its own.
        scratch = opened.layout.tmp / f"search-table-{uuid.uuid4().hex[:8]}"
        try:
            student = copy_model(opened, generation, "student", scratch)
            judges = {n: copy_model(trainer, generation, "reward_model", scratch) for n, trainer in trainers.items()}
            work = search_table.cells(budgets, search_table.arms_for(params, judges))
            _check(folder, _what(opened, generation, params, student, judges, budgets, problems, work))
            use_threads(params.execution)
            for number, cell in enumerate(work):
                stop.check()
                tracker.step(Step(generation, f"search table, {cell.name}", number, len(work)))
                _cell(cell, params, str(opened.root), str(student), judges, str(folder), problems)
            _difficulty(params, str(opened.root), str(student), str(folder), problems)
        finally:
            tracker.close()
            shutil.rmtree(scratch, ignore_errors=True)
        return _sum_up(trainers, generation, folder, work)


def _trainers(opened: Registry, generation: int, params: Params, outcome_from: str | None) -> dict[str, Registry]:
    """The registries whose reward models serve, by the reward. Raises InputError where one does not fit."""
    _check_estimate(opened, generation, outcome=False)
    if outcome_from is None:
        return {"process": opened}
    other = Registry.open(Path(outcome_from))
    advice = f"give --outcome-from a copy of this registry from before gen/{generation}, in which that was run anew"
    ours, theirs = (published(registry, generation)["student"]["snapshot"] for registry in (opened, other))
    if ours != theirs:
        raise InputError(
            f"gen/{generation} of {other.root} has the student {theirs[:12]}, expected {ours[:12]} as in "
            f"{opened.root}; {advice} with supervise.estimate=outcome"
        )
    _check_estimate(other, generation, outcome=True)
    tag = _params(other, generation, ()).reward.step_tag
    if tag != params.reward.step_tag:
        raise InputError(
            f"gen/{generation} of {other.root} has reward.step_tag {tag!r}, expected {params.reward.step_tag!r}; "
            f"{advice} with the same"
        )
    return {"process": opened, "outcome": other}


def _check_estimate(opened: Registry, generation: int, outcome: bool) -> None:
    estimate = _params(opened, generation, ()).supervise.estimate
    if (estimate == "outcome") != outcome:
        wanted = "outcome" if outcome else "soft or hard: its reward model is to score steps"
        raise InputError(f"gen/{generation} of {opened.root} has supervise.estimate {estimate}, expected {wanted}")


@task(name="cell", task_run_name="{cell.name}", cache_policy=NO_CACHE)
def _cell(
    cell: Cell, params: Params, root: str, student: str, judges: dict[str, Path], folder: str, problems: int | None
) -> None:  # fmt: skip
    path = Path(folder) / "cells" / f"{cell.name}.json"
    if path.exists():
        return
    asked = _problems(root, problems)
    sampler = models.load_sampler(student, weights_digest(Path(student)), params.execution)
    rows = search_table.run_cell(cell, params, sampler, asked, judges, Hooks(should_stop=stop.check))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(rows))


@task(name="difficulty", cache_policy=NO_CACHE)
def _difficulty(params: Params, root: str, student: str, folder: str, problems: int | None) -> None:
    path = Path(folder) / "cells" / "difficulty.json"
    if path.exists():
        return
    sampler = models.load_sampler(student, weights_digest(Path(student)), params.execution)
    rates = search_table.difficulties(params, sampler, _problems(root, problems), Hooks(should_stop=stop.check))
    replace_text(path, json.dumps(rates))


def _problems(root: str, count: int | None) -> list[Any]:
    return read_problems(Registry.open(Path(root)).layout.problems, ["test"])[:count]


def _params(opened: Registry, generation: int, overrides: Sequence[str]) -> Params:
    import yaml

    text = git.read_many(opened.root, [f"{tag_name(generation)}:params.yaml"])[0]
    values = yaml.safe_load(text or b"") or {}
    return parameters.parse(parameters.apply(values, list(overrides)), f"{tag_name(generation)}:params.yaml")


def _what(
    opened: Registry,
    generation: int,
    params: Params,
    student: Path,
    judges: dict[str, Path],
    budgets: Sequence[int],
    problems: int | None,
    work: Sequence[Cell],
) -> dict[str, Any]:
    """Everything that shapes the rows: another folder is needed where any of it differs."""
    if list(budgets) != sorted(set(budgets)) or not budgets or budgets[0] < 1:
        raise InputError(f"got budgets {list(budgets)}, expected rising numbers of samples, e.g. 1,2,4,8")
    for cell in work:
        for budget in cell.budgets:
            try:
                search_table.searcher_of(cell.arms[0], budget, params)
            except ValueError as error:
                raise InputError(f"budget {budget} does not suit {cell.arms[0].name}: {error}") from None
    return {
        "student": weights_digest(student),
        "reward_models": {name: weights_digest(folder) for name, folder in judges.items()},
        "recipe": params.digest(),
        "generation": generation,
        "budgets": list(budgets),
        "problems": len(_problems(str(opened.root), problems)),
        "sources": sources_digest(*_SOURCES),
        "numerics": numerics(params.execution),
    }


def _check(folder: Path, what: dict[str, Any]) -> None:
    path = folder / "what.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else what
    if held != what:
        differing = ", ".join(key for key in what if held.get(key) != what[key])
        raise InputError(f"{folder} holds a table of something else ({differing} differ); give --out a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(what, indent=1) + "\n")


def _sum_up(trainers: dict[str, Registry], generation: int, folder: Path, work: list[Cell]) -> dict[str, Any]:
    difficulty = json.loads((folder / "cells" / "difficulty.json").read_text(encoding="utf-8"))
    rows = [
        {**row, "difficulty": difficulty[row["problem_id"]]}
        for cell in work
        for row in json.loads((folder / "cells" / f"{cell.name}.json").read_text(encoding="utf-8"))
    ]
    pq.write_table(pa.Table.from_pylist(rows, _ROWS), folder / "outcomes.parquet")
    document = {
        "what": json.loads((folder / "what.json").read_text(encoding="utf-8")),
        "reward_models": {name: _made(trainer, generation) for name, trainer in trainers.items()},
        "rows": _accuracy(rows),
        "findings": search_page.findings(rows),
    }
    replace_text(folder / "table.json", json.dumps(document, indent=1) + "\n")
    replace_text(folder / "table.svg", search_page.picture(document))
    replace_text(folder / "README.md", search_page.page(document))
    return document


def _made(trainer: Registry, generation: int) -> dict[str, Any]:
    held = published(trainer, generation)
    return {
        "snapshot": held["reward_model"]["snapshot"],
        "parameters": held["reward_model"]["parameters"],
        "student_parameters": held["student"]["parameters"],
        "flops": held["stages"].get("supervise", 0.0),
    }


def _accuracy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an arm and budget, in the order of the arms."""
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["arm"], row["budget"]), []).append(row)
    order = {arm.name: number for number, arm in enumerate(search_table.ARMS)}
    return [
        {
            "arm": arm,
            "budget": budget,
            **intervals.share([row["value"] for row in group], [row["group"] for row in group]).as_dict(),
            "flops": math.fsum(row["flops"] for row in group) / len(group),
            "flops_reward": math.fsum(row["flops_reward"] for row in group) / len(group),
        }
        for (arm, budget), group in sorted(grouped.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    ]
