"""Training a reward model of steps: a score after each step of an answer, the chance that it comes right from there.

Cross-entropy against soft targets in [0, 1] (Wang et al. 2024, *Math-Shepherd*, eq. 3, with the share of right rollouts
in place of hard labels, as in Luo et al. 2024, *OmegaPRM*), at the steps' ends alone: every other position is left out
by a mask of its own. Targets stay numbers, for a mark such as -100 among them would be a label to someone. The network
and what stands at a step's end are not decided here but in `flywheel.models.reward_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel import sections
from flywheel.compute import Cost
from flywheel.errors import ModelError
from flywheel.learning import resumable
from flywheel.learning.examples import EpochOrder, looking_flops, training_flops
from flywheel.models.language import decoder_shape
from flywheel.seeds import stream

WARMUP_SHARE, SCHEDULE, WEIGHT_DECAY, GRADIENT_CLIP = 0.05, "cosine", 0.01, 1.0
"""What the section leaves open, as a student's training has it by default."""


class StepExamples:
    """(ids, positions, targets) triples, indexable: an answer with its prompt as token ids, the positions in it at
    which its steps are scored, rising, and what each score should be, in [0, 1]."""

    def __init__(self, triples: Iterable[tuple[Sequence[int], Sequence[int], Sequence[float]]]) -> None:
        rows: list[dict[str, npt.NDArray[Any]]] = []
        for number, (ids, positions, targets) in enumerate(triples):
            row = {
                "ids": np.array(ids, np.int32),
                "positions": np.array(positions, np.int32),
                "targets": np.array(targets, np.float32),
            }
            if not len(positions) or len(positions) != len(targets):
                raise ValueError(
                    f"example {number} has {len(positions)} positions and {len(targets)} targets; expected as many of "
                    "each, and at least one"
                )
            if row["positions"].min() < 0 or row["positions"].max() >= len(ids):
                raise ValueError(f"example {number} has positions {list(positions)} outside its {len(ids)} tokens")
            if not ((row["targets"] >= 0.0) & (row["targets"] <= 1.0)).all():
                raise ValueError(f"example {number} has targets {list(targets)}, expected numbers from 0 to 1")
            rows.append(row)
        self._rows = rows
        self.lengths: npt.NDArray[np.int64] = np.array([len(row["ids"]) for row in rows], np.int64)
        self.steps = sum(len(row["targets"]) for row in rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        return self._rows[index]


@dataclass(frozen=True, slots=True)
class RewardTraining:
    """What a training came to. Valid figures are None where no example was held out."""

    epochs: float
    steps: int
    """Optimiser steps."""
    valid_loss: float | None
    """Mean cross-entropy a step of an answer, nats. Soft targets have an entropy of their own that none goes below."""
    valid_auc: float | None
    """Chance that of two steps, one with a target of at least a half and one below, the former has the higher score
    (ties count half); None too where all are of one kind."""
    valid_accuracy: float | None
    """Share of the steps whose score is on the same side of a half as their target."""
    cost: Cost


def is_held_out(problem_id: str, share: float) -> bool:
    """Whether a problem's answers are for measuring, not for learning: a function of the problem alone, so that a
    reward model that goes on from an older one has learned from none of them."""
    return stream(0, "supervise", "held out", problem_id) < share * 2.0**64


def train(
    model: Any,
    examples: StepExamples,
    valid: StepExamples,
    section: sections.Supervise,
    *,
    seed: int,
    fill: int,
    work: Path,
    checkpoint_seconds: float = 15.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
) -> RewardTraining:
    """Train `model` (token classification with one label, or two of which the second is `good`; float32) in place.

    `work` holds checkpoints; a call that finds complete ones goes on from the newest. `fill` is the padding id.
    `should_stop` may raise Interrupted, which leaves a checkpoint and goes on up. Raises ModelError where the model has
    another number of labels.
    """
    from transformers import TrainingArguments

    if not len(examples):
        raise ValueError("training needs at least one example, got none")
    if model.config.num_labels not in (1, 2):
        raise ModelError(f"the reward model has {model.config.num_labels} labels, expected 1, or 2 (bad and good)")
    steps_per_epoch = -(-len(examples) // section.batch_size)
    order = EpochOrder(len(examples), seed)
    arguments = resumable.arguments(
        work,
        model,
        epochs=section.epochs,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        weight_decay=WEIGHT_DECAY,
        gradient_clip=GRADIENT_CLIP,
        schedule=SCHEDULE,
        warmup_steps=round(WARMUP_SHARE * steps_per_epoch * section.epochs),
        seed=seed,
    )
    watch = resumable.watch(work, order, None, steps_per_epoch, checkpoint_seconds, progress, should_stop)
    trainer = resumable.ordered_trainer(
        order,
        _loss,
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=examples,
        data_collator=partial(collate, fill=fill),
        callbacks=[watch],
    )
    resumable.be_quiet(trainer)
    resumable.fit(trainer, watch, resumable.newest_complete(work))
    shape = decoder_shape(model)
    useful, padding, tokens = training_flops(examples.lengths, order, section.epochs, section.batch_size, shape)
    looked, unused = looking_flops(valid.lengths, resumable.EVALUATION_BATCH, shape)
    loss, area, accuracy = measure(*scores(model, valid, fill)) if len(valid) else (None, None, None)
    return RewardTraining(
        epochs=float(section.epochs),
        steps=int(trainer.state.global_step),
        valid_loss=loss,
        valid_auc=area,
        valid_accuracy=accuracy,
        cost=Cost(training=useful, reward=looked, padding=padding + unused, tokens=tokens),
    )


def scores(model: Any, examples: StepExamples, fill: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(log-odds, targets) of every example's steps, in order; a score is the logistic function of its log-odds."""
    import torch

    odds: list[float] = []
    was_training = model.training
    model.eval()
    device = model.device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for start in range(0, len(examples), resumable.EVALUATION_BATCH):
            rows = [examples[index] for index in range(start, min(start + resumable.EVALUATION_BATCH, len(examples)))]
            batch = {name: tensor.to(device) for name, tensor in collate(rows, fill).items()}
            odds += _log_odds(model, batch)[batch["scored"]].tolist()
    model.train(was_training)
    targets = [examples[index]["targets"] for index in range(len(examples))]
    return np.array(odds), np.concatenate(targets).astype(np.float64)


def measure(odds: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> tuple[float, float | None, float]:
    """(cross-entropy, AUC, accuracy) of log-odds against targets; see RewardTraining."""
    loss = float((np.logaddexp(0.0, odds) - targets * odds).mean())
    good = targets >= 0.5
    positives, negatives = int(good.sum()), int((~good).sum())
    area = None
    if positives and negatives:
        # The Mann-Whitney statistic; equal scores share the mean of their ranks.
        _, place, counts = np.unique(odds, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
        area = float((ranks[good].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return loss, area, float(((odds >= 0.0) == good).mean())


def collate(rows: list[dict[str, npt.NDArray[Any]]], fill: int) -> dict[str, Any]:
    """A right-padded batch, all [rows, longest]: input_ids, attention_mask, scored (bool: a step ends here), targets
    (float; of no meaning where not scored)."""
    import torch

    longest = max(len(row["ids"]) for row in rows)
    input_ids = np.full((len(rows), longest), fill, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    scored = np.zeros((len(rows), longest), dtype=np.bool_)
    targets = np.zeros((len(rows), longest), dtype=np.float32)
    for number, row in enumerate(rows):
        length = len(row["ids"])
        input_ids[number, :length] = row["ids"]
        mask[number, :length] = 1
        scored[number, row["positions"]] = True
        targets[number, row["positions"]] = row["targets"]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask),
        "scored": torch.from_numpy(scored),
        "targets": torch.from_numpy(targets),
    }


def _log_odds(model: Any, batch: dict[str, Any]) -> Any:
    """Of each position being good; shape [rows, longest], float32."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]


def _loss(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Cross-entropy at the steps' ends, summed, and how many they are."""
    import torch

    scored = batch["scored"]
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        _log_odds(model, batch)[scored], batch["targets"][scored], reduction="sum"
    )
    return losses, scored.sum()
