"""Small models of many architectures, with random weights, and what plain transformers makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flywheel.models.language import LanguageModel
from flywheel.models.protocols import Extension, Sampling
from flywheel.models.sampler import TextSampler
from flywheel.models.session import TextSession
from flywheel.models.tokenizer import word_level
from flywheel.seeds import stream

WORDS = ["\n", *"abcdefghijklmnopqrstuvwxyz"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
GREEDY, DRAWN = Sampling(None), Sampling(1.0)


def llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SIZES, num_key_value_heads=4)


def llama_grouped() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SIZES, num_key_value_heads=2)


def qwen2() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**SIZES, num_key_value_heads=2)


def qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=40)


def gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128)


def sliding() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=5)


def capped() -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=6, query_pre_attn_scalar=8)


def sinks() -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, sliding_window=6, num_local_experts=2, num_experts_per_tok=1
    )


def recurrent() -> Any:
    from transformers import Lfm2Config

    return Lfm2Config(**SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention"])


SHARED = [llama, llama_grouped, qwen2, qwen3, gpt2]
RERUN = [sliding, capped, sinks, recurrent]


def made(config: Any) -> LanguageModel:
    """A model with weights so large that its answers are neither uniform nor all alike."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = word_level(WORDS)
    config.vocab_size = len(tokenizer)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, tokenizer.eos_token_id, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    # In float64 nothing hangs on rounding; transformers' own masks overflow there.
    model = model.float() if config.model_type in {"gemma2", "gpt_oss"} else model.double()
    return LanguageModel(model.eval(), tokenizer, "snapshot", "tokenizer")


_MADE: dict[Any, LanguageModel] = {}


def model_of(config: Callable[[], Any]) -> LanguageModel:
    if config not in _MADE:
        _MADE[config] = made(config())
    return _MADE[config]


PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 4], [15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25], [7, 7, 7, 7]]


def opened(model: LanguageModel, prompts: list[list[int]] | None = None, **options: Any) -> TextSession:
    prompts = prompts or PROMPTS
    return TextSampler(model, **options).open(prompts, [""] * len(prompts), "\n")


def request(prompt: int, parent: int | None = None, name: Any = 0, limit: int = 12, **settings: Any) -> Extension:
    return Extension(prompt, parent, stream(3, prompt, name), settings.pop("sampling", DRAWN), limit, **settings)


def generated(model: LanguageModel, prompt: list[int], limit: int) -> list[int]:
    import torch

    out = model.model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=limit, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def full_pass(
    model: LanguageModel, prompt: list[int], answer: tuple[int, ...], temperature: float = 1.0
) -> list[float]:
    """Log-probabilities of an answer's tokens by one pass without padding or cache."""
    import torch

    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 :]
    by_token = torch.log_softmax(logits[:-1] / temperature, dim=-1)
    return [float(by_token[place, token]) for place, token in enumerate(answer)]
