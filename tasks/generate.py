"""generate: the teacher searches; every attempt is kept, with its reward and its price.

The problems of a generation are drawn from the training split (`tasks.curriculum`) and cut into batch units; a shard is
a run of whole units. A unit is written once and found again after a crash. Generation 0 has no teacher yet: the
domain's own solver gives the seed attempts, judged exactly.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import pyarrow.parquet as pq

from flywheel.compute import Cost
from flywheel.errors import ConfigError
from flywheel.params import Params
from flywheel.problems.domain import Domain
from flywheel.records import Attempt, Problem, digest
from flywheel.rewards.exact import Exact
from flywheel.search import searcher as searchers
from flywheel.search import solver
from flywheel.search.protocols import Run, not_told
from storage import judge
from storage.layout import Layout
from storage.rows import attempt_rows
from storage.schemas import ATTEMPTS
from storage.tables import TableWriter, replace_folder
from tasks import models
from tasks.curriculum import chosen
from tasks.stage import (
    Hooks,
    Report,
    Stamp,
    Units,
    by_model,
    cost_facts,
    cost_of,
    fingerprint,
    main,
    models_of,
    my_units,
    numerics,
    shard_report,
)

_SOURCES = (
    "flywheel.compute",
    "flywheel.models",
    "flywheel.problems",
    "flywheel.records",
    "flywheel.rewards",
    "flywheel.search",
    "flywheel.seeds",
    "storage.rows",
    "storage.schemas",
    "storage.tables",
    "tasks.curriculum",
    "tasks.models",
    "tasks.generate",
)


def solver_snapshot(params: Params) -> str:
    """What stands for a model where the domain's own solver made the labels."""
    if params.problems.domain == "hex":
        from tasks.boards import networks

        return networks.solver_snapshot()
    domain = models.domain_of(params.problems)
    return digest("solver", domain.name, domain.version)


def check(params: Params) -> None:
    """Refuse a searcher and a reward that do not fit, before anything is done. Raises ConfigError."""
    if params.problems.domain == "hex":
        return
    searchers.check_pair(searchers.load(params.generate, params.reward), params.reward)


def run_shard(params: Params, layout: Layout, shard: int, shards: int, hooks: Hooks = Hooks()) -> Report:  # noqa: B008
    """Do one shard's units, those that are not done yet."""
    if params.problems.domain == "hex":
        from tasks.boards import generate as self_play

        return self_play.run_shard(params, layout, shard, shards, hooks)
    units, work = _open(params, layout)
    if params.generation > 0 and params.reward.by_own_model:
        judge.verify(layout)
    domain = models.domain_of(params.problems)
    mine = my_units(len(units), shard, shards)

    def search(number: int) -> None:
        start = time.monotonic()
        attempts, worked = _attempts(params, layout, domain, units[number], hooks)
        fact = {
            **cost_facts(worked),
            "seconds": time.monotonic() - start,
            "passed": sum((a.reward or 0.0) >= params.filter.threshold for a in attempts),
            "unjudged": sum(a.reward is None for a in attempts),
        }
        work.write(number, attempt_rows(attempts), ATTEMPTS, fact)

    facts = work.each(mine, [len(unit) for unit in units], hooks, search)
    rows_in = sum(len(units[number]) for number in mine)
    rows_out = sum(pq.read_metadata(work.table(number)).num_rows for number in mine)
    return shard_report("generate", params.generation, shard, shards, facts, rows_in, rows_out)


def finish(params: Params, layout: Layout) -> Report:
    """Join the units, in their order, into the table `attempts`; its parts do not depend on how shards were cut."""
    if params.problems.domain == "hex":
        from tasks.boards import generate as self_play

        return self_play.finish(params, layout)
    start = time.monotonic()
    units, work = _open(params, layout)
    stamp = Stamp(layout, params.generation, "generate", work.folder.name, [layout.attempts])
    if (report := stamp.fresh()) is not None:
        return report
    work.require(len(units))
    new = layout.tmp / f"attempts-{uuid.uuid4().hex[:8]}"
    with TableWriter(new, ATTEMPTS) as writer:
        for number in range(len(units)):
            with pq.ParquetFile(work.table(number)) as file:
                writer.write_batches(file.iter_batches())
    replace_folder(new, layout.attempts, layout.tmp)
    facts = [work.facts(number) for number in range(len(units))]
    report = Report(
        "generate",
        params.generation,
        cost=cost_of(facts),
        models=models_of(facts),
        seconds=sum(fact["seconds"] for fact in facts) + time.monotonic() - start,
        rows_in=sum(len(unit) for unit in units),
        rows_out=writer.rows,
        numerics=numerics(params.execution),
        notes={
            "attempts": writer.rows,
            "passed": sum(fact["passed"] for fact in facts),
            **_counted("not judged", sum(fact["unjudged"] for fact in facts)),
        },
    )
    stamp.write(report)
    return report


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """The whole stage: every shard, then `finish`."""
    run_shard(params, layout, 0, 1, hooks)
    return finish(params, layout)


def _counted(name: str, count: int) -> dict[str, int]:
    return {name: count} if count else {}


def _open(params: Params, layout: Layout) -> tuple[list[list[Problem]], Units]:
    problems = chosen(params, layout)
    size = params.generate.unit
    sections = [
        params.seed,
        params.generation,
        params.seed_labels.model_dump(),
        params.generate.model_dump(),
        params.reward.model_dump(),
        params.problems.model_dump(mode="json"),
        params.filter.threshold,
    ]
    inputs = [layout.problems, layout.parent, layout.lineage / "teacher.json", layout.lineage / "tried.json"]
    if params.generation > 0:
        inputs += models.reward_inputs(params, layout.judge)
    mark = fingerprint("generate", _SOURCES, sections, inputs, numerics(params.execution))
    work = Units(layout, params.generation, "generate", mark)
    return [problems[start : start + size] for start in range(0, len(problems), size)], work


def _attempts(
    params: Params, layout: Layout, domain: Domain, problems: list[Problem], hooks: Hooks
) -> tuple[list[Attempt], dict[str, Cost]]:
    """One unit, searched by the teacher, or by the solver where there is none yet; and what it took, by model."""
    run = Run(params.seed, params.generation)
    if params.generation == 0:
        encoder = models.load_sampler(str(layout.parent), None, params.execution)
        count = params.seed_labels.per_problem
        labels = solver.search(problems, domain, solver_snapshot(params), encoder, Exact(domain), run, count=count)
        longest = max((len(attempt.token_ids) for attempt in labels), default=0)
        if longest > params.generate.max_new_tokens:
            raise ConfigError(
                [
                    f"generate.max_new_tokens: got {params.generate.max_new_tokens}, but a seed label takes {longest} "
                    "tokens of this model's tokenizer; a student could never finish an answer, give it more"
                ]
            )
        return labels, {}
    reward = models.load_reward(params, domain, layout.judge)
    searcher = searchers.load(params.generate, params.reward)
    teacher = models.load_teacher(params, layout)
    found, cost = searcher.search(
        problems, domain, teacher, reward, run, should_stop=hooks.should_stop, finished=not_told
    )
    judging = Cost(reward=cost.reward, padding=reward.take_padding())
    worked = by_model(
        (teacher.snapshot, replace(cost, reward=0.0)), (models.judge_snapshot(params, layout.judge), judging)
    )
    return [attempt for row in found for attempt in row], worked


if __name__ == "__main__":
    raise SystemExit(main(run, run_shard))
