"""Arithmetic that the FLOP formulas leave out, counted operation by operation, beside what they count.

`python -m tests.flywheel.elementwise` prints the table of docs/compute.md. Tensors are on the device `meta`: shapes
alone, so that width 1024 takes no longer than 32. An add, multiplication or comparison is 1 FLOP a number it makes, a
reduction 1 a number it reads, what takes a series (`SERIES`: exp, sine, root, ...) 10; softmax, a norm's root and SiLU
are what they are made of. Copies, casts, look-ups and fills are no arithmetic. Attention is unfused, over the whole
square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flywheel.models import board_net
from flywheel.models.board_net import BoardShape
from flywheel.models.language import decoder_shape

SERIES = 10
MADE = {
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "neg", "relu", "abs", "eq", "ne", "lt", "le", "gt", "ge",
                     "where", "masked_fill", "clamp", "clamp_min", "maximum", "minimum", "threshold_backward",
                     "bitwise_and", "logical_not", "bitwise_not", "reciprocal", "cumsum", "square"), 1),
    **dict.fromkeys(("exp", "log", "rsqrt", "sqrt", "sin", "cos", "pow", "log2"), SERIES),
    "addcmul": 2, "addcdiv": 2, "lerp": 3,
    "sigmoid": SERIES + 3, "silu": SERIES + 4, "silu_backward": SERIES + 8,
    "tanh": SERIES + 4, "tanh_backward": 3,
    "_softmax": SERIES + 4, "_log_softmax": SERIES + 5,
    "_softmax_backward_data": 4, "_log_softmax_backward_data": SERIES + 4,
    "embedding_dense_backward": 1, "nll_loss_forward": 1, "nll_loss2d_forward": 1, "nll_loss2d_backward": 1,
    "nll_loss_backward": 1,
    # Their biases, beside the products.
    "addmm": 1, "convolution": 1,
}  # fmt: skip
"""FLOPs for each number that is made."""
READ = {"sum", "mean", "amax", "max", "argmax", "any", "all", "linalg_vector_norm"}
"""1 for each number that is read; a norm squares as well."""
OPTIMISER = 16
"""AdamW a parameter: two running means (3 each), decay, both corrections, a root in hardware (4), quotient, step."""
CLIPPING = 3
"""Squares, their sum, and the scale."""


class Elementwise(TorchDispatchMode):
    """Counts while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        name = function.overloadpacket.__name__.rstrip("_") if function.overloadpacket.__name__[0] != "_" else (
            function.overloadpacket.__name__)  # fmt: skip
        if name in READ:
            self.flops += arguments[0].numel() * (2 if name == "linalg_vector_norm" else 1)
        elif name in MADE:
            first = made[0] if isinstance(made, tuple) else made
            self.flops += MADE[name] * max(1, first.numel())
        else:
            self.unknown.add(name)
        return made


@dataclass(frozen=True)
class Share:
    """Left out, in percent of what is counted."""

    forward: float
    sampling: float
    training: float


def decoder(width: int, layers: int, heads: int, inner: int, vocabulary: int, rows: int, length: int = 24) -> Share:
    """A Llama: a forward pass, a token being sampled, and a training step on `rows` sequences."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=inner, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        ids = torch.zeros((rows, length), dtype=torch.int64)
        # Ready made: a mask made by transformers is made by looking at numbers.
        mask = torch.zeros((rows, 1, length, length))
    shape = decoder_shape(model)
    counted = rows * shape.forward_sequence(length)
    with torch.no_grad():
        forward = _count(lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))

    def step() -> None:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        (losses.sum() / rows).backward()  # type: ignore[no-untyped-call]

    parameters = sum(parameter.numel() for parameter in model.parameters())
    training = _count(step) + (OPTIMISER + CLIPPING) * parameters
    with torch.device("meta"):
        logits = torch.zeros((rows * length, vocabulary))

    def draw() -> None:
        # As flywheel.models.drawing: a softmax, its running sum, and a search in it, which looks at few numbers.
        torch.softmax(logits, dim=1).cumsum(dim=1)

    return Share(100 * forward / counted, 100 * _count(draw) / counted, 100 * training / (3 * counted))


def board(shape: BoardShape, rows: int) -> Share:
    """A board network: an evaluation, and a training step on `rows` positions."""
    with torch.device("meta"):
        model = board_net.build(shape)
        views = torch.zeros((rows, shape.planes, shape.size, shape.size))
    with torch.no_grad():
        forward = _count(lambda: model(views))

    def step() -> None:
        logits, values = model(views)
        policy = -(torch.zeros_like(logits) * logits.masked_fill(views[:, 0].flatten(1) > 0, -1e9).log_softmax(dim=1))
        (policy.sum() + ((values - 1.0) ** 2).sum()).backward()

    parameters = sum(parameter.numel() for parameter in model.parameters())
    training = _count(step) + (OPTIMISER + CLIPPING) * parameters
    return Share(100 * forward / (rows * shape.flops), math.nan, 100 * training / (rows * shape.training_flops))


def _count(work: Any) -> float:
    with Elementwise() as mode:
        work()
    return mode.flops


DECODERS = {
    "smoke": (32, 1, 2, 64, 91, 16),
    "countdown": (64, 4, 4, 176, 211, 64),
    "countdown-4": (128, 4, 4, 352, 211, 64),
    "width 256": (256, 4, 4, 704, 211, 64),
    "width 384": (384, 4, 6, 1056, 211, 64),
    "width 1024": (1024, 4, 16, 2816, 211, 64),
}
"""Width, layers, heads, inner width, vocabulary, batch; sequences of 24 tokens."""
BOARDS = {
    "hex-3": (BoardShape("mlp", 32, 2, 3), 128),
    "hex-5": (BoardShape("mlp", 128, 4, 5), 512),
    "hex-7": (BoardShape("mlp", 256, 4, 7), 1024),
}


def table() -> str:
    """Markdown."""
    lines = ["| | forward | a token drawn | a training step |", "|---|---|---|---|"]
    shares = {name: decoder(*sizes) for name, sizes in DECODERS.items()}
    shares |= {name: board(*sizes) for name, sizes in BOARDS.items()}
    for name, share in shares.items():
        cells = (share.forward, share.sampling, share.training)
        shown = " | ".join("-" if math.isnan(cell) else f"{cell:.2g} %" for cell in cells)
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201
