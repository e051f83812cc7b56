"""How the scores of an answer's steps make the answer's own: the last, the least, or their product.

Lightman et al. 2023, *Let's verify step by step*, take the product, Wang et al. 2024, *Math-Shepherd*, the least;
Snell et al. 2024, *Scaling LLM test-time compute*, found the last best for a model trained on rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel.sections import Aggregate


def aggregate(scores: Sequence[float], how: Aggregate) -> float:
    """One score in 0..1 from those of at least one step."""
    if not scores:
        raise ValueError("no step scores to aggregate; an answer without steps has no score")
    if how == "last":
        return scores[-1]
    return min(scores) if how == "min" else math.prod(scores)
