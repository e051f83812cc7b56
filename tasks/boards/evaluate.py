"""evaluate for a board game: how often the student keeps a win, alone and by search, and how it fares against others.

*Positions*: valid and test problems are won for the mover, who can still lose them; the share in which the move played
keeps the win is 1 minus the blunder rate. *Matches*: the student alone and with search against each other, against the
champion before it, a random player, and perfect play where the exact solver can play (`tasks.boards.matches`). Test is
only reported.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.compute import Cost
from flywheel.evaluation import intervals
from flywheel.models import board_net
from flywheel.models.board_net import BoardNet
from flywheel.params import Params
from flywheel.problems.hex import name_of
from flywheel.problems.hex_positions import games_of, winning_moves
from flywheel.records import Problem, digest
from flywheel.search.players import NetworkPlayer
from flywheel.seeds import numbered_streams
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import ANALYSES, EVALUATIONS, MATCHES, OUTCOMES
from storage.tables import TableWriter, replace_folder, replace_text
from tasks.boards import matches, networks
from tasks.boards.matches import RANDOM, Pairing
from tasks.stage import (
    Hooks,
    Report,
    Stamp,
    Units,
    by_model,
    cost_facts,
    cost_of,
    fingerprint,
    models_of,
    my_units,
    numerics,
    shard_report,
)

_SOURCES = (
    "flywheel.compute", "flywheel.evaluation", "flywheel.models.board_net", "flywheel.problems", "flywheel.records",
    "flywheel.search", "flywheel.seeds", "storage.rows", "storage.schemas", "storage.tables", "tasks.boards",
)  # fmt: skip
_UNIT = 256
"""Positions a unit: they are searched together."""
_SHOWN = 6
"""Test positions that the report draws."""
Unit = list[Problem] | Pairing


def run_shard(params: Params, layout: Layout, shard: int, shards: int, hooks: Hooks) -> Report:
    """Do one shard's units, those that are not done yet."""
    units, work = _open(params, layout)
    mine = my_units(len(units), shard, shards)

    def look(number: int) -> None:
        start, unit = time.monotonic(), units[number]
        if isinstance(unit, Pairing):
            played, worked = matches.play(params, layout, unit)
            rows: list[dict[str, Any]] = []
            fact: dict[str, Any] = {"matches": played}
        else:
            student = networks.load(params, layout.student)
            rows, cost, fact = measure(params, student, unit)
            worked = by_model((student.snapshot, cost))
        fact |= {**cost_facts(worked), "seconds": time.monotonic() - start}
        work.write(number, rows, OUTCOMES, fact)

    facts = work.each(mine, [1] * len(units), hooks, look)
    return shard_report("evaluate", params.generation, shard, shards, facts, len(mine))


def finish(params: Params, layout: Layout) -> Report:
    """Sum up: the tables `outcomes`, `matches` and `evaluations`, and metrics.json."""
    start = time.monotonic()
    units, work = _open(params, layout)
    stamp = Stamp(layout, params.generation, "evaluate", work.folder.name, [layout.evaluations, layout.metrics])
    if (report := stamp.fresh()) is not None:
        return report
    work.require(len(units))
    facts = [work.facts(number) for number in range(len(units))]
    outcomes = [row for number in range(len(units)) for row in work.rows(number)]
    played = [row for fact in facts for row in fact.get("matches", [])]
    student = networks.load(params, layout.student)
    snapshot = student.snapshot
    shown = sorted(read_problems(layout.problems, ["test"]), key=lambda p: digest("shown", p.problem_id))[:_SHOWN]
    analyses, shown_cost = analyse(params, student, sorted(shown, key=lambda p: p.problem_id))
    before = json.loads((layout.lineage / "champion.json").read_text(encoding="utf-8"))
    elo = matches.rated(params, played, before)
    evaluations = _positions(params, outcomes, snapshot) + _ratings(params, elo, snapshot)
    new = layout.tmp / f"evaluations-{uuid.uuid4().hex[:8]}"
    for folder, schema, rows in (
        ("outcomes", OUTCOMES, outcomes),
        ("matches", MATCHES, played),
        ("analyses", ANALYSES, analyses),
        ("evaluations", EVALUATIONS, evaluations),
    ):
        with TableWriter(new / folder, schema) as writer:
            writer.write(rows)
    document = _metrics(params, before, evaluations, played, facts, elo, snapshot)
    replace_folder(new, layout.evaluations, layout.tmp)
    replace_text(layout.metrics, json.dumps(document, indent=1, sort_keys=True) + "\n")
    report = Report(
        "evaluate",
        params.generation,
        cost=cost_of(facts) + shown_cost,
        models=by_model(*models_of(facts).items(), (snapshot, shown_cost)),
        seconds=sum(fact["seconds"] for fact in facts) + time.monotonic() - start,
        rows_in=len(units),
        rows_out=len(outcomes) + len(played),
        numerics=numerics(params.execution),
        notes={key: round(entry["value"], 3) for key, entry in (document["test"] | document["elo"]).items()},
    )
    stamp.write(report)
    return report


def measure(
    params: Params, net: BoardNet, problems: list[Problem]
) -> tuple[list[dict[str, Any]], Cost, dict[str, Any]]:
    """Outcome rows of a network on some positions: whether the move that it plays keeps the win, alone and with each
    budget; what that took; and sums over the positions: of the policy's entropy (nats) and of the value, which is 1 in
    truth."""
    evaluate = board_net.evaluator(net)
    games = games_of(problems, params.problems.size, params.problems.swap)
    logits, values = evaluate(games.views().astype(np.float32))
    legal = np.take_along_axis(games.legal(), games.cells_of_views(), axis=1)
    shares = np.where(legal, np.exp(logits - np.where(legal, logits, -np.inf).max(axis=1, keepdims=True)), 0.0)
    shares /= shares.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(axis=1)
    player = NetworkPlayer("alone", evaluate, net.shape.flops)
    keys = np.array(
        [key for p in problems for key in numbered_streams(params.seed, "evaluate", p.problem_id, numbers=[0])],
        np.uint64,
    )
    rows = _rows(params, net, problems, "greedy", 1, player.choose(games, keys), net.shape.flops)
    cost = 2.0 * net.shape.flops * len(problems)
    for budget in params.evaluate.budgets:
        found = networks.playing(params, budget).search(games, evaluate, keys)
        took = net.shape.flops * found.evaluations
        rows += _rows(params, net, problems, "search", budget, found.moves, took / len(problems))
        cost += took
    tally = {"entropy": float(entropy.sum()), "value": float(values.sum()), "count": len(problems)}
    return rows, Cost(policy=cost), {"tally": tally, "split": problems[0].split}


def _rows(
    params: Params, net: BoardNet, problems: list[Problem], metric: str, budget: int, moves: npt.NDArray[np.int64],
    flops: float,
) -> list[dict[str, Any]]:  # fmt: skip
    return [
        {
            "snapshot": net.snapshot,
            "generation": params.generation,
            "split": problem.split,
            "problem_id": problem.problem_id,
            "group": problem.group,
            "metric": metric,
            "budget": budget,
            "value": float(move in winning_moves(problem)),
            "flops": flops,
        }
        for problem, move in zip(problems, moves.tolist(), strict=True)
    ]


def analyse(params: Params, net: BoardNet, problems: list[Problem]) -> tuple[list[dict[str, Any]], Cost]:
    """Rows of `analyses`, what the network says of some positions and a search with the largest budget; and what that
    took."""
    games = games_of(problems, params.problems.size, params.problems.swap)
    evaluate, budget = board_net.evaluator(net), params.evaluate.budgets[-1]
    found = networks.playing(params, budget).search(games, evaluate, np.zeros(len(problems), np.uint64))
    alone = evaluate(games.views().astype(np.float32))[1]
    cost = Cost(policy=net.shape.flops * (found.evaluations + len(problems)))
    return [
        {
            "problem_id": problem.problem_id,
            "generation": params.generation,
            "snapshot": net.snapshot,
            "budget": budget,
            "board": problem.payload["board"],
            "mover": int(games.movers[game]),
            "prior": found.priors[game].tolist(),
            "prior_value": float(alone[game]),
            "policy": found.policies[game].tolist(),
            "value": float(found.values[game]),
            "proven": int(found.proven[game]),
            "line": " ".join(name_of(move, params.problems.size) for move in found.lines[game].tolist() if move >= 0),
        }
        for game, problem in enumerate(problems)
    ], cost


def _open(params: Params, layout: Layout) -> tuple[list[Unit], Units]:
    champion = json.loads((layout.lineage / "champion.json").read_text(encoding="utf-8"))["generation"]
    sections = [
        params.seed, params.generation, params.evaluate.model_dump(mode="json"), params.generate.model_dump(),
        params.problems.model_dump(mode="json"),
    ]  # fmt: skip
    inputs = [layout.problems, layout.student, layout.parent, layout.lineage / "champion.json"]
    mark = fingerprint("evaluate", _SOURCES, sections, inputs, numerics(params.execution))
    units: list[Unit] = [
        problems[start : start + _UNIT]
        for split in ("valid", "test")
        for problems in [read_problems(layout.problems, [split])]
        for start in range(0, len(problems), _UNIT)
    ]
    return [*units, *matches.pairings(params, champion)], Units(layout, params.generation, "evaluate", mark)


def _key(metric: str, budget: int) -> str:
    return metric if metric == "greedy" else f"{metric}@{budget}"


def _positions(params: Params, outcomes: list[dict[str, Any]], snapshot: str) -> list[dict[str, Any]]:
    """Means with intervals, one row a split, metric and budget."""
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in outcomes:
        cells.setdefault((row["split"], row["metric"], row["budget"]), []).append(row)
    return [
        {
            "snapshot": snapshot,
            "generation": params.generation,
            "searcher": "greedy" if metric == "greedy" else params.generate.searcher,
            "budget": budget,
            "split": split,
            "metric": _key(metric, budget),
            **intervals.share([row["value"] for row in rows], [row["group"] for row in rows]).as_dict(),
            "flops_per_problem": sum(row["flops"] for row in rows) / len(rows),
        }
        for (split, metric, budget), rows in sorted(cells.items())
    ]


def _ratings(params: Params, elo: dict[str, Any], snapshot: str) -> list[dict[str, Any]]:
    """The student's Elo as rows of `evaluations`. Its split is test: nothing is chosen by it."""
    return [
        {
            "snapshot": snapshot,
            "generation": params.generation,
            "searcher": "greedy" if key == "greedy" else params.generate.searcher,
            "budget": 1 if key == "greedy" else params.evaluate.match_budget,
            "split": "test",
            "metric": f"elo_{key}",
            **entry,
            "flops_per_problem": 0.0,
        }
        for key, entry in elo.items()
        if key != RANDOM
    ]


def _metrics(
    params: Params,
    before: dict[str, Any],
    evaluations: list[dict[str, Any]],
    played: list[dict[str, Any]],
    facts: list[dict[str, Any]],
    elo: dict[str, Any],
    snapshot: str,
) -> dict[str, Any]:
    """metrics.json: kept wins by split, Elo, signs of collapse, and who is champion from here on."""
    by_split: dict[str, dict[str, dict[str, float]]] = {"valid": {}, "test": {}}
    for row in evaluations:
        if not row["metric"].startswith("elo_"):
            by_split[row["split"]][row["metric"]] = {key: row[key] for key in ("value", "low", "high", "count")}
    promoted, difference, reason = matches.takes_over(params, played, before["generation"])
    tallies = [fact["tally"] for fact in facts if fact.get("split") == "valid"]
    count = sum(tally["count"] for tally in tallies)
    return {
        "generation": params.generation,
        "snapshot": snapshot,
        **by_split,
        "elo": elo,
        "champion": {
            "generation": params.generation if promoted else before["generation"],
            "snapshot": snapshot if promoted else before["snapshot"],
            "promoted": promoted,
            "difference": difference,
            "reason": reason,
        },
        "undecided": 0,
        "collapse": {
            "entropy": sum(tally["entropy"] for tally in tallies) / count,
            "value": sum(tally["value"] for tally in tallies) / count,
            "alarms": _alarms(by_split["valid"], (before.get("metrics") or {}).get("valid"), params),
        },
    }


def _alarms(valid: dict[str, Any], held: dict[str, Any] | None, params: Params) -> list[str]:
    found = []
    budget = f"search@{params.evaluate.budgets[-1]}"
    if valid[budget]["high"] < valid["greedy"]["value"]:
        found.append(
            f"search makes it worse: {budget} keeps {valid[budget]['value']:.1%} of the wins on valid, the network "
            f"alone {valid['greedy']['value']:.1%}"
        )
    if held and valid["greedy"]["high"] < held["greedy"]["low"]:
        found.append(
            f"the network alone keeps {valid['greedy']['value']:.1%} of the wins on valid, "
            f"the champion before {held['greedy']['value']:.1%}"
        )
    return found
