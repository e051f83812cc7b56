"""What every stage shares: its report, its fingerprint, units that are done once, and the entry point of a hand-run.

A stage is a plain `run(params, layout, hooks) -> Report`. The Prefect task, `python -m tasks.X` and the `dvc.yaml`
stage all call that function.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from flywheel import __version__
from flywheel import params as parameters
from flywheel.compute import Cost
from flywheel.errors import FlywheelError
from flywheel.params import Params
from flywheel.records import canonical_json, digest
from storage.layout import Layout
from storage.tables import file_md5, replace_text

_KEPT_EVERY_SECONDS = 5.0
_VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "numba", "pyarrow")


def _nothing(*_: Any) -> None:
    """The default hook."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """How a stage talks to whoever runs it."""

    progress: Callable[[int, int], None] = _nothing
    """Called with (done, total), in the stage's own unit of work."""
    should_stop: Callable[[], None] = _nothing
    """Called often; raises Interrupted to end the work."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a stage, or a shard of one, did; one row of the ledger."""

    stage: str
    generation: int
    shard: str = ""
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    """Of every process that worked, added up, so that two devices for a minute are two minutes."""
    rows_in: int = 0
    rows_out: int = 0
    numerics: str = ""
    reused: bool = False
    """Everything had been done before: nothing was computed, and the ledger keeps the row it has."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Figures worth a line on the terminal."""
    models: dict[str, Cost] = field(default_factory=dict)
    """Whose work it was, by snapshot; adds up to `cost`. A model that is being made is billed for its making."""

    def ledger_row(self) -> dict[str, Any]:
        cost = self.cost
        return {
            "generation": self.generation,
            "stage": self.stage,
            "shard": self.shard,
            "flops_policy": cost.policy,
            "flops_prefill": cost.prefill,
            "flops_reward": cost.reward,
            "flops_training": cost.training,
            "flops_padding": cost.padding,
            "tokens": cost.tokens,
            "seconds": round(self.seconds, 3),
            # The process's highest so far, whichever stage it was in. macOS counts bytes, Linux kilobytes.
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "machine": f"{platform.system()} {platform.machine()} {os.cpu_count()} cores",
            "numerics": self.numerics,
            "models": canonical_json({snapshot: asdict(cost) for snapshot, cost in self.models.items()}),
        }


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Seconds since entry."""
    start = time.monotonic()
    yield lambda: time.monotonic() - start


class Spent:
    """Seconds of a training that a kill may cut off, from when this is made: kept in a file beside the checkpoints, so
    that the one that goes on from there adds to them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._earlier = float(path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            self._earlier = 0.0
        self._start = self._kept = time.monotonic()

    def telling(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """`progress`, which now and then writes the seconds down as well."""

        def tell(done: int, total: int) -> None:
            progress(done, total)
            now = time.monotonic()
            if now - self._kept > _KEPT_EVERY_SECONDS:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                replace_text(self._path, repr(self._earlier + now - self._start))
                self._kept = now

        return tell

    def beyond(self, processes: int = 1) -> float:
        """What so many processes took until now that this one's own clock does not show."""
        return processes * self._earlier + (processes - 1) * (time.monotonic() - self._start)


def threads(execution: parameters.Execution, alone: bool = False) -> int:
    """Threads for one model: all cores, shared out where several processes work at once and it is not `alone`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if execution.threads is not None:
        return execution.threads
    return max(1, cores // execution.workers) if execution.runner == "processes" and not alone else cores


def numerics(execution: parameters.Execution, alone: bool = False) -> str:
    """What the last bits depend on: versions, instruction set, threads, device. Equal numerics, equal bytes."""
    from importlib.metadata import version

    import torch

    from flywheel.models.language import device_for

    device = device_for(execution.device)
    parts = [f"{name} {version(name)}" for name in _VERSIONED]
    if device == "cuda":
        parts.append(f"cuda {torch.version.cuda} {torch.cuda.get_device_name()}")
    else:
        parts.append(f"cpu {torch.backends.cpu.get_cpu_capability()} {threads(execution, alone)} threads")
    return ", ".join(parts)


def use_threads(execution: parameters.Execution, alone: bool = False) -> None:
    """Give this process's models their threads."""
    import torch

    wanted = threads(execution, alone)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


@cache
def sources_digest(*packages: str) -> str:
    """Digest of the installed sources of these modules or packages: an edited file voids what it made.

    Taken once a process: what runs is the code that was loaded, whatever is edited meanwhile.
    """
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(packages):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise FlywheelError(f"module {name} is not installed; reinstall flywheel-search")
        root = Path(spec.origin)
        files = sorted(root.parent.rglob("*.py")) if root.name == "__init__.py" else [root]
        for path in files:
            total.update(f"{name}/{path.relative_to(root.parent)}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def code_revision() -> str:
    """Version, and digest of the sources that decide what a generation holds."""
    return f"{__version__}+sources.{sources_digest('flywheel', 'storage', 'tasks')[:12]}"


def folder_digest(path: Path) -> str:
    """Digest of a file, or of every file's name and bytes below a folder."""
    if path.is_file():
        return file_md5(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest("folder", [[file.relative_to(path).as_posix(), file_md5(file)] for file in files])


def fingerprint(stage: str, packages: tuple[str, ...], sections: Any, inputs: list[Path], numbers: str) -> str:
    """Names a piece of work by all that shapes its outcome: sources, params, inputs, numerics."""
    return digest(stage, sources_digest(*packages), sections, [folder_digest(path) for path in inputs], numbers)


class Units:
    """Pieces of a stage that are each done once: `unit-00017.parquet` and its facts, under the stage's fingerprint."""

    def __init__(self, layout: Layout, generation: int, stage: str, mark: str) -> None:
        self.folder = layout.work(generation) / f"{stage}-{mark}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def table(self, number: int) -> Path:
        return self.folder / f"unit-{number:05d}.parquet"

    def done(self, number: int) -> bool:
        return self.table(number).exists()

    def require(self, count: int) -> None:
        """Raise FlywheelError unless the first `count` units are all there."""
        missing = [number for number in range(count) if not self.done(number)]
        if missing:
            raise FlywheelError(
                f"{len(missing)} of {count} units are missing in {self.folder} (first: {missing[0]}); "
                "were sources or params edited while the stage ran? run again, what is whole is kept"
            )

    def facts(self, number: int) -> dict[str, Any]:
        """What was written beside the unit's rows."""
        text = self.table(number).with_suffix(".json").read_text(encoding="utf-8")
        facts: dict[str, Any] = json.loads(text)
        return facts

    def write(self, number: int, rows: list[dict[str, Any]], schema: Any, facts: dict[str, Any]) -> None:
        """The facts go first: the table's name appearing is what makes the unit done."""
        from storage.tables import write_file

        replace_text(self.table(number).with_suffix(".json"), json.dumps(facts))
        write_file(self.table(number), rows, schema)

    def each(
        self, numbers: Sequence[int], sizes: Sequence[int], hooks: Hooks, do: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Do those of these units that are not done yet, by `do(number)`, which writes them; the facts of all. `sizes`
        of all units tell how far it is."""
        total, done, found = sum(sizes[number] for number in numbers), 0, []
        for number in numbers:
            hooks.should_stop()
            if not self.done(number):
                do(number)
            found.append(self.facts(number))
            done += sizes[number]
            hooks.progress(done, total)
        return found

    def rows(self, number: int) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(self.table(number)).to_pylist()
        return rows


def cost_of(facts: list[dict[str, Any]]) -> Cost:
    """Sum of the costs kept with units."""
    total = Cost()
    for fact in facts:
        total = total + Cost(**fact["cost"])
    return total


def cost_facts(models: dict[str, Cost]) -> dict[str, Any]:
    """What a unit notes of its cost: the sum, and whose work it was."""
    return {"cost": asdict(sum(models.values(), Cost())), "models": {name: asdict(c) for name, c in models.items()}}


def models_of(facts: list[dict[str, Any]]) -> dict[str, Cost]:
    """Sum of the costs kept with units, by model."""
    return by_model(*((name, Cost(**cost)) for fact in facts for name, cost in fact["models"].items()))


def by_model(*parts: tuple[str, Cost]) -> dict[str, Cost]:
    """(snapshot, cost) pairs added up by snapshot; without those that did nothing."""
    total: dict[str, Cost] = {}
    for snapshot, cost in parts:
        if cost != Cost():
            total[snapshot] = total.get(snapshot, Cost()) + cost
    return total


def shard_report(
    stage: str, generation: int, shard: int, shards: int, facts: list[dict[str, Any]], rows_in: int, rows_out: int = 0
) -> Report:
    """What a shard did, from the facts of its units."""
    seconds = sum(fact["seconds"] for fact in facts)
    name = f"{shard:05d}/{shards:05d}"
    return Report(stage, generation, name, cost_of(facts), seconds, rows_in, rows_out, models=models_of(facts))


def my_units(count: int, shard: int, shards: int) -> range:
    """The units of one shard: a contiguous run of whole units."""
    return range(count * shard // shards, count * (shard + 1) // shards)


class Stamp:
    """Remembers that a stage's outputs in place were made under a fingerprint, so that a resumed run skips it."""

    def __init__(self, layout: Layout, generation: int, stage: str, mark: str, outputs: list[Path]) -> None:
        self._path = layout.work(generation) / f"{stage}.json"
        self._mark = mark
        self._outputs = outputs

    def fresh(self) -> Report | None:
        """The report of the run that made the outputs, if they are in place and whole; else None."""
        try:
            held = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if held["mark"] != self._mark or not all(path.exists() for path in self._outputs):
            return None
        if [folder_digest(path) for path in self._outputs] != held["outputs"]:
            return None
        values = held["report"]
        models = {snapshot: Cost(**cost) for snapshot, cost in values.get("models", {}).items()}
        return replace(Report(**{**values, "cost": Cost(**values["cost"]), "models": models}), reused=True)

    def write(self, report: Report) -> None:
        held = {
            "mark": self._mark,
            "outputs": [folder_digest(path) for path in self._outputs],
            "report": asdict(report),
        }
        replace_text(self._path, json.dumps(held))


def main(
    run: Callable[[Params, Layout, Hooks], Report],
    run_shard: Callable[[Params, Layout, int, int, Hooks], Report] | None = None,
) -> int:
    """Run a stage by hand in the registry that is the current folder: what `dvc.yaml` calls.

    `--shard 2/4` does one shard's units and leaves joining them to the caller; only stages with `run_shard` know it.
    """
    import argparse

    parser = argparse.ArgumentParser(prog=f"python -m tasks.{Path(sys.argv[0]).stem}")
    if run_shard is not None:
        parser.add_argument("--shard", metavar="I/N", type=_shard, help="do shard I (from 0) of N only")
    wanted = getattr(parser.parse_args(), "shard", None)
    layout = Layout(Path.cwd())
    try:
        params = parameters.load(layout.params)
        if wanted is not None and run_shard is not None:
            shard, shards = wanted
            report = run_shard(params, layout, shard, shards, Hooks())
        else:
            report = run(params, layout, Hooks())
    except FlywheelError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    figures = ", ".join(f"{name} {value}" for name, value in report.notes.items())
    sys.stderr.write(
        f"{report.stage} of generation {report.generation}: {report.rows_out} rows in {report.seconds:.1f} s, "
        f"{report.cost.executed:.3g} FLOPs{'; ' if figures else ''}{figures}\n"
    )
    return 0


def _shard(text: str) -> tuple[int, int]:
    import argparse

    shard, _, shards = text.partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N with 0 <= I < N, e.g. 2/4")
    return int(shard), int(shards)
