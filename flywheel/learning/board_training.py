"""Learning from searched positions: the policy's cross-entropy and the value's squared error (Silver et al. 2018).

A loop of its own, as one step takes a millisecond or less: a trainer made for language models would take longer than
the step. Which examples a step sees is a function of seed and epoch, so that training goes on from a checkpoint as if
it had never been cut off.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flywheel import sections
from flywheel.compute import Cost
from flywheel.errors import FlywheelError, Interrupted
from flywheel.learning.examples import EpochOrder
from flywheel.models.board_net import BoardShape
from flywheel.problems.hex import SECOND
from flywheel.seeds import generator, stream

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Examples:
    """Positions as their movers see them (`flywheel.problems.hex.Games.views`), arrays [examples, ...]."""

    views: npt.NDArray[np.int8]
    """[examples, planes * cells]: 0 or 1."""
    policies: npt.NDArray[np.float32]
    """[examples, actions], in the order of the view; sum to 1."""
    values: npt.NDArray[np.float32]
    """The mover's, -1..1."""
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Training:
    """What a training came to. Losses are means over the last epoch, weighted; NaN where there was nothing to learn."""

    epochs: float
    steps: int
    policy_loss: float
    """Cross-entropy, nats."""
    value_loss: float
    """Mean squared error."""
    cost: Cost


def examples_of(
    stones: npt.NDArray[np.int8],
    movers: npt.NDArray[np.int8],
    plies: npt.NDArray[np.int16],
    policies: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    shape: BoardShape,
) -> Examples:
    """From boards [n, cells] with 1 for the first player's stones and -1 for the second's, and policies in the game's
    order of moves."""
    n, size, cells = len(stones), shape.size, shape.cells
    second = (movers == SECOND)[:, None, None]
    boards = stones.reshape(n, size, size)
    seen = np.where(second, -boards.transpose(0, 2, 1), boards).reshape(n, cells)
    planes = [seen > 0, seen < 0]
    if shape.swap:
        planes.append(np.broadcast_to((plies == 1)[:, None], seen.shape))
    straight = policies[:, :cells].reshape(n, size, size)
    viewed = np.where(second, straight.transpose(0, 2, 1), straight).reshape(n, cells)
    return Examples(
        np.concatenate(planes, axis=1).astype(np.int8),
        np.concatenate([viewed, policies[:, cells:]], axis=1).astype(np.float32),
        values.astype(np.float32),
        weights.astype(np.float32),
    )


def turned(views: Tensor, policies: Tensor, shape: BoardShape) -> tuple[Tensor, Tensor]:
    """Positions [n, planes * cells] and policies after a half turn of the board, which changes nothing in Hex."""
    planes = views.reshape(len(views), shape.planes, shape.cells).flip(2).reshape(len(views), -1)
    return planes, torch.cat([policies[:, : shape.cells].flip(1), policies[:, shape.cells :]], dim=1)


def train(
    model: nn.Module,
    shape: BoardShape,
    examples: Examples,
    section: sections.Train,
    *,
    seed: int,
    work: Path,
    checkpoint_seconds: float,
    progress: Callable[[int, int], None],
    should_stop: Callable[[], None],
) -> Training:
    """Train in place, `section.epochs` passes, fewer where `section.flops` pays for fewer. Goes on from a checkpoint in
    `work`. Raises Interrupted, with a checkpoint written, where `should_stop` does; FlywheelError where the loss is no
    number any more."""
    if not len(examples):
        return Training(0.0, 0, math.nan, math.nan, Cost())
    once = shape.training_flops * len(examples)
    epochs = section.epochs if section.flops is None else min(section.epochs, max(1, int(section.flops / once)))
    per_epoch = -(-len(examples) // section.batch_size)
    total = epochs * per_epoch
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(step, total, section))
    average = None if section.ema is None else {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step, sums = _resume(work, model, optimiser, schedule, average)
    device = next(model.parameters()).device
    tensors = [torch.from_numpy(array) for array in (examples.views, examples.policies, examples.values,
                                                     examples.weights)]  # fmt: skip
    order, saved = EpochOrder(len(examples), seed), time.monotonic()
    model.train()
    while step < total:
        epoch, first = divmod(step, per_epoch)
        places = torch.from_numpy(order.order(epoch))
        chance = generator(stream(seed, "turn"), epoch).random(len(examples)) < 0.5
        turn = torch.from_numpy(chance & section.augment)
        for batch in range(first, per_epoch):
            if batch == 0:
                sums = torch.zeros(3)
            chosen = places[batch * section.batch_size : (batch + 1) * section.batch_size]
            sums += _step(model, shape, [t[chosen].to(device) for t in tensors], turn[chosen].to(device), section)
            nn.utils.clip_grad_norm_(model.parameters(), section.gradient_clip)
            optimiser.step()
            schedule.step()
            step += 1
            if average is not None and section.ema is not None:
                for name, tensor in model.state_dict().items():
                    average[name].lerp_(tensor, 1.0 - section.ema)
            progress(step, total)
            try:
                should_stop()
            except Interrupted:
                _save(work, step, sums, model, optimiser, schedule, average)
                raise
            if time.monotonic() - saved > checkpoint_seconds:
                _save(work, step, sums, model, optimiser, schedule, average)
                saved = time.monotonic()
        if not bool(torch.isfinite(sums).all()):
            raise FlywheelError(
                f"the loss of epoch {epoch + 1} is no number; lower train.learning_rate ({section.learning_rate}) or "
                f"train.gradient_clip ({section.gradient_clip})"
            )
    if average is not None:
        model.load_state_dict(average)
    model.eval()
    policy, value, weight = (float(part) for part in sums)
    return Training(
        float(epochs), total, policy / weight, value / weight,
        Cost(training=once * epochs, tokens=len(examples) * epochs),
    )  # fmt: skip


def learning_rate(step: int, total: int, section: sections.Train) -> float:
    """Share of the peak learning rate at a step: a linear rise, then as `section.schedule` says."""
    rise = section.warmup_share * total
    if step < rise:
        return (step + 1) / (rise + 1)
    gone = (step - rise) / max(total - rise, 1.0)
    if section.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * gone))
    return 1.0 - gone if section.schedule == "linear" else 1.0


def _step(model: nn.Module, shape: BoardShape, batch: list[Tensor], turn: Tensor, section: sections.Train) -> Tensor:
    """Gradients of one batch; sums of the policy's and the value's losses and of the weights, as three numbers."""
    views, policies, values, weights = batch
    turned_views, turned_policies = turned(views, policies, shape)
    views = torch.where(turn[:, None], turned_views, views).float().reshape(-1, shape.planes, shape.size, shape.size)
    policies = torch.where(turn[:, None], turned_policies, policies)
    logits, found = model(views)
    # What is not legal is not there: cells with a stone, and the swap where it may not be used.
    taken = (views[:, 0] + views[:, 1]).flatten(1) > 0
    if shape.swap:
        taken = torch.cat([taken, views[:, 2, 0, :1] == 0], dim=1)
    log_policy = logits.masked_fill(taken, -1e9).log_softmax(dim=1)
    policy = -(policies * log_policy).sum(dim=1)
    value = (found - values) ** 2
    total = weights.sum().clamp_min(1e-9)
    loss = (weights * (policy + section.value_weight * value)).sum() / total
    model.zero_grad(set_to_none=True)
    loss.backward()
    with torch.no_grad():
        return torch.stack([(weights * policy).sum(), (weights * value).sum(), weights.sum()]).cpu()


def _save(work: Path, step: int, sums: Tensor, model: nn.Module, optimiser: Any, schedule: Any, average: Any) -> None:
    work.mkdir(parents=True, exist_ok=True)
    held = {
        "step": step, "sums": sums, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(), "average": average,
    }  # fmt: skip
    draft = work / f".{_CHECKPOINT}"
    with draft.open("wb") as file:
        torch.save(held, file)
        # The name must not outlive the bytes in a power cut.
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, work / _CHECKPOINT)


def _resume(work: Path, model: nn.Module, optimiser: Any, schedule: Any, average: Any) -> tuple[int, Tensor]:
    path = work / _CHECKPOINT
    if not path.exists():
        return 0, torch.zeros(3)
    held = torch.load(path, weights_only=True)
    model.load_state_dict(held["model"])
    optimiser.load_state_dict(held["optimiser"])
    schedule.load_state_dict(held["schedule"])
    if average is not None:
        average.update(held["average"])
    return int(held["step"]), held["sums"]
