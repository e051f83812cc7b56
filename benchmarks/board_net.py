"""How fast a board network can be asked on a CPU: the modules as they are, the products written out, numpy, bfloat16
and torch.compile, in turn in one run.

    taskset -c 0 python benchmarks/board_net.py --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from flywheel.models import board_net
from flywheel.models.board_net import BoardNet, BoardShape, Perceptron

_ROUNDS = 7
_SECONDS = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024])
    threads = (arguments := parser.parse_args()).threads
    torch.set_num_threads(threads)
    for shape in (BoardShape("mlp", 64, 2, 5), BoardShape("mlp", 128, 4, 5), BoardShape("conv", 16, 2, 5)):
        with tempfile.TemporaryDirectory() as folder:
            board_net.create(shape, 1, Path(folder))
            net = board_net.load(Path(folder))
        ways = ways_of(net)
        print(f"{shape.network} {shape.width} x {shape.layers}, 5x5, {threads} thread(s): microseconds a position")
        for batch in arguments.batch:
            views = np.random.default_rng(0).integers(0, 2, (batch, 2, 5, 5)).astype(np.float32)
            taken = measured({name: partial(way, views) for name, way in ways.items()})
            print(
                f"  batch {batch:5d}  " + "  ".join(f"{name} {1e6 * each / batch:.3f}" for name, each in taken.items())
            )


def ways_of(net: BoardNet) -> dict[str, Callable[[np.ndarray], object]]:
    """Name -> what answers views."""
    model, half = net.model, board_net.build(net.shape)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16).eval()
    compiled = torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False)

    def by(run: Callable[[torch.Tensor], object], kind: torch.dtype = torch.float32) -> Callable[[np.ndarray], object]:
        def asked(views: np.ndarray) -> object:
            with torch.inference_mode():
                return run(torch.from_numpy(views).to(kind))

        return asked

    ways = {"modules": by(model), "evaluator": board_net.evaluator(net)}
    if isinstance(model, Perceptron):
        ways["numpy"] = in_numpy(model)
    return {**ways, "bfloat16": by(half, torch.bfloat16), "compiled": by(compiled)}


def in_numpy(model: Perceptron) -> Callable[[np.ndarray], object]:
    held = {name: np.ascontiguousarray(p.detach().numpy().T) for name, p in model.named_parameters()}

    def run(views: np.ndarray) -> object:
        x = views.reshape(len(views), -1) @ held["intake.weight"]
        np.maximum(x + held["intake.bias"], 0.0, out=x)
        for layer in range(len(model.blocks)):
            inner = x @ held[f"blocks.{layer}.weight"]
            inner += held[f"blocks.{layer}.bias"]
            np.maximum(inner, 0.0, out=inner)
            inner *= held["scales"][layer]
            x += inner
        found = x @ held["heads.weight"] + held["heads.bias"]
        return found[:, :-1], np.tanh(found[:, -1])

    return run


def measured(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds a call, the median over rounds in which each has its turn."""
    counts = {}
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        way()
        counts[name] = max(1, int(_SECONDS / _ROUNDS / max(time.perf_counter() - start, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                way()
            taken[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(each) for name, each in taken.items()}


if __name__ == "__main__":
    main()
