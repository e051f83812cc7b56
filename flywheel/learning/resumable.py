"""Training that a crash cannot change: what every kind of learning here shares of `transformers.Trainer`.

What has to be the same after a crash is kept out of Trainer's hands: the order of examples is ours (`EpochOrder`),
early stopping is a function of the losses in the checkpoint, and a checkpoint counts only once it is marked complete.
Not here: what is learned and by which loss, which is in `supervised`, `preference` and `reward_training`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel.errors import ConfigError, Interrupted
from flywheel.learning import ranks
from flywheel.learning.examples import EpochOrder

_COMPLETE = "complete"
EVALUATION_BATCH = 256


def arguments(
    work: Path,
    model: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    gradient_clip: float,
    schedule: str,
    warmup_steps: int,
    seed: int,
    saved_each_epoch: bool = False,
) -> dict[str, Any]:
    """What a TrainingArguments (or a subclass of it) is to be made with. `batch_size` is that of all processes
    together. Raises ConfigError where it cannot be split over them."""
    processes = ranks.count()
    device = model.device.type
    if batch_size % processes:
        raise ConfigError([cannot_share(batch_size, processes)])
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": batch_size // processes,
        "per_device_eval_batch_size": EVALUATION_BATCH,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "max_grad_norm": gradient_clip,
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
        "warmup_steps": warmup_steps,
        "optim": "adamw_torch_fused",
        "bf16": device == "cuda",
        "use_cpu": device == "cpu",
        "seed": seed % 2**32,
        "eval_strategy": "epoch" if saved_each_epoch else "no",
        "save_strategy": "epoch" if saved_each_epoch else "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": device == "cuda",
        # Trainer would write its own choice, no cache, into the model's config, where it would stay.
        "use_cache": getattr(model.config, "use_cache", False),
        "ddp_find_unused_parameters": False,
    }


def cannot_share(batch_size: int, processes: int) -> str:
    """What is wrong with a batch that does not divide."""
    return (
        f"train.batch_size ({batch_size}) must be a multiple of execution.training_processes ({processes}), which "
        f"share each batch; set it to {-(-batch_size // processes) * processes}"
    )


def ordered_trainer(
    order: EpochOrder, loss_fn: Callable[[Any, dict[str, Any]], tuple[Any, Any]], **made_with: Any
) -> Any:
    """A Trainer with our order of examples and our loss. `loss_fn` takes the model and a batch and returns the summed
    loss and the weight that it is to be divided by, both scalar tensors."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import Trainer

    class OrderedTrainer(Trainer):  # type: ignore[misc]
        """Takes examples in our order, and a mean that all processes share."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return order

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            if ranks.count() == 1:
                return super().get_eval_dataloader(eval_dataset)
            # Cut up among processes the batches would be others, and so would the mean of their means.
            return DataLoader(self.eval_dataset, batch_size=EVALUATION_BATCH, collate_fn=self.data_collator)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            return ranks.mean(*loss_fn(model, inputs))

        def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            with torch.no_grad():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
            return loss.detach(), None, None

    return OrderedTrainer(**made_with)


def fit(trainer: Any, watch: Any, checkpoint: Path | None) -> None:
    """Train, from a checkpoint where there is one. Raises Interrupted once a stop that was asked for is done."""
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if watch.interrupted is not None:
        raise watch.interrupted


def watch(
    work: Path,
    order: EpochOrder,
    patience: int | None,
    steps_per_epoch: int,
    checkpoint_seconds: float,
    progress: Callable[[int, int], None],
    should_stop: Callable[[], None],
) -> Any:
    """The callback that shows progress, stops and saves. `patience` counts looks at the valid loss; None: no looks."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Shows progress, stops on request or when stale, saves now and then, marks and prunes checkpoints."""

        def __init__(self) -> None:
            self.interrupted: Interrupted | None = None
            self._saved = time.monotonic()

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Trainer tells the order too, but not where several processes go on in the midst of an epoch.
            order.set_epoch(state.global_step // steps_per_epoch)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)
            try:
                should_stop()
            except Interrupted as error:
                self.interrupted = error
            overdue = time.monotonic() - self._saved > checkpoint_seconds
            stop, overdue = ranks.agree(self.interrupted is not None, overdue)
            if stop:
                self.interrupted = self.interrupted or Interrupted("stopped with the first process")
                control.should_training_stop = True
            # Where epochs are evaluated, the checkpoint at an epoch's end is the one that holds its loss: a save
            # before the evaluation would let a resumed run go on to the next epoch without it.
            if not self._epoch_is_over(state):
                control.should_save = stop or overdue

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Trainer closes an epoch it was told to leave half-way as if it were whole; its loss must not count.
            if self.interrupted is not None and not self._epoch_is_over(state):
                control.should_evaluate = control.should_save = False

        def _epoch_is_over(self, state: Any) -> bool:
            return patience is not None and state.global_step % steps_per_epoch == 0

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
            if patience is not None and is_stale(losses, patience):
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._saved = time.monotonic()
            ranks.wait()  # each has its own random state to write
            if not ranks.is_first():
                return
            newest = work / f"checkpoint-{state.global_step}"
            (newest / _COMPLETE).touch()
            keep = {newest.name}
            evaluated = [entry for entry in state.log_history if "eval_loss" in entry]
            if evaluated:
                keep.add(f"checkpoint-{min(evaluated, key=lambda entry: entry['eval_loss'])['step']}")
            for folder in work.glob("checkpoint-*"):
                if folder.name not in keep:
                    shutil.rmtree(folder)

    return Watch()


def is_stale(losses: list[float], patience: int) -> bool:
    """Whether the last `patience` losses brought no new best."""
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def newest_complete(work: Path) -> Path | None:
    """The newest checkpoint that was written whole; others are removed."""
    if ranks.is_first():
        for folder in work.glob("checkpoint-*"):
            if not (folder / _COMPLETE).exists():
                shutil.rmtree(folder)
    ranks.wait()
    whole = list(work.glob("checkpoint-*"))
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def valid_losses(checkpoint: Path) -> list[float]:
    """The valid losses that a checkpoint has seen, an epoch each."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]


def load_weights(model: Any, file: Path) -> None:
    """Put the tensors of a safetensors file, all of a model's, into it."""
    from safetensors.torch import load_file

    # A tied head is stored once, under the embedding's name.
    missing, unexpected = model.load_state_dict(load_file(file), strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= set(model.all_tied_weights_keys), missing


def be_quiet(trainer: Any) -> None:
    """Nothing on stdout: what the stage did is in its report."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
