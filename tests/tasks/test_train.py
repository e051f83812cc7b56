"""train: the window a student learns from, the share of seed labels, and passes that a FLOPs budget pays for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import window


@given(
    st.lists(st.booleans(), max_size=60), st.floats(0.01, 0.99) | st.sampled_from([None, 0.0, 1.0]), st.integers(0, 5)
)
def test_seed_labels_have_their_share(is_seed: list[bool], share: float | None, seed: int) -> None:
    times = window.repetitions(is_seed, share, seed)
    seeds = [count for count, one in zip(times, is_seed, strict=True) if one]
    others = [count for count, one in zip(times, is_seed, strict=True) if not one]
    if share is None or not seeds or not others:
        assert times == [1] * len(is_seed)
    elif share == 1.0:
        assert set(seeds) == {1}
        assert set(others) == {0}
    else:
        assert set(others) == {1}
        assert max(seeds) - min(seeds) <= 1, "evenly"
        wanted = share * (sum(seeds) + len(others))
        assert sum(seeds) == pytest.approx(wanted, abs=1.0)
    assert times == window.repetitions(is_seed, share, seed)
