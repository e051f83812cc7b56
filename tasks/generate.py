"""generate: the teacher searches; every attempt is kept, with its reward and its price.

The problems of a generation are drawn from the training split and cut into batch units; a shard is a run of whole
units. A unit is written once and found again after a crash. Generation 0 has no teacher yet: the domain's own solver
gives the seed attempts.
"""

from __future__ import annotations

import time
import uuid

import pyarrow.parquet as pq

from flywheel.compute import Cost
from flywheel.errors import ConfigError
from flywheel.params import Params
from flywheel.problems import domain as domains
from flywheel.problems.domain import Domain
from flywheel.records import Attempt, Problem, digest
from flywheel.rewards import reward as rewards
from flywheel.search import best_of_n, solver
from flywheel.search.protocols import Run
from storage.layout import Layout
from storage.rows import attempt_row, read_problems
from storage.schemas import ATTEMPTS
from storage.tables import TableWriter, replace_folder
from tasks import models
from tasks.stage import (
    Hooks,
    Report,
    Stamp,
    Units,
    cost_fact,
    cost_of,
    fingerprint,
    main,
    my_units,
    numerics,
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
    "tasks.generate",
)


def solver_snapshot(params: Params) -> str:
    """What stands for a model where the domain's own solver made the labels."""
    domain = domains.load(params.problems)
    return digest("solver", domain.name, domain.version)


def chosen(params: Params, layout: Layout) -> list[Problem]:
    """The training problems of this generation, in the order of their ids."""
    problems = read_problems(layout.problems, ["train"])
    count = params.seed_labels.problems if params.generation == 0 else params.generate.problems
    # The seed problems are one fixed draw; later generations draw anew.
    drawn = sorted(problems, key=lambda p: digest("chosen", params.seed, params.generation, p.problem_id))[:count]
    return sorted(drawn, key=lambda p: p.problem_id)


def run_shard(params: Params, layout: Layout, shard: int, shards: int, hooks: Hooks = Hooks()) -> Report:  # noqa: B008
    """Do one shard's units, those that are not done yet."""
    units, work = _open(params, layout)
    domain = domains.load(params.problems)
    mine = my_units(len(units), shard, shards)
    seconds, made, done = 0.0, [], 0
    total = sum(len(units[number]) for number in mine)
    for number in mine:
        hooks.should_stop()
        if not work.done(number):
            start = time.monotonic()
            attempts, cost = _attempts(params, layout, domain, units[number], hooks)
            spent = time.monotonic() - start
            work.write(
                number,
                [attempt_row(attempt) for attempt in attempts],
                ATTEMPTS,
                {"cost": cost_fact(cost), "seconds": spent, "right": sum(a.reward == 1.0 for a in attempts)},
            )
        fact = work.facts(number)
        made.append(fact)
        seconds += fact["seconds"]
        done += len(units[number])
        hooks.progress(done, total)
    return Report(
        "generate",
        params.generation,
        f"{shard:05d}/{shards:05d}",
        cost_of(made),
        seconds,
        rows_in=total,
        rows_out=sum(pq.read_metadata(work.table(number)).num_rows for number in mine),
    )


def finish(params: Params, layout: Layout) -> Report:
    """Join the units, in their order, into the table `attempts`; its parts do not depend on how shards were cut."""
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
        seconds=sum(fact["seconds"] for fact in facts) + time.monotonic() - start,
        rows_in=sum(len(unit) for unit in units),
        rows_out=writer.rows,
        numerics=numerics(params.execution),
        notes={"attempts": writer.rows, "right": sum(fact["right"] for fact in facts)},
    )
    stamp.write(report)
    return report


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """The whole stage: every shard, then `finish`."""
    run_shard(params, layout, 0, 1, hooks)
    return finish(params, layout)


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
    ]
    inputs = [layout.problems, layout.parent, layout.lineage / "teacher.json"]
    mark = fingerprint("generate", _SOURCES, sections, inputs, numerics(params.execution))
    work = Units(layout, params.generation, "generate", mark)
    return [problems[start : start + size] for start in range(0, len(problems), size)], work


def _attempts(
    params: Params, layout: Layout, domain: Domain, problems: list[Problem], hooks: Hooks
) -> tuple[list[Attempt], Cost]:
    """One unit, searched by the teacher, or by the solver where there is none yet."""
    reward, run = rewards.load(params.reward, domain), Run(params.seed, params.generation)
    if params.generation == 0:
        encoder = models.load_sampler(str(layout.parent), None, params.execution)
        count = params.seed_labels.per_problem
        labels = solver.search(problems, domain, solver_snapshot(params), encoder, reward, run, count=count)
        longest = max((len(attempt.token_ids) for attempt in labels), default=0)
        if longest > params.generate.max_new_tokens:
            raise ConfigError(
                [
                    f"generate.max_new_tokens: got {params.generate.max_new_tokens}, but a seed label takes {longest} "
                    "tokens of this model's tokenizer; a student could never finish an answer, give it more"
                ]
            )
        return labels, Cost()
    found, cost = best_of_n.search(
        problems,
        domain,
        models.load_teacher(layout, params.execution),
        reward,
        run,
        samples=params.generate.samples,
        temperature=params.generate.temperature,
        max_new_tokens=params.generate.max_new_tokens,
        should_stop=hooks.should_stop,
    )
    return [attempt for row in found for attempt in row], cost


if __name__ == "__main__":
    raise SystemExit(main(run, run_shard))
