"""Reading what was published: history, query, lineage, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath, generation_number
from flows.commands.running import summary_of
from flywheel.errors import InputError


def history(
    registry: RegistryPath = DEFAULT_REGISTRY,
    graph: Annotated[bool, typer.Option("--graph", help="Draw the lines of generations, and why each exists.")] = False,
    as_json: Json = False,
) -> None:
    """The generations: labels, accuracy, compute, who was champion, why each exists, what was rolled back and why."""
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
    if graph:
        from flows.history_graph import told

        output.console().print("\n".join(told(rows)), highlight=False, markup=False, soft_wrap=True)
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
    evaluations, outcomes, rollouts, step_labels, step_label_parents, searched, targets, matches, analyses, ledger,
    generations."""
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
        str | None,
        typer.Argument(
            help="gen/7, gen/7/labels, gen/7/labels#<label id>, gen/7/student, gen/7/reward_model, model/<digest>."
        ),
    ] = None,
    registry: RegistryPath = DEFAULT_REGISTRY,
    up: Annotated[bool, typer.Option("--up", help="Where it came from (the default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="What it went into.")] = False,
    examples: Annotated[
        int | None,
        typer.Option(min=0, help="Rows to show of each set of labels: 3 for a label or a model, else none."),
    ] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="A Mermaid diagram.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page to click through, in one file; both ways by default."),
    ] = None,
    openlineage: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write OpenLineage events of a generation, or of all, in place of a graph."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Where a label, a model or a set of labels came from, and what it went into: down to the rows for a label or a
    model, by generations for the rest."""
    from storage import lineage as graphs
    from storage.addresses import parse
    from storage.registry import Registry

    forms = {"--mermaid": mermaid, "--html": html, "--openlineage": openlineage}
    if len(given := [name for name, value in forms.items() if value]) > 1 or (mermaid and as_json):
        raise InputError(f"got {' and '.join([*given, *['--json'] * as_json])}, expected one of them")
    opened = Registry.open(registry)
    if openlineage:
        from storage.openlineage import export

        wrote = export(opened, openlineage, generation_number(opened, address) if address else None)
        text = f"Wrote {wrote['events']} events of {len(wrote['generations'])} generations to {openlineage}"
        output.show(as_json, {"openlineage": str(openlineage), **wrote}, text)
        return
    if address is None:
        raise InputError("got no address, expected one such as gen/7, gen/7/labels#<label id> or model/<digest>")
    both = up == down if html else up and down
    direction: graphs.Direction = "both" if both else "down" if down else "up"
    if examples is not None or html or parse(address).kind in {"label", "model"}:
        from storage.row_lineage import EXAMPLES, trace

        graph = trace(opened, address, direction, EXAMPLES if examples is None else examples)
    else:
        graph = graphs.lineage(opened, address, direction)
    if html:
        from flows.lineage_page import write

        write(graph, html, opened.root.name)
        output.show(as_json, {"html": str(html)}, f"Wrote {html}")
        return
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
