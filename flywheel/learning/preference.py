"""Learning from pairs: direct preference optimisation of a right answer over a wrong one to the same problem.

Rafailov et al. 2023, *Direct preference optimization*, eq. 7: loss = -log sigmoid(beta * margin), where the margin is
by how much more than the reference, the model as it was before, the student prefers the right answer, in nats. The loss
is `trl.DPOTrainer`'s (extra `preference`); around it, as everywhere here, order, checkpoints and stops are ours.
Answers are learned by the very token ids that they were sampled as: TRL, which takes texts, is given its own inner form
of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel import sections
from flywheel.compute import Cost, DecoderShape
from flywheel.errors import ConfigError
from flywheel.learning import lora, resumable
from flywheel.learning.examples import IGNORED, EpochOrder, collate, looking_flops, training_flops
from flywheel.models.language import decoder_shape

Row = Mapping[str, Any]
"""A row of the table `attempts`."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A right and a wrong answer to one prompt, as token ids; answers end with their end token."""

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class PreferenceTraining:
    """What a training came to."""

    pairs: int
    steps: int
    first_loss: float
    """Of the first batch before anything was learned: log 2, since student and reference were one model."""
    loss: float
    """Mean over the pairs, of the trained student."""
    margin: float
    """Mean over the pairs: nats by which the student prefers the right answer more than the reference did."""
    accuracy: float
    """Share of the pairs with a margin above 0."""
    cost: Cost


def pairs(attempts: Sequence[Row], threshold: float, per_problem: int) -> list[tuple[Row, Row]]:
    """At most `per_problem` (right, wrong) pairs of one problem's attempts, in the order of their `index`.

    Both have ended and were judged; right is a reward of at least `threshold`, wrong, well-formed or not, a lower one.
    Each text counts once, at its first attempt. Right and wrong ones are each used as evenly as can be. Fields read:
    index, output, stop_reason, reward.
    """
    ended = [row for row in attempts if row["stop_reason"] == "eos" and row["reward"] is not None]
    distinct: dict[str, Row] = {}
    for row in sorted(ended, key=lambda row: row["index"]):
        distinct.setdefault(row["output"], row)
    right = [row for row in distinct.values() if row["reward"] >= threshold]
    wrong = [row for row in distinct.values() if row["reward"] < threshold]
    if not right or not wrong:
        return []
    # Steps along both lists at once come back to their start after lcm of them; a shift then gives the pairs left out.
    turn = lcm(len(right), len(wrong))
    count = min(per_problem, len(right) * len(wrong))
    return [(right[n % len(right)], wrong[(n + n // turn) % len(wrong)]) for n in range(count)]


def train(
    model: Any,
    tokenizer: Any,
    preferences: Sequence[Preference],
    section: sections.Train,
    *,
    seed: int,
    fill: int,
    work: Path,
    checkpoint_seconds: float = 15.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
) -> PreferenceTraining:
    """Train `model` (a causal LM, float32) in place by `section.preference_*`, all of it or by adapters.

    `work` holds checkpoints; a call with the same model that finds complete ones goes on from the newest. `fill` is the
    padding id. `should_stop` may raise Interrupted, which leaves a checkpoint and goes on up; the model is of no use
    then. Raises ConfigError where trl is not installed.
    """
    require()
    from trl.trainer.dpo_config import DPOConfig

    if not preferences:
        raise ValueError("training needs at least one pair, got none")
    steps_per_epoch = -(-len(preferences) // section.batch_size)
    epochs = section.preference_epochs
    order = EpochOrder(len(preferences), seed)
    shape, frozen, adapters = decoder_shape(model), 0, 0
    reference = log_probabilities(model, preferences, fill)
    config = DPOConfig(
        **resumable.arguments(
            work,
            model,
            epochs=epochs,
            batch_size=section.batch_size,
            learning_rate=section.preference_learning_rate,
            weight_decay=section.weight_decay,
            gradient_clip=section.gradient_clip,
            schedule=section.schedule,
            warmup_steps=round(section.warmup_share * steps_per_epoch * epochs),
            seed=seed,
        ),
        beta=section.preference_beta,
        max_length=None,
        precompute_ref_log_probs=True,
        activation_checkpointing=False,
        logging_first_step=True,
    )
    watch = resumable.watch(work, order, None, steps_per_epoch, checkpoint_seconds, progress, should_stop)
    adapted = section.method == "lora"
    with _left_as_found(model):
        with lora.nameless(model):
            # TRL makes the adapters itself, so that it knows the frozen model to be the reference.
            trainer = _trainer(
                order,
                model=model,
                args=config,
                train_dataset=_dataset(preferences, reference),
                processing_class=copy.deepcopy(tokenizer),
                callbacks=[watch],
                peft_config=lora.configuration(model, section) if adapted else None,
            )
        if adapted:
            adapters, frozen = lora.adapter_parameters(trainer.model), shape.matrix_parameters
        resumable.be_quiet(trainer)
        resumable.fit(trainer, watch, resumable.newest_complete(work))
        if adapted:
            lora.merge(trainer.model)
    student = log_probabilities(model, preferences, fill)
    margins = (student[:, 0] - reference[:, 0]) - (student[:, 1] - reference[:, 1])
    lengths = np.array(
        [[len(p.prompt_ids) + len(p.chosen_ids), len(p.prompt_ids) + len(p.rejected_ids)] for p in preferences]
    )
    learned = replace(shape, matrix_parameters=shape.matrix_parameters + adapters)
    useful, padding, tokens = training_flops(lengths, order, epochs, section.batch_size, learned, frozen)
    # TRL makes logits once more on the way back, so as not to hold them: forward through the head alone.
    head = DecoderShape(shape.head_parameters, 0, 0)
    again = sum(training_flops(lengths, order, epochs, section.batch_size, head)[:2]) / 3.0
    looked, unused = looking_flops(lengths.ravel(), resumable.EVALUATION_BATCH, shape)
    return PreferenceTraining(
        pairs=len(preferences),
        steps=int(trainer.state.global_step),
        first_loss=float(trainer.state.log_history[0]["loss"]),
        loss=float(np.logaddexp(0.0, -section.preference_beta * margins).mean()),
        margin=float(margins.mean()),
        accuracy=float((margins > 0.0).mean()),
        # The reference's pass over the pairs, and the student's at the end.
        cost=Cost(training=useful, policy=2.0 * looked, padding=padding + again + 2.0 * unused, tokens=tokens),
    )


def require() -> None:
    """Raises ConfigError where trl is not installed."""
    from importlib.util import find_spec

    if find_spec("trl") is None:
        raise ConfigError(
            ["train.preference: dpo needs trl; pip install 'flywheel-search[preference]', or set it to none"]
        )


def log_probabilities(model: Any, preferences: Sequence[Preference], fill: int) -> npt.NDArray[np.float64]:
    """Log-probability of each pair's chosen and rejected answer given its prompt, nats; shape (pairs, 2)."""
    import torch

    sequences = [
        {"ids": np.array([*p.prompt_ids, *ids], dtype=np.int64), "prompt": len(p.prompt_ids), "weight": 1.0}
        for p in preferences
        for ids in (p.chosen_ids, p.rejected_ids)
    ]
    found: list[float] = []
    was_training = model.training
    model.eval()
    device = model.device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for start in range(0, len(sequences), resumable.EVALUATION_BATCH):
            batch = collate(sequences[start : start + resumable.EVALUATION_BATCH], fill)
            labels = batch["labels"][:, 1:].to(device)
            logits = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                use_cache=False,
            ).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
            )
            found += (-losses.sum(dim=1)).tolist()
    model.train(was_training)
    return np.array(found).reshape(-1, 2)


@contextmanager
def _left_as_found(model: Any) -> Iterator[None]:
    """TRL puts a forward of its own and its padding id on the model: both are taken off again."""
    forward = model.__dict__.get("forward")
    paddings = [(config, config.pad_token_id) for config in (model.config.get_text_config(), model.generation_config)]
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.forward = forward
        for config, padding in paddings:
            config.pad_token_id = padding


def _dataset(preferences: Sequence[Preference], reference: npt.NDArray[np.float64]) -> Any:
    """The columns that TRL's collator reads."""
    from datasets import Dataset  # type: ignore[import-untyped]

    return Dataset.from_dict(
        {
            "prompt_ids": [list(p.prompt_ids) for p in preferences],
            "chosen_ids": [list(p.chosen_ids) for p in preferences],
            "rejected_ids": [list(p.rejected_ids) for p in preferences],
            "ref_chosen_logps": reference[:, 0].tolist(),
            "ref_rejected_logps": reference[:, 1].tolist(),
        }
    )


def _trainer(order: EpochOrder, **made_with: Any) -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer

    class OrderedDPOTrainer(DPOTrainer):
        """TRL's, with our order of examples, token ids and reference; it tells nobody, and writes no card."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return order

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _send_telemetry(self) -> None:
            pass

        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

    return OrderedDPOTrainer(**made_with)
