"""Searchers and rewards against each other, on one frozen student: accuracy and FLOPs a problem at equal budgets.

An *arm* is a searcher with a reward and a choice among the answers it finds:

    best        the first answer of the highest reward (naive best-of-N)
    weighted    the group of equal answers with the highest sum of rewards
    majority    the largest group of equal answers

A *cell* is one piece of work, done once and kept: all arms of best-of-N share one cell, since the first k of N samples
are those that a smaller budget would have drawn; every other searcher is run anew at each budget. Whether the chosen
answer is right is for the exact check alone to say. Difficulty is the student's own pass rate, from other samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flywheel.evaluation import metrics
from flywheel.params import Params
from flywheel.records import Attempt, Problem
from flywheel.rewards.exact import Exact
from flywheel.rewards.reward import Answer, Judgement, Reward
from flywheel.rewards.vote import majority
from flywheel.search import searcher as searchers
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run, Sampler, Searcher, not_told
from tasks import models
from tasks.evaluate import right_or_not
from tasks.stage import Hooks

Choice = Literal["best", "weighted", "majority"]
_UNIT = 32
_DIFFICULTY_SAMPLES = 32
_PURPOSE = "search table"


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to answer. `reward` names a `reward` section: a name, or `noisy 0.05`."""

    searcher: str
    reward: str
    choice: Choice = "best"
    lookahead: int = 0

    @property
    def name(self) -> str:
        """`beam lookahead 1, process, weighted`."""
        searcher = f"{self.searcher} lookahead {self.lookahead}" if self.lookahead else self.searcher
        chosen = [] if self.choice in {"best", self.reward} else [self.choice]
        return ", ".join([searcher, self.reward, *chosen])


ARMS = (
    Arm("best_of_n", "exact"),
    Arm("best_of_n", "majority", "majority"),
    Arm("best_of_n", "noisy 0.05"),
    Arm("best_of_n", "noisy 0.2"),
    Arm("best_of_n", "process"),
    Arm("best_of_n", "process", "weighted"),
    Arm("best_of_n", "outcome"),
    Arm("best_of_n", "outcome", "weighted"),
    Arm("adaptive", "exact"),
    Arm("adaptive", "majority", "majority"),
    Arm("beam", "process"),
    Arm("beam", "process", "weighted"),
    Arm("beam", "process", lookahead=1),
    Arm("dvts", "process"),
    Arm("dvts", "process", "weighted"),
    Arm("dvts", "process", lookahead=1),
    Arm("tree", "process"),
    Arm("tree", "outcome"),
    Arm("tree", "exact"),
    Arm("beam", "oracle_steps"),
    Arm("dvts", "oracle_steps"),
    Arm("tree", "oracle_steps"),
)
"""Every valid pair that says something. `oracle_steps` looks at Countdown's solver: a bound, no search to deploy."""


def arms_for(params: Params, reward_models: Collection[str]) -> tuple[Arm, ...]:
    """The arms that a domain knows and for whose rewards there are models."""
    unknown = {"outcome", "process"} - set(reward_models)
    if params.problems.domain != "countdown":
        unknown.add("oracle_steps")
    return tuple(arm for arm in ARMS if arm.reward not in unknown)


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of work: best-of-N at all budgets, or another searcher at one. `arms` differ in their choice, and for
    best-of-N in their reward."""

    name: str
    arms: tuple[Arm, ...]
    budgets: tuple[int, ...]


def cells(budgets: Sequence[int], arms: Sequence[Arm]) -> list[Cell]:
    """The work that a table over these arms takes, cheapest first."""
    sampled = tuple(arm for arm in arms if arm.searcher == "best_of_n")
    found = [Cell("best_of_n", sampled, tuple(budgets))] if sampled else []
    shared: dict[tuple[str, str, int], list[Arm]] = {}
    for arm in arms:
        if arm.searcher != "best_of_n":
            shared.setdefault((arm.searcher, arm.reward, arm.lookahead), []).append(arm)
    for budget in budgets:
        for (searcher, reward, lookahead), group in shared.items():
            name = f"{searcher}-{reward}-{lookahead}-{budget}".replace(" ", "-")
            found.append(Cell(name, tuple(group), (budget,)))
    return found


def run_cell(
    cell: Cell,
    params: Params,
    sampler: Sampler,
    problems: Sequence[Problem],
    reward_models: Mapping[str, Path],
    hooks: Hooks = Hooks(),  # noqa: B008 (frozen)
) -> list[dict[str, Any]]:
    """Rows {arm, budget, problem_id, group, value, flops, flops_policy, flops_reward, samples} of a cell's arms."""
    rows = []
    for start in range(0, len(problems), _UNIT):
        unit = problems[start : start + _UNIT]
        measure = _sampled if cell.name == "best_of_n" else _searched
        rows += measure(cell, params, sampler, unit, reward_models, hooks)
        hooks.progress(min(start + _UNIT, len(problems)), len(problems))
    return rows


def difficulties(
    params: Params,
    sampler: Sampler,
    problems: Sequence[Problem],
    hooks: Hooks = Hooks(),  # noqa: B008 (frozen)
) -> dict[str, float]:
    """The student's pass rate on each problem, from samples that no arm sees."""
    domain = models.domain_of(params.problems)
    searcher = BestOfN(_DIFFICULTY_SAMPLES, searchers.sampling(params.generate), params.generate.max_new_tokens)
    rates = {}
    for start in range(0, len(problems), _UNIT):
        unit = problems[start : start + _UNIT]
        run = Run(params.seed, params.generation, "difficulty")
        found, _ = searcher.search(unit, domain, sampler, Exact(domain), run, should_stop=hooks.should_stop)
        for problem, attempts in zip(unit, found, strict=True):
            rates[problem.problem_id] = sum(attempt.reward == 1.0 for attempt in attempts) / len(attempts)
    return rates


def load_reward(name: str, params: Params, reward_models: Mapping[str, Path]) -> Reward:
    """A reward by its name in an arm; `reward_models` holds the folders of `process` and `outcome`."""
    domain = models.domain_of(params.problems)
    kind, _, rate = name.partition(" ")
    # Not the recipe's own model, whatever that is: the table says whose model judges, and what it took.
    changes: dict[str, Any] = {"name": kind, "model": None, "style": "auto", "base": "exact"}
    changes |= {"flip": float(rate)} if rate else {}
    changed = params.model_copy(update={"reward": params.reward.model_copy(update=changes)})
    return models.load_reward(changed, domain, reward_models.get(kind, Path()))


def _sampled(
    cell: Cell,
    params: Params,
    sampler: Sampler,
    problems: Sequence[Problem],
    reward_models: Mapping[str, Path],
    hooks: Hooks,
) -> list[dict[str, Any]]:
    domain = models.domain_of(params.problems)
    exact = Exact(domain)
    searcher = BestOfN(max(cell.budgets), searchers.sampling(params.generate), params.generate.max_new_tokens)
    found, _ = searcher.search(
        problems, domain, sampler, exact, Run(params.seed, params.generation, _PURPOSE), should_stop=hooks.should_stop
    )
    right = right_or_not(exact, problems, found, exact.name)
    judged: dict[str, list[list[Judgement]]] = {}
    for name in {arm.reward for arm in cell.arms} - {"exact", "majority"}:
        judged[name] = load_reward(name, params, reward_models).judge(
            [
                (problem, [Answer(a.output, a.stop_reason, a.steps) for a in attempts])
                for problem, attempts in zip(problems, found, strict=True)
            ],
            hooks.should_stop,
        )
    rows = []
    for arm in cell.arms:
        for position, (problem, attempts) in enumerate(zip(problems, found, strict=True)):
            if arm.reward in judged:
                values = [one.reward for one in judged[arm.reward][position]]
                prices = [one.flops for one in judged[arm.reward][position]]
            else:
                values, prices = [attempt.reward for attempt in attempts], [0.0] * len(attempts)
            for budget in cell.budgets:
                rows.append(
                    _row(arm, budget, problem, attempts[:budget], values[:budget], right[position], sampler, prices)
                )
    return rows


def searcher_of(arm: Arm, budget: int, params: Params) -> Searcher:
    """The searcher of an arm at a budget of samples alone. Raises ValueError where the budget does not suit it."""
    update = {
        "searcher": arm.searcher,
        "samples": budget,
        "width": min(params.generate.width, budget),
        "lookahead": arm.lookahead,
        "max_flops": None,
    }
    return searchers.load(params.generate.model_copy(update=update), params.reward)


def _searched(
    cell: Cell,
    params: Params,
    sampler: Sampler,
    problems: Sequence[Problem],
    reward_models: Mapping[str, Path],
    hooks: Hooks,
) -> list[dict[str, Any]]:
    domain = models.domain_of(params.problems)
    first, budget = cell.arms[0], cell.budgets[0]
    reward = load_reward(first.reward, params, reward_models)
    searcher = searcher_of(first, budget, params)
    found, _ = searcher.search(
        problems, domain, sampler, reward, Run(params.seed, params.generation, _PURPOSE),
        should_stop=hooks.should_stop, finished=not_told,
    )  # fmt: skip
    right = right_or_not(Exact(domain), problems, found, reward.name)
    rows = []
    for arm in cell.arms:
        for problem, attempts, known in zip(problems, found, right, strict=True):
            prices = [attempt.flops_reward for attempt in attempts]
            values = [attempt.reward for attempt in attempts]
            rows.append(_row(arm, budget, problem, attempts, values, known, sampler, prices))
    return rows


def _row(
    arm: Arm,
    budget: int,
    problem: Problem,
    attempts: Sequence[Attempt],
    values: Sequence[float | None],
    right: Sequence[bool | None],
    sampler: Sampler,
    prices: Sequence[float],
) -> dict[str, Any]:
    """One problem at one budget. FLOPs are what answering takes: the prompt once, the samples, and judging them where
    there is anything to choose."""
    answers = [attempt.answer for attempt in attempts]
    chosen = {
        "best": lambda: metrics.best_of(values),
        "weighted": lambda: metrics.weighted(answers, values),
        "majority": lambda: majority(answers),
    }[arm.choice]()
    prompt = sampler.prompt_flops(len(attempts[0].prompt_ids)) if attempts else 0.0
    policy = prompt + sum(attempt.flops_policy for attempt in attempts)
    reward = sum(prices[: len(attempts)]) if budget > 1 else 0.0
    return {
        "arm": arm.name,
        "budget": budget,
        "problem_id": problem.problem_id,
        "group": problem.group,
        "value": float(chosen is not None and bool(right[chosen])),
        "flops": policy + reward,
        "flops_policy": policy,
        "flops_reward": reward,
        "samples": len(attempts),
    }
