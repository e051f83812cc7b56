"""Named seed streams and counter-based noise: every draw is a function of its address, never of what ran before.

A sampler that is killed and resumed, or split over another number of shards, therefore draws the same numbers; and no
two shards can share a stream by accident. The mixer is SplitMix64 (Steele, Lea, Flood 2014, *Fast splittable
pseudorandom number generators*, fig. 15), whose outputs for consecutive counters pass BigCrush.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.records import digest, numbered_digests

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def stream(seed: int, *names: Any) -> int:
    """A 64-bit seed for the stream with these names (generation, stage, problem, sample, ...) under a run's seed."""
    return int(digest("stream", seed, *names)[:16], 16)


def numbered_streams(seed: int, *names: Any, numbers: Iterable[int]) -> list[int]:
    """`stream(seed, *names, number)` for each number."""
    return [int(name[:16], 16) for name in numbered_digests("stream", seed, *names, numbers=numbers)]


def generator(seed: int, *names: Any) -> np.random.Generator:
    """A NumPy generator for the stream with these names, for draws whose order is fixed by the caller."""
    return np.random.Generator(np.random.PCG64(stream(seed, *names)))


def uniform(keys: npt.NDArray[np.uint64], position: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One draw in [0, 1) for each key at this counter, or at each its own; shape as `keys`."""
    with np.errstate(over="ignore"):
        z = keys + _GOLDEN * (np.asarray(position).astype(np.uint64) + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        z = z ^ (z >> np.uint64(31))
    drawn: npt.NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn
