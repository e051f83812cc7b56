"""Tree search over boards against peers: pgx and mctx on JAX, and OpenSpiel's Python MCTSBot; and what it takes itself.

Hex, the same positions and the same network on every side (random weights, two hidden layers), Gumbel with sequential
halving where the side has it, PUCT for OpenSpiel. Every side is a process of its own on one and the same core, and they
take turns, a repetition each. Then, of ours alone: the tree's own time a simulation beside the time of the network's
matrix products and nothing else, two threads beside one, one game by several leaves at once, and memory. The last line
of output is JSON.

OpenSpiel is in the `dev` extra. pgx and mctx are not; by hand, into a place of their own:

    python -m venv /tmp/peers && /tmp/peers/bin/pip install jax pgx mctx
    python benchmarks/boards.py --peers /tmp/peers/bin/python
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from board_sides import SIDES, Network, Report, Setting, our_games, our_search, weights

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "JAX_PLATFORMS": "cpu"
}


def start(python: str, script: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | ONE_THREAD,
    )  # fmt: skip


def say(process: subprocess.Popen[str], number: int | None = None) -> str:
    """The next line of a child's, after it was given this repetition; empty where it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    if number is not None:
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    return process.stdout.readline()


def against_peers(given: argparse.Namespace, size: int) -> Report:
    setting = {
        "size": size, "games": given.games, "simulations": given.simulations, "width": given.width, "core": given.core,
    }  # fmt: skip
    running: dict[str, subprocess.Popen[str]] = {}
    rates: dict[str, list[float]] = {side: [] for side in given.sides}
    try:
        for side in given.sides:
            python = given.peers if side == "pgx" else sys.executable
            running[side] = start(python, Path(__file__).parent / "board_sides.py", side, json.dumps(setting))
            if not say(running[side]):
                raise SystemExit(f"{side} did not start, see above")
        for repeat in range(given.repeats):
            # Turn and turn about, so that whoever disturbs the machine disturbs all.
            for side in given.sides if repeat % 2 else reversed(given.sides):
                rates[side].append(float(say(running[side], repeat)))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    result: Report = {"size": size}
    for side in given.sides:
        result[f"{side}_simulations_per_second"] = round(statistics.median(rates[side]))
        if side != "ours" and "ours" in given.sides:
            result[f"over_{side}"] = ratios(rates["ours"], rates[side])
    return result


# Of ours alone.


def own(setting: Setting) -> Report:
    """The tree's own time a simulation, all games side by side and by 256, and that of the network's products alone, by
    the quicker of numpy and torch; what is held at most."""
    import torch

    torch.set_num_threads(1)
    games, simulations = our_games(setting["size"], setting["games"]), setting["simulations"]
    layers = weights(setting["size"], setting["width"])
    keys, network = np.arange(len(games), dtype=np.uint64), Network(layers)
    rows = min(256, len(games))
    inputs = [np.random.default_rng(0).random((rows, len(layer)), np.float32) for layer in layers]
    outputs = [np.empty((rows, layer.shape[1]), np.float32) for layer in layers]
    arrays = list(zip(inputs, layers, outputs, strict=True))
    tensors = [[torch.from_numpy(each) for each in three] for three in arrays]
    times: dict[str, list[float]] = {}
    searches = {"together": None, "by_256": 256}
    made = simulations * len(games)

    def tree(batch: int | None) -> float:
        network.seconds, start = 0.0, time.perf_counter()
        made = int(our_search(simulations, batch=batch).search(games, network, keys).visits.sum())
        return (time.perf_counter() - start - network.seconds) / made

    def products(one: Callable[[Any, Any, Any], Any], operands: list[Any]) -> float:
        start = time.perf_counter()
        for _ in range(made // rows):
            for left, right, out in operands:
                one(left, right, out)
        return (time.perf_counter() - start) / (made // rows * rows)

    ways: dict[str, Callable[[], float]] = {name: lambda batch=batch: tree(batch) for name, batch in searches.items()}  # type: ignore[misc]
    ways["numpy"] = lambda: products(lambda left, right, out: np.matmul(left, right, out=out), arrays)
    ways["torch"] = lambda: products(lambda left, right, out: torch.mm(left, right, out=out), tensors)
    for repeat in range(-1, setting["repeats"]):
        for name, way in ways.items():
            seconds = way()
            if repeat >= 0:
                times.setdefault(name, []).append(1e9 * seconds)
    middle = {name: statistics.median(each) for name, each in times.items()}
    quicker = min(("numpy", "torch"), key=lambda name: middle[name])
    return {
        "nanoseconds_a_simulation": {name: round(value) for name, value in middle.items()},
        "tree_over_products": {name: ratios(times[name], times[quicker]) for name in searches},
        "bytes_a_game_and_simulation": held(setting["size"], len(games), simulations),
    }


def held(size: int, games: int, simulations: int) -> dict[str, int]:
    """What the search says it needs, and what was allocated at most, both a game and simulation."""
    import tracemalloc

    from flywheel.search.board_steps import bytes_needed

    positions, network = our_games(size, games), Network(weights(size, 1))
    tracemalloc.start()
    our_search(simulations).search(positions, network, np.arange(games, dtype=np.uint64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = bytes_needed(games, simulations + 1, size * size, size * size)
    return {"needed": round(needed / games / simulations), "peak": round(peak / games / simulations)}


def threads(setting: Setting) -> Report:
    """The whole search, network included, by one thread and by two, in two batches either way; and what two threads
    bring at that moment to work that shares nothing, which is less than 2 on a machine that others use."""
    games, layers = our_games(setting["size"], setting["games"]), weights(setting["size"], setting["width"])
    keys = np.arange(len(games), dtype=np.uint64)
    seconds: dict[str, list[float]] = {"search 1": [], "search 2": [], "hash 1": [], "hash 2": []}

    def search(count: int) -> None:
        our_search(setting["simulations"], batch=-(-len(games) // 2), threads=count).search(
            games, Network(layers), keys
        )

    def hashes(count: int) -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda salt: hashlib.pbkdf2_hmac("sha256", b"", salt, 30_000), [b"a", b"b"]))

    for repeat in range(-1, setting["repeats"]):
        for name, work in (("search", search), ("hash", hashes)):
            for count in (1, 2) if repeat % 2 else (2, 1):
                start = time.perf_counter()
                work(count)
                if repeat >= 0:
                    seconds[f"{name} {count}"].append(time.perf_counter() - start)
    return {
        "two_threads_over_one": ratios(seconds["search 1"], seconds["search 2"]),
        "of_work_that_shares_nothing": ratios(seconds["hash 1"], seconds["hash 2"]),
    }


def alone(setting: Setting) -> Report:
    """One game of many simulations, so many leaves at once."""
    game, layers = our_games(setting["size"], 1), weights(setting["size"], setting["width"])
    rates: dict[int, list[float]] = {}
    for repeat in range(-1, setting["repeats"]):
        for parallel in (1, 4, 8, 16):
            start = time.perf_counter()
            search = our_search(1600, root="puct", noise_share=0.0, parallel=parallel, solve=False)
            made = int(search.search(game, Network(layers), np.zeros(1, np.uint64)).visits.sum())
            if repeat >= 0:
                rates.setdefault(parallel, []).append(made / (time.perf_counter() - start))
    return {
        "one_game_simulations_per_second": {
            parallel: round(statistics.median(each)) for parallel, each in rates.items()
        },
        "over_one_leaf": {parallel: ratios(each, rates[1]) for parallel, each in rates.items() if parallel > 1},
    }


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of pairs."""
    pairs = [one / other for one, other in zip(above, below, strict=True)]
    return [round(value, 2) for value in statistics.quantiles(pairs, n=4, method="inclusive")]


ALONE: dict[str, Callable[[Setting], Report]] = {"own": own, "threads": threads, "alone": alone}


def ours_alone(given: argparse.Namespace, size: int) -> Report:
    """Each in a process of its own, pinned but for the one with two threads."""
    result: Report = {"size": size, "games": given.own_games}
    for name in ALONE:
        setting = {
            "size": size, "games": given.own_games, "simulations": given.simulations, "width": given.width,
            "core": None if name == "threads" else given.core, "repeats": given.repeats,
        }  # fmt: skip
        process = start(sys.executable, Path(__file__), "--alone", name, json.dumps(setting))
        result |= json.loads(say(process) or "{}")
        process.wait()
        if process.returncode:
            raise SystemExit(f"{name} failed, see above")
    return result


def main() -> int:
    if sys.argv[1:2] == ["--alone"]:
        setting = json.loads(sys.argv[3])
        if setting["core"] is not None:
            os.sched_setaffinity(0, {setting["core"]})
        print(json.dumps(ALONE[sys.argv[2]](setting)))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="Python that has jax, pgx and mctx (default: this one)")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=list(SIDES), help="(default: all)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[5, 7], help="of the boards (default: 5 7)")
    parser.add_argument("--games", type=int, default=256, help="beside the peers (default: %(default)s)")
    parser.add_argument("--own-games", type=int, default=1024, help="of ours alone (default: %(default)s)")
    parser.add_argument("--simulations", type=int, default=64, help="a game (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of the hidden layers (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="repetitions a side (default: %(default)s)")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="(default: the last)")
    given = parser.parse_args()
    numbers = (given.games, given.own_games, given.simulations, given.width, *given.sizes)
    if min(numbers) < 1 or given.repeats < 2:
        parser.error("all numbers must be at least 1, --repeats at least 2")
    results = []
    for size in given.sizes:
        result = against_peers(given, size)
        print(f"{size}x{size}, {given.games} games: {result}", flush=True)
        if "ours" in given.sides:
            own_result = ours_alone(given, size)
            print(f"{size}x{size}, ours alone: {own_result}", flush=True)
            result |= own_result
        results.append(result)
    document = {
        "benchmark": "boards", "games": given.games, "simulations": given.simulations, "width": given.width,
        "repeats": given.repeats, "results": results,
    }  # fmt: skip
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
