"""Which models the cascade serves: those whose layers are all plain causal attention, by their config and by trial."""

from __future__ import annotations

from typing import Any

from flywheel.models.cascade import CascadeDecoder
from flywheel.models.language import LanguageModel
from flywheel.models.suffix import Memory
from flywheel.models.trie import Start

_NONE_OF = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size")


def suits(language_model: LanguageModel) -> bool:
    """Whether the cascade gives this model the logits that its own attention gives."""
    return plain(language_model.model) and _agrees(language_model)


def plain(model: Any) -> bool:
    """Whether a transformers model says of itself that all its layers are full attention without windows, caps or
    sinks, and lets its attention be replaced."""
    config = model.config
    if not getattr(type(model), "_supports_attention_backend", False) or config.get_text_config() is not config:
        return False
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    return getattr(config, "is_causal", True) and all(getattr(config, name, None) is None for name in _NONE_OF)


def _agrees(language_model: LanguageModel) -> bool:
    """Feed three tokens after two prompts through the cascade, and the whole at once through the model as it is."""
    import torch

    model = language_model.model
    vocabulary = model.get_output_embeddings().weight.shape[0]
    texts = [[(7 * place + 3 * number) % vocabulary for place in range(3 + 4 * number)] for number in range(2)]
    tokens = [[(5 * step + 11 * row) % vocabulary for row in range(3)] for step in range(3)]
    starts = [Start(0, None, 1), Start(1, None, 2), Start(1, None, 2)]
    with torch.inference_mode():
        try:
            decoder = CascadeDecoder(language_model, language_model.shape, texts, Memory())
            decoder.begin(starts, [4] * 3, lambda: None)
            found = [decoder.admit(starts)[0]]
            found.extend(decoder.feed(torch.tensor(row, device=model.device)) for row in tokens)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            # Its code goes other ways than the attention interface has them: what raises is no matter.
            return False
        for row, start in enumerate(starts):
            ids = [*texts[start.prompt], *(step[row] for step in tokens)]
            whole = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
            there = torch.stack([step[row] for step in found])
            expected = whole[-len(found) :]
            if not torch.allclose(there, expected, rtol=0.0, atol=_tolerance(model) * float(expected.abs().max())):
                return False
    return True


def _tolerance(model: Any) -> float:
    """Of a logit, beside the largest one."""
    return 1e-3 if model.dtype.itemsize >= 4 else 5e-2
