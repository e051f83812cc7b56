"""evaluate: how good the student is at each runtime budget, whether it shows signs of collapse, whether it takes over.

Valid decides (champion, alarms); test is only reported. Problems are searched in units, as in `generate`; the noise is
the evaluation's own and the same for every generation, so that two students differ by their weights alone.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from flywheel.compute import Cost
from flywheel.evaluation import champion, collapse, intervals, metrics
from flywheel.params import Params
from flywheel.records import Attempt, Problem
from flywheel.rewards.exact import Exact
from flywheel.rewards.reward import Answer, Reward
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run, Sampling
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import EVALUATIONS, OUTCOMES
from storage.tables import TableWriter, replace_folder, replace_text
from tasks import models
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
    "flywheel.compute", "flywheel.evaluation", "flywheel.models", "flywheel.problems", "flywheel.records",
    "flywheel.rewards", "flywheel.search", "flywheel.seeds", "storage.rows", "storage.schemas", "storage.tables",
    "tasks.models", "tasks.evaluate",
)  # fmt: skip
_UNIT = 32
"""Problems a unit. Fixed, as a unit is padded and sampled together."""


def run_shard(params: Params, layout: Layout, shard: int, shards: int, hooks: Hooks = Hooks()) -> Report:  # noqa: B008
    """Do one shard's units, those that are not done yet."""
    if params.problems.domain == "hex":
        from tasks.boards import evaluate as boards

        return boards.run_shard(params, layout, shard, shards, hooks)
    units, work = _open(params, layout)
    mine = my_units(len(units), shard, shards)
    student = models.snapshot_of(layout.student)

    def look(number: int) -> None:
        start = time.monotonic()
        sampler = models.load_sampler(str(layout.student), student, params.execution)
        own = models.newest_reward_model(params, layout)
        reward = models.load_reward(params, models.domain_of(params.problems), own)
        rows, tally, cost, unsure = measure(params, sampler, units[number], reward, hooks)
        judging = Cost(reward=cost.reward, padding=reward.take_padding())
        worked = by_model((student, replace(cost, reward=0.0)), (models.judge_snapshot(params, own), judging))
        seconds = time.monotonic() - start
        fact = {**cost_facts(worked), "seconds": seconds, "tally": asdict(tally), "undecided": unsure}
        work.write(number, rows, OUTCOMES, fact)

    facts = work.each(mine, [len(unit) for unit in units], hooks, look)
    return shard_report("evaluate", params.generation, shard, shards, facts, sum(len(units[number]) for number in mine))


def finish(params: Params, layout: Layout) -> Report:
    """Sum up: the tables `outcomes` and `evaluations`, and metrics.json with the champion decision."""
    if params.problems.domain == "hex":
        from tasks.boards import evaluate as boards

        return boards.finish(params, layout)
    start = time.monotonic()
    units, work = _open(params, layout)
    stamp = Stamp(layout, params.generation, "evaluate", work.folder.name, [layout.evaluations, layout.metrics])
    if (report := stamp.fresh()) is not None:
        return report
    work.require(len(units))
    outcomes = [row for number in range(len(units)) for row in work.rows(number)]
    facts = [work.facts(number) for number in range(len(units))]
    evaluations = _summarise(params, outcomes)
    new = layout.tmp / f"evaluations-{uuid.uuid4().hex[:8]}"
    with TableWriter(new / "outcomes", OUTCOMES) as writer:
        writer.write(outcomes)
    with TableWriter(new / "evaluations", EVALUATIONS) as writer:
        writer.write(evaluations)
    document = _metrics(params, layout, outcomes, evaluations, facts)
    replace_folder(new, layout.evaluations, layout.tmp)
    replace_text(layout.metrics, json.dumps(document, indent=1, sort_keys=True) + "\n")
    report = Report(
        "evaluate",
        params.generation,
        cost=cost_of(facts),
        models=models_of(facts),
        seconds=sum(fact["seconds"] for fact in facts) + time.monotonic() - start,
        rows_in=sum(len(unit) for unit in units),
        rows_out=len(outcomes),
        numerics=numerics(params.execution),
        notes={
            **{key: round(entry["value"], 3) for key, entry in document["test"].items()},
            **({"undecided attempts": document["undecided"]} if document["undecided"] else {}),
        },
    )
    stamp.write(report)
    return report


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """The whole stage: every shard, then `finish`."""
    run_shard(params, layout, 0, 1, hooks)
    return finish(params, layout)


def measure(
    params: Params,
    sampler: Any,
    problems: list[Problem],
    reward: Reward,
    hooks: Hooks = Hooks(),  # noqa: B008 (frozen)
) -> tuple[list[dict[str, Any]], collapse.HealthTally, Cost, int]:
    """Outcome rows of any model on some problems, their health and cost (but for the reward's padding), and how many
    attempts the exact check could not decide (they count as wrong, and are said)."""
    domain = models.domain_of(params.problems)
    exact, run = Exact(domain), _run_of(params.seed)
    limit = params.generate.max_new_tokens
    greedy, greedy_cost = BestOfN(1, Sampling(None), limit).search(
        problems, domain, sampler, exact, run, should_stop=hooks.should_stop
    )
    sampled, sampled_cost = BestOfN(params.evaluate.budgets[-1], Sampling(params.evaluate.temperature), limit).search(
        problems, domain, sampler, reward, run, should_stop=hooks.should_stop
    )
    verdicts = right_or_not(exact, problems, sampled, reward.name)
    kind = metrics.Kind(reward.needs_reference, reward.votes, graded=not (reward.verifies or reward.votes))
    rows, tally = [], collapse.HealthTally()
    for problem, (best,), attempts, right in zip(problems, greedy, sampled, verdicts, strict=True):
        prefill = sampler.prompt_flops(len(best.prompt_ids))
        known = [bool(verdict) for verdict in right]
        found = metrics.outcomes(
            problem.problem_id, problem.group, best, attempts, known, params.evaluate.budgets, prefill, kind
        )
        rows += [
            {"snapshot": sampler.snapshot, "generation": params.generation, "split": problem.split, **asdict(row)}
            for row in found
        ]
        if problem.split == "valid":
            tally.add(attempts, right, params.filter.threshold)
    unsure = sum(verdict is None for right in verdicts for verdict in right)
    unsure += sum(attempt.reward is None for (attempt,) in greedy)
    return rows, tally, greedy_cost + sampled_cost, unsure


def greedy_rows(params: Params, sampler: Any, problems: list[Problem], hooks: Hooks = Hooks()) -> list[dict[str, Any]]:  # noqa: B008
    """Whether any model's likeliest answer to each problem is right: {problem_id, split, group, value}."""
    domain = models.domain_of(params.problems)
    searcher = BestOfN(1, Sampling(None), params.generate.max_new_tokens)
    rows = []
    for start in range(0, len(problems), _UNIT):
        unit = problems[start : start + _UNIT]
        found, _ = searcher.search(
            unit, domain, sampler, Exact(domain), _run_of(params.seed), should_stop=hooks.should_stop
        )
        rows += [
            {"problem_id": p.problem_id, "split": p.split, "group": p.group, "value": float(attempt.reward or 0.0)}
            for p, (attempt,) in zip(unit, found, strict=True)
        ]
    return rows


def right_or_not(
    exact: Exact, problems: Sequence[Problem], found: Sequence[Sequence[Attempt]], judged_by: str
) -> list[list[bool | None]]:
    """What the exact check says of each attempt; None where it came to no verdict."""
    if judged_by == exact.name:
        return [[None if a.reward is None else a.reward == 1.0 for a in attempts] for attempts in found]
    judged = exact.judge(
        [
            (problem, [Answer(attempt.output, attempt.stop_reason, attempt.steps) for attempt in attempts])
            for problem, attempts in zip(problems, found, strict=True)
        ]
    )
    return [[None if one.reward is None else one.reward == 1.0 for one in row] for row in judged]


def _run_of(seed: int) -> Run:
    """Generation 0 for all: the same noise for every student."""
    return Run(seed, 0, "evaluate")


def _open(params: Params, layout: Layout) -> tuple[list[list[Problem]], Units]:
    sections = [
        params.seed, params.generation, params.evaluate.model_dump(mode="json"), params.reward.model_dump(),
        params.generate.max_new_tokens, params.problems.model_dump(mode="json"), params.filter.threshold,
    ]  # fmt: skip
    inputs = [layout.problems, layout.student, layout.lineage / "champion.json"]
    inputs += models.reward_inputs(params, models.newest_reward_model(params, layout))
    mark = fingerprint("evaluate", _SOURCES, sections, inputs, numerics(params.execution))
    units = [
        problems[start : start + _UNIT]
        for split in ("valid", "test")
        for problems in [read_problems(layout.problems, [split])]
        for start in range(0, len(problems), _UNIT)
    ]
    return units, Units(layout, params.generation, "evaluate", mark)


def _summarise(params: Params, outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means with intervals, one row a split, metric and budget."""
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in outcomes:
        if row["metric"] != "right":
            cells.setdefault((row["split"], row["metric"], row["budget"]), []).append(row)
    return [
        {
            "snapshot": rows[0]["snapshot"],
            "generation": params.generation,
            "searcher": "greedy" if metric == "greedy" else BestOfN.name,
            "budget": budget,
            "split": split,
            "metric": metrics.metric_key(metric, budget),
            **intervals.share([row["value"] for row in rows], [row["group"] for row in rows]).as_dict(),
            "flops_per_problem": sum(row["flops"] for row in rows) / len(rows),
        }
        for (split, metric, budget), rows in sorted(cells.items())
    ]


def _metrics(
    params: Params,
    layout: Layout,
    outcomes: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    facts: list[dict[str, Any]],
) -> dict[str, Any]:
    """metrics.json: accuracy by split, health and alarms, and who is champion from here on."""
    by_split: dict[str, dict[str, dict[str, float]]] = {"valid": {}, "test": {}}
    for row in evaluations:
        by_split[row["split"]][row["metric"]] = {key: row[key] for key in ("value", "low", "high", "count")}
    before = json.loads((layout.lineage / "champion.json").read_text(encoding="utf-8"))
    greedy = {r["problem_id"]: r for r in outcomes if r["split"] == "valid" and r["metric"] == "greedy"}
    decision = champion.decide(
        {name: row["value"] for name, row in greedy.items()},
        before["valid_greedy"],
        {name: row["group"] for name, row in greedy.items()},
        params.evaluate.margin,
    )
    snapshot = outcomes[0]["snapshot"]
    tally = collapse.HealthTally()
    for fact in facts:
        for name, value in fact["tally"].items():
            setattr(tally, name, getattr(tally, name) + value)
    health = tally.health().as_dict()
    held = before.get("metrics") or {}
    valid = {key: entry["value"] for key, entry in by_split["valid"].items()}
    valid_before = {key: entry["value"] for key, entry in held["valid"].items()} if held else None
    measured_at = {"samples": params.evaluate.budgets[-1], "temperature": params.evaluate.temperature}
    # Diversity at another budget or temperature is another quantity.
    comparable = (held.get("collapse") or {}).get("measured_at") == measured_at
    health_before = dict(held["collapse"]) if comparable else None
    judged_by = {"reward": params.reward.model_dump(mode="json"), "threshold": params.filter.threshold}
    if health_before is not None and health_before.get("judged_by") != judged_by:
        health_before.pop("overrated", None)
    return {
        "generation": params.generation,
        "snapshot": snapshot,
        **by_split,
        "champion": {
            "generation": params.generation if decision.promoted else before["generation"],
            "snapshot": snapshot if decision.promoted else before["snapshot"],
            "promoted": decision.promoted,
            "difference": decision.difference.as_dict() if decision.difference else None,
            "reason": decision.reason,
        },
        "undecided": sum(fact["undecided"] for fact in facts),
        "collapse": {
            **health,
            "measured_at": measured_at,
            "judged_by": judged_by,
            "alarms": collapse.alarms(health, health_before, valid, valid_before, params.evaluate.budgets[-1]),
        },
    }


if __name__ == "__main__":
    raise SystemExit(main(run, run_shard))
