"""Does the flywheel beat its own search? Campaigns and their controls over several seeds, on test, paired by problem.

Each seed has a registry of its own below the output folder; a call that is cut off goes on where it was. The test
problems are the same for every seed, and an interval's clusters are their groups over all seeds together.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flywheel import params as parameters
from flywheel.errors import FlywheelError, InputError, Interrupted
from flywheel.evaluation import intervals
from flywheel.problems import domain
from storage import recipes
from storage.history import history
from storage.ledger import INVESTED
from storage.registry import Registry
from storage.rows import read_problems
from storage.tables import replace_text
from storage.views import query

_CONTROLS = ("tuned-search", "no-search", "ceiling")
_GREEDY = """
    SELECT generation, problem_id, value FROM outcomes
    WHERE split = 'test' AND metric = 'greedy' AND generation IN ({first}, {last})
"""


def compare(
    out: Path, seeds: list[int], preset: str, overrides: list[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run what is missing, then {"rows": accuracy by contender, "differences": paired with the student, "flops", ...}.

    Writes comparison.json and comparison.svg to `out`.
    """
    if not seeds:
        raise InputError("a comparison needs at least one seed, got none")
    registries = [_run(out / f"seed-{seed}", seed, preset, overrides, say) for seed in seeds]
    values: dict[str, list[float]] = {}
    groups: list[str] = []
    spent = []
    for registry in registries:
        contenders, group = _outcomes(registry)
        problems = sorted(group)
        groups += [group[problem] for problem in problems]
        for name, outcome in contenders.items():
            values.setdefault(name, []).extend(outcome[problem] for problem in problems)
        spent.append(sum(sum(row["stages"].get(stage, 0.0) for stage in INVESTED) for row in history(registry)))
    student = values["student at once"]
    result = {
        "seeds": seeds,
        "preset": preset,
        "set": overrides,
        "problems": len(groups) // len(seeds),
        "search_and_training_flops": spent,
        "rows": {name: intervals.share(each, groups).as_dict() for name, each in values.items()},
        "student_minus": {
            name: intervals.mean([mine - other for mine, other in zip(student, each, strict=True)], groups).as_dict()
            for name, each in values.items()
            if name != "student at once"
        },
    }
    replace_text(out / "comparison.json", json.dumps(result, indent=1) + "\n")
    replace_text(out / "comparison.svg", _picture(registries, result))
    return result


def _run(root: Path, seed: int, preset: str, overrides: list[str], say: Callable[[str], None]) -> Registry:
    registry = run_campaign(root, seed, preset, overrides, say)
    wanted = parameters.load(root / "params.yaml").campaign.generations
    for name in _CONTROLS:
        path = root / "controls" / f"{name}-seed-{seed}.json"
        done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if done.get("generation") not in (0, wanted) or not done:
            say(f"seed {seed}: control {name}")
            _flywheel("control", name, "--registry", str(root))
    return registry


def run_campaign(
    root: Path, seed: int, preset: str, overrides: Sequence[str], say: Callable[[str], None]
) -> Registry:  # fmt: skip
    """A registry in `root` with `campaign.generations` generations of this recipe; what is missing is made. Raises
    InputError where it was made with another recipe."""
    recipe = recipes.recipe(preset, [*overrides, f"seed={seed}"])
    domain.require_texts(recipe.problems)
    changes = [f"--set={change}" for change in (*overrides, f"seed={seed}")]
    if not (root / "flywheel.json").exists():
        _flywheel("init", "--registry", str(root), "--preset", preset, *changes)
    registry = Registry.open(root)
    held = parameters.load(root / "params.yaml")
    if held.for_generation(0, None).digest() != recipe.digest():
        raise InputError(
            f"{root} was made with another recipe; give --out a new folder, or the preset and --set of then"
        )
    wanted = recipe.campaign.generations
    head = registry.head_generation()
    if head is None or head < wanted:
        say(f"{root.parent.name} seed {seed}: generations {0 if head is None else head + 1} to {wanted}")
        _flywheel("run", "--registry", str(root), "--generations", str(wanted - (head or 0)))
    return registry


def champion_outcomes(registry: Registry) -> dict[str, float]:
    """Whether the champion at the head, answering at once, solves each test problem."""
    last = [row for row in history(registry) if row["status"] != "abandoned"][-1]["champion"]
    sql = _GREEDY.format(first=last, last=last)
    return {row["problem_id"]: row["value"] for row in query(registry, sql).rows}


def _flywheel(*arguments: str) -> None:
    """A command of ours in a process of its own: its memory, threads and server end with it."""
    done = subprocess.run([sys.executable, "-m", "flows.cli", *arguments], stdout=sys.stderr, check=False)
    if done.returncode == Interrupted.exit_code:
        raise Interrupted("stopped on request; the same command goes on from there")
    if done.returncode:
        raise FlywheelError(f"`flywheel {' '.join(arguments)}` ended with {done.returncode}; see what it said above")


def _outcomes(registry: Registry) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """By contender, whether it solves each test problem; and each problem's group."""
    rows = [row for row in history(registry) if row["status"] != "abandoned"]
    first, last = rows[0]["generation"], rows[-1]["champion"]
    greedy: dict[int, dict[str, float]] = {first: {}, last: {}}
    for row in query(registry, _GREEDY.format(first=first, last=last)).rows:
        greedy[row["generation"]][row["problem_id"]] = row["value"]
    seed = _seed(registry)
    held = {
        name: json.loads((registry.root / "controls" / f"{name}-seed-{seed}.json").read_text(encoding="utf-8"))
        for name in _CONTROLS
    }
    search = next(iter(held["tuned-search"]["test"]))
    group = {problem.problem_id: problem.group for problem in read_problems(registry.layout.problems, ["test"])}
    return {
        "student at once": greedy[last],
        f"generation 0, {search}, best temperature": held["tuned-search"]["outcomes"],
        "generation 0 at once": greedy[first],
        "control: no search, same FLOPs": held["no-search"]["outcomes"],
        "ceiling: solver's labels for all problems, same FLOPs": held["ceiling"]["outcomes"],
    }, group


def _seed(registry: Registry) -> int:
    return parameters.load(registry.layout.params).seed


def _picture(registries: list[Registry], result: dict[str, Any]) -> str:
    """Greedy accuracy by generation, a line a seed, between the search it started from and its controls. SVG text."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "flywheel", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        axes = figure.subplots()
        for index, registry in enumerate(registries):
            rows = [row for row in history(registry) if row["status"] != "abandoned"]
            axes.plot(
                [row["generation"] for row in rows],
                [row["metrics"]["test"]["greedy"]["value"] for row in rows],
                marker="o",
                color="#0072B2",
                alpha=1.0 - 0.25 * index,
                label="student at once" if index == 0 else None,
            )
        colours = iter(("#D55E00", "#999999", "#CC79A7", "#009E73"))
        for name, row in result["rows"].items():
            if name == "student at once":
                continue
            colour = next(colours)
            axes.axhline(row["value"], color=colour, linestyle="--", linewidth=1.2, label=name)
            axes.axhspan(row["low"], row["high"], color=colour, alpha=0.10, linewidth=0)
        axes.set_xlabel("generation")
        axes.set_ylabel(f"share of {result['problems']} test problems solved")
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
