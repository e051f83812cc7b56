"""What knowing "better" is worth: the flywheel with rewards that know more or less, at equal compute, over seeds.

Each setting and seed has a registry of its own below the output folder; a call that is cut off goes on where it was.
Every generation spends about the same on search, step labels and training together, whatever its reward: what the
search and the reward model take is taken from the passes over the labels (`train.flops`). Everything is chosen on
valid; test is only reported, for the champion. Generation 0 comes on top, a first reward model with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.comparison import champion_outcomes, run_campaign
from flows.search_page import points
from flywheel.errors import InputError
from flywheel.evaluation import intervals
from storage.history import history
from storage.ledger import INVESTED
from storage.registry import Registry
from storage.rows import read_problems
from storage.tables import replace_text


@dataclass(frozen=True, slots=True)
class Setting:
    """A reward (and the search that goes with it) as changes of the params."""

    name: str
    changes: tuple[str, ...]

    @property
    def folder(self) -> str:
        return self.name.replace(" %", "-percent").replace(",", "").replace(" ", "-")


_SAMPLED = ("generate.problems=1500", "train.flops=2.3e11")
"""Best-of-16 takes 1.2e11 FLOPs of a generation's 3.5e11."""

SETTINGS = (
    Setting("exact", _SAMPLED),
    Setting("noisy 5 %", (*_SAMPLED, "reward.name=noisy", "reward.flip=0.05")),
    Setting("noisy 20 %", (*_SAMPLED, "reward.name=noisy", "reward.flip=0.2")),
    Setting("majority vote", (*_SAMPLED, "reward.name=majority", "filter.threshold=0.3")),
    Setting(
        "process reward, beam",
        (
            "generate.problems=500",
            "train.flops=1.1e11",
            "reward.name=process",
            "filter.threshold=0.2",
            "filter.per_problem=1",
            "generate.searcher=beam",
            "supervise.enabled=true",
            "supervise.problems=600",
            "supervise.rollouts=4",
            "supervise.epochs=2",
        ),
    ),
)
"""At the size of the preset `countdown`: each comes to about 3.5e11 FLOPs a generation. `train.flops` cuts the passes,
so `train.epochs` must not be what stops them (`PASSES`)."""
PASSES = "train.epochs=60"


def study(
    out: Path, seeds: Sequence[int], preset: str, overrides: Sequence[str], say: Callable[[str], None],
    names: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Run what is missing, then {"rows": final accuracy by setting, "minus_exact": paired differences, "curves", ...}.

    Writes study.json, study.svg and README.md to `out`. `names` are the settings wanted, all by default.
    """
    if not seeds:
        raise InputError("a study needs at least one seed, got none")
    unknown = [name for name in names if name not in {setting.name for setting in SETTINGS}]
    if unknown:
        raise InputError(f"got setting {unknown[0]!r}, expected one of {', '.join(s.name for s in SETTINGS)}")
    chosen = [setting for setting in SETTINGS if not names or setting.name in names]
    registries = {
        (setting.name, seed): run_campaign(
            out / setting.folder / f"seed-{seed}", seed, preset, [PASSES, *setting.changes, *overrides], say
        )
        for seed in seeds
        for setting in chosen
    }  # fmt: skip
    values: dict[str, list[float]] = {}
    groups: dict[str, list[str]] = {}
    for (name, _), registry in registries.items():
        group = {problem.problem_id: problem.group for problem in read_problems(registry.layout.problems, ["test"])}
        outcome = champion_outcomes(registry)
        values.setdefault(name, []).extend(outcome[problem] for problem in sorted(group))
        groups.setdefault(name, []).extend(group[problem] for problem in sorted(group))
    best = chosen[0].name
    result = {
        "seeds": list(seeds),
        "preset": preset,
        "set": list(overrides),
        "settings": {setting.name: list(setting.changes) for setting in chosen},
        "rows": {name: intervals.share(each, groups[name]).as_dict() for name, each in values.items()},
        "minus": best,
        "differences": {
            name: intervals.mean([a - b for a, b in zip(each, values[best], strict=True)], groups[name]).as_dict()
            for name, each in values.items()
            if name != best
        },
        "curves": {
            name: [_curve(registry) for (setting, _), registry in registries.items() if setting == name]
            for name in values
        },
    }
    replace_text(out / "study.json", json.dumps(result, indent=1) + "\n")
    replace_text(out / "study.svg", picture(result))
    replace_text(out / "README.md", page(result))
    return result


def _curve(registry: Registry) -> list[dict[str, Any]]:
    """By generation: cumulated FLOPs of all but evaluation, greedy accuracy on test, what the reward lets pass."""
    spent, found = 0.0, []
    for row in history(registry):
        if row["status"] == "abandoned":
            continue
        taken = {stage: row["stages"].get(stage, 0.0) for stage in INVESTED}
        spent += sum(taken.values())
        metrics = row["metrics"]
        found.append(
            {
                "generation": row["generation"],
                "flops": spent,
                **{f"flops_{stage}": value for stage, value in taken.items()},
                "greedy": metrics["test"]["greedy"]["value"],
                "champion": row["champion"],
                "labels": row["labels"],
                "overrated": metrics["collapse"]["overrated"],
                "distinct_solutions": metrics["collapse"]["distinct_solutions"],
                "alarms": metrics["collapse"]["alarms"],
            }
        )
    return found


def picture(result: dict[str, Any]) -> str:
    """Left: greedy accuracy against cumulated FLOPs, a line a seed. Right: where each setting ends. SVG text."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict(zip(result["rows"], ("#0072B2", "#56B4E9", "#E69F00", "#999999", "#009E73"), strict=False))
    with mpl.rc_context({"svg.hashsalt": "flywheel", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.4, 1.0))
        for name, curves in result["curves"].items():
            for index, points in enumerate(curves):
                left.plot(
                    [point["flops"] for point in points],
                    [point["greedy"] for point in points],
                    color=colours[name], alpha=0.8, marker="o", ms=3, lw=1.2, label=name if index == 0 else None,
                )  # fmt: skip
        left.set_xlabel("FLOPs of search, rewards and training so far")
        left.set_ylabel("share of test problems solved at once")
        left.set_ylim(bottom=0.0)
        left.legend(fontsize=8, frameon=False)
        names = list(result["rows"])[::-1]
        for place, name in enumerate(names):
            row = result["rows"][name]
            right.errorbar(
                row["value"], place, xerr=[[row["value"] - row["low"]], [row["high"] - row["value"]]], fmt="o",
                color=colours[name], capsize=3,
            )  # fmt: skip
        right.set_yticks(range(len(names)), names)
        right.set_xlim(left=0.0)
        right.set_xlabel(f"solved at once in the end, {len(result['seeds'])} seeds, 95 %")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def page(result: dict[str, Any]) -> str:
    """The study as Markdown."""
    count = next(iter(result["rows"].values()))["count"]
    lines = [
        "# What knowing better is worth",
        "",
        f"Seeds {', '.join(map(str, result['seeds']))}; {count} test answers a setting; 95 % intervals clustered by "
        "group, differences paired by problem and seed. The champion, chosen on valid, answers at once. FLOPs are "
        "those of search, step labels, reward models and training, generation 0 included, evaluation not.",
        "",
        "![Accuracy against compute, by reward](study.svg)",
        "",
        f"| reward | solved | 95 % | minus {result['minus']} | 95 % | FLOPs a seed | wrong answers it lets pass |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        curves = result["curves"][name]
        flops = [points[-1]["flops"] for points in curves]
        overrated = sum(points[-1]["overrated"] for points in curves) / len(curves)
        difference = result["differences"].get(name)
        shown = points(difference) if difference else " | "
        lines.append(
            f"| {name} | {row['value']:.1%} | {row['low']:.1%} to {row['high']:.1%} | {shown} | "
            f"{min(flops):.3g} to {max(flops):.3g} | {overrated:.1%} of samples |"
        )
    lines += ["", "Settings:", ""]
    lines += [f"- {name}: `{' '.join(changes) or 'as the preset'}`" for name, changes in result["settings"].items()]
    return "\n".join(lines) + "\n"
