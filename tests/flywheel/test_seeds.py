"""Noise: the published SplitMix64 sequence, uniformity, and no dependence on order or neighbours."""

from __future__ import annotations

import numpy as np
from scipy import stats

from flywheel.records import digest, numbered_digests
from flywheel.seeds import generator, numbered_streams, stream, uniform

# First outputs of SplitMix64 for seed 1234567, as published with the reference implementation.
REFERENCE = [
    6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
]  # fmt: skip


def test_the_published_sequence() -> None:
    """The key is the seed, the position counts the outputs; the top 53 bits are the number."""
    key = np.array([1234567], dtype=np.uint64)
    for position, output in enumerate(REFERENCE):
        assert uniform(key, position)[0] == (output >> 11) * 2.0**-53


def test_extreme_keys_stay_in_range() -> None:
    keys = np.array([0, 1, 2**63, 2**64 - 1], dtype=np.uint64)
    for position in (0, 1, 10**6):
        draws = uniform(keys, position)
        assert ((draws >= 0.0) & (draws < 1.0)).all()


def test_uniform_over_keys_and_over_positions() -> None:
    """Chi-square over 256 cells, for keys as a search makes them; fails by chance once in 10 000."""
    keys = np.array([stream(0, 3, "generate", f"problem {i}", 0) for i in range(4000)], dtype=np.uint64)
    over_keys = np.concatenate([uniform(keys, position) for position in range(16)])
    over_positions = np.array([uniform(keys[:8], position) for position in range(4000)]).ravel()
    for draws in (over_keys, over_positions):
        counts = np.histogram(draws, bins=256, range=(0.0, 1.0))[0]
        assert stats.chisquare(counts).pvalue > 1e-4
    # Neighbouring positions of one key, and neighbouring sample numbers of one problem, are uncorrelated.
    first, second = uniform(keys, 0), uniform(keys, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(keys))


def test_a_draw_depends_on_its_address_alone() -> None:
    keys = np.arange(100, dtype=np.uint64).reshape(20, 5)
    whole = uniform(keys, 3)
    assert whole.shape == keys.shape
    shuffled = np.random.default_rng(0).permutation(100)
    assert (uniform(keys.ravel()[shuffled], 3) == whole.ravel()[shuffled]).all()
    assert uniform(keys[7:8, 2:3], 3)[0, 0] == whole[7, 2]
    assert (keys == np.arange(100).reshape(20, 5)).all(), "keys are left as they were"


def test_many_numbers_are_named_as_one_is() -> None:
    names = ("ä", 3, {"b": None, "a": [1.0, 1]}, "")
    numbers = [0, 7, 10**12]
    assert numbered_digests(*names, numbers=numbers) == [digest(*names, number) for number in numbers]
    assert numbered_streams(5, *names, numbers=numbers) == [stream(5, *names, number) for number in numbers]


def test_streams_are_named() -> None:
    names = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", "0"), (0, ["a"]), (0, "a", None)]
    streams = {stream(*name) for name in names}
    assert len(streams) == len(names)
    assert all(0 <= one < 2**64 for one in streams)
    assert stream(0, "a") == stream(0, "a")
    assert generator(5, "x").permutation(9).tolist() == generator(5, "x").permutation(9).tolist()
    assert generator(5, "x").permutation(99).tolist() != generator(5, "y").permutation(99).tolist()
