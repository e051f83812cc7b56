"""What came of a sweep, in two tables: `results.parquet`, a row for each snapshot at each runtime budget, and
`problems.parquet`, the test problems in the order in which `outcomes` lists them.

A row names its registry, tag and snapshot, so that `flywheel lineage` and `verify` in `runs/<run>` say where it came
from. FLOPs are executed ones; those of a stage are of all generations up to the row's. Files for analysis: they are
enough by themselves to fit, plan and draw, without the registries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.sweeps import running
from flows.sweeps.definition import Contest, Run, Sweep
from flywheel.errors import InputError
from flywheel.evaluation import intervals
from flywheel.params import Params
from storage.history import history, tagged
from storage.registry import Registry
from storage.tables import write_table
from storage.views import query

RESULTS = pa.schema(
    [
        ("sweep", pa.string()), ("family", pa.string()), ("cell", pa.string()), ("seed", pa.int64()),
        ("held_back", pa.bool_()), ("domain", pa.string()), ("size", pa.int64()),
        ("run", pa.string()), ("generation", pa.int64()), ("tag", pa.string()), ("tag_object", pa.string()),
        ("code_revision", pa.string()), ("snapshot", pa.string()), ("parameters", pa.int64()),
        ("hidden_size", pa.int64()), ("layers", pa.int64()), ("label_budget", pa.int64()),
        ("label_flops", pa.float64()), ("training_flops", pa.float64()), ("reward_model_flops", pa.float64()),
        ("evaluation_flops", pa.float64()), ("useful_flops", pa.float64()), ("seconds", pa.float64()),
        ("metric", pa.string()), ("budget", pa.int64()), ("value", pa.float64()), ("low", pa.float64()),
        ("high", pa.float64()), ("count", pa.int64()), ("query_flops", pa.float64()),
        ("outcomes", pa.list_(pa.float32())),
    ]
)  # fmt: skip
"""`size` is a board's; `label_budget` the samples a problem, or simulations a move, with which this generation's labels
were searched; `useful_flops` and `seconds` are of labels, training and reward models; `metric` greedy (budget 0), pass,
right (so many of `budget` samples were right: pass at any smaller budget follows), search (kept wins). A control is a
row of the cell `<cell>+<control>` beside the newest generation that it is compared with; see `control_rows`."""
PROBLEMS = pa.schema([("family", pa.string()), ("problem_id", pa.string()), ("group", pa.string())])
_NOTE, _CONTEST, _RUNS = "flywheel.note", "flywheel.contest", "flywheel.runs"
_STAGES = {"generate": "label_flops", "train": "training_flops", "supervise": "reward_model_flops",
           "evaluate": "evaluation_flops"}  # fmt: skip
_METRICS = ("greedy", "pass", "right", "search")
_OUTCOMES = f"""
    SELECT generation, metric, budget, problem_id, "group", value, flops FROM outcomes
    WHERE split = 'test' AND metric IN {_METRICS} ORDER BY generation, metric, budget, problem_id
"""
_SPENT = """
    SELECT generation, stage, sum(flops_policy + flops_prefill + flops_reward + flops_training) AS useful,
        sum(flops_padding) AS padding, sum(seconds) AS seconds
    FROM ledger WHERE stage IN ('generate', 'train', 'supervise', 'evaluate') GROUP BY ALL
"""


def write(name: str, sweep: Sweep, out: Path) -> int:
    """Write both tables from what the sweep's runs have published; how many rows there are."""
    rows: list[dict[str, Any]] = []
    problems: dict[str, dict[str, str]] = {}
    for run in sweep.runs():
        if running.done(out, run) is None:
            continue
        registry = Registry.open(running.folder(out, run))
        found, groups = of_run(name, run, registry)
        rows += found
        held = problems.setdefault(run.family, groups)
        # Problems are the same for every seed; else no two runs of a family could be compared.
        if held != groups:
            raise InputError(
                f"{run.name} was tested on other problems than the runs before it in family {run.family}, so that they "
                "cannot be compared; give it a family of its own"
            )
    asked = [
        [cell, run.seed, run.generations]
        for run in sweep.runs()
        for cell in (run.cell, *(f"{run.cell}+{name}" for name in run.controls))
    ]
    metadata = {
        _NOTE: sweep.note, _RUNS: json.dumps(asked),
        _CONTEST: sweep.contest.model_dump_json() if sweep.contest else "",
    }  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=RESULTS)
    write_table(out / "results.parquet", table.replace_schema_metadata(metadata))
    listed = [
        {"family": family, "problem_id": problem, "group": group}
        for family, groups in problems.items()
        for problem, group in groups.items()
    ]
    write_table(out / "problems.parquet", pa.Table.from_pylist(listed, schema=PROBLEMS))
    return len(rows)


def of_run(name: str, run: Run, registry: Registry) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of one run; and the group of each test problem, in order."""
    tags, line = tagged(registry), [row for row in history(registry) if row["status"] != "abandoned"]
    spent = {(row["generation"], row["stage"]): row for row in query(registry, _SPENT).rows}
    sizes = {
        row["snapshot"]: row["parameters"]
        for row in query(registry, "SELECT DISTINCT snapshot, parameters FROM snapshots WHERE role = 'policy'").rows
    }
    cells: dict[int, dict[tuple[str, int], list[dict[str, Any]]]] = {}
    for row in query(registry, _OUTCOMES).rows:
        key = row["metric"], 0 if row["metric"] == "greedy" else row["budget"]
        cells.setdefault(row["generation"], {}).setdefault(key, []).append(row)
    rows: list[dict[str, Any]] = []
    total: dict[str, float] = dict.fromkeys([*_STAGES.values(), "useful_flops", "seconds"], 0.0)
    groups: dict[str, str] = {}
    for published in line:
        generation = published["generation"]
        params = _params(run, generation)
        for stage, column in _STAGES.items():
            if (here := spent.get((generation, stage))) is not None:
                total[column] += here["useful"] + here["padding"]
                if stage != "evaluate":
                    total["useful_flops"] += here["useful"]
                    total["seconds"] += here["seconds"]
        common = {
            "sweep": name, "family": run.family, "cell": run.cell, "seed": run.seed, "held_back": run.held_back,
            "domain": params.problems.domain, "size": params.problems.size if _board(params) else None,
            "run": run.name, "generation": generation, "tag": published["tag"],
            "tag_object": tags[generation].object, "code_revision": tags[generation].code_revision,
            "snapshot": published["student"], "parameters": sizes[published["student"]],
            "hidden_size": params.model.hidden_size, "layers": params.model.layers,
            "label_budget": params.generate.simulations if _board(params) else params.generate.samples, **total,
        }  # fmt: skip
        for (metric, budget), measured in cells[generation].items():
            groups = {row["problem_id"]: row["group"] for row in measured}
            values = [row["value"] for row in measured]
            shares = [value / budget for value in values] if metric == "right" else values
            interval = intervals.share(shares, list(groups.values()))
            rows.append(
                common | interval.as_dict() | {
                    "metric": metric, "budget": budget, "outcomes": values,
                    "query_flops": sum(row["flops"] for row in measured) / len(measured),
                }
            )  # fmt: skip
    return [*rows, *control_rows(run, registry.layout.controls, rows, groups)], groups


def control_rows(run: Run, folder: Path, rows: list[dict[str, Any]], groups: dict[str, str]) -> list[dict[str, Any]]:
    """A row of each control that has been run, from its file in `folder`; `rows` are the run's.

    What trains is a student's greedy answers, with all FLOPs as training, at the generation whose FLOPs it was given;
    a query is priced as that generation's, which has the same size. The tuned search is generation 0 itself: its metric
    is `best`, with the samples it draws a problem, and its FLOPs are that generation's (a query's where measured).
    """
    found = []
    for name in run.controls:
        path = folder / f"{name}-seed-{run.seed}.json"
        if not path.exists():
            continue
        held = json.loads(path.read_text(encoding="utf-8"))
        ((key, measured),) = held["test"].items()
        metric, _, budget = key.partition("@")
        beside = [row for row in rows if row["generation"] == held["generation"]]
        prices = {(row["metric"], row["budget"]): row["query_flops"] for row in beside}
        price = prices.get(("greedy", 0)) if metric == "greedy" else prices.get(("pass", int(budget)))
        own = {"cell": f"{run.cell}+{name}", "snapshot": held["snapshot"], "seconds": held["seconds"]}
        if metric == "greedy":
            own |= dict.fromkeys(("label_flops", "reward_model_flops", "evaluation_flops"), 0.0)
            own |= {"label_budget": 0, "training_flops": held["flops"], "useful_flops": None}
        outcomes = {"outcomes": [held["outcomes"][problem] for problem in groups], "query_flops": price}
        found.append(beside[0] | own | measured | outcomes | {"metric": metric, "budget": int(budget or 0)})
    return found


def read(folder: Path) -> pa.Table:
    """The table `results` of a sweep's folder."""
    return pq.read_table(folder / "results.parquet", schema=RESULTS)


def problems(folder: Path) -> dict[str, dict[str, str]]:
    """By family the group of each test problem, by its id, in the order of `outcomes`."""
    found: dict[str, dict[str, str]] = {}
    for row in pq.read_table(folder / "problems.parquet", schema=PROBLEMS).to_pylist():
        found.setdefault(row["family"], {})[row["problem_id"]] = row["group"]
    return found


def note(folder: Path) -> str:
    """What the sweep wants said with its results."""
    return _metadata(folder, _NOTE)


def asked(folder: Path) -> dict[tuple[str, int], int]:
    """By cell and seed how many generations the sweep makes, whether or not they are made; controls as the rows."""
    return {(cell, seed): generations for cell, seed, generations in json.loads(_metadata(folder, _RUNS) or "[]")}


def contest(folder: Path) -> Contest | None:
    """What a contest is held by; None of other sweeps."""
    text = _metadata(folder, _CONTEST)
    return Contest.model_validate_json(text) if text else None


def _metadata(folder: Path, key: str) -> str:
    metadata: dict[bytes, bytes] = pq.read_schema(folder / "results.parquet").metadata or {}
    return metadata.get(key.encode(), b"").decode()


def _params(run: Run, generation: int) -> Params:
    end = 0
    for number, leg in enumerate(run.legs):
        end += leg.generations
        if generation <= end:
            return run.params(number)
    raise InputError(
        f"{run.name} holds gen/{generation}, expected {end} generations as the sweep says; roll it back, or remove its "
        "folder to make it anew"
    )


def _board(params: Params) -> bool:
    return params.problems.domain == "hex"
