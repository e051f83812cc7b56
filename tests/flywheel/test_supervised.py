"""Supervised learning: what is learned, that it stops at the best, and that a killed run ends as an unbroken one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel import params
from flywheel.errors import Interrupted
from flywheel.learning import supervised
from flywheel.learning.examples import IGNORED, EpochOrder, Examples, collate, training_flops
from flywheel.learning.supervised import Training
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.models.language import LanguageModel
from flywheel.problems.countdown import Countdown
from flywheel.records import Problem

SECTION = params.Train(batch_size=4, learning_rate=0.02, patience=2, seed_epochs=6, epochs=3)
"""Ten examples make three steps an epoch, the last of them a short one."""


class Killed(Exception):  # noqa: N818
    """Stands for a process that dies: nothing gets to tidy up."""


@pytest.fixture(scope="module")
def problems(countdown: Countdown) -> dict[str, list[Problem]]:
    return {"train": countdown.problems("train", 10), "valid": countdown.problems("valid", 6)}


def examples_of(
    model: LanguageModel, countdown: Countdown, problems: list[Problem], kind: type[Examples] = Examples
) -> Examples:
    return kind(
        (model.encode_prompt(countdown.prompt(p)), model.encode_answer(str(p.reference)), 1.0) for p in problems
    )


@pytest.fixture
def teach(
    model_folder: Path, countdown: Countdown, problems: dict[str, list[Problem]], tmp_path: Path
) -> Callable[..., tuple[Training, str, LanguageModel]]:
    """Train the tiny model in a work folder; the training, the digest of what came out, the model."""

    def run(work: str, until_stale: bool, **hooks: Any) -> tuple[Training, str, LanguageModel]:
        model = language.load(model_folder, "cpu", dtype="float32")
        training = supervised.train(
            model.model,
            examples_of(model, countdown, problems["train"]),
            examples_of(model, countdown, problems["valid"], hooks.pop("valid", Examples)),
            hooks.pop("section", SECTION),
            seed=11,
            fill=model.fill_id,
            work=tmp_path / work,
            until_stale=until_stale,
            **hooks,
        )
        language.save(model.model, model.tokenizer, tmp_path / f"{work}-out")
        return training, weights_digest(tmp_path / f"{work}-out"), model

    return run


def after(steps: int, error: Exception) -> Callable[[], None]:
    """A `should_stop` that raises at its so-many-th call, that is after so many optimiser steps of a process."""
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            raise error

    return stop


def cross_entropy(model: Any, prompt: list[int], completion: list[int]) -> tuple[Any, int]:
    """Summed loss of the completion's tokens given what precedes each, without padding; and their number."""
    import torch

    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    logs = torch.log_softmax(logits, dim=-1)
    return -sum(logs[len(prompt) + i - 1, token] for i, token in enumerate(completion)), len(completion)


def test_one_step_is_adam_on_the_weighted_loss_of_completions(
    model_folder: Path, countdown: Countdown, problems: dict[str, list[Problem]], tmp_path: Path
) -> None:
    """Against a loss and an Adam step written out: prompts and padding do not count, end tokens and weights do."""
    import torch

    given = [(countdown.prompt(p), str(p.reference)) for p in problems["train"][:3]]
    weights = [2.0, 0.5, 0.0]
    ours, plain = (language.load(model_folder, "cpu", dtype="float32") for _ in range(2))
    triples = [
        (ours.encode_prompt(prompt), ours.encode_answer(answer), weight)
        for (prompt, answer), weight in zip(given, weights, strict=True)
    ]
    section = params.Train(
        batch_size=3, learning_rate=1e-3, weight_decay=0.0, warmup_share=0.0, schedule="constant", gradient_clip=1e6
    )
    training = supervised.train(
        ours.model, Examples(triples), Examples(triples), section, seed=0, fill=ours.fill_id, work=tmp_path / "work",
        until_stale=False, epochs=1,
    )  # fmt: skip
    assert (training.steps, training.epochs) == (1, 1.0)

    plain.model.train()
    total, count = torch.tensor(0.0), 0.0
    for prompt, completion, weight in triples:
        loss, tokens = cross_entropy(plain.model, prompt, completion)
        total, count = total + weight * loss, count + weight * tokens
    (total / count).backward()
    optimiser = torch.optim.Adam(plain.model.parameters(), lr=1e-3)
    optimiser.step()
    for (name, got), expected in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(got, expected, atol=2e-5), name
    plain.model.eval()
    with torch.no_grad():
        parts = [(weight, *cross_entropy(plain.model, p, c)) for p, c, weight in triples]
    by_hand = sum(w * float(loss) for w, loss, _ in parts) / sum(w * n for w, _, n in parts)
    assert training.valid_loss == pytest.approx(by_hand, abs=1e-3)


def test_the_answer_is_learned_and_so_is_its_end(
    model_folder: Path, countdown: Countdown, problems: dict[str, list[Problem]], tmp_path: Path
) -> None:
    import torch

    model = language.load(model_folder, "cpu", dtype="float32")
    prompt, answer = countdown.prompt(problems["train"][0]), str(problems["train"][0].reference)
    one = Examples([(model.encode_prompt(prompt), model.encode_answer(answer), 1.0)])
    section = params.Train(learning_rate=0.02, schedule="constant", warmup_share=0.0)
    supervised.train(
        model.model, one, one, section, seed=0, fill=model.fill_id, work=tmp_path, until_stale=False, epochs=40
    )
    model.model.eval()
    ids = model.encode_prompt(prompt)
    out = model.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=50,
        do_sample=False,
    )  # fmt: skip
    assert out[0, len(ids) :].tolist() == model.encode_answer(answer), "it says the answer, ends it and says no more"


Teach = Callable[..., tuple[Training, str, LanguageModel]]


def test_the_same_call_gives_the_same_weights(teach: Teach) -> None:
    assert teach("one", False)[1] == teach("two", False)[1]


def test_early_stopping_keeps_the_best(
    teach: Teach, countdown: Countdown, problems: dict[str, list[Problem]], tmp_path: Path
) -> None:
    import torch

    section = SECTION.model_copy(update={"learning_rate": 0.1, "seed_epochs": 20})
    training, _, model = teach("work", True, section=section)
    losses = list(training.valid_losses)
    best = losses.index(min(losses))
    assert len(losses) < 20, "it stopped before its last epoch"
    assert len(losses) == best + 1 + section.patience, "after `patience` looks without a new best"
    assert (training.epochs, training.valid_loss) == (best + 1, losses[best])
    assert training.steps == 3 * len(losses)
    model.model.eval()
    with torch.no_grad():
        parts = [
            cross_entropy(model.model, model.encode_prompt(countdown.prompt(p)), model.encode_answer(str(p.reference)))
            for p in problems["valid"]
        ]
    by_hand = sum(float(loss) for loss, _ in parts) / sum(count for _, count in parts)
    assert by_hand == pytest.approx(training.valid_loss, rel=1e-5)


@pytest.mark.parametrize("until_stale", [True, False], ids=["until-stale", "fixed-epochs"])
def test_stopped_at_every_step_and_resumed_is_as_if_unbroken(teach: Teach, until_stale: bool) -> None:
    """One step a process, from the first to the last: mid-epoch, at an epoch's end, at the very end."""
    whole, digest, _ = teach("whole", until_stale)
    processes = 0
    while True:
        processes += 1
        try:
            got, resumed, _ = teach("cut", until_stale, should_stop=after(1, Interrupted("stop")))
        except Interrupted:
            assert processes <= whole.steps, "each process makes a step of progress"
            continue
        break
    assert processes == whole.steps + 1
    assert (got, resumed) == (whole, digest)


@pytest.mark.parametrize("until_stale", [True, False], ids=["until-stale", "fixed-epochs"])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_killed_and_resumed_is_as_if_unbroken(teach: Teach, until_stale: bool, steps: int, tmp_path: Path) -> None:
    """A checkpoint at every step, a death without tidying, and half a checkpoint lying around."""
    whole, digest, _ = teach("whole", until_stale)
    with pytest.raises(Killed):
        teach("cut", until_stale, checkpoint_seconds=1e-9, should_stop=after(steps, Killed()))
    half = tmp_path / "cut" / "checkpoint-9999"
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    got, resumed, _ = teach("cut", until_stale, checkpoint_seconds=1e-9)
    assert (got, resumed) == (whole, digest)
    assert not half.exists()


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_killed_while_looking_at_the_valid_loss(teach: Teach, looks: int) -> None:
    """A checkpoint is due at each step, so at an epoch's last one too; the epoch's loss must not be lost with it."""
    left = 6 * looks

    class Dying(Examples):
        def __getitem__(self, index: int) -> dict[str, Any]:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return super().__getitem__(index)

    whole, digest, _ = teach("whole", True)
    with pytest.raises(Killed):
        teach("cut", True, checkpoint_seconds=1e-9, valid=Dying)
    got, resumed, _ = teach("cut", True)
    assert (got, resumed) == (whole, digest)


def test_a_finished_training_is_found_again(teach: Teach) -> None:
    """Killed after training, before the stage wrote its model: nothing is trained twice."""
    for until_stale in (True, False):
        name = f"work-{until_stale}"
        whole, digest, _ = teach(name, until_stale, checkpoint_seconds=1e-9)
        steps: list[int] = []
        again = teach(name, until_stale, progress=lambda done, _: steps.append(done))  # noqa: B023
        assert again[:2] == (whole, digest)
        assert steps == []


def test_progress_and_cost(teach: Teach, model_folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    training, _, model = teach("work", False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 9) for step in range(1, 10)]
    assert training.cost.training > 0
    assert training.cost.policy > 0, "looking at the valid loss is work too"
    assert training.epochs == 3.0
    assert weights_digest(model_folder) == model.snapshot, "the model that was started from is left alone"


def test_training_leaves_the_config_alone(teach: Teach, tiny: LanguageModel) -> None:
    """Trainer switches the cache off in the config; a student saved so would generate without one elsewhere."""
    _, _, model = teach("work", False)
    assert model.model.config.to_dict() == tiny.model.config.to_dict()


def test_nothing_to_learn_is_an_error(tiny: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one example"):
        supervised.train(
            tiny.model, Examples([]), Examples([]), SECTION, seed=0, fill=0, work=tmp_path, until_stale=False
        )


def test_a_batch() -> None:
    examples = Examples([([5, 6], [7, 2], 1.0), ([8], [9, 10, 11, 2], 0.5)])
    batch = collate([examples[0], examples[1]], fill=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 0], [8, 9, 10, 11, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    i = IGNORED
    assert batch["labels"].tolist() == [[i, i, 7, 2, i], [i, 9, 10, 11, 2]]
    assert batch["weights"].tolist() == [1.0, 0.5]
    assert examples.lengths.tolist() == [4, 5]


def test_each_epoch_sees_every_example_in_an_order_of_its_own() -> None:
    order = EpochOrder(50, 3)
    epochs = []
    for epoch in (0, 1, 2):
        order.set_epoch(epoch)
        epochs.append(list(order))
        assert sorted(epochs[-1]) == list(range(50))
        assert epochs[-1] == order.order(epoch).tolist()
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(EpochOrder(50, 4)) != epochs[0]


def test_training_flops_by_hand() -> None:
    from flywheel.compute import DecoderShape

    shape = DecoderShape(100, 1, 4)
    lengths = np.array([3, 5, 4])
    order = EpochOrder(3, 0)
    first = lengths[order.order(0)]
    useful, padding, tokens = training_flops(lengths, order, 1, 2, shape)
    price = {n: 3 * (n * 2 * 100 + 4 * 4 * sum(range(1, n + 1))) for n in (3, 4, 5)}
    assert useful == pytest.approx(price[3] + price[4] + price[5])
    assert padding == pytest.approx(2 * price[max(first[:2])] - price[first[0]] - price[first[1]])
    assert tokens == 12
    part = training_flops(lengths, order, 1.5, 2, shape)
    assert part[2] == 12 + int(lengths[order.order(1)][:2].sum())
