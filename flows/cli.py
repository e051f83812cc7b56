"""The command line: parse, call, show. What is done lies in the modules called; errors become exit codes in `main`.

Exit codes: 0 done, 1 the work failed, 2 bad input or usage, 3 the registry is held by another or in conflict, 130
interrupted. Every reading command takes `--json`: one document on stdout, nothing else there; notes go to stderr.
Imports stay inside the commands: `history` must not wait for Prefect.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flywheel.errors import FlywheelError, InputError, StorageFull

if TYPE_CHECKING:
    from rich.console import Console

    from storage.registry import Registry

app = typer.Typer(
    help="A model teaches itself by search: generations of labels with lineage, rollback and an account of compute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RegistryPath = Annotated[
    Path, typer.Option("--registry", "-r", envvar="FLYWHEEL_REGISTRY", help="The registry's folder.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=V", help="Change a param; may be given again.")
]
Preset = Annotated[str, typer.Option(help="A shipped recipe: countdown, countdown-4, smoke.")]
DEFAULT_REGISTRY = Path("registry")


def main() -> None:
    """Run a command. Usage errors exit with 2 and Ctrl-C with 130 by typer; our own errors become their codes here."""
    try:
        app()
    except FlywheelError as error:
        sys.stderr.write(f"flywheel: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        where = f" at {error.filename}" if error.filename else ""
        sys.stderr.write(f"flywheel: no space left{where}; free some and run again: finished work is kept\n")
        sys.exit(StorageFull.exit_code)


@app.command()
def init(registry: RegistryPath = DEFAULT_REGISTRY, preset: Preset = "countdown", set_: Overrides = None,
         as_json: Json = False) -> None:  # fmt: skip
    """Make a registry: a git + DVC repository with the recipe of one generation."""
    made = _init(registry, preset, set_ or [])
    _out(as_json, {"registry": str(made.root), "preset": preset}, f"Made a registry in {made.root} ({preset}).")


@app.command()
def run(
    registry: RegistryPath = DEFAULT_REGISTRY,
    generations: Annotated[int | None, typer.Option("--generations", "-n", min=1, help="How many more.")] = None,
    set_: Overrides = None,
    preset: Annotated[str | None, typer.Option(help="For a new registry; countdown if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Run generations beyond the last published one; makes the registry if there is none, goes on with one cut off."""
    from flows import display, progress, server, stop
    from flywheel import params
    from flywheel.models import language
    from storage import lock
    from storage.registry import Registry

    if registry.exists() and any(registry.iterdir()):
        opened = Registry.open(registry)
        _check_preset(opened, preset)
        params.load(opened.layout.params, set_)
    else:
        opened = _init(registry, preset or "countdown", set_ or [])
    out, notes = _console(), _console(stderr=True)
    with lock.hold(opened, "run"), stop.on_signals():
        _quiet_prefect()
        started = server.start_early(opened.layout)
        language.warm_up()
        with server.own_server(opened.layout, started):
            from flows.campaign import campaign

            terminal = display.Terminal(out, notes, quiet_rows=as_json)
            with terminal.showing(), progress.listening(terminal):
                rows = campaign(str(opened.root), generations, set_ or [])
    if as_json:
        _print_json({"registry": str(opened.root), "generations": rows})
        return
    if rows:
        out.print()
        out.print(display.overhead_sentence(rows), highlight=False, soft_wrap=True)
        summary = _summary(opened)
        if summary is not None:
            out.print(summary["sentence"], style="bold", highlight=False, soft_wrap=True)


@app.command()
def status(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """What runs, what holds the registry, what is next: a line each."""
    from flows.status import status as read_status
    from storage.registry import Registry

    found = read_status(Registry.open(registry))
    _out(as_json, found.document, "\n".join(found.lines))


@app.command()
def history(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """The generations: labels, accuracy, compute, who was champion, what was rolled back and why."""
    from storage.history import history as read_history
    from storage.registry import Registry

    rows = read_history(Registry.open(registry))
    if as_json:
        _print_json(rows)
        return
    from flows.display import columns

    if not rows:
        _console().print("No generation yet; `flywheel run` makes the first.")
        return
    shown = [
        {**columns(row), "status": row["status"], "parent": _or_dash(row["parent"]), "reason": row["reason"] or ""}
        for row in rows
    ]
    for cells in shown:
        del cells["time"]
    _table(shown)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help='DuckDB SQL, e.g. "SELECT generation, count(*) FROM labels GROUP BY 1".')],
    registry: RegistryPath = DEFAULT_REGISTRY,
    at: Annotated[str | None, typer.Option(metavar="GEN", help="As of a generation, e.g. gen/4.")] = None,
    as_json: Json = False,
) -> None:
    """SQL over the tables problems, attempts, labels, label_parents, rejected, snapshots, trained_on, evaluations,
    outcomes, ledger, generations."""
    from storage import views
    from storage.registry import Registry

    opened = Registry.open(registry)
    result = views.query(opened, sql, _generation_number(opened, at) if at else None)
    if as_json:
        _print_json_rows(result.rows)
        return
    _table([{name: _cell(value) for name, value in row.items()} for row in result.rows], result.columns)


@app.command()
def lineage(
    address: Annotated[str, typer.Argument(help="gen/7, gen/7/labels, gen/7/student, model/<digest>.")],
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
    _out(as_json, graph.document(), text)


@app.command()
def rollback(
    to: Annotated[str, typer.Argument(help="The generation to go back to, e.g. gen/4.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    registry: RegistryPath = DEFAULT_REGISTRY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Go back to an earlier generation: labels, student, params and the champion alias. Nothing is deleted."""
    from storage import rollback as rollbacks
    from storage.registry import Registry

    opened = Registry.open(registry)
    generation = _generation_number(opened, to)
    planned = rollbacks.plan(opened, generation)
    if dry_run:
        _out(as_json, planned, _rollback_text(planned, "Would go"))
        return
    if not reason.strip():
        raise InputError('a rollback needs a reason, got none; add --reason "why", it is kept in the history')
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(
                "a rollback asks before it acts, and stdin is no terminal; add --yes, or look with --dry-run"
            )
        _console(stderr=True).print(_rollback_text(planned, "Will go"), highlight=False)
        typer.confirm("Go on?", abort=True, err=True)
    done = rollbacks.rollback(opened, generation, reason)
    done = _move_alias(opened, done)
    _out(as_json, done, _rollback_text(done, "Went"))


@app.command()
def undo(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """Take the last rollback back, by another one to the generation before it."""
    from storage import rollback as rollbacks
    from storage.registry import Registry

    opened = Registry.open(registry)
    done = _move_alias(opened, rollbacks.undo(opened))
    _out(as_json, done, _rollback_text(done, "Went"))


@app.command()
def schedule(
    registry: RegistryPath = DEFAULT_REGISTRY,
    cron: Annotated[str | None, typer.Option(help='When, five fields, e.g. "0 2 * * *".')] = None,
    generations: Annotated[int, typer.Option("--generations", "-n", min=1, help="Generations each time.")] = 1,
    until_plateau: Annotated[
        int | None, typer.Option(min=1, help="Stop adding after so many generations without a new champion.")
    ] = None,
    when_busy: Annotated[str, typer.Option(help="A tick while a run is at work: skip it, or queue it.")] = "skip",
    missed: Annotated[str, typer.Option(help="Ticks missed while down: run the latest, skip, or all.")] = "latest",
    on_failure: Annotated[str | None, typer.Option(help="A command to run when a generation fails.")] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA name; the machine's own by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the next five runs.")] = False,
    off: Annotated[bool, typer.Option("--off", help="Remove the schedule.")] = False,
    as_json: Json = False,
) -> None:
    """Run generations by the clock, on the services that `up` starts; shows the schedule if no --cron is given."""
    from flows import schedule as schedules
    from flows.ticks import read_schedule
    from storage.registry import Registry

    layout = Registry.open(registry).layout
    if off:
        removed = schedules.unschedule(layout)
        _out(as_json, {"removed": removed}, "The schedule is removed." if removed else "There was no schedule.")
        return
    if cron is None:
        held = read_schedule(layout)
        if held is None:
            raise InputError('no schedule yet; make one with --cron, e.g. flywheel schedule --cron "0 2 * * *"')
        found = schedules.describe(held)
    else:
        found = schedules.schedule(
            layout, cron, generations=generations, until_plateau=until_plateau, when_busy=_one(when_busy, "when-busy"),
            missed=_one(missed, "missed"), on_failure=on_failure, dry_run=dry_run, timezone=timezone,
        )  # fmt: skip
    lines = [f"{found['cron']} ({found['timezone']}); the next runs:", *(f"  {moment}" for moment in found["next"])]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in found["policy"].items() if value is not None]
    if cron is not None and not dry_run and not found.get("served"):
        lines.append("It counts once the services run: flywheel up")
    _out(as_json, found, "\n".join(lines))


@app.command()
def up(
    registry: RegistryPath = DEFAULT_REGISTRY,
    port_prefect: Annotated[int | None, typer.Option(min=1, max=65535, help="A free one by default.")] = None,
    port_mlflow: Annotated[int | None, typer.Option(min=1, max=65535, help="A free one by default.")] = None,
    as_json: Json = False,
) -> None:
    """Start, in the background on this machine: Prefect's server and UI, MLflow's, and the schedule if there is one."""
    from flows import services
    from storage.registry import Registry

    found = services.up(Registry.open(registry).layout, port_prefect=port_prefect, port_mlflow=port_mlflow)
    _out(as_json, found, _services_text(found))


@app.command()
def down(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """End the services that `up` started, and only those."""
    from flows import services
    from storage.registry import Registry

    ended = services.down(Registry.open(registry).layout)
    _out(as_json, {"ended": ended}, f"Ended: {', '.join(ended)}." if ended else "Nothing was running.")


@app.command()
def report(
    registry: RegistryPath = DEFAULT_REGISTRY,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """One self-contained HTML page: accuracy by generation and runtime budget, cost, break-even, sample labels."""
    from flows.report import report as write_report
    from storage.registry import Registry

    opened = Registry.open(registry)
    path = write_report(opened, out, _page_summary(_summary(opened)))
    _out(as_json, {"report": str(path)}, f"Wrote {path}")


@app.command()
def control(
    name: Annotated[str, typer.Argument(help="no-search, ceiling or tuned-search.")],
    registry: RegistryPath = DEFAULT_REGISTRY,
    as_json: Json = False,
) -> None:
    """Measure what to compare with: no-search and ceiling at the same total FLOPs, tuned-search at its best."""
    from flows import display, progress, server, stop
    from flywheel.models import language
    from storage import lock
    from storage.registry import Registry

    opened = Registry.open(registry)
    notes = _console(stderr=True)
    with lock.hold(opened, f"control {name}"), stop.on_signals():
        _quiet_prefect()
        started = server.start_early(opened.layout)
        language.warm_up()
        with server.own_server(opened.layout, started):
            from flows.controls import control as run_control

            terminal = display.Terminal(_console(), notes)
            with terminal.showing(), progress.listening(terminal):
                result = run_control(name, str(opened.root))
    key, reached = next(iter(result["test"].items()))
    text = f"{name}: {key} {reached['value']:.3f} on test ({reached['low']:.3f} to {reached['high']:.3f})"
    _out(as_json, result, f"{text}, {result['flops']:.3g} FLOPs of training.")


@app.command()
def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for registries, table and picture.")] = Path(
        "comparison"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, by commas.")] = "0,1,2",
    preset: Preset = "countdown",
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Campaigns and both controls over several seeds: a table and a picture of student, search, control and ceiling."""
    from flows import comparison, display

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds: got {seeds!r}, expected whole numbers by commas, e.g. 0,1,2") from None
    notes = _console(stderr=True)
    result = comparison.compare(out, numbers, preset, set_ or [], say=lambda text: notes.print(text, highlight=False))
    _out(as_json, result, display.comparison_text(result))


@app.command()
def doctor(registry: RegistryPath = DEFAULT_REGISTRY, as_json: Json = False) -> None:
    """What is wrong with this machine or registry, and how to mend it. Exit code 1 if something is."""
    from flows.doctor import examine

    findings = examine(registry)
    text = "\n".join(f"{'ok  ' if found.ok else 'BAD '} {found.what}: {found.detail}" for found in findings)
    _out(
        as_json, {"ok": all(found.ok for found in findings), "findings": [found.as_dict() for found in findings]}, text
    )
    if not all(found.ok for found in findings):
        raise typer.Exit(1)


def _quiet_prefect() -> None:
    """An error is told once, by `main`; Prefect would print its traceback for every flow it passes through."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


def _init(registry: Path, preset: str, overrides: list[str]) -> Registry:
    from flywheel import params
    from storage import recipes
    from storage.registry import Registry

    values = params.apply(recipes.load_preset(preset), overrides)
    return Registry.init(registry, params.parse(values, f"preset {preset}"), recipes.recipe_text(), preset)


def _check_preset(opened: Registry, preset: str | None) -> None:
    """A preset is chosen when a registry is made."""
    made = json.loads(opened.layout.marker.read_text(encoding="utf-8")).get("preset")
    if preset is not None and preset != made:
        raise InputError(
            f"{opened.root} was made with preset {made}, got --preset {preset}; "
            "name a new folder with --registry, or change single params with --set"
        )


def _summary(opened: Registry) -> dict[str, Any] | None:
    from flows.summary import summarise
    from flywheel import params
    from storage.history import history as read_history

    budget = params.load(opened.layout.params).generate.samples
    summary = summarise(opened, read_history(opened), budget)
    return summary.as_dict() if summary else None


def _page_summary(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    return {name: summary[name] for name in ("sentence", "break_even")} if summary else None


def _generation_number(opened: Registry, text: str) -> int:
    from storage import addresses

    address = addresses.resolve(opened, text)
    if address.generation is None or str(address) != f"gen/{address.generation}":
        raise InputError(f"got {text!r}, expected a generation such as gen/4")
    return address.generation


def _move_alias(opened: Registry, done: dict[str, Any]) -> dict[str, Any]:
    """MLflow follows the registry; if it is away, the outcome says so and the next run does it."""
    from storage import tracking
    from storage.history import published

    champion = published(opened, done["alias"]["to"])["champion"]
    moved = tracking.set_alias(opened.layout, champion["snapshot"])
    return {**done, "alias": {**done["alias"], "moved": moved}}


def _rollback_text(done: dict[str, Any], verb: str) -> str:
    lines = [
        f"{verb} from gen/{done['from']} to gen/{done['to']}: {done['rows_dropped']} labels out, "
        f"{done['rows_kept']} stay, "
        f"{len(done['models_abandoned'])} models abandoned, {done['bytes_to_fetch']} bytes to fetch.",
        f"Champion: the student of gen/{done['alias']['from']} -> that of gen/{done['alias']['to']}.",
        f"To take it back: {done['undo']}",
    ]
    if done["alias"].get("moved") is False:
        lines.append("MLflow was away: its alias moves with the next `flywheel run`.")
    return "\n".join(lines)


def _services_text(found: dict[str, Any]) -> str:
    lines = []
    for name, service in found.items():
        page = (service["url"] or "running").removesuffix("/api")
        state = page if service["alive"] else "not running"
        lines.append(f"{name:8} {state}")
    return "\n".join(lines)


def _one(value: str, option: str) -> Any:
    known = {"when-busy": ("skip", "queue"), "missed": ("latest", "skip", "all")}[option]
    if value not in known:
        raise InputError(f"--{option}: got {value!r}, expected one of {', '.join(known)}")
    return value


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _out(as_json: bool, document: Any, text: str) -> None:
    if as_json:
        _print_json(document)
    else:
        typer.echo(text)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=1, default=str))


def _print_json_rows(rows: Any) -> None:
    """A list, written as it is read."""
    typer.echo("[", nl=False)
    for index, row in enumerate(rows):
        typer.echo((",\n " if index else "") + json.dumps(row, default=str), nl=False)
    typer.echo("]")


def _table(rows: list[dict[str, str]], names: list[str] | None = None) -> None:
    from rich import box
    from rich.table import Table

    names = names or list(rows[0])
    table = Table(*names, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    console = _console()
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
