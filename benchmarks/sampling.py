"""Our sampler against transformers' `generate`: same model, prompts, N and lengths, in pairs, in one process.

Two settings. `full`: no row may end, so both draw the same number of tokens; what is measured is the step. `real`: rows
end as they like and tokens drawn until then count; rows that ended are work for nothing, and ours leave the batch.
Repetitions alternate, which comes first too. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from flywheel import params
from flywheel.models import language, sampler
from flywheel.models.language import LanguageModel
from flywheel.problems import domain as domains
from flywheel.seeds import stream


def ours(model: LanguageModel, prompts: list[list[int]], samples: int, limit: int, repeat: int) -> int:
    """Tokens drawn by `flywheel.models.sampler.sample`."""
    keys = np.array(
        [[stream(repeat, row, index) for index in range(samples)] for row in range(len(prompts))], dtype=np.uint64
    )
    _, cost = sampler.sample(model, prompts, keys, temperature=1.0, max_new_tokens=limit)
    return cost.tokens


def theirs(model: LanguageModel, prompts: list[list[int]], samples: int, limit: int, repeat: int) -> int:
    """Tokens drawn by `generate(num_return_sequences=N)`, the end token included, fill not."""
    import torch

    torch.manual_seed(repeat)
    device = model.model.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[model.fill_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.inference_mode():
        rows = model.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=samples, max_new_tokens=limit, pad_token_id=model.fill_id,
        )[:, longest:]  # fmt: skip
    ended = torch.isin(rows, torch.tensor(sorted(model.end_ids), device=device))
    before = (ended.cumsum(dim=1) - ended.long()) == 0
    return int(before.sum())


def paired(run: Callable[..., int], other: Callable[..., int], repeats: Iterable[int]) -> list[tuple[float, float]]:
    """(tokens a second of `run`, of `other`) for each repetition, alternating which goes first."""
    rates = []
    for repeat in repeats:
        rate = {}
        for one in (run, other) if repeat % 2 else (other, run):
            start = time.perf_counter()
            tokens = one(repeat)
            rate[one] = tokens / (time.perf_counter() - start)
        rates.append((rate[run], rate[other]))
    return rates


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal LM; default: a new one with the sizes of params.yaml")
    parser.add_argument("--prompts", type=int, default=50, help="prompts a batch unit (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="N (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="paired repetitions (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    # One by default: threads that wait for one another on a busy machine measure the machine, sevenfold.
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU model (default: %(default)s)")
    given = parser.parse_args()
    if min(given.prompts, given.samples, given.max_new_tokens, given.threads) < 1 or given.repeats < 2:
        parser.error("--prompts, --samples, --max-new-tokens and --threads must be at least 1, --repeats at least 2")
    import torch

    torch.set_num_threads(given.threads)
    section = params.Problems()
    domain = domains.load(section)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.model) if given.model else Path(scratch) / "model"
        if not given.model:
            language.create(params.Model(), domain.vocabulary(), 0, folder)
        model = language.load(folder, language.device_for(given.device))
        prompts = [model.encode_prompt(domain.prompt(problem)) for problem in domain.problems("train", given.prompts)]
        own_ends = model.end_ids
        for setting in ("full", "real"):
            if setting == "full":
                # An id that no token has never comes.
                unreachable = model.model.config.vocab_size + 7
                model.model.generation_config.eos_token_id = unreachable
                model.tokenizer.eos_token = None
            else:
                model = language.load(folder, language.device_for(given.device))
                # A new model hardly ever ends an answer: as many tokens more end one, about one in eight.
                ends = own_ends if given.model else own_ends | set(range(3, 3 + len(model.tokenizer) // 8))
                model.model.generation_config.eos_token_id = sorted(ends)
            pair = [
                lambda repeat, f=f, m=model: f(m, prompts, given.samples, given.max_new_tokens, repeat)
                for f in (ours, theirs)
            ]
            paired(*pair, range(2))
            rates = paired(*pair, range(given.repeats))
            low, middle, high = quartiles([mine / other for mine, other in rates])
            result = {
                "setting": setting,
                "ratio": round(middle, 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
                "ours_tokens_per_second": round(statistics.median(mine for mine, _ in rates)),
                "generate_tokens_per_second": round(statistics.median(other for _, other in rates)),
            }
            results.append(result)
            print(
                f"{setting}: {middle:.2f} times generate (quartiles {low:.2f} to {high:.2f}); tokens a second: "
                f"ours {result['ours_tokens_per_second']}, generate {result['generate_tokens_per_second']}"
            )
    document = {
        "benchmark": "sampling", "parameters": model.parameters, "prompts": len(prompts), "samples": given.samples,
        "max_new_tokens": given.max_new_tokens, "repeats": given.repeats, "device": str(model.model.device),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "results": results,
    }  # fmt: skip
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
