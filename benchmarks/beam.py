"""Beam search and DVTS over many problems at once against a loop over problems, each problem's beams one batch of
transformers' `generate` with its key-value cache: same student, beams, width, steps, limits and step scores, in pairs.

The student is the Countdown model of params.yaml, taught by the solver for a moment, so that its steps are steps; step
scores are the solver's, which cost next to nothing. The loop samples a round's steps by one call of `generate` that
stops each row at its newline, and keeps and scores as `flywheel.search.frontier` does. Both draw their own noise:
tokens drawn and problems solved show that the budgets are the same. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flywheel import params
from flywheel.learning import supervised
from flywheel.learning.examples import Examples
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.models.sampler import TextSampler
from flywheel.problems import domain as domains
from flywheel.problems.countdown import Countdown
from flywheel.records import Problem
from flywheel.rewards.oracle_steps import OracleSteps
from flywheel.search import step_scores
from flywheel.search.beam import Beam
from flywheel.search.dvts import Dvts
from flywheel.search.protocols import Run, Sampling, never_stop


@dataclass
class Pool:
    """Beams of the loop that compete."""

    beams: int
    kept: list[list[int]] = field(default_factory=lambda: [[]])
    ended: list[list[int]] = field(default_factory=list)


def ours(
    searcher: Beam, problems: list[Problem], domain: Countdown, sampler: TextSampler, unit: int, seed: int
) -> tuple[int, int]:
    """Search all problems, unit by unit; returns (tokens drawn, problems solved)."""
    tokens = solved = 0
    for start in range(0, len(problems), unit):
        found, cost = searcher.search(
            problems[start : start + unit], domain, sampler, OracleSteps(domain), Run(seed, 1)
        )
        tokens += cost.tokens
        solved += sum(any(attempt.reward == 1.0 for attempt in row) for row in found)
    return tokens, solved


def theirs(
    searcher: Beam, problems: list[Problem], domain: Countdown, model: LanguageModel, seed: int
) -> tuple[int, int]:
    """The loop over problems; returns the same."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    newline = model.encode("\n")[0]

    class StepEnd(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids[:, -1] == newline

    torch.manual_seed(seed)
    tokens = solved = 0
    for problem in problems:
        prompt = model.encode_prompt(domain.prompt(problem))
        pools = [Pool(beams) for beams in searcher.pools]
        for step in range(searcher.max_steps):
            live = [pool for pool in pools if pool.beams]
            if not live:
                break
            rows = [
                (pool, pool.kept[place * len(pool.kept) // pool.beams]) for pool in live for place in range(pool.beams)
            ]
            longest = max(len(prefix) for _, prefix in rows)
            ids = torch.tensor([[model.fill_id] * (longest - len(prefix)) + prompt + prefix for _, prefix in rows])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * (len(prompt) + len(p)) for _, p in rows])
            last = step + 1 == searcher.max_steps
            with torch.inference_mode():
                out = model.model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=True, temperature=searcher.sampling.temperature,
                    top_k=0, top_p=1.0, max_new_tokens=searcher.max_new_tokens - min(len(p) for _, p in rows),
                    pad_token_id=model.fill_id,
                    stopping_criteria=None if last else StoppingCriteriaList([StepEnd()]),
                )[:, ids.shape[1] :].tolist()  # fmt: skip
            for pool in live:
                pool.kept = []
            for (pool, prefix), drawn in zip(rows, out, strict=True):
                left = searcher.max_new_tokens - len(prefix)
                stops = model.end_ids if last else model.end_ids | {newline}
                end = next((place + 1 for place, token in enumerate(drawn[:left]) if token in stops), left)
                tokens += end
                answer = prefix + drawn[:end]
                if answer[-1] == newline and not last and len(answer) < searcher.max_new_tokens:
                    if answer not in pool.kept:
                        pool.kept.append(answer)
                else:
                    pool.beams -= 1
                    pool.ended.append(answer)
            scored = [(pool, prefix) for pool in live if pool.beams for prefix in pool.kept]
            partial = [(problem, model.decode(prefix)) for _, prefix in scored]
            scores = step_scores.score(partial, domain, OracleSteps(domain), "last", never_stop)
            value = {(id(pool), tuple(prefix)): s.value for (pool, prefix), s in zip(scored, scores, strict=True)}
            for pool in live:
                if pool.beams:
                    pool.kept.sort(key=lambda prefix: -value[id(pool), tuple(prefix)])
                    pool.kept = pool.kept[: max(1, pool.beams // searcher.width)]
        answers = [answer for pool in pools for answer in pool.ended if answer[-1] in model.end_ids]
        solved += any(domain.check(problem, model.decode(answer)).right for answer in answers)
    return tokens, solved


def taught(domain: Countdown, labels: int, epochs: int, folder: Path) -> LanguageModel:
    """A student that writes steps."""
    language.create(params.Model(), domain.vocabulary(), domain.corpus(), 0, folder)
    model = language.load(folder, "cpu", dtype="float32")
    pairs = [
        (model.encode_prompt(domain.prompt(problem)), model.encode_answer(solution), 1.0)
        for problem in domain.problems("train", labels)
        for solution in domain.solutions(problem, 1)
    ]
    section = params.Train(epochs=epochs)
    examples = Examples(pairs)
    supervised.train(
        model.model, examples, Examples(pairs[:64]), section, seed=0, fill=model.fill_id, work=folder / "work",
        until_stale=False, checkpoint_seconds=3600.0, progress=lambda _done, _total: None,
    )  # fmt: skip
    model.model.eval()
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=50, help="problems searched (default: %(default)s)")
    parser.add_argument("--unit", type=int, default=50, help="problems a batch unit (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="beams a problem (default: %(default)s)")
    parser.add_argument("--width", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--max-steps", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--labels", type=int, default=800, help="solutions the student learns (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="passes over them (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="paired repetitions (default: %(default)s)")
    # One by default: threads that wait for one another on a busy machine measure the machine, sevenfold.
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU model (default: %(default)s)")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    domain = domains.load(params.Problems())
    assert isinstance(domain, Countdown)
    problems = domain.problems("valid", given.problems)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        model = taught(domain, given.labels, given.epochs, Path(scratch) / "model")
    sampler = TextSampler(model)
    for kind in (Beam, Dvts):
        searcher = kind(given.samples, given.width, 0, given.max_steps, "last", Sampling(1.0), given.max_new_tokens)
        ratios, seconds, said = [], [], []
        for repeat in range(-1, given.repeats):
            took, told = {}, {}
            for one in (ours, theirs) if repeat % 2 else (theirs, ours):
                start = time.perf_counter()
                if one is ours:
                    told[one] = ours(searcher, problems, domain, sampler, given.unit, repeat)
                else:
                    told[one] = theirs(searcher, problems, domain, model, repeat + 1)
                took[one] = time.perf_counter() - start
            if repeat >= 0:
                ratios.append(took[theirs] / took[ours])
                seconds.append((took[ours], took[theirs]))
                said.append((*told[ours], *told[theirs]))
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        mine, other = (statistics.median(column) for column in zip(*seconds, strict=True))
        counts = [round(statistics.mean(column), 1) for column in zip(*said, strict=True)]
        result = {
            "searcher": searcher.name,
            "ratio": round(middle, 2),
            "ratio_quartiles": [round(low, 2), round(high, 2)],
            "ours_problems_per_second": round(len(problems) / mine, 2),
            "loop_problems_per_second": round(len(problems) / other, 2),
            "ours_tokens_and_solved": counts[:2],
            "loop_tokens_and_solved": counts[2:],
        }
        results.append(result)
        print(
            f"{searcher.name}: {middle:.2f} times the loop (quartiles {low:.2f} to {high:.2f}); problems a second: "
            f"ours {result['ours_problems_per_second']}, loop {result['loop_problems_per_second']}; tokens and "
            f"problems solved: ours {counts[:2]}, loop {counts[2:]}"
        )
    document = {
        "benchmark": "beam", "parameters": model.parameters, "problems": len(problems), "unit": given.unit,
        "samples": given.samples, "width": given.width, "max_steps": given.max_steps,
        "max_new_tokens": given.max_new_tokens, "repeats": given.repeats, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "results": results,
    }  # fmt: skip
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
