"""A decoding step of a small Llama on a CPU, written for many rows: each activation is [features, rows] throughout.

Transformers' own code does the same for any model; for one whose products take microseconds, its dispatch, its
transpositions and its temporaries take longer than they do. Nothing else is different: weights that meet the same
activations are joined, norms' weights and the attention's scale are multiplied into the matrices that follow. Before a
model is sampled, `flywheel.models.suitability` compares the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flywheel.models.attention import Step, attend_by_rows


@dataclass(frozen=True, slots=True)
class _Layer:
    """Matrices [out, in] of one layer."""

    query_key_value: Any
    output: Any
    gate_up: Any
    down: Any


def serves(model: Any) -> bool:
    """Whether a transformers model is a Llama without the options that are left out here."""
    from transformers import LlamaForCausalLM

    config = model.config
    return (
        type(model) is LlamaForCausalLM
        and config.hidden_act == "silu"
        and not (config.attention_bias or config.mlp_bias)
        and config.num_key_value_heads == config.num_attention_heads
    )


class LlamaStep:
    """The weights as they are when this is made."""

    def __init__(self, model: Any) -> None:
        import torch

        self._inner, self._epsilon = model.model, model.config.rms_norm_eps
        with torch.no_grad():
            self._layers = [_joined(layer) for layer in self._inner.layers]
            self._head = model.lm_head.weight * self._inner.norm.weight

    def __call__(self, tokens: Any, positions: Any, step: Step) -> Any:
        """Logits after one token for each row: `tokens` and `positions` [rows]; returns [rows, vocabulary]."""
        import torch
        from torch.nn.functional import silu

        hidden = self._inner.embed_tokens.weight[tokens].t().contiguous()
        cosine, sine = self._inner.rotary_emb(hidden, positions.unsqueeze(0))
        heads, size, rows = step.suffix.shape[3:]
        half = size // 2
        # Both halves of a head turn by the same angles.
        cosine, sine = cosine[0, :, :half].t().contiguous(), sine[0, :, :half].t().contiguous()
        window = slice(step.first, step.column + 1)
        for number, layer in enumerate(self._layers):
            made = torch.mm(layer.query_key_value, self._normed(hidden)).view(3, heads, size, rows)
            straight = made[:2].view(2, heads, 2, half, rows)
            turned = torch.empty_like(straight)
            first, second = straight[:, :, 0], straight[:, :, 1]
            torch.mul(first, cosine, out=turned[:, :, 0]).addcmul_(second, sine, value=-1.0)
            torch.mul(second, cosine, out=turned[:, :, 1]).addcmul_(first, sine)
            query, key = turned.view(2, heads, size, rows)
            keys, values = step.suffix[number]
            keys[step.column] = key
            values[step.column] = made[2]
            mixed = attend_by_rows(step, step.prompts[number], keys[window], values[window], query)
            hidden.addmm_(layer.output, mixed.view(heads * size, rows))
            gate, up = torch.mm(layer.gate_up, self._normed(hidden)).chunk(2)
            hidden.addmm_(layer.down, silu(gate, inplace=True).mul_(up))
        return torch.mm(self._normed(hidden).t(), self._head.t())

    def _normed(self, hidden: Any) -> Any:
        """Columns of mean square 1."""
        return hidden * hidden.square().mean(dim=0).add_(self._epsilon).rsqrt_()


def _joined(layer: Any) -> _Layer:
    import torch

    attention, mlp = layer.self_attn, layer.mlp
    scaled = attention.q_proj.weight * attention.scaling
    joined = torch.cat([scaled, attention.k_proj.weight, attention.v_proj.weight])
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return _Layer(
        query_key_value=joined * layer.input_layernorm.weight,
        output=attention.o_proj.weight,
        gate_up=gate_up * layer.post_attention_layernorm.weight,
        down=mlp.down_proj.weight,
    )
