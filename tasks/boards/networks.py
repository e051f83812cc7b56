"""Networks and searches as the stages of a board game need them: loaded once a process, checked by digest."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from flywheel.errors import ModelError
from flywheel.models import board_net
from flywheel.models.board_net import BoardNet, BoardShape
from flywheel.models.language import device_for
from flywheel.params import Params
from flywheel.records import digest
from flywheel.search.board_tree import TreeSearch
from tasks.models import snapshot_of
from tasks.stage import threads


def shape_of(params: Params) -> BoardShape:
    """The network that the params describe."""
    model, problems = params.model, params.problems
    return BoardShape(model.network, model.hidden_size, model.layers, problems.size, problems.swap)


def load(params: Params, folder: Path, snapshot: str | None = None) -> BoardNet:
    """A snapshot for the params' boards, its digest checked where one is expected. Raises ModelError."""
    # The threads search games of their own, and each asks the network by itself.
    torch.set_num_threads(1)
    net = _load(folder, device_for(params.execution.device), snapshot_of(folder))
    board_net.require(net.shape, params.problems.size, params.problems.swap, str(folder))
    if snapshot is not None and net.snapshot != snapshot:
        raise ModelError(
            f"{folder} holds weights {net.snapshot}, expected {snapshot} as lineage says; "
            "restore that model, or start the generation anew with generate.teacher set to the one wanted"
        )
    return net


@lru_cache(maxsize=4)
def _load(folder: Path, device: str, _snapshot: str) -> BoardNet:
    return board_net.load(folder, device)


def searching(params: Params) -> TreeSearch:
    """How the teacher searches for labels."""
    section = params.generate
    return TreeSearch(
        section.simulations,
        "puct" if section.searcher == "puct" else "gumbel",
        considered=section.considered,
        exploration=section.exploration,
        noise_share=section.noise_share,
        batch=_batch(params),
        threads=threads(params.execution),
    )


def playing(params: Params, budget: int) -> TreeSearch:
    """How one searches to win: without noise."""
    return replace(searching(params), simulations=budget, gumbel_scale=0.0, noise_share=0.0)


def _batch(params: Params) -> int:
    """Trees searched side by side: as many as a processor's cache holds; many where a GPU is asked. A fixed number, as
    a network's last bits may depend on it."""
    return 256 if device_for(params.execution.device) == "cpu" else 4096


def solver_snapshot() -> str:
    """What stands for a model where the exact solver says what a position is worth."""
    return digest("solver", "hex", 1)
