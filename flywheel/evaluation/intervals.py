"""95 % intervals of means whose observations come in clusters (Countdown: problems of one hand).

The variance is the cluster-robust one, with the factor G/(G-1) for G clusters (Cameron and Miller 2015, *A
practitioner's guide to cluster-robust inference*, section II; Miller 2024, *Adding error bars to evals*, section 2.2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval over `count` observations."""

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float | int | None]:
        """JSON; a bound that one cluster alone cannot give is null."""
        low, high = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high, "count": self.count}


def share(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """Interval of a mean of values in 0..1, by Wilson's score with the effective number of observations.

    Where every value is 0, or every one 1, the clusters are the observations. Raises ValueError on no values.
    """
    mean, error, clusters = _clustered(values, groups)
    quantile = _quantile(clusters)
    settled = error == 0.0 or mean in (0.0, 1.0)
    effective = float(clusters) if settled else mean * (1.0 - mean) / error**2
    scale = 1.0 + quantile**2 / effective
    centre = (mean + quantile**2 / (2.0 * effective)) / scale
    half = quantile / scale * math.sqrt(mean * (1.0 - mean) / effective + quantile**2 / (4.0 * effective**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(mean, min(low, mean), max(high, mean), len(values))


def mean(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """Interval of a mean of any values, such as paired differences, by Student's t over the clusters."""
    value, error, clusters = _clustered(values, groups)
    half = _quantile(clusters) * error if clusters > 1 else math.inf
    return Interval(value, value - half, value + half, len(values))


def _clustered(values: Sequence[float], groups: Sequence[str]) -> tuple[float, float, int]:
    """Mean, its cluster-robust standard error, and the number of clusters."""
    if not values:
        raise ValueError("an interval needs at least one value, got none")
    count, centre = len(values), math.fsum(values) / len(values)
    sums: dict[str, float] = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - centre
    clusters = len(sums)
    if clusters < 2:
        return centre, 0.0, clusters
    variance = math.fsum(total**2 for total in sums.values()) * clusters / (clusters - 1) / count**2
    return centre, math.sqrt(variance), clusters


def _quantile(clusters: int) -> float:
    """Upper 2.5 % point of Student's t with G - 1 degrees of freedom."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(max(1, clusters - 1), 0.975))
