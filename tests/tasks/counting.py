"""PyTorch's own FLOP counter around a stage that runs in this process, with what that counter does not see.

The counter sees matrix products and convolutions, forward and backward, masks or not. It does not see
- `addmm_`, the product in place of `flywheel.models.llama`: told to it here;
- fused attention on a CPU: counted here from the shapes, causal, as the ledger counts it: position i attends to i + 1
  positions, and backward is twice forward. The kernel may do more (`whole_squares`: all of the square, and the scores
  once more on the way back), which is masked out and of no use;
- the cascade's products over what rows have of their own, which are made of vector operations: two FLOPs for each
  number of the keys and of the values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from flywheel.models import attention

T = TypeVar("T")


class Counted:
    """FLOPs of all that is run by `of`, once."""

    def __init__(self) -> None:
        self.products = self.causal = self.whole_squares = self.vectors = 0.0

    @property
    def total(self) -> float:
        """As the ledger counts."""
        return self.products + self.causal + self.vectors

    @property
    def multiplied(self) -> float:
        """As the kernels multiply."""
        return self.products + self.whole_squares + self.vectors

    def of(self, work: Callable[[], T]) -> T:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        operations = torch.ops.aten
        seen: dict[Any, Any] = {
            operations.addmm_: _product,
            operations._scaled_dot_product_flash_attention_for_cpu: self._forward,
            operations._scaled_dot_product_flash_attention_for_cpu_backward: self._backward,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name in ("_scores", "_mixture"):
                patch.setattr(attention, name, self._vector(getattr(attention, name)))
            with FlopCounterMode(display=False, custom_mapping=seen) as counter:
                done = work()
        self.products = float(counter.get_total_flops())
        return done

    def _forward(self, query: Any, key: Any, *_: Any, **__: Any) -> int:
        self._attend(query, key, causal=4.0, square=4.0)
        return 0

    def _backward(self, _gradient: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
        self._attend(query, key, causal=8.0, square=10.0)
        return 0

    def _attend(self, query: Any, key: Any, causal: float, square: float) -> None:
        batch, heads, queries, size = query
        keys = key[2]
        # The queries are the last of the positions.
        self.causal += causal * batch * heads * size * queries * (2 * keys - queries + 1) / 2
        self.whole_squares += square * batch * heads * size * queries * keys

    def _vector(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(held: Any, *arguments: Any) -> Any:
            self.vectors += 2.0 * held.numel()
            return function(held, *arguments)

        return counted


def _product(_out: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    rows, inner = left
    return int(2 * rows * inner * right[1])
