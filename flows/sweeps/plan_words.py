"""A plan in words and tables, with what has to be said of how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.plain import plain
from flows.sweeps.planning import Advice, Outlook
from flywheel.scaling.planner import Plan, Unreachable


def remarks(outlook: Outlook, advice: Advice) -> list[str]:
    """How far to trust a plan, a sentence each."""
    costs, law = outlook.costs, outlook.fitted.law
    held = f", {costs.held_back_error:.1%} off on runs held back" if costs.held_back_error is not None else ""
    notes = [
        f"The law leaves {law.root_mean_square:.3f} of accuracy over {len(law.residuals)} cells (root mean square); "
        f"the cost model is {costs.error:.1%} off on investments{held}.",
        "A query is priced with all its samples; a checker that stops at the first right answer makes it cheaper.",
    ]
    return [
        *notes,
        *(f"{name}: {reason}." for name, reason in outlook.fitted.reasons.items()),
        _extrapolation(shown(advice)),
    ]


def shown(advice: Advice) -> Plan:
    """The plan chosen, or the one that comes nearest."""
    return advice.choice if isinstance(advice.choice, Plan) else advice.choice.nearest


def document(outlook: Outlook, advice: Advice) -> dict[str, Any]:
    """JSON. `plan` is null where nothing will do; then `nearest` is what comes nearest, and `why` says why."""
    question, choice = advice.question, advice.choice
    reached = isinstance(choice, Plan)
    costs, law = outlook.costs, outlook.fitted.law
    told: dict[str, Any] = plain(
        {
            "sentence": sentence(advice),
            "sweep": outlook.table.sweep,
            "family": outlook.table.family,
            "question": question,
            "plan": _plan(choice) if isinstance(choice, Plan) else None,
            "nearest": None if reached else _plan(shown(advice)),
            "why": None if isinstance(choice, Plan) else choice.message,
            "shares": [{"plan": plan.label, "share": share} for plan, share in advice.shares],
            "unreached": advice.unreached,
            "near": [_plan(plan) for plan in advice.near],
            "moves": [
                {"with": words, "plan": _plan(move) if isinstance(move, Plan) else None} for words, move in advice.moves
            ],
            "law": {"terms": law.terms, "root_mean_square": law.root_mean_square, "ceiling": law.ceiling},
            "cost_model": {"error": costs.error, "held_back_error": costs.held_back_error, "stages": costs.stages},
            "remarks": remarks(outlook, advice),
        }
    )
    return told


def _plan(plan: Plan) -> dict[str, Any]:
    held = plan.allocation
    return {
        "label": plan.label,
        "parameters": held.parameters,
        "samples": held.search,
        "generations": held.generations,
        "budget": plan.budget,
        "accuracy": plan.accuracy,
        "investment_flops": plan.investment_flops,
        "query_flops": plan.query_flops,
        "total_flops": plan.total_flops,
        "extrapolation": plan.extrapolation,
        "outside": plan.extrapolation.outside,
    }


def sentence(advice: Advice) -> str:
    """The answer in a sentence."""
    question, choice = advice.question, advice.choice
    if isinstance(choice, Unreachable):
        return f"No plan: {choice.message}."
    asked = f"For {question.queries:,.0f} queries "
    asked += (
        f"at an accuracy of {question.target:.3g}"
        if question.target is not None
        else f"within {question.budget_flops:.3g} FLOPs"
    )
    held = choice.allocation
    answer = f"the best of up to {choice.budget} samples" if choice.budget else "its greedy answer"
    interval = f"{choice.accuracy.value:.3f} [{choice.accuracy.low:.3f}, {choice.accuracy.high:.3f}]"
    most = "at most " if choice.budget else ""
    return (
        f"{asked}: train {held.parameters:,.0f} parameters for {held.generations} "
        f"generation{'s' if held.generations > 1 else ''} with {held.search:.0f} samples a problem, and answer each "
        f"query with {answer}: accuracy {interval}, {most}{choice.total_flops:.3g} FLOPs in all."
    )


def rows_of(plans: Sequence[Plan]) -> list[dict[str, str]]:
    """A table of plans, a row each."""
    return [
        {
            "parameters": f"{plan.allocation.parameters:,.0f}",
            "samples a problem": f"{plan.allocation.search:.0f}",
            "generations": str(plan.allocation.generations),
            "training FLOPs": f"{plan.investment_flops:.3g}",
            "a query": f"{plan.budget} samples" if plan.budget else "greedy",
            "accuracy": f"{plan.accuracy.value:.3f} [{plan.accuracy.low:.3f}, {plan.accuracy.high:.3f}]",
            "FLOPs a query": f"{plan.query_flops:.3g}",
            "total FLOPs": f"{plan.total_flops:.3g}",
            "beyond the data": "yes" if plan.extrapolation.outside else "no",
        }
        for plan in plans
    ]


def firmness(advice: Advice) -> list[str]:
    """How the choice depends on the data and on the question, a line each."""
    if isinstance(advice.choice, Unreachable):
        return []
    lines = ["Named by width (w), samples a problem in label search (s) and generations (g):"]
    lines += [f"Draws of the law choose {plan.label}: {share:.0%}" for plan, share in advice.shares[:3]]
    if advice.unreached:
        lines.append(f"Draws of the law by which nothing reaches it: {advice.unreached:.0%}")
    lines += [
        f"With {words}: {move.label}, {move.total_flops:.3g} FLOPs in all, accuracy {move.accuracy.value:.3f}"
        if isinstance(move, Plan)
        else f"With {words}: {move.message}"
        for words, move in advice.moves
    ]
    return lines


def _extrapolation(plan: Plan) -> str:
    """Whether the plan lies beyond the data, and where."""
    if not plan.extrapolation.outside:
        return f"{plan.label} lies within the data that the law was fitted to."
    past = [f"{axis} by {decades:+.2f} decades" for axis, decades in plan.extrapolation.beyond.items()]
    where = " and ".join(past) or f"{plan.extrapolation.distance:.2f} decades from the nearest cell"
    return f"BEYOND THE DATA: {plan.label} lies outside what was measured ({where}); its interval may be too narrow."
