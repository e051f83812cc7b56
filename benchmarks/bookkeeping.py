"""What bookkeeping takes of a search: judging answers, naming and recording attempts, writing them, against sampling.

Units of best-of-N as the stage `generate` does them, Countdown problems and their exact checker. Sampling is the time
in `Session.extend`; bookkeeping is everything else, the file on disk included. Two models: the Countdown student of
params.yaml (or --model, a trained one, whose answers are of real lengths), and one of some ten million parameters. The
last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flywheel import params
from flywheel.models import language
from flywheel.models.protocols import Extension, Sampler, Sampling, Segment, Session
from flywheel.models.sampler import TextSampler
from flywheel.problems import domain as domains
from flywheel.problems.domain import Domain
from flywheel.records import Problem
from flywheel.rewards.exact import Exact
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run
from storage.rows import attempt_rows
from storage.schemas import ATTEMPTS
from storage.tables import write_file

LARGER = params.Model(hidden_size=320, layers=8, heads=5, intermediate_size=864)


@dataclass
class Watched:
    """A sampler, or a session, that adds up the time in its sessions' `extend`."""

    inner: Any
    spent: list[float] = field(default_factory=list)

    def open(self, prompts: Sequence[Sequence[int]], texts: Sequence[str], step_end: str) -> Session:
        return Watched(self.inner.open(prompts, texts, step_end), self.spent)  # type: ignore[return-value]

    def extend(self, requests: Sequence[Extension], should_stop: Callable[[], None]) -> list[Segment]:
        start = time.perf_counter()
        segments: list[Segment] = self.inner.extend(requests, should_stop)
        self.spent.append(time.perf_counter() - start)
        return segments

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def one_unit(
    sampler: Sampler, problems: list[Problem], domain: Domain, samples: int, limit: int, seed: int, path: Path
) -> tuple[float, float, int]:
    """(seconds of sampling, of everything else, attempts)."""
    watched = Watched(sampler)
    start = time.perf_counter()
    searcher = BestOfN(samples, Sampling(1.0), limit)
    found, _ = searcher.search(problems, domain, watched, Exact(domain), Run(seed, 1))  # type: ignore[arg-type]
    rows = attempt_rows([attempt for row in found for attempt in row])
    write_file(path, rows, ATTEMPTS)
    sampling = sum(watched.spent)
    return sampling, time.perf_counter() - start - sampling, len(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal LM in place of a new Countdown student")
    parser.add_argument("--problems", type=int, default=50, help="problems a unit (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="N (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--units", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the model (default: %(default)s)")
    given = parser.parse_args()
    if min(given.problems, given.samples, given.max_new_tokens, given.threads) < 1 or given.units < 2:
        parser.error("all numbers must be at least 1, --units at least 2")
    if given.model and not (Path(given.model) / "config.json").is_file():
        parser.error(f"{given.model} is no model folder")
    import torch

    torch.set_num_threads(given.threads)
    domain = domains.load(params.Problems())
    problems = domain.problems("train", given.problems)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, section in (("student", params.Model()), ("larger", LARGER)):
            folder = Path(given.model) if given.model and name == "student" else Path(scratch) / name
            if not folder.exists():
                language.create(section, domain.vocabulary(), domain.corpus(), 0, folder)
            model = language.load(folder, "cpu")
            sampler, path = TextSampler(model), Path(scratch) / "unit.parquet"
            made = [
                one_unit(sampler, problems, domain, given.samples, given.max_new_tokens, seed, path)
                for seed in range(given.units + 1)
            ][1:]
            share = [other / (sampling + other) for sampling, other, _ in made]
            result = {
                "model": name,
                "parameters": model.parameters,
                "share": round(statistics.median(share), 4),
                "microseconds_an_attempt": {
                    "sampling": round(1e6 * statistics.median(sampling / count for sampling, _, count in made), 1),
                    "bookkeeping": round(1e6 * statistics.median(other / count for _, other, count in made), 1),
                },
            }
            results.append(result)
            both = result["microseconds_an_attempt"]
            print(f"{name}, {model.parameters:,} parameters: bookkeeping takes {result['share']:.1%} of the time; "
                  f"microseconds an attempt: {both}")  # fmt: skip
    print(json.dumps({"benchmark": "bookkeeping", **vars(given), "torch": torch.__version__, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
