"""problems: what there is to solve, in which split each problem lies, and what of a user's files was left out."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from flywheel.errors import ConfigError
from flywheel.params import Params, Problems
from flywheel.problems import domain as domains
from flywheel.problems import reading
from flywheel.problems.collection import Excluded
from flywheel.problems.domain import Domain
from flywheel.problems.file import FileDomain
from flywheel.records import Problem, Split
from storage.layout import Layout
from storage.rows import problem_row, read_problems
from storage.schemas import EXCLUDED, PROBLEMS
from storage.tables import TableWriter, replace_folder
from tasks.stage import Hooks, Report, Stamp, fingerprint, main, timed

_SOURCES = (
    "flywheel.problems", "flywheel.records", "flywheel.seeds", "storage.rows", "storage.schemas", "storage.tables",
    "tasks.problems",
)  # fmt: skip


def run(params: Params, layout: Layout, hooks: Hooks = Hooks()) -> Report:  # noqa: B008 (frozen)
    """Write the tables `problems`, ordered by id, and `excluded`; the same for every generation of a registry.

    Raises ConfigError where a split has no problem, or where a user's files no longer hold the problems that the
    generation before had.
    """
    section = params.problems
    inputs = list(reading.files(section).values()) if section.domain == "file" else []
    mark = fingerprint("problems", _SOURCES, section.model_dump(mode="json"), inputs, "")
    stamp = Stamp(layout, params.generation, "problems", mark, [layout.problems])
    if (report := stamp.fresh()) is not None:
        return report
    with timed() as seconds:
        # Read anew: a domain that was read before may hold what a file was then.
        domain = None if section.domain == "hex" else domains.load(section)
        found = _found(section, domain)
        if domain is not None:
            _require_all(params, domain, found)
        rows = sorted((problem for split in found.values() for problem in split), key=lambda p: p.problem_id)
        _require_same(params, layout.problems, rows)
        excluded = domain.collection.excluded if isinstance(domain, FileDomain) else []
        new = layout.tmp / f"problems-{uuid.uuid4().hex[:8]}"
        with TableWriter(new, PROBLEMS) as writer:
            writer.write([problem_row(problem) for problem in rows])
        with TableWriter(new / "excluded", EXCLUDED) as writer:
            writer.write([_excluded_row(one) for one in excluded])
        replace_folder(new, layout.problems, layout.tmp)
        notes: dict[str, Any] = {split: len(problems) for split, problems in found.items()}
        if isinstance(domain, FileDomain):
            notes |= {reason.replace("_", " "): count for reason, count in domain.collection.counts().items()}
        report = Report("problems", params.generation, seconds=seconds(), rows_out=len(rows), notes=notes)
    stamp.write(report)
    return report


def _found(section: Problems, domain: Domain | None) -> dict[Split, list[Problem]]:
    wanted: dict[Split, int] = {"train": section.train, "valid": section.valid, "test": section.test}
    if domain is not None:
        return {split: domain.problems(split, count) for split, count in wanted.items()}
    # Not for texts: its solver is compiled.
    from flywheel.problems import hex_positions

    counts = (section.train, section.valid, section.test)
    positions = hex_positions.load(section.size, section.swap, section.shares, counts)
    return {split: [problem for problem in positions if problem.split == split] for split in wanted}


def _excluded_row(one: Excluded) -> dict[str, Any]:
    return {name: getattr(one, name) for name in EXCLUDED.names}


def _require_all(params: Params, domain: Domain, found: dict[Split, list[Problem]]) -> None:
    empty = [split for split, problems in found.items() if not problems]
    if isinstance(domain, FileDomain):
        problems = [
            f"problems: no problem is left for {split}: {domain.why_empty(split)}; mend the file, or loosen "
            "problems.extractor, checker, shares, decontaminate or near_duplicates, whichever it was"
            for split in empty
        ]
    elif empty:
        problems = [
            f"problems.shares: no problem falls into {' and '.join(empty)}; there are too few hands for "
            f"shares {list(params.problems.shares)}, widen smallest..largest or raise that share"
        ]
    if empty:
        raise ConfigError(problems)


def _require_same(params: Params, folder: Path, rows: list[Problem]) -> None:
    """Params are compared elsewhere; a user's file can change under an unchanged name."""
    if params.generation == 0 or params.problems.domain != "file" or not any(folder.glob("*.parquet")):
        return
    before = {(problem.problem_id, problem.split) for problem in read_problems(folder, ["train", "valid", "test"])}
    now = {(problem.problem_id, problem.split) for problem in rows}
    if before != now:
        raise ConfigError(
            [
                f"problems: {len(now - before)} problems are new and {len(before - now)} are gone since the "
                "generation before, so a file was changed; problems are fixed for the life of a registry: restore "
                "the file, or make another registry with `flywheel init`"
            ]
        )


if __name__ == "__main__":
    raise SystemExit(main(run))
