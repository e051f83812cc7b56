"""problems: what there is to solve, and in which split each problem lies."""

from __future__ import annotations

import uuid
from typing import Any

from flywheel.errors import ConfigError
from flywheel.params import Params
from flywheel.problems import domain as domains
from flywheel.records import Split
from storage.layout import Layout
from storage.rows import problem_row
from storage.schemas import PROBLEMS
from storage.tables import TableWriter, replace_folder
from tasks.stage import Hooks, Report, Stamp, fingerprint, main, timed

_SOURCES = (
    "flywheel.problems", "flywheel.records", "flywheel.seeds", "storage.schemas", "storage.tables", "tasks.problems",
)  # fmt: skip


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """Write the table `problems`, ordered by id; the same for every generation of a registry."""
    section = params.problems
    mark = fingerprint("problems", _SOURCES, section.model_dump(mode="json"), [], "")
    stamp = Stamp(layout, params.generation, "problems", mark, [layout.problems])
    if (report := stamp.fresh()) is not None:
        return report
    with timed() as seconds:
        domain = domains.load(section)
        wanted: dict[Split, int] = {"train": section.train, "valid": section.valid, "test": section.test}
        found = {split: domain.problems(split, count) for split, count in wanted.items()}
        empty = [split for split, problems in found.items() if not problems]
        if empty:
            raise ConfigError(
                [
                    f"problems.shares: no problem falls into {' and '.join(empty)}; there are too few hands for "
                    f"shares {list(section.shares)}, widen smallest..largest or raise that share"
                ]
            )
        rows = sorted((problem for split in found.values() for problem in split), key=lambda p: p.problem_id)
        new = layout.tmp / f"problems-{uuid.uuid4().hex[:8]}"
        with TableWriter(new, PROBLEMS) as writer:
            writer.write([problem_row(problem) for problem in rows])
        replace_folder(new, layout.problems, layout.tmp)
        notes: dict[str, Any] = {split: len(problems) for split, problems in found.items()}
        report = Report("problems", params.generation, seconds=seconds(), rows_out=len(rows), notes=notes)
    stamp.write(report)
    return report


if __name__ == "__main__":
    raise SystemExit(main(run))
