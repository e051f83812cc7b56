"""Supervised fine-tuning on labels: cross-entropy of the completion's own token ids, the end token among them.

The loop is `transformers.Trainer`. Its overhead was measured against a bare PyTorch loop on a 0.8-million-parameter
Llama, batches of 64 short answers: 74-77 ms a step against 70-71 ms with two threads (5 to 9 %), 98 ms against 96 ms
with one (1 to 4 %, `benchmarks/trainer.py`), which is worth its schedules, mixed precision and checkpoints. What has to
be the same after a crash is kept out of its hands: the order of examples is ours (`EpochOrder`), early stopping is a
function of the losses in the checkpoint, and a checkpoint counts only once it is marked complete.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flywheel import params
from flywheel.compute import Cost
from flywheel.errors import Interrupted
from flywheel.learning.examples import IGNORED, EpochOrder, Examples, collate, training_flops
from flywheel.models.language import decoder_shape

_COMPLETE = "complete"
_EVALUATION_BATCH = 256


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
    """Train `model` (a causal LM, float32) in place.

    `until_stale` looks at the valid loss after each epoch, stops after `section.patience` epochs without a new best
    and keeps the best, making at most `epochs` passes (default `section.seed_epochs`); otherwise just `epochs` passes
    (default `section.epochs`) are made. `work` holds checkpoints; a call
    that finds complete ones goes on from the newest. `fill` is the padding id. `should_stop` may raise Interrupted,
    which leaves a checkpoint and goes on up.
    """
    from transformers import TrainingArguments

    if not len(examples):
        raise ValueError("training needs at least one example, got none")
    total_epochs = epochs if epochs is not None else section.seed_epochs if until_stale else section.epochs
    # A seed training's end is not known before; its warm-up is a share of the shortest it can be.
    shortest = section.patience if until_stale else total_epochs
    steps_per_epoch = -(-len(examples) // section.batch_size)
    order = EpochOrder(len(examples), seed)
    checkpoint = _newest_complete(work)
    device = model.device.type
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=_EVALUATION_BATCH,
        num_train_epochs=total_epochs,
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        max_grad_norm=section.gradient_clip,
        lr_scheduler_type="constant_with_warmup" if until_stale or section.schedule == "constant" else section.schedule,
        warmup_steps=round(section.warmup_share * steps_per_epoch * shortest),
        optim="adamw_torch_fused",
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        seed=seed % 2**32,
        eval_strategy="epoch" if until_stale else "no",
        save_strategy="epoch" if until_stale else "no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=device == "cuda",
    )
    patience = section.patience if until_stale else None
    watch = _watch(work, patience, steps_per_epoch, checkpoint_seconds, progress, should_stop)
    trainer = _trainer(
        order,
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=valid,
        data_collator=partial(collate, fill=fill),
        callbacks=[watch],
    )
    _be_quiet(trainer)
    if not (until_stale and checkpoint and _stale(_losses(checkpoint), section.patience)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        trainer.state = trainer.state.load_from_json(str(checkpoint / "trainer_state.json"))
    if watch.interrupted is not None:
        raise watch.interrupted
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    kept_epochs = float(total_epochs)
    if until_stale:
        best = min(range(len(losses)), key=lambda epoch: (losses[epoch], epoch))
        _load_weights(model, work / f"checkpoint-{(best + 1) * steps_per_epoch}")
        kept_epochs, valid_loss = best + 1.0, losses[best]
    else:
        valid_loss = trainer.evaluate()["eval_loss"]
    shape = decoder_shape(model)
    made = len(losses) if until_stale else total_epochs
    useful, padding, tokens = training_flops(examples.lengths, order, made, section.batch_size, shape)
    looked = sum(shape.forward_sequence(int(length)) for length in valid.lengths) * max(1, len(losses))
    return Training(
        epochs=kept_epochs,
        steps=int(trainer.state.global_step),
        valid_loss=valid_loss,
        valid_losses=tuple(losses),
        cost=Cost(training=useful, policy=looked, padding=padding, tokens=tokens),
    )


def _trainer(order: EpochOrder, **arguments: Any) -> Any:
    import torch
    from transformers import Trainer

    class OrderedTrainer(Trainer):  # type: ignore[misc]
        """Trainer with our order of examples and a loss that honours their weights."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return order

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            weights, labels = inputs["weights"], inputs["labels"][:, 1:]
            output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
            logits = output.logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
            )
            token_weights = weights.unsqueeze(1) * (labels != IGNORED)
            loss = (losses * token_weights).sum() / token_weights.sum()
            return (loss, {"logits": output.logits}) if return_outputs else loss

        def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            with torch.no_grad():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
            return loss.detach(), None, None

    return OrderedTrainer(**arguments)


def _watch(
    work: Path,
    patience: int | None,
    steps_per_epoch: int,
    checkpoint_seconds: float,
    progress: Callable[[int, int], None],
    should_stop: Callable[[], None],
) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Shows progress, stops on request or when stale, saves now and then, marks and prunes checkpoints."""

        def __init__(self) -> None:
            self.interrupted: Interrupted | None = None
            self._saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)
            try:
                should_stop()
            except Interrupted as error:
                self.interrupted = error
                control.should_training_stop = True
            # Where epochs are evaluated, the checkpoint at an epoch's end is the one that holds its loss: a save
            # before the evaluation would let a resumed run go on to the next epoch without it.
            if not self._epoch_is_over(state):
                overdue = time.monotonic() - self._saved > checkpoint_seconds
                control.should_save = self.interrupted is not None or overdue

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Trainer closes an epoch it was told to leave half-way as if it were whole; its loss must not count.
            if self.interrupted is not None and not self._epoch_is_over(state):
                control.should_evaluate = control.should_save = False

        def _epoch_is_over(self, state: Any) -> bool:
            return patience is not None and state.global_step % steps_per_epoch == 0

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
            if patience is not None and _stale(losses, patience):
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            newest = work / f"checkpoint-{state.global_step}"
            (newest / _COMPLETE).touch()
            self._saved = time.monotonic()
            keep = {newest.name}
            evaluated = [entry for entry in state.log_history if "eval_loss" in entry]
            if evaluated:
                keep.add(f"checkpoint-{min(evaluated, key=lambda entry: entry['eval_loss'])['step']}")
            for folder in work.glob("checkpoint-*"):
                if folder.name not in keep:
                    shutil.rmtree(folder)

    return Watch()


def _stale(losses: list[float], patience: int) -> bool:
    """Whether the last `patience` losses brought no new best."""
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _newest_complete(work: Path) -> Path | None:
    """The newest checkpoint that was written whole; others are removed."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / _COMPLETE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _losses(checkpoint: Path) -> list[float]:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]


def _load_weights(model: Any, checkpoint: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "model.safetensors")
    # A tied head is stored once, under the embedding's name.
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= set(model.all_tied_weights_keys), missing


def _be_quiet(trainer: Any) -> None:
    """Nothing on stdout: what the stage did is in its report."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
