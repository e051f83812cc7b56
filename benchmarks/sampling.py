"""Our sampler against transformers' `generate`: same model, prompts, N and lengths, in pairs, in one process.

Three settings. `full`: the Countdown student of params.yaml, no row may end, so both draw the same number of tokens;
what is measured is the step. `real`: rows end as they like and tokens drawn until then count; rows that ended are work
for nothing, and ours leave the batch. `long`: a model of some ten million parameters, prompts four times as long as
their completions, and no row ends. Repetitions alternate, which comes first too. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flywheel import params
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.models.protocols import Extension, Sampling
from flywheel.models.sampler import TextSampler
from flywheel.problems import domain as domains
from flywheel.seeds import generator, stream

SETTINGS = ("full", "real", "long")
LONG = params.Model(hidden_size=320, layers=8, heads=5, intermediate_size=864)


@dataclass(frozen=True)
class Setting:
    name: str
    model: LanguageModel
    sampler: TextSampler
    """Made once, as a stage makes it; a session is opened for every batch unit."""
    prompts: list[list[int]]
    samples: int
    limit: int


def ours(setting: Setting, repeat: int) -> int:
    """Tokens drawn by `TextSampler`, its session included."""
    prompts = setting.prompts
    session = setting.sampler.open(prompts, [""] * len(prompts), "\n")
    session.extend(
        [
            Extension(number, None, stream(repeat, number, index), Sampling(1.0), setting.limit)
            for number in range(len(prompts))
            for index in range(setting.samples)
        ],
        lambda: None,
    )
    return session.cost().tokens


def theirs(setting: Setting, repeat: int) -> int:
    """Tokens drawn by `generate(num_return_sequences=N)`, the end token included, fill not."""
    import torch

    torch.manual_seed(repeat)
    model, prompts = setting.model, setting.prompts
    device = model.model.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[model.fill_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.inference_mode():
        rows = model.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=setting.samples, max_new_tokens=setting.limit, pad_token_id=model.fill_id,
        )[:, longest:]  # fmt: skip
    ended = torch.isin(rows, torch.tensor(sorted(model.end_ids), device=device))
    before = (ended.cumsum(dim=1) - ended.long()) == 0
    return int(before.sum())


def paired(setting: Setting, repeats: Iterable[int]) -> list[tuple[float, float]]:
    """(our tokens a second, those of `generate`) for each repetition, alternating which goes first."""
    rates = []
    for repeat in repeats:
        rate: dict[Callable[[Setting, int], int], float] = {}
        for one in (ours, theirs) if repeat % 2 else (theirs, ours):
            start = time.perf_counter()
            tokens = one(setting, repeat)
            rate[one] = tokens / (time.perf_counter() - start)
        rates.append((rate[ours], rate[theirs]))
    return rates


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def endless(model: LanguageModel) -> LanguageModel:
    """No answer ends: an id that no token has never comes."""
    model.model.generation_config.eos_token_id = model.model.config.vocab_size + 7
    model.tokenizer.eos_token = None
    return model


def settings(given: argparse.Namespace, scratch: Path) -> Iterable[Setting]:
    """The settings asked for, each with a model of its own."""
    domain = domains.load(params.Problems())
    device = language.device_for(given.device)
    for name in given.settings:
        folder = Path(given.model) if given.model else scratch / name
        if not given.model:
            section = LONG if name == "long" else params.Model()
            language.create(section, domain.vocabulary(), domain.corpus(), 0, folder)
        model = language.load(folder, device)
        if name == "long":
            limit = given.long_tokens
            drawn = generator(0, "prompts").integers(3, len(model.tokenizer), size=(given.long_prompts, 4 * limit))
            model = endless(model)
            yield Setting(name, model, TextSampler(model), drawn.tolist(), given.samples, limit)
            continue
        prompts = [model.encode_prompt(domain.prompt(problem)) for problem in domain.problems("train", given.prompts)]
        if name == "full":
            model = endless(model)
        elif not given.model:
            # A new model hardly ever ends an answer: as many tokens more end one, about one in eight.
            ends = model.end_ids | set(range(3, 3 + len(model.tokenizer) // 8))
            model.model.generation_config.eos_token_id = sorted(ends)
        yield Setting(name, model, TextSampler(model), prompts, given.samples, given.max_new_tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal LM; default: new ones with the sizes above")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="(default: all)")
    parser.add_argument("--prompts", type=int, default=50, help="prompts a batch unit (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="N (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--long-prompts", type=int, default=4, help="prompts of `long` (default: %(default)s)")
    parser.add_argument("--long-tokens", type=int, default=64, help="completions of `long` (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="paired repetitions (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    # One by default: threads that wait for one another on a busy machine measure the machine, sevenfold.
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU model (default: %(default)s)")
    given = parser.parse_args()
    numbers = (given.prompts, given.samples, given.max_new_tokens, given.long_prompts, given.long_tokens, given.threads)
    if min(numbers) < 1 or given.repeats < 2:
        parser.error("all numbers must be at least 1, --repeats at least 2")
    import torch

    torch.set_num_threads(given.threads)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for setting in settings(given, Path(scratch)):
            paired(setting, range(1 if setting.name == "long" else 2))
            rates = paired(setting, range(given.repeats))
            low, middle, high = quartiles([mine / other for mine, other in rates])
            result = {
                "setting": setting.name,
                "parameters": setting.model.parameters,
                "ratio": round(middle, 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
                "ours_tokens_per_second": round(statistics.median(mine for mine, _ in rates)),
                "generate_tokens_per_second": round(statistics.median(other for _, other in rates)),
            }
            results.append(result)
            print(
                f"{setting.name}: {middle:.2f} times generate (quartiles {low:.2f} to {high:.2f}); tokens a second: "
                f"ours {result['ours_tokens_per_second']}, generate {result['generate_tokens_per_second']}"
            )
    document = {
        "benchmark": "sampling", "prompts": given.prompts, "samples": given.samples,
        "max_new_tokens": given.max_new_tokens, "long_prompts": given.long_prompts, "long_tokens": given.long_tokens,
        "repeats": given.repeats, "device": language.device_for(given.device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "results": results,
    }  # fmt: skip
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
