"""Peak memory of `filter` and of `query` at two sizes, each in a process of its own: it must not grow with the rows.

    python benchmarks/memory.py --rows 200000 2000000

Prints a line a size and the ratio of the peaks; the attempts are made up, eight a problem, a quarter of them right.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flywheel import params as parameters
from flywheel.records import digest
from storage.layout import Layout
from storage.schemas import ATTEMPTS, PROBLEMS
from storage.tables import TableWriter

_EACH = 8

_FILTER = """
import json, resource, sys
from pathlib import Path
from flywheel import params
from storage.layout import Layout
from tasks import filter as stage
layout = Layout(Path(sys.argv[1]))
report = stage.run(params.load(layout.params), layout)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"rows": report.rows_out, "seconds": report.seconds, "peak_mib": peak}))
"""

_QUERY = """
import json, resource, sys, time
import duckdb
start = time.monotonic()
connection = duckdb.connect()
connection.execute("SET memory_limit = '1GB'")
files = sys.argv[1] + "/labels/0001/labels/*.parquet"
sql = f"SELECT reward, count(*), count(DISTINCT problem_id) FROM read_parquet('{files}') GROUP BY 1"
rows = connection.execute(sql).fetchall()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"rows": rows[0][1], "seconds": time.monotonic() - start, "peak_mib": peak}))
"""


def make(root: Path, rows: int) -> None:
    """A layout with so many attempts of generation 1."""
    layout = Layout(root)
    layout.tmp.mkdir(parents=True)
    layout.params.write_text(parameters.dump(parameters.Params().for_generation(1, 0)), encoding="utf-8")
    problems = rows // _EACH
    with TableWriter(layout.problems, PROBLEMS) as table, TableWriter(layout.attempts, ATTEMPTS) as attempts:
        for first in range(0, problems, 1000):
            names = [digest("problem", number) for number in range(first, min(first + 1000, problems))]
            table.write([_problem(name) for name in names])
            attempts.write([_attempt(name, index) for name in names for index in range(_EACH)])


def _problem(name: str) -> dict[str, object]:
    return {
        "problem_id": name, "domain": "countdown", "domain_version": 1, "split": "train", "difficulty": 1.0,
        "group": name[:8], "payload": "{}", "reference": None,
    }  # fmt: skip


def _attempt(problem: str, index: int) -> dict[str, object]:
    right = index % 4 == 0
    return {
        "attempt_id": digest(problem, index), "problem_id": problem, "generation": 1, "teacher": "0" * 32,
        "searcher": "best_of_n", "search_params": "{}", "seed": 0, "index": index, "prompt": "3 5 8 -> 19\n",
        "prompt_ids": [6, 8, 11, 4, 22, 3], "output": "8 * 3 = 24\n24 - 5 = 19",
        "token_ids": [11, 7, 6, 9, 27, 3, 27, 6, 8, 9, 22, 1], "tokenizer": "1" * 32,
        "steps": ["8 * 3 = 24", "24 - 5 = 19"], "stop_reason": "eos", "status": "judged", "answer": f"answer {index}",
        "reward": float(right), "reward_source": "exact", "step_rewards": [], "flops_policy": 1e6,
        "flops_reward": 0.0, "tokens": 12, "log_probability": -3.0,
    }  # fmt: skip


def measure(script: str, root: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[200_000, 2_000_000], help="attempts, small and large")
    sizes = parser.parse_args().rows
    peaks: dict[str, list[float]] = {"filter": [], "query": []}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            make(Path(folder), rows)
            print(f"{rows} attempts made in {time.monotonic() - start:.0f} s")
            for name, script in (("filter", _FILTER), ("query", _QUERY)):
                figures = measure(script, Path(folder))
                peaks[name].append(figures["peak_mib"])
                print(f"  {name}: {json.dumps(figures)}")
    for name, (small, large) in peaks.items():
        print(f"{name}: {sizes[1] / sizes[0]:.0f} times the rows took {large / small:.2f} times the memory")


if __name__ == "__main__":
    main()
