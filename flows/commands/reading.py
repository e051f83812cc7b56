"""Reading what was published: history, query, lineage, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath, generation_number
from flows.commands.running import summary_of
from flywheel.errors import InputError


def history(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """The generations: labels, accuracy, compute, who was champion, what was rolled back and why."""
    from storage.history import history as read_history
    from storage.registry import Registry

    rows = read_history(Registry.open(registry))
    if as_json:
        output.print_json(rows)
        return
    from flows.display import columns

    if not rows:
        output.console().print("No generation yet; `flywheel run` makes the first.")
        return
    shown = [
        {
            **columns(row),
            "status": row["status"],
            "parent": output.or_dash(row["parent"]),
            "reason": row["reason"] or "",
        }
        for row in rows
    ]
    for cells in shown:
        del cells["time"]
    output.table(shown)


def query(
    sql: Annotated[str, typer.Argument(help='DuckDB SQL, e.g. "SELECT generation, count(*) FROM labels GROUP BY 1".')],
    registry: RegistryPath = DEFAULT_REGISTRY,
    at: Annotated[str | None, typer.Option(metavar="GEN", help="As of a generation, e.g. gen/4.")] = None,
    as_json: Json = False,
) -> None:
    """SQL over the tables problems, excluded, attempts, labels, label_parents, rejected, snapshots, trained_on,
    evaluations, outcomes, rollouts, step_labels, step_label_parents, ledger, generations."""
    from storage import views
    from storage.registry import Registry

    opened = Registry.open(registry)
    result = views.query(opened, sql, generation_number(opened, at) if at else None)
    if as_json:
        output.print_json_rows(result.rows)
        return
    output.table([{name: output.cell(value) for name, value in row.items()} for row in result.rows], result.columns)


def lineage(
    address: Annotated[
        str, typer.Argument(help="gen/7, gen/7/labels, gen/7/student, gen/7/reward_model, model/<digest>.")
    ],
    registry: RegistryPath = DEFAULT_REGISTRY,
    up: Annotated[bool, typer.Option("--up", help="Where it came from (the default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="What it went into.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="A Mermaid diagram.")] = False,
    as_json: Json = False,
) -> None:
    """Where a model or a set of labels came from, and what it went into."""
    from storage import lineage as graphs
    from storage.registry import Registry

    if mermaid and as_json:
        raise InputError("got --mermaid and --json, expected one of them")
    graph = graphs.lineage(Registry.open(registry), address, "both" if up and down else "down" if down else "up")
    text = graphs.mermaid(graph) if mermaid else graphs.outline(graph)
    output.show(as_json, graph.document(), text)


def report(
    registry: RegistryPath = DEFAULT_REGISTRY,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """One self-contained HTML page: accuracy by generation and runtime budget, cost, break-even, sample labels."""
    from flows.report import report as write_report
    from storage.registry import Registry

    opened = Registry.open(registry)
    path = write_report(opened, out, _page_summary(summary_of(opened)))
    output.show(as_json, {"report": str(path)}, f"Wrote {path}")


def _page_summary(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    return {name: summary[name] for name in ("sentence", "break_even")} if summary else None
