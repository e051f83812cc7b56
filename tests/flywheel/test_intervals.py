"""Intervals against SciPy's where observations are independent, and by simulated coverage where they are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from flywheel.evaluation.intervals import mean, share


def test_without_clusters_the_mean_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(0.3, 2.0, 40)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    got = mean(list(values), [str(i) for i in range(40)])
    assert got.value == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert got.count == 40


def test_without_clusters_the_share_has_wilsons_interval() -> None:
    """With 20 000 observations Student's and the normal quantile differ by 1e-4."""
    for right in (30, 7000, 19_999):
        expected = stats.binomtest(right, 20_000).proportion_ci(0.95, method="wilson")
        got = share([1.0] * right + [0.0] * (20_000 - right), [str(i) for i in range(20_000)])
        assert (got.low, got.high) == pytest.approx((expected.low, expected.high), rel=1e-3)


@pytest.mark.parametrize("right", [0, 12])
def test_all_or_nothing_by_wilson_with_the_clusters_as_observations(right: int) -> None:
    got = share([1.0] * right + [0.0] * (12 - right), [str(i // 3) for i in range(12)])
    quantile = stats.t.ppf(0.975, 3)
    half_open = quantile**2 / (4 + quantile**2)
    expected = (1 - half_open, 1.0) if right else (0.0, half_open)
    assert (got.low, got.high) == pytest.approx(expected)


def test_repeated_observations_add_no_certainty() -> None:
    """Ten copies of each observation in its cluster: the interval is that of the observations themselves."""
    values = [float(v) for v in np.random.default_rng(1).integers(0, 2, 60)]
    groups = [str(i) for i in range(60)]
    for interval in (mean, share):
        once = interval(values, groups)
        often = interval(values * 10, groups * 10)
        assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_clustered_error_by_the_textbook_sum() -> None:
    values, groups = [1.0, 2.0, 4.0, 8.0, 3.0], ["a", "a", "b", "b", "c"]
    centre = 3.6
    sums = [(1 - centre) + (2 - centre), (4 - centre) + (8 - centre), 3 - centre]
    error = math.sqrt(sum(s * s for s in sums) * 3 / 2) / 5
    got = mean(values, groups)
    assert (got.low, got.high) == pytest.approx((centre - stats.t.ppf(0.975, 2) * error,
                                                 centre + stats.t.ppf(0.975, 2) * error))  # fmt: skip


def test_one_cluster_says_nothing_and_no_values_are_an_error() -> None:
    assert mean([1.0, 2.0], ["a", "a"]).low == -math.inf
    alone = share([1.0, 0.0], ["a", "a"])
    assert alone.low < 0.05
    assert alone.high > 0.95
    with pytest.raises(ValueError, match="at least one value"):
        mean([], [])
    with pytest.raises(ValueError, match="zip"):
        mean([1.0, 2.0], ["a"])


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_coverage(spread: float) -> None:
    """Clusters of five whose rates differ by `spread` around 0.7. Of 600 intervals 95 % should hold 0.7; 93 to 98.5 %
    pass (a 95 % interval misses that by chance once in some hundred; the seed is fixed). Ignoring clusters, at
    spread 0.3, covers less than 90 %."""
    random = np.random.default_rng(2)
    held, naive_held = {"mean": 0, "share": 0}, 0
    groups = [str(i // 5) for i in range(250)]
    for _ in range(600):
        rates = 0.7 + spread * random.choice([-1.0, 1.0], 50)
        values = (random.random((50, 5)) < rates[:, None]).astype(float).ravel().tolist()
        for name, interval in (("mean", mean), ("share", share)):
            got = interval(values, groups)
            held[name] += got.low <= 0.7 <= got.high
        naive = share(values, [str(i) for i in range(250)])
        naive_held += naive.low <= 0.7 <= naive.high
    assert all(0.93 <= count / 600 <= 0.985 for count in held.values()), held
    if spread:
        assert naive_held / 600 < 0.90
