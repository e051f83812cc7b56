"""Controls as flows of their own: what the flywheel is to be compared with.

no-search      the same seed labels and the same total FLOPs, all of them spent on training
ceiling        the solver's labels for every training problem, as many FLOPs
tuned-search   generation 0's search at the temperature that does best on valid
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import stop
from flows.progress import Step, Tracker
from flywheel import params as parameters
from flywheel.errors import InputError
from flywheel.problems import domain
from storage import cache, git, history, ledger, lock
from storage.layout import tag_name
from storage.publish import commit_files
from storage.registry import Registry
from storage.tables import replace_text
from tasks import control as controls
from tasks import tuned_search
from tasks.stage import Hooks

NAMES = (*controls.NAMES, tuned_search.NAME)


@flow(name="control", flow_run_name="control {name}", validate_parameters=False)
def control(name: str, registry: str) -> dict[str, Any]:
    """Run a control at the FLOPs that the registry's line of generations spent on search and training.

    Its figures go to `controls/` in the registry, by name and seed, and into a commit of their own. Raises InputError
    for an unknown name or a registry with nothing to compare with.
    """
    if name not in NAMES:
        raise InputError(f"got control {name!r}, expected one of {', '.join(NAMES)}")
    opened = Registry.open(Path(registry))
    domain.require_texts(parameters.load(opened.layout.params).problems)
    with lock.ensure(opened, f"control {name}"):
        head = opened.head_generation()
        if head is None or head == 0:
            raise InputError("a control compares with generations that searched; run at least one: flywheel run")
        tracker = Tracker(opened.layout)
        try:
            result = _measure(name, str(opened.root), _spent(opened, head), tracker)
        finally:
            tracker.close()
        path = opened.layout.controls / f"{name}-seed-{result['seed']}.json"
        replace_text(path, json.dumps(result, indent=1, sort_keys=True) + "\n")
        commit_files(opened, [path], f"Record control {name}", {"Flywheel-Control": name})
        return result


@task(name="control", task_run_name="{name}", cache_policy=NO_CACHE)
def _measure(name: str, root: str, budget_flops: float, tracker: Any) -> dict[str, Any]:
    opened = Registry.open(Path(root))
    params = parameters.load(opened.layout.params)

    def tell(done: int, total: int) -> None:
        tracker.step(Step(params.generation, f"control {name}", done, total))

    hooks = Hooks(tell, stop.check)
    if name != tuned_search.NAME:
        return controls.run(name, params, opened.layout, budget_flops, hooks)
    student = copy_model(opened, 0, "student", opened.layout.tmp)
    try:
        return tuned_search.run(params, opened.layout, student, hooks)
    finally:
        shutil.rmtree(student)


def _spent(opened: Registry, head: int) -> float:
    """Executed FLOPs of search and training on the line of the head, generation 0 included."""
    line = history.window(opened, head)
    rows = [row for number in line for row in ledger.read(opened.layout, number) if row["stage"] in ledger.INVESTED]
    return sum(ledger.flops(rows).values())


def copy_model(opened: Registry, generation: int, output: str, scratch: Path) -> Path:
    """A published model (`student`, `reward_model`), copied out of the cache to a folder in `scratch`, which the caller
    removes. Raises InputError where the generation made none."""
    text = git.read_many(opened.root, [f"{tag_name(generation)}:dvc.lock"])[0]
    assert text is not None, tag_name(generation)
    outputs = cache.lock_outputs(text.decode())
    if output not in outputs:
        raise InputError(
            f"gen/{generation} made no {output} in {opened.root}; set supervise.enabled for a generation, or take one "
            "that has it"
        )
    folder = scratch / f"{output}-{uuid.uuid4().hex[:8]}"
    for name, md5 in cache.tree(opened, outputs[output]).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cache.cache_path(opened, md5), target)
    return folder
