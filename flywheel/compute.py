"""What a FLOP is here, and how many each piece of work takes.

A multiply-add counts as two. Forward through a decoder costs 2 per matrix parameter and token (embedding look-ups are
free, the output head is a matrix), plus attention: 4 * width * context a layer and token, for scores and weighted sum
(Kaplan et al. 2020, *Scaling laws for neural language models*, section 2.1; they write 2 * n_ctx * d and leave the
weighted sum's half to the same term). Backward is twice forward. Every stage's total is PyTorch's own count to within
2 % (`tests/tasks/test_account.py`), attention taken as causal whatever a kernel multiplies and masks.

Left out is a fixed list: norms, rotary embeddings, biases, activations, residual sums, softmax, masks, losses, drawing
tokens, clipping, optimiser, moving averages. In percent of what is counted (`tests/flywheel/elementwise.py`):

    width              32    64   128   256   384  1024       board, width   32   128   256
    forward            12     6   2.8   1.3   0.9   0.3                     5.8   1.6   0.8
    a training step    13     5   2.4   1.3   0.9   0.5                     9.8   2.2   1.1

docs/compute.md says more: what each stage's line holds, and what else is not exact.

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
    head_parameters: int = 0
    """Those of the matrix parameters that make logits: multiplied only where logits are read."""

    def forward(self, tokens: int, context: float) -> float:
        """FLOPs of a forward pass over `tokens` tokens that attend to `context` positions each, on average."""
        return tokens * (2.0 * self.matrix_parameters + 4.0 * self.layers * self.attention_width * context)

    def forward_sequence(self, length: int, start: int = 0, logits: int | None = None) -> float:
        """FLOPs of running positions `start` to `length` of one sequence, causal, with a cache of what precedes.
        `logits` is at how many of these positions logits are made; None: at all."""
        count = length - start
        if count <= 0:
            return 0.0
        without = 0 if logits is None else count - logits
        return self.forward(count, (start + length + 1) / 2.0) - 2.0 * self.head_parameters * without

    def training_sequence(self, length: int) -> float:
        """FLOPs of one training step on one sequence: forward, and backward at twice its price."""
        return 3.0 * self.forward_sequence(length)
