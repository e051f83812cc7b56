"""Process reward models: worlds with a known rule, soft targets, masks, and what a killed run comes to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flywheel import sections
from flywheel.errors import Interrupted, ModelError
from flywheel.learning import reward_training
from flywheel.learning.resumable import load_weights
from flywheel.learning.reward_training import RewardTraining, StepExamples, collate, measure, scores
from flywheel.models import language, reward_model
from flywheel.problems.countdown import Countdown
from flywheel.seeds import generator

END, DIGIT = 1, 10
"""Token ids of a step's end, and of the digit 0."""
SECTION = sections.Supervise(epochs=3, batch_size=4, learning_rate=0.01)
"""Ten examples make three steps an epoch, the last of them a short one."""

Target = Callable[[int, np.random.Generator], float]


class Killed(Exception):  # noqa: N818
    """Stands for a process that dies: nothing gets to tidy up."""


def parity(digit: int, _: np.random.Generator) -> float:
    return float(digit % 2 == 0)


def rollouts(digit: int, draw: np.random.Generator) -> float:
    """The share of 8 completions that came right, where each does with chance digit / 9."""
    return float(draw.binomial(8, digit / 9)) / 8


def world(count: int, seed: int, target: Target) -> StepExamples:
    """Answers of 1 to 4 steps, each two digits and an end; a step's target is a function of its last digit."""
    draw = generator(seed, "world")
    triples = []
    for _ in range(count):
        ids, positions, targets = [3, 4], [], []
        for _ in range(int(draw.integers(1, 5))):
            first, last = draw.integers(0, 10, size=2).tolist()
            ids += [DIGIT + first, DIGIT + last, END]
            positions.append(len(ids) - 1)
            targets.append(target(last, draw))
        triples.append((ids, positions, targets))
    return StepExamples(triples)


def network(labels: int = 1, width: int = 32, dropout: float = 0.0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForTokenClassification

    config = LlamaConfig(
        vocab_size=20, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=2 * width, num_labels=labels, pad_token_id=0, classifier_dropout=dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return LlamaForTokenClassification(config)


@pytest.mark.parametrize("labels", [1, 2])
def test_it_learns_a_rule_for_answers_it_has_not_seen(labels: int, tmp_path: Path) -> None:
    section = sections.Supervise(epochs=15, batch_size=32, learning_rate=5e-3)
    model, valid = network(labels), world(60, 2, parity)
    training = reward_training.train(model, world(300, 1, parity), valid, section, seed=0, fill=0, work=tmp_path)
    assert training.valid_loss is not None
    assert training.valid_loss < 0.02
    assert (training.valid_auc, training.valid_accuracy) == (1.0, 1.0)
    odds, targets = scores(model, valid, fill=0)
    assert (((1 / (1 + np.exp(-odds))) > 0.5) == (targets == 1.0)).all(), "good is the higher score, not the lower"


def test_soft_targets_give_probabilities(tmp_path: Path) -> None:
    """Cast to bool every share above 0 would be a 1; rounded, they would be 0 and 1."""
    section = sections.Supervise(epochs=15, batch_size=32, learning_rate=5e-3)
    model = network()
    reward_training.train(
        model, world(300, 1, rollouts), world(10, 2, rollouts), section, seed=0, fill=0, work=tmp_path
    )
    each = StepExamples([([3, 4, DIGIT + 7, DIGIT + digit, END], [4], [digit / 9]) for digit in range(10)])
    odds, chances = scores(model, each, fill=0)
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(chances, abs=0.1)


def test_the_registrys_own_network_is_taught_and_read_alike(
    model_folder: Path, countdown: Countdown, tmp_path: Path
) -> None:
    """Made, encoded, trained, saved and loaded as the stage and the reward do: a step that begins with an even
    number is called right here, and so the reward says."""
    made = sections.Supervise(hidden_size=32, layers=2, heads=2, intermediate_size=64)
    reward_model.create(made, model_folder, 3, tmp_path / "made")
    read = sections.Reward(name="process", step_tag="\n")
    network = reward_model.load(tmp_path / "made", "cpu", read)
    triples = []
    for problem in countdown.problems("train", 40):
        hand = [int(number) for number in problem.payload["numbers"]]
        for number in hand:
            step = f"{number} + {min(hand)} = {number + min(hand)}"
            ids, positions = reward_model.encode_steps(network.tokenizer, countdown.prompt(problem), [step], "\n")
            triples.append((ids, positions, [float(number % 2 == 0)]))
    section = made.model_copy(update={"epochs": 15, "batch_size": 16, "learning_rate": 5e-3})
    examples = StepExamples(triples)
    training = reward_training.train(
        network.model, examples, examples, section, seed=1, fill=network.tokenizer.pad_token_id, work=tmp_path / "work"
    )
    assert training.valid_accuracy is not None
    assert training.valid_accuracy > 0.9
    language.save(network.model, network.tokenizer, tmp_path / "taught")
    loaded = reward_model.load(tmp_path / "taught", "cpu", read)
    assert scores(loaded.model, examples, fill=0)[0] == pytest.approx(scores(network.model, examples, fill=0)[0])
    logits = loaded.model(input_ids=torch_ids(triples[0][0])).logits[0, triples[0][1][0]]
    assert (logits[1] > logits[0]).item() == (triples[0][2][0] == 1.0), "label 1 is right"


def torch_ids(ids: list[int]) -> Any:
    import torch

    return torch.tensor([ids])


@pytest.mark.parametrize("labels", [1, 2])
def test_the_loss_by_hand_and_no_gradient_where_no_step_ends(labels: int) -> None:
    import torch

    rows = StepExamples([([3, 4, 5, 6, 7], [1, 3], [0.25, 1.0]), ([8, 9, 10], [2], [0.0])])
    batch = collate([rows[0], rows[1]], fill=0)
    logits = torch.randn(2, 5, labels, generator=torch.Generator().manual_seed(1)).requires_grad_()
    total, count = reward_training._loss(lambda **_: SimpleNamespace(logits=logits), batch)
    places, targets = [(0, 1), (0, 3), (1, 2)], [0.25, 1.0, 0.0]
    two = torch.stack([torch.cat([torch.zeros(2 - labels), logits[place]]) for place in places])
    by_hand = torch.nn.functional.cross_entropy(two, torch.tensor([[1 - t, t] for t in targets]), reduction="sum")
    assert count == 3
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    total.backward()
    touched = {tuple(place) for place in logits.grad.abs().sum(dim=-1).nonzero().tolist()}
    assert touched == set(places)


def test_a_batch() -> None:
    rows = StepExamples([([5, 6, 7], [2], [0.5]), ([8, 9, 10, 11], [1, 3], [1.0, 0.25])])
    batch = collate([rows[0], rows[1]], fill=2)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 9, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["scored"].tolist() == [[False, False, True, False], [False, True, False, True]]
    assert batch["targets"][batch["scored"]].tolist() == [0.5, 1.0, 0.25]
    assert (rows.steps, rows.lengths.tolist()) == (3, [3, 4])


@pytest.mark.parametrize(
    ("triple", "message"),
    [
        (([1, 2], [1], [-100.0]), "from 0 to 1"),
        (([1, 2], [1], [math.nan]), "from 0 to 1"),
        (([1, 2], [2], [1.0]), "outside its 2 tokens"),
        (([1, 2], [-1], [1.0]), "outside its 2 tokens"),
        (([1, 2], [1], [1.0, 0.0]), "1 positions and 2 targets"),
        (([1, 2], [], []), "at least one"),
    ],
)
def test_examples_that_cannot_be(triple: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepExamples([triple])


def test_auc_is_the_share_of_pairs_in_order() -> None:
    draw = generator(3, "auc")
    odds = draw.integers(-3, 4, size=60).astype(float)
    targets = draw.random(60)
    loss, area, accuracy = measure(odds, targets)
    good = targets >= 0.5
    pairs = [(a > b) + 0.5 * (a == b) for a in odds[good] for b in odds[~good]]
    assert area == pytest.approx(sum(pairs) / len(pairs))
    chances = 1 / (1 + np.exp(-odds))
    assert loss == pytest.approx(-(targets * np.log(chances) + (1 - targets) * np.log(1 - chances)).mean())
    assert accuracy == pytest.approx(((chances >= 0.5) == good).mean())
    assert measure(odds, np.ones(60))[1] is None


def test_held_out_problems_are_a_share_and_stay_the_same() -> None:
    names = [f"problem {number}" for number in range(4000)]
    out = [reward_training.is_held_out(name, 0.1) for name in names]
    assert 340 < sum(out) < 460, "4000 draws of 0.1: 400, three standard deviations are 57"
    assert out == [reward_training.is_held_out(name, 0.1) for name in names]
    assert all(reward_training.is_held_out(n, 0.2) for n, held in zip(names, out, strict=True) if held)
    assert not any(reward_training.is_held_out(name, 0.0) for name in names)


Teach = Callable[..., tuple[RewardTraining, dict[str, Any]]]


@pytest.fixture
def teach(tmp_path: Path) -> Teach:
    def run(work: str, **hooks: Any) -> tuple[RewardTraining, dict[str, Any]]:
        model = network(width=8, dropout=0.1)
        training = reward_training.train(
            model, world(10, 1, rollouts), world(5, 2, rollouts), SECTION, seed=3, fill=0, work=tmp_path / work, **hooks
        )
        return training, {name: weights.tolist() for name, weights in model.state_dict().items()}

    return run


def test_stopped_at_every_step_and_resumed_is_as_if_unbroken(teach: Teach) -> None:
    """With dropout, so that its random state has to be taken up too."""
    whole = teach("whole")
    assert teach("again") == whole
    processes = 0

    def stop() -> None:
        raise Interrupted("stop")

    while True:
        processes += 1
        try:
            resumed = teach("cut", should_stop=stop)
        except Interrupted:
            assert processes <= whole[0].steps
            continue
        break
    assert processes == whole[0].steps + 1
    assert resumed == whole


def test_killed_and_resumed_is_as_if_unbroken(teach: Teach, tmp_path: Path) -> None:
    left = 5

    def dies() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    whole = teach("whole")
    with pytest.raises(Killed):
        teach("cut", checkpoint_seconds=1e-9, should_stop=dies)
    (checkpoint,) = (tmp_path / "cut").glob("checkpoint-*")
    load_weights(network(width=8), checkpoint / "model.safetensors")
    assert teach("cut") == whole


def test_progress_and_cost_by_hand(teach: Teach) -> None:
    seen: list[tuple[int, int]] = []
    training, _ = teach("work", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 9) for step in range(1, 10)]
    # q, k, v, o and the three of the feed-forward layer, twice; the head's one label; look-ups are free.
    matrices = 2 * (4 * 8 * 8 + 3 * 8 * 16) + 8

    def forward(length: int) -> float:
        return length * 2 * matrices + 4 * 2 * 8 * length * (length + 1) / 2

    lengths, valid = world(10, 1, rollouts).lengths, world(5, 2, rollouts).lengths
    assert training.cost.training == pytest.approx(3 * 3 * sum(forward(length) for length in lengths))
    assert training.cost.reward == pytest.approx(sum(forward(length) for length in valid))
    assert training.cost.tokens == 3 * lengths.sum()
    assert training.cost.padding > 0


def test_nothing_held_out_is_none_not_zero(tmp_path: Path) -> None:
    training = reward_training.train(
        network(width=8), world(4, 1, parity), StepExamples([]), SECTION, seed=3, fill=0, work=tmp_path
    )
    assert (training.valid_loss, training.valid_auc, training.valid_accuracy) == (None, None, None)


def test_refused(tmp_path: Path) -> None:
    none = StepExamples([])
    with pytest.raises(ValueError, match="at least one example"):
        reward_training.train(network(), none, none, SECTION, seed=0, fill=0, work=tmp_path)
    with pytest.raises(ModelError, match="3 labels, expected 1, or 2"):
        reward_training.train(network(3), world(4, 1, parity), none, SECTION, seed=0, fill=0, work=tmp_path)
