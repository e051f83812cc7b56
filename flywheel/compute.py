"""What a FLOP is here, and how many each piece of work takes.

A multiply-add counts as two. Forward through a decoder costs 2 per matrix parameter and token (embedding look-ups are
free, the output head is a matrix), plus attention: 4 * width * context a layer and token, for scores and weighted sum
(Kaplan et al. 2020, *Scaling laws for neural language models*, section 2.1; they write 2 * n_ctx * d and leave the
weighted sum's half to the same term). Backward is twice forward. Known error: norms, rotary embeddings, activations
and softmax are left out, about 1 % at width 1024, up to 10 % at width 128.

*Useful* and *executed* work differ by padding: the ledger keeps both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Work done, by kind. Add with `+`. All in FLOPs but tokens (sampled or trained on, padding apart)."""

    policy: float = 0.0
    """Forward work of the searching model."""
    reward: float = 0.0
    """Work of reward models; exact checkers count as none."""
    training: float = 0.0
    """Forward and backward work of learning."""
    prefill: float = 0.0
    """Policy work on prompts, once a problem however many attempts share it."""
    padding: float = 0.0
    """Executed on padding or on rows that had ended: paid for, of no use."""
    tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.policy + other.policy,
            self.reward + other.reward,
            self.training + other.training,
            self.prefill + other.prefill,
            self.padding + other.padding,
            self.tokens + other.tokens,
        )

    @property
    def useful(self) -> float:
        """FLOPs without padding."""
        return self.policy + self.reward + self.training + self.prefill

    @property
    def executed(self) -> float:
        """FLOPs with padding: what the machine did."""
        return self.useful + self.padding


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What the FLOP formulas need to know of a decoder-only transformer."""

    matrix_parameters: int
    """Parameters used in matrix products for each token: all but embedding tables that are only looked up."""
    layers: int
    attention_width: int
    """Heads times head size."""

    def forward(self, tokens: int, context: float) -> float:
        """FLOPs of a forward pass over `tokens` tokens that attend to `context` positions each, on average."""
        return tokens * (2.0 * self.matrix_parameters + 4.0 * self.layers * self.attention_width * context)

    def forward_sequence(self, length: int, start: int = 0) -> float:
        """FLOPs of running positions `start` to `length` of one sequence, causal, with a cache of what precedes."""
        count = length - start
        return self.forward(count, (start + length + 1) / 2.0) if count > 0 else 0.0

    def training_sequence(self, length: int) -> float:
        """FLOPs of one training step on one sequence: forward, and backward at twice its price."""
        return 3.0 * self.forward_sequence(length)
