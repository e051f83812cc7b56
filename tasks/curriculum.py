"""Which training problems a generation searches.

Without `generate.solved_share` a generation draws them anew, whatever became of them before. With it, problems that an
earlier generation of the line solved (an attempt whose reward reached the filter's threshold) retire but for that
share, and the unsolved ones are tried again. The seed problems of generation 0 are one fixed draw.
"""

from __future__ import annotations

import json

import pyarrow.parquet as pq

from flywheel.params import Params
from flywheel.records import Problem, digest
from storage.cache import object_path
from storage.layout import Layout
from storage.rows import read_problems


def chosen(params: Params, layout: Layout) -> list[Problem]:
    """The training problems of this generation, in the order of their ids."""
    problems = read_problems(layout.problems, ["train"])
    count = params.seed_labels.problems if params.generation == 0 else params.generate.problems
    drawn = sorted(problems, key=lambda p: digest("chosen", params.seed, params.generation, p.problem_id))
    if params.generation > 0 and params.generate.solved_share is not None:
        drawn = mixed(drawn, solved_before(params, layout), params.generate.solved_share, count)
    return sorted(drawn[:count], key=lambda p: p.problem_id)


def mixed(drawn: list[Problem], solved: set[str], share: float, count: int) -> list[Problem]:
    """At most `count` of the problems, in the order drawn; at most `share` of `count` of them solved before."""
    again = [problem for problem in drawn if problem.problem_id in solved][: int(share * count)]
    fresh = [problem for problem in drawn if problem.problem_id not in solved][: count - len(again)]
    return [*fresh, *again]


def solved_before(params: Params, layout: Layout) -> set[str]:
    """Ids of the problems that the generations in lineage/tried.json solved."""
    tried = json.loads((layout.lineage / "tried.json").read_text(encoding="utf-8"))
    solved: set[str] = set()
    for generation in tried["generations"]:
        for entry in generation["files"]:
            with pq.ParquetFile(object_path(layout.root, entry["md5"])) as file:
                for batch in file.iter_batches(columns=["problem_id", "reward"]):
                    names, rewards = batch.column(0).to_pylist(), batch.column(1).to_pylist()
                    solved |= {
                        name
                        for name, reward in zip(names, rewards, strict=True)
                        if reward is not None and reward >= params.filter.threshold
                    }
    return solved
