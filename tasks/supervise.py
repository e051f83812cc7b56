"""supervise: step labels from answers of the new student, and a reward model that learns them.

Training problems are drawn by digest and cut into batch units, each written once and found again after a crash; a shard
is a run of whole units. Right is what the domain's exact checker says of a whole answer, which for training problems
may look at their reference. The labels of a tenth of the problems, always the same ones, are held out to measure the
reward model. The student never needs it at run time: it judges this generation's evaluation and the next one's search,
where `reward` asks for it, and the next reward model starts from it.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

from flywheel.params import Params
from flywheel.records import Problem, digest
from flywheel.rewards.exact import Exact
from flywheel.search.protocols import Run, Sampling
from flywheel.search.rollouts import label_steps
from storage import judge
from storage.layout import Layout
from storage.rows import read_problems, rollout_row, step_label_row, step_parent_rows
from storage.schemas import ROLLOUTS, STEP_LABEL_PARENTS, STEP_LABELS
from storage.tables import replace_folder, write_file
from tasks import models
from tasks.reward_learning import Learner, unit_file
from tasks.stage import (
    Hooks,
    Report,
    Spent,
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
    use_threads,
)  # fmt: skip

_SOURCES = (
    "flywheel.compute", "flywheel.learning", "flywheel.models", "flywheel.problems", "flywheel.records",
    "flywheel.rewards", "flywheel.search", "flywheel.seeds", "storage.rows", "storage.schemas", "storage.tables",
    "tasks.models", "tasks.reward_learning", "tasks.supervise",
)  # fmt: skip
_UNIT = 16
"""Problems a unit. Fixed, as a unit is padded and sampled together."""


def chosen(params: Params, layout: Layout) -> list[Problem]:
    """The training problems whose attempts are labelled in this generation, in the order of their ids."""
    problems = read_problems(layout.problems, ["train"])
    drawn = sorted(problems, key=lambda p: digest("supervised", params.seed, params.generation, p.problem_id))
    return sorted(drawn[: params.supervise.problems], key=lambda p: p.problem_id)


def run_shard(params: Params, layout: Layout, shard: int, shards: int, hooks: Hooks = Hooks()) -> Report:  # noqa: B008
    """Label one shard's units, those that are not done yet."""
    units, work = _open(params, layout)
    mine = my_units(len(units), shard, shards)

    def label(number: int) -> None:
        _label_unit(params, layout, units[number], number, work, hooks)

    facts = work.each(mine, [len(unit) for unit in units], hooks, label)
    rows_in, rows_out = sum(len(units[number]) for number in mine), sum(fact["labels"] for fact in facts)
    return shard_report("supervise", params.generation, shard, shards, facts, rows_in, rows_out)


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """Label what is not labelled yet, then train: the folder `supervision` and the model folder `reward_model`."""
    run_shard(params, layout, 0, 1, hooks)
    start = time.monotonic()
    units, work = _open(params, layout)
    begins_with_judge = params.supervise.start == "previous" and judge.verify(layout) is not None
    mark = fingerprint(
        "supervise training",
        _SOURCES,
        [work.folder.name, params.supervise.model_dump(), params.reward.step_tag],
        [layout.student, *([layout.judge] if begins_with_judge else [])],
        numerics(params.execution, alone=True),
    )
    stamp = Stamp(layout, params.generation, "supervise", mark, [layout.supervision, layout.reward_model])
    if (report := stamp.fresh()) is not None:
        return report
    use_threads(params.execution, alone=True)
    models.forget()
    learner = Learner(params, layout, work, units, mark)
    spent = Spent(learner.checkpoints / "seconds")
    trained = learner.train(begins_with_judge, replace(hooks, progress=spent.telling(hooks.progress)))
    elsewhere = spent.beyond()
    tables = learner.write_tables(trained)
    replace_folder(trained.folder, layout.reward_model, layout.tmp)
    replace_folder(tables, layout.supervision, layout.tmp)
    shutil.rmtree(learner.checkpoints, ignore_errors=True)
    facts = [work.facts(number) for number in range(len(units))]
    labels = sum(fact["labels"] for fact in facts)
    training = trained.training
    quality = {"valid_loss": training.valid_loss, "valid_auc": training.valid_auc}
    report = Report(
        "supervise",
        params.generation,
        cost=cost_of(facts) + training.cost,
        models=by_model(*models_of(facts).items(), (trained.snapshot, training.cost)),
        seconds=sum(fact["seconds"] for fact in facts) + time.monotonic() - start + elsewhere,
        rows_in=sum(len(unit) for unit in units),
        rows_out=labels,
        numerics=numerics(params.execution, alone=True),
        notes={
            "labels": labels,
            **{name: round(value, 4) for name, value in quality.items() if value is not None},
            **({"unfit": trained.unfit} if trained.unfit else {}),
            "reward_model": trained.snapshot[:12],
        },
    )
    stamp.write(report)
    return report


def _open(params: Params, layout: Layout) -> tuple[list[list[Problem]], Units]:
    problems, section = chosen(params, layout), params.supervise
    shaping = [
        params.seed, params.generation, section.problems, section.attempts, _rollouts(params), section.temperature,
        section.estimate, params.generate.max_new_tokens, params.problems.model_dump(mode="json"),
    ]  # fmt: skip
    inputs = [layout.problems, layout.student]
    mark = fingerprint("supervise", _SOURCES, shaping, inputs, numerics(params.execution))
    units = [problems[start : start + _UNIT] for start in range(0, len(problems), _UNIT)]
    return units, Units(layout, params.generation, "supervise", mark)


def _rollouts(params: Params) -> int:
    """Completions a step: none where the attempt's own verdict is all that counts."""
    return 0 if params.supervise.estimate == "outcome" else params.supervise.rollouts


def _label_unit(
    params: Params, layout: Layout, problems: list[Problem], number: int, work: Units, hooks: Hooks
) -> None:
    start, section = time.monotonic(), params.supervise
    domain, student = models.domain_of(params.problems), models.snapshot_of(layout.student)
    rollouts, labels, cost = label_steps(
        problems,
        domain,
        models.load_sampler(str(layout.student), student, params.execution),
        Exact(domain),
        Run(params.seed, params.generation, "supervise"),
        attempts=section.attempts,
        rollouts=_rollouts(params),
        sampling=Sampling(section.temperature),
        max_new_tokens=params.generate.max_new_tokens,
        estimate=section.estimate,
        should_stop=hooks.should_stop,
    )
    # The rollouts' file is what makes the unit done, so it comes last.
    write_file(unit_file(work, number, "step_labels"), [step_label_row(label) for label in labels], STEP_LABELS)
    parents = [row for label in labels for row in step_parent_rows(label)]
    write_file(unit_file(work, number, "step_label_parents"), parents, STEP_LABEL_PARENTS)
    worked = by_model((student, cost))
    fact = {**cost_facts(worked), "seconds": time.monotonic() - start, "labels": len(labels)}
    work.write(number, [rollout_row(rollout) for rollout in rollouts], ROLLOUTS, fact)


if __name__ == "__main__":
    raise SystemExit(main(run, run_shard))
