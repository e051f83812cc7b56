"""Supervised fine-tuning on labels: cross-entropy of the completion's own token ids, the end token among them.

The loop is `transformers.Trainer`. Its overhead was measured against a bare PyTorch loop on a 0.8-million-parameter
Llama, batches of 64 short answers: 74-77 ms a step against 70-71 ms with two threads (5 to 9 %), 98 ms against 96 ms
with one (1 to 4 %, `benchmarks/trainer.py`), which is worth its schedules, mixed precision and checkpoints. What has to
be the same after a crash is kept out of its hands, in `flywheel.learning.resumable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flywheel import params
from flywheel.compute import Cost, DecoderShape
from flywheel.learning import lora, ranks, resumable
from flywheel.learning.examples import IGNORED, EpochOrder, Examples, WithBlanks, collate, looking_flops, training_flops
from flywheel.models.language import decoder_shape


@dataclass(frozen=True, slots=True)
class Training:
    """What a training came to."""

    epochs: float
    """Passes over the examples that the kept weights have seen."""
    steps: int
    valid_loss: float
    """Mean cross-entropy a completion token on the valid examples, nats, of the kept weights."""
    valid_losses: tuple[float, ...]
    """After each epoch, where it was looked at."""
    cost: Cost


def train(
    model: Any,
    examples: Examples,
    valid: Examples,
    section: params.Train,
    *,
    seed: int,
    fill: int,
    work: Path,
    until_stale: bool,
    epochs: int | None = None,
    checkpoint_seconds: float = 15.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
) -> Training:
    """Train `model` (a causal LM, float32) in place, all of its weights or, by `section.method`, with adapters that
    are merged into it at the end. In several processes (`launch`) each makes this call; a batch is shared by them.

    `until_stale` looks at the valid loss after each epoch, stops after `section.patience` epochs without a new best
    and keeps the best, making at most `epochs` passes (default `section.seed_epochs`); otherwise just `epochs` passes
    (default `section.epochs`) are made. `work` holds checkpoints; a call
    that finds complete ones goes on from the newest. `fill` is the padding id. `should_stop` may raise Interrupted,
    which leaves a checkpoint and goes on up; the model is of no use then. Raises ConfigError.
    """
    from transformers import TrainingArguments

    if not len(examples):
        raise ValueError("training needs at least one example, got none")
    total_epochs = epochs if epochs is not None else section.seed_epochs if until_stale else section.epochs
    # A seed training's end is not known before; its warm-up is a share of the shortest it can be.
    shortest = section.patience if until_stale else total_epochs
    steps_per_epoch = -(-len(examples) // section.batch_size)
    processes = ranks.count()
    shared = None if processes == 1 else WithBlanks(examples, steps_per_epoch * section.batch_size)
    order = EpochOrder(len(examples), seed, None if shared is None else len(shared))
    arguments = resumable.arguments(
        work,
        model,
        epochs=total_epochs,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        gradient_clip=section.gradient_clip,
        schedule="constant" if until_stale else section.schedule,
        warmup_steps=round(section.warmup_share * steps_per_epoch * shortest),
        seed=seed,
        saved_each_epoch=until_stale,
    )
    checkpoint = resumable.newest_complete(work)
    shape, frozen = decoder_shape(model), 0
    learner = model
    if section.method == "lora":
        learner = lora.adapt(model, section, seed)
        shape, frozen = _with_adapters(shape, learner), shape.matrix_parameters
    patience = section.patience if until_stale else None
    watch = resumable.watch(work, order, patience, steps_per_epoch, checkpoint_seconds, progress, should_stop)
    trainer = resumable.ordered_trainer(
        order,
        _loss,
        model=learner,
        args=TrainingArguments(**arguments),
        train_dataset=examples if shared is None else shared,
        eval_dataset=valid,
        data_collator=partial(collate, fill=fill),
        callbacks=[watch],
    )
    resumable.be_quiet(trainer)
    if not (until_stale and checkpoint and resumable.is_stale(resumable.valid_losses(checkpoint), section.patience)):
        resumable.fit(trainer, watch, checkpoint)
    else:
        trainer.state = trainer.state.load_from_json(str(checkpoint / "trainer_state.json"))
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    kept_epochs = float(total_epochs)
    if until_stale:
        best = min(range(len(losses)), key=lambda epoch: (losses[epoch], epoch))
        _load(learner, work / f"checkpoint-{(best + 1) * steps_per_epoch}", section)
        kept_epochs, valid_loss = best + 1.0, losses[best]
    else:
        valid_loss = trainer.evaluate()["eval_loss"]
    if section.method == "lora":
        lora.merge(learner)
    made = len(losses) if until_stale else total_epochs
    useful, padding, tokens = training_flops(
        examples.lengths, order, made, section.batch_size // processes, shape, frozen
    )
    looks = max(1, len(losses))
    looked, unused = (looks * flops for flops in looking_flops(valid.lengths, resumable.EVALUATION_BATCH, shape))
    return Training(
        epochs=kept_epochs,
        steps=int(trainer.state.global_step),
        valid_loss=valid_loss,
        valid_losses=tuple(losses),
        # Every process looks at all valid examples; once would have done.
        cost=Cost(
            training=useful,
            policy=looked,
            padding=padding + (processes - 1) * looked + processes * unused,
            tokens=tokens,
        ),
    )


def _loss(model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Weighted cross-entropy of the completions' tokens, summed, and the sum of their weights."""
    import torch

    weights, labels = inputs["weights"], inputs["labels"][:, 1:]
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
    logits = output.logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    token_weights = weights.unsqueeze(1) * (labels != IGNORED)
    return (losses * token_weights).sum(), token_weights.sum()


def _with_adapters(shape: DecoderShape, learner: Any) -> DecoderShape:
    return replace(shape, matrix_parameters=shape.matrix_parameters + lora.adapter_parameters(learner))


def _load(learner: Any, checkpoint: Path, section: params.Train) -> None:
    if section.method == "lora":
        lora.load_adapters(learner, checkpoint)
    else:
        resumable.load_weights(learner, checkpoint / "model.safetensors")
