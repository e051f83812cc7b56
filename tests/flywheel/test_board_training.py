"""Board training: what a step learns, symmetry, schedules, and going on after a stop as if there had been none."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flywheel import params
from flywheel.errors import FlywheelError, Interrupted
from flywheel.learning import board_training
from flywheel.learning.board_training import Examples, Training, examples_of
from flywheel.models import board_net
from flywheel.models.board_net import BoardShape
from flywheel.problems.hex import Games, parse

SHAPE = BoardShape("mlp", 32, 2, 4)


def searched(count: int, shape: BoardShape = SHAPE, seed: int = 0) -> tuple[Games, np.ndarray, np.ndarray]:
    """Positions of random games, some policy over their legal moves and a value of either sign."""
    draws = np.random.default_rng(seed)
    games = Games(shape.size, count, shape.swap)
    for _ in range(int(draws.integers(1, 5))):
        games.play([draws.choice(np.flatnonzero(legal)) for legal in games.legal()])
    policies = np.where(games.legal(), draws.random((count, games.actions)), 0.0)
    policies /= policies.sum(axis=1, keepdims=True)
    return games, policies.astype(np.float32), draws.uniform(-1, 1, count).astype(np.float32)


def examples(count: int, shape: BoardShape = SHAPE, seed: int = 0) -> Examples:
    games, policies, values = searched(count, shape, seed)
    weights = np.ones(count, np.float32)
    return examples_of(games.stones(), games.movers, games.plies, policies, values, weights, shape)


def fresh(shape: BoardShape = SHAPE, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    model = board_net.build(shape)
    with torch.no_grad():
        model.scales.fill_(0.3)  # type: ignore[operator]
    return model


def run(
    model: nn.Module, learned: Examples, work: Path, section: params.Train,
    should_stop: Callable[[], None] = lambda: None, checkpoint_seconds: float = 1e9,
) -> Training:  # fmt: skip
    return board_training.train(
        model, SHAPE, learned, section, seed=9, work=work, checkpoint_seconds=checkpoint_seconds,
        progress=lambda done, total: None, should_stop=should_stop,
    )  # fmt: skip


def state(model: nn.Module) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("swap", [False, True])
def test_examples_are_seen_as_the_mover_sees_them(swap: bool) -> None:
    shape = BoardShape("mlp", 8, 1, 4, swap)
    games, policies, values = searched(40, shape, 2)
    found = examples_of(games.stones(), games.movers, games.plies, policies, values, np.ones(40, np.float32), shape)
    assert (found.views == games.views().reshape(40, -1)).all()
    assert (found.policies == np.take_along_axis(policies, games.cells_of_views(), axis=1)).all()


def test_a_half_turn_of_the_board_is_the_half_turn_of_what_is_seen() -> None:
    """Of the board as text, turned by hand, for either mover."""
    for text in ("X.O./..X./.O../X...", "X.O./..X./.O../...."):
        games, turned = parse([text]), parse([text[::-1]])
        policy = np.arange(16, dtype=np.float32)[None]
        straight, expected = (
            examples_of(g.stones(), g.movers, g.plies, p, np.zeros(1, np.float32), np.ones(1, np.float32), SHAPE)
            for g, p in ((games, policy), (turned, policy[:, ::-1].copy()))
        )
        views, policies = board_training.turned(
            torch.from_numpy(straight.views), torch.from_numpy(straight.policies), SHAPE
        )
        assert (views.numpy() == expected.views).all()
        assert (policies.numpy() == expected.policies).all()


def test_the_gradient_is_that_of_the_weighted_mean_of_both_losses() -> None:
    learned, section = examples(6), params.Train(value_weight=0.7)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    model, plain = fresh(), fresh()
    batch = [
        torch.from_numpy(learned.views),
        torch.from_numpy(learned.policies),
        torch.from_numpy(learned.values),
        weights,
    ]
    sums = board_training._step(model, SHAPE, batch, torch.zeros(6, dtype=torch.bool), section)
    logits, found = plain(batch[0].float().reshape(6, 2, 4, 4))
    total = torch.zeros(())
    for row in range(6):
        free = torch.from_numpy(learned.views[row].reshape(2, 16).sum(axis=0) == 0)
        policy = -(batch[1][row][free] * logits[row][free].log_softmax(0)).sum()
        total = total + weights[row] * (policy + 0.7 * (found[row] - batch[2][row]) ** 2)
    (total / weights.sum()).backward()  # type: ignore[no-untyped-call]
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)
    assert sums[2] == weights.sum()
    assert float(sums[0] + 0.7 * sums[1]) == pytest.approx(total.item(), rel=1e-4)


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    learned = examples(64)
    section = params.Train(epochs=150, batch_size=32, learning_rate=1e-2, augment=False, weight_decay=0.0)
    model = fresh()
    training = run(model, learned, tmp_path, section)
    policies = learned.policies
    entropy = -np.where(policies > 0, policies * np.log(np.maximum(policies, 1e-30)), 0.0).sum(axis=1).mean()
    assert training.policy_loss < entropy + 0.05, "no cross-entropy is below the entropy of what is learned"
    assert training.policy_loss >= entropy
    assert training.value_loss < 0.02
    assert training.steps == 300
    assert training.cost.training == SHAPE.training_flops * 64 * 150


@pytest.mark.parametrize("ema", [None, 0.9])
def test_stopped_at_any_step_it_goes_on_to_the_same_weights(tmp_path: Path, ema: float | None) -> None:
    section = params.Train(epochs=3, batch_size=16, learning_rate=5e-3, ema=ema)
    whole = fresh()
    expected = run(whole, examples(50), tmp_path / "whole", section)
    total = 3 * 4
    for stop_at in range(1, total):
        seen = 0

        def stop(at: int = stop_at) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                raise Interrupted("asked to")

        work = tmp_path / str(stop_at)
        with pytest.raises(Interrupted):
            run(fresh(), examples(50), work, section, stop)
        again = fresh(seed=77)
        assert run(again, examples(50), work, section) == expected
        assert state(again) == state(whole)


def test_checkpoints_are_written_as_often_as_asked(tmp_path: Path) -> None:
    run(fresh(), examples(40), tmp_path / "often", params.Train(epochs=1, batch_size=8), checkpoint_seconds=1e-9)
    run(fresh(), examples(40), tmp_path / "never", params.Train(epochs=1, batch_size=8))
    assert [path.name for path in (tmp_path / "often").iterdir()] == ["checkpoint.pt"]
    assert not (tmp_path / "never").exists()


def test_the_average_of_the_weights_is_the_formula(tmp_path: Path) -> None:
    """Of two steps, from w0 to w1 to w2: the average is d (d w0 + (1-d) w1) + (1-d) w2."""
    one = params.Train(epochs=1, batch_size=20, learning_rate=1e-2, schedule="constant", warmup_share=0.0)
    two = one.model_copy(update={"epochs": 2})
    start, first, second, averaged = fresh(), fresh(), fresh(), fresh()
    run(first, examples(20), tmp_path, one)
    run(second, examples(20), tmp_path, two)
    run(averaged, examples(20), tmp_path, two.model_copy(update={"ema": 0.8}))
    w0, w1, w2, mean = (np.concatenate(list(state(model).values())) for model in (start, first, second, averaged))
    np.testing.assert_allclose(mean, 0.8 * (0.8 * w0 + 0.2 * w1) + 0.2 * w2, atol=1e-6)


def test_training_flops_bound_the_passes(tmp_path: Path) -> None:
    once = SHAPE.training_flops * 30
    for flops, passes in ((2.5 * once, 2), (0.1 * once, 1), (99 * once, 5)):
        training = run(fresh(), examples(30), tmp_path, params.Train(epochs=5, flops=flops, batch_size=30))
        assert training.epochs == passes


def test_learning_rate_rises_and_falls_as_said() -> None:
    cosine = params.Train(warmup_share=0.1, schedule="cosine")
    rates = [board_training.learning_rate(step, 100, cosine) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert board_training.learning_rate(99, 100, cosine) < 1e-3
    assert board_training.learning_rate(55, 100, cosine.model_copy(update={"schedule": "linear"})) == pytest.approx(0.5)
    assert board_training.learning_rate(99, 100, cosine.model_copy(update={"schedule": "constant"})) == 1.0


def test_nothing_to_learn_changes_nothing(tmp_path: Path) -> None:
    model = fresh()
    training = run(model, examples(0), tmp_path, params.Train())
    assert (training.steps, training.cost.training) == (0, 0.0)
    assert math.isnan(training.policy_loss)
    assert state(model) == state(fresh())


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    model = fresh()
    with torch.no_grad():
        model.intake.weight.fill_(math.inf)  # type: ignore[union-attr, operator]
    with pytest.raises(FlywheelError, match=r"the loss of epoch 1 is no number; lower train\.learning_rate"):
        run(model, examples(20), tmp_path, params.Train(epochs=1))
