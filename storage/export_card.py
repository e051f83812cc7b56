"""The card of an exported data set: README.md with the front matter that `datasets` reads, and the rows' lineage.

Everything comes from the tag, the tables and the options: no clock, no machine, so that the same export has the same
bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import yaml

from storage.layout import tag_name

if TYPE_CHECKING:
    from flywheel.params import Params
    from storage.export import Tally, Wanted
    from storage.export_source import Source

MARK = "Made by Flywheel"
"""By this an export is told from a folder that somebody else filled."""

_SHAPING = {"seed", "problems", "seed_labels", "generate", "reward", "filter", "supervise"}
"""Sections of the params that shape labels."""
_REPEATED = "Labels may teach what an older one does: `train.dedupe` was off."
_COLUMNS = {
    "prompt-completion": """\
| `prompt` | what the model was asked, to the last byte (a line end parts it from the answer) |
| `completion` | the answer, without an end token: TRL adds the tokenizer's own |""",
    "messages": """\
| `messages` | the question as the problem's own messages, or the prompt as the user's without its last line end; \
then the answer as the assistant's |""",
    "preference": """\
| `prompt` | what the model was asked, to the last byte |
| `chosen` | a label of the problem |
| `rejected` | an attempt at the same problem in the same generation that ended by itself, has an answer, and has a \
reward below `filter.threshold` |
| `rejected_attempt_id`, `rejected_reward` | that attempt |""",
    "stepwise": """\
| `prompt` | what the model was asked, to the last byte |
| `completions` | the steps of one answer, without what ends a step |
| `labels` | whether each step is right: its score is above {threshold:g} |
| `scores` | the score of each step: the share of rollouts from its end that came right (estimate `soft`), or 1 where \
any did (`hard`), or the answer's own verdict (`outcome`) |
| `step_label_id`, `problem_id`, `generation` | name the row in the registry |
| `policy`, `estimate`, `rollouts` | the model that answered and completed, by its weights; how scores were made; \
completions a step |""",
}
_ORIGIN = """\
| `label_id`, `problem_id`, `generation` | name the label in the registry |
| `teacher`, `searcher` | the model that found it, by the digest of its weights, and how it searched |
| `reward`, `reward_source` | what it was judged to be worth, and by what |"""


def card(source: Source, wanted: Wanted, tally: Tally) -> str:
    """The text of README.md."""
    from storage.history import tagged, window

    rows = sum(tally.splits.values())
    tags = tagged(source.registry)
    newest = tag_name(source.generation)
    marker = json.loads(source.registry.layout.marker.read_text(encoding="utf-8"))
    identity = marker.get("registry_id", "unknown")
    of = f"`{newest}`" + (" and the window of labels its student could learn from" if wanted.window else "")
    lines = [
        "---",
        yaml.safe_dump(_front(wanted, tally, rows), sort_keys=False).rstrip(),
        "---",
        f"# Labels of {newest}, as {wanted.form}",
        "",
        f"{MARK}: answers that a model found by search and a reward let pass, to train another model on. "
        f"From {of} of registry `{identity}`, commit `{tags[source.generation].commit}`.",
        "",
        "| split | rows | |",
        "|---|---|---|",
        *(f"| {split} | {count} | {_split_note(split)} |" for split, count in tally.splits.items()),
        "",
        "| column | |",
        "|---|---|",
        _COLUMNS[wanted.form].format(threshold=wanted.step_threshold),
        *([] if wanted.form == "stepwise" else [_ORIGIN]),
        "",
        "TRL's trainers drop the columns that they do not know.",
        *_sources(source, wanted, tally),
        *_chain(source, window(source.registry, source.generation)),
        *_contamination(source),
        *_recipe(source.params[source.generation], newest),
        *_again(source, wanted, tags[source.generation].code_revision),
    ]
    return "\n".join(lines) + "\n"


def _front(wanted: Wanted, tally: Tally, rows: int) -> dict[str, Any]:
    files = [{"split": split, "path": f"data/{split}/part-*.{wanted.file_type}"} for split in tally.splits]
    tags = ["trl", "flywheel", "synthetic"]
    return {
        "pretty_name": f"Flywheel labels, {wanted.form}",
        "task_categories": ["token-classification" if wanted.form == "stepwise" else "text-generation"],
        "size_categories": [_size(rows)],
        "tags": tags,
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _size(rows: int) -> str:
    """The hub's name for so many rows."""
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    return next((name for bound, name in bounds if rows < bound), "n>10M")


def _split_note(split: str) -> str:
    if split == "train":
        return "of training problems only"
    return f"reference answers of the {'valid' if split == 'validation' else 'test'} problems; do not train on them"


def _sources(source: Source, wanted: Wanted, tally: Tally) -> list[str]:
    """Who made the labels at what cost, a line a generation."""
    stepwise = wanted.form == "stepwise"
    made = _supervision if stepwise else _search
    names = ["generation", "rows", "MD5 in the registry", "made by", "known by", "how", "judged by", "FLOPs"]
    lines = ["", "## Where the labels came from", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    spent = 0.0
    for generation, params in source.params.items():
        cells, flops = made(source.published[generation], params)
        spent += flops
        shown = [f"`{tag_name(generation)}`", str(tally.generations[generation]), *cells, f"{flops:.4g}"]
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in shown)} |")
    rows = tally.splits.get("train", 0)
    if rows:
        what = "Rollouts and the reward model taught by them" if stepwise else "The searches"
        judges = f" Rewards came from: {', '.join(sorted(tally.reward_sources))}." if tally.reward_sources else ""
        lines += ["", f"{what} took {spent:.4g} FLOPs, waste and padding included: {spent / rows:.4g} a row.{judges}"]
    if wanted.window and not stepwise:
        train = source.params[source.generation].train
        lines += ["", "Labels that teach what an older one does were left out." if train.dedupe else _REPEATED]
        if train.seed_share is not None:
            lines += ["", f"The student saw seed labels to a share of {train.seed_share:g}; here each stands once."]
    return lines


def _search(facts: dict[str, Any], params: Params) -> tuple[list[str], float]:
    teacher = facts["teacher"]
    solver = teacher["kind"] == "solver"
    judge = facts.get("judge") or {}
    own = f" `{judge['snapshot']}` ({judge['source']})" if judge.get("judges") else ""
    cells = [
        f"`{facts['outputs'][f'labels/{params.folder}']}`",
        f"`{teacher['snapshot']}` ({teacher['source']})",
        "its digest" if teacher["verified"] else "what its server says: not verified",
        "the domain's solver" if solver else f"{params.generate.searcher}, {params.generate.samples} samples",
        "the domain's checker" if solver else f"{params.reward.name}{own}",
    ]
    return cells, float(facts["stages"].get("generate", 0.0))


def _supervision(facts: dict[str, Any], params: Params) -> tuple[list[str], float]:
    section = params.supervise
    cells = [
        f"`{facts['outputs'].get('supervision', 'none')}`",
        f"`{facts['student']['snapshot']}` ({tag_name(params.generation)}/student)",
        "its digest",
        "the answers' own verdicts"
        if section.estimate == "outcome"
        else f"{section.rollouts} rollouts a step, {section.estimate}",
        "the domain's checker",
    ]
    return cells, float(facts["stages"].get("supervise", 0.0))


def _chain(source: Source, line: list[int]) -> list[str]:
    """The students from this generation back to generation 0, each with the weights it began with."""
    from storage.history import published_many, tagged

    tags = tagged(source.registry)
    facts = published_many(source.registry, line)
    lines = ["", "## The models behind them", ""]
    lines += ["Each student learned from labels that an older one found. Digests are of weights.", ""]
    lines += ["| generation | commit | student | began as | teacher of its labels |", "|---|---|---|---|---|"]
    for generation in reversed(line):
        student = facts[generation]["student"]
        began = f"`{student['initialised_from']}`" if student["initialised_from"] else "fresh weights"
        lines.append(
            f"| `{tag_name(generation)}` | `{tags[generation].commit}` | `{student['snapshot']}` | {began} | "
            f"`{facts[generation]['teacher']['snapshot']}` |"
        )
    return lines


def _contamination(source: Source) -> list[str]:
    problems = source.params[source.generation].problems
    if problems.domain == "countdown":
        apart = "Problems are split by hand: a hand of a valid or test problem occurs in no training problem."
    elif problems.decontaminate is None:
        apart = "`problems.decontaminate` was off: training problems may overlap valid and test problems."
    else:
        shared = f"{problems.decontaminate} words in a row in common with a valid or test problem"
        apart = f"Training problems with {shared} were left out."
    reasons = Counter(row["reason"] for row in source.rows("excluded", source.generation, ["reason"]))
    left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(reasons.items()))
    return [
        "",
        "## Contamination",
        "",
        f"{apart} Labels are of training problems only; valid and test problems were never searched for labels.",
        *(
            [f"Rows of the problems' files that were left out: {left_out}; table `excluded` says why."]
            if left_out
            else []
        ),
    ]


def _recipe(params: Params, tag: str) -> list[str]:
    values = params.model_dump(mode="json", include=_SHAPING)
    return [
        "",
        "## The recipe",
        "",
        f"Params of `{tag}` that shaped its labels:",
        "",
        "```yaml",
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip(),
        "```",
    ]


def _again(source: Source, wanted: Wanted, revision: str) -> list[str]:
    tag, params_digest = tag_name(source.generation), source.published[source.generation]["params_digest"]
    options = [f"--format {wanted.form}", f"--file-type {wanted.file_type}"]
    options += ["--window"] if wanted.window else []
    options += [f"--split {split}" for split in wanted.splits if wanted.splits != ("train",)]
    options += [f"--pairs {wanted.pairs}"] if wanted.form == "preference" else []
    options += [f"--step-threshold {wanted.step_threshold:g}"] if wanted.form == "stepwise" else []
    return [
        "",
        "## Again, and how to cite",
        "",
        f"In the registry, `flywheel export gen/{source.generation} {' '.join(options)}` gives these bytes again. The",
        f"labels themselves are made again in a clone of the registry at `{tag}` by",
        f"`dvc repro --force --no-run-cache`, with the code at revision `{revision}` and the params of digest",
        f"`{params_digest}`. Cite the registry, the tag and the commit above.",
    ]
