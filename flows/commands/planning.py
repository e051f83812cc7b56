"""What to train and how to answer: plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import output
from flows.commands.options import Json


def plan(
    folder: Annotated[Path, typer.Option("--from", help="A sweep's folder, or one with its tables alone.")],
    queries: Annotated[float, typer.Option(help="How many queries are to be answered, e.g. 1e6.")],
    target: Annotated[
        float | None, typer.Option(metavar="ACCURACY", help="Reach this on test, at least cost; or give --budget.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="FLOPS", help="Make most of this, investment and queries together.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="Share of draws in which a new run reaches the target, e.g. 0.975; the prediction alone."),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Of the sweep, where it has several.")] = None,
    draws: Annotated[int, typer.Option(min=50, help="Of the bootstrap; fewer than 400 give narrow intervals.")] = 400,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan for `flywheel run --plan`.")] = None,
    contest: Annotated[
        Path | None,
        typer.Option(help="Write a sweep (YAML) in which the plan meets other allocations of the same compute."),
    ] = None,
    rivals: Annotated[int, typer.Option(min=1, help="How many, in the contest.")] = 5,
    rivals_seed: Annotated[int, typer.Option(min=0, help="What they are drawn by, knowing no accuracies.")] = 0,
    as_json: Json = False,
) -> None:
    """The model size, label search, generations and runtime search that do a number of queries at least cost.

    Of the sizes and budgets that a sweep measured, by a law and a cost model fitted to its table. Exits with 1, and
    names the nearest plan, where nothing on offer reaches the target or keeps to the budget.
    """
    from flows.sweeps import plan_file, plan_words, planning
    from flows.sweeps import rivals as rivalry
    from flows.sweeps.definition import as_yaml
    from flywheel.scaling.planner import Plan
    from storage.tables import replace_text

    question = planning.Question(queries, target, budget, confidence)
    outlook = planning.look(folder, draws, family=family)
    advice = planning.advise(outlook, question)
    document = plan_words.document(outlook, advice)
    found = advice.choice if isinstance(advice.choice, Plan) else None
    if out is not None and found is not None:
        plan_file.write(out, document, plan_file.orders(found, outlook.table, folder))
    if contest is not None and found is not None:
        held = rivalry.contest(outlook, found, queries, rivals, rivals_seed, budget)
        replace_text(contest, as_yaml(held))
    if as_json:
        output.print_json(document)
    else:
        typer.echo(plan_words.sentence(advice))
        output.table(plan_words.rows_of([plan_words.shown(advice)]))
        if len(advice.near) > 1:
            typer.echo("Nearly as good:")
            output.table(plan_words.rows_of(advice.near[1:6]))
        for line in (*plan_words.firmness(advice), *plan_words.remarks(outlook, advice)):
            typer.echo(line)
        if out is not None:
            typer.echo(f"Wrote {out}" if found is not None else f"No plan to write to {out}.")
        if contest is not None and found is not None:
            typer.echo(f"Wrote {contest}: flywheel sweep {contest}, then flywheel fit its folder.")
    if found is None:
        raise typer.Exit(1)
