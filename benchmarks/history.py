"""What reading and keeping a long history takes: ten million labels, three hundred generations, two gigabytes at once.

Registries come from benchmarks/registries.py, into --work, where those that are there already are used again. Every
command is a process of its own, in turns. Process time is user and system time of it and its children, which other
users of the machine disturb less than the clock; memory is the largest of those processes'. Medians, with quartiles.

reads       history, status, one label's whole lineage, a query as of generation 25, a diff; no file cold
rollback    to and from a generation with 2 GB of objects, cold (no page of it in memory) and warm; nothing is copied
commit      begin and publish, DVC and all, at 3 and at 300 generations, in pairs
verify      bytes hashed a second, beside MD5 by two threads alone and reading from disk alone, in turns; all of ten
            million labels; --quick

The last line of output is JSON; with --json nothing else is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Standard library only: a child's peak memory starts at its parent's.
TOP = Path(__file__).resolve().parents[1]
IDENTITY = {
    f"GIT_{role}_{part}": "benchmark@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")
}
COMMAND = ("-m", "flows.cli")
_PIECE = 1 << 20
_MEMORY_MB = 1500.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took, its children included."""

    process_seconds: float
    seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Measure:
    """A line of the table. `got`: lower quartile, median, upper quartile; `holds`: the median against the target."""

    what: str
    unit: str
    got: tuple[float, float, float]
    target: str
    holds: bool
    clock: float | None = None
    """Median of seconds by the clock, where `got` is process time."""
    peak_mb: float | None = None


def flywheel(registry: Path, *arguments: str, out: Path | None = None) -> Run:
    """Run one command; its output goes to `out`. Raises SystemExit where it fails."""
    return run([sys.executable, *COMMAND, *arguments, "--registry", str(registry)], out)


def run(command: list[str], out: Path | None = None) -> Run:
    with tempfile.TemporaryFile() as errors, (out or Path(os.devnull)).open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=TOP, stdout=file, stderr=errors, env=os.environ | IDENTITY)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read().decode(errors='replace')}")
    return Run(usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss / 1024)


def asked(registry: Path, *arguments: str) -> Any:
    """The JSON document of a command."""
    with tempfile.TemporaryDirectory() as folder:
        flywheel(registry, *arguments, "--json", out=Path(folder) / "out")
        return json.loads((Path(folder) / "out").read_bytes())


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return round(low, 3), round(middle, 3), round(high, 3)


def below(what: str, runs: list[Run], limit: float, memory_mb: float | None = None, clock: bool = False) -> Measure:
    """Seconds of a command, of its processes or by the clock, against a limit; and memory, where there is one."""
    got = quartiles([each.seconds if clock else each.process_seconds for each in runs])
    peak = max(each.peak_mb for each in runs)
    holds = got[1] < limit and (memory_mb is None or peak < memory_mb)
    limits = [f"< {limit:g} s"] if limit < math.inf else []
    target = ", ".join([*limits, f"< {memory_mb:g} MB"] if memory_mb else limits)
    seconds = None if clock else round(statistics.median(each.seconds for each in runs), 2)
    return Measure(
        what, "s by the clock" if clock else "s of process time", got, target, holds, seconds, round(peak, 1)
    )


def reads(work: Path, repeats: int) -> list[Measure]:
    registry = registry_of(work, "ten-million")
    label = asked(registry, "query", "SELECT label_id FROM labels WHERE generation = 49 LIMIT 1 OFFSET 77777")[0]
    address = f"gen/49/labels#{label['label_id']}"
    # The other direction, too: of a label in the middle, which later students learned from.
    older = asked(registry, "query", "SELECT label_id FROM labels WHERE generation = 25 LIMIT 1", "--at", "gen/25")[0]
    aggregate = "SELECT generation, count(*), avg(reward), count(DISTINCT problem_id) FROM labels GROUP BY 1 ORDER BY 1"
    commands = {
        "history": (["history"], 1.5),
        "status": (["status"], 1.5),
        "lineage of one label": (["lineage", address], 2.0),
        "lineage of one label, up and down": (
            ["lineage", f"gen/25/labels#{older['label_id']}", "--up", "--down"],
            2.0,
        ),
        "query as of gen/25": (["query", aggregate, "--at", "gen/25"], 3.0),
        "diff of gen/48 and gen/49": (["diff", "gen/48", "gen/49"], 5.0),
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for repeat in range(-1, repeats):
        for name, (command, _) in commands.items():
            taken = flywheel(registry, *command)
            if repeat >= 0:
                runs[name].append(taken)
    return [below(name, runs[name], limit, _MEMORY_MB) for name, (_, limit) in commands.items()]


def rollback(work: Path, repeats: int) -> list[Measure]:
    registry = registry_of(work, "heavy")
    commands = {
        "rollback from 2 GB": ["rollback", "gen/0", "--reason", "benchmark", "--yes"],
        "undo, back to 2 GB": ["undo"],
    }
    if asked(registry, "status")["published"] == 0:  # a run of this was cut off half-way
        flywheel(registry, "undo")
    copied = 0
    taken: dict[tuple[str, bool], list[Run]] = {}
    for repeat in range(-1, repeats):
        for cold in (True, False):
            for name, command in commands.items():
                if cold:
                    forget(registry)
                one = flywheel(registry, *command)
                if repeat >= 0:
                    taken.setdefault((name, cold), []).append(one)
            # Now the 2 GB are in place again.
            sizes = [path.stat() for path in _files(registry, "student", "attempts")]
            copied = max(copied, sum(size.st_size for size in sizes if size.st_nlink < 2))
    measures = [
        below(f"{name}, {'cold' if cold else 'warm'}", runs, 5.0, clock=clock)
        for (name, cold), runs in taken.items()
        for clock in (True, False)
    ]
    size = round(copied / 2**20, 3)
    # A few bytes may be: DVC never made a link of what an older generation had stored already.
    return [*measures, Measure("bytes that are no links", "MB", (size, size, size), "< 1 MB", size < 1)]


def commit(work: Path, repeats: int) -> list[Measure]:
    """Each publishes generations of its own, the same ones in content; begin and publish are timed in their process."""
    kept = {size: registry_of(work, name) for size, name in ((3, "few"), (300, "many"))}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        copies = {size: Path(scratch) / str(size) for size in kept}
        for size, registry in kept.items():
            subprocess.run(["cp", "-a", str(registry), str(copies[size])], check=True)
        taken: dict[tuple[int, str], list[Run]] = {}
        for repeat in range(-1, repeats):
            # Turn and turn about, so that whoever disturbs the machine disturbs both.
            for size in sorted(kept, reverse=bool(repeat % 2)):
                out = Path(scratch) / "out"
                run([sys.executable, str(TOP / "benchmarks" / "registries.py"), "next", str(copies[size])], out)
                for part, (process_seconds, seconds) in json.loads(out.read_bytes()).items():
                    if repeat >= 0:
                        taken.setdefault((size, part), []).append(Run(process_seconds, seconds, 0.0))
    measures = []
    for size in kept:
        whole = zip(taken[size, "begin"], taken[size, "publish"], strict=True)
        taken[size, "begin and publish"] = [
            Run(one.process_seconds + other.process_seconds, one.seconds + other.seconds, 0.0) for one, other in whole
        ]
    for part in ("publish", "begin and publish"):
        few, many = taken[3, part], taken[300, part]
        for size, runs in ((3, few), (300, many)):
            got = quartiles([each.process_seconds for each in runs])
            clock = round(statistics.median(each.seconds for each in runs), 2)
            measures.append(Measure(f"{part}, {size} generations", "s of process time", got, "", True, clock))
        pairs = list(zip(many, few, strict=True))
        for unit, ratios in (
            ("process time", [one.process_seconds / other.process_seconds for one, other in pairs]),
            ("the clock", [one.seconds / other.seconds for one, other in pairs]),
        ):
            got = quartiles(ratios)
            measures.append(Measure(f"{part}, 300 over 3", f"ratio by {unit}", got, "<= 1.3", got[1] <= 1.3))
    return measures


def verify(work: Path, repeats: int) -> list[Measure]:
    """Bytes a second of the 2 GB, all three from disk: what verify says of its hashing, and all it does, over all of
    its time. Then the ten million rows, whose tables take longer than their bytes."""
    heavy, long = registry_of(work, "heavy"), registry_of(work, "ten-million")
    files = _files(heavy, ".dvc/cache")
    total = sum(path.stat().st_size for path in files) / 1e6
    rates: dict[str, list[float]] = {name: [] for name in ("md5", "disk", "verify", "whole")}
    ways = {"md5": lambda: in_threads(md5_of, files), "disk": lambda: in_threads(read, files)}
    runs: dict[str, list[Run]] = {"": [], "--quick": []}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        for repeat in range(repeats):
            for name in ("md5", "disk", "verify") if repeat % 2 else ("verify", "disk", "md5"):
                forget(heavy)
                start = time.perf_counter()
                if name == "verify":
                    taken = flywheel(heavy, "verify", "--json", out=out)
                    rates["whole"].append(total / taken.seconds)
                    rates[name].append(json.loads(out.read_bytes())["bytes_per_second"] / 1e6)
                else:
                    ways[name]()
                    rates[name].append(total / (time.perf_counter() - start))
    for option in runs:
        # The whole takes a minute.
        for _ in range(repeats if option else min(repeats, 3)):
            runs[option].append(flywheel(long, "verify", *filter(None, [option])))
    names = {"md5": "MD5 by two threads", "disk": "reading by two threads", "verify": "verify, its hashing",
             "whole": "verify, all of it"}  # fmt: skip
    measures = [Measure(names[name], "MB/s", quartiles(values), "", True) for name, values in rates.items()]
    slower = [min(pair) for pair in zip(rates["md5"], rates["disk"], strict=True)]
    got = quartiles([one / other for one, other in zip(rates["verify"], slower, strict=True)])
    measures.append(Measure("its hashing over the slower of both", "ratio by the clock", got, ">= 0.6", got[1] >= 0.6))
    whole = below("verify of ten million labels", runs[""], math.inf, _MEMORY_MB)
    return [*measures, whole, below("verify --quick of them", runs["--quick"], 5.0, _MEMORY_MB)]


def md5_of(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))


def read(path: Path) -> None:
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def in_threads(work: Callable[[Path], None], files: list[Path]) -> None:
    with ThreadPoolExecutor(2) as pool:
        # The largest first, so that both end together.
        list(pool.map(work, sorted(files, key=lambda path: -path.stat().st_size)))


def forget(registry: Path) -> None:
    """Ask the kernel to drop the registry's files from memory."""
    os.sync()
    for path in _files(registry, ".dvc/cache"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(registry: Path, *folders: str) -> list[Path]:
    return [path for folder in folders for path in (registry / folder).rglob("*") if path.is_file()]


def registry_of(work: Path, name: str) -> Path:
    """The registry of this name in `work`, made there if it is not there yet, in a process of its own."""
    folder = work / name
    if not folder.exists():
        draft = work / f".{name}-{os.getpid()}"
        try:
            subprocess.run([sys.executable, str(TOP / "benchmarks" / "registries.py"), name, str(draft)], check=True,
                           stdout=sys.stderr)  # fmt: skip
            os.rename(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def row(measure: Measure) -> str:
    low, middle, high = measure.got
    got = f"{middle:g} ({low:g} to {high:g}) {measure.unit}"
    notes = [f"clock {measure.clock:g} s"] if measure.clock is not None else []
    notes += [f"peak {measure.peak_mb:.0f} MB"] if measure.peak_mb is not None else []
    held = "" if not measure.target else "holds" if measure.holds else "MISSED"
    return f"{measure.what:36} {got:52} {', '.join(notes):26} {measure.target:20} {held}".rstrip()


PARTS = {"reads": reads, "rollback": rollback, "commit": commit, "verify": verify}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--work", type=Path, help="folder for the registries, 6 GB (default: a temporary one)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for part in given.parts or PARTS:
            found = PARTS[part](work.resolve(), given.repeats)
            measures += found
            if not given.json:
                print("\n".join(map(row, found)), flush=True)
    load = [round(each, 1) for each in os.getloadavg()]
    machine = {"cores": len(os.sched_getaffinity(0)), "load": load, "repeats": given.repeats}
    print(json.dumps({"benchmark": "history", **machine, "measures": [asdict(each) for each in measures]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
