"""Board networks: the fast way gives what the modules give, FLOPs are as torch counts them, snapshots are checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flywheel.errors import ModelError
from flywheel.models import board_net
from flywheel.models.board_net import BoardNet, BoardShape
from flywheel.problems.hex import Games

SHAPES = [
    BoardShape("mlp", 24, 3, 5),
    BoardShape("mlp", 16, 1, 4, swap=True),
    BoardShape("conv", 8, 2, 5),
    BoardShape("conv", 6, 1, 4, swap=True),
]


def some_net(shape: BoardShape, folder: Path) -> BoardNet:
    """A network whose residuals have a say, which those of a new one have not."""
    board_net.create(shape, 5, folder)
    net = board_net.load(folder)
    with torch.no_grad():
        net.model.scales.copy_(torch.linspace(-0.7, 0.9, shape.layers))  # type: ignore[operator]
    return net


def views(shape: BoardShape, count: int) -> np.ndarray:
    draws = np.random.default_rng(3)
    games = Games(shape.size, count, shape.swap)
    for _ in range(5):
        games.play([draws.choice(np.flatnonzero(legal)) for legal in games.legal()])
    return games.views().astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fast_way_gives_what_the_modules_give(shape: BoardShape, tmp_path: Path) -> None:
    net, seen = some_net(shape, tmp_path), views(shape, 33)
    logits, values = board_net.evaluator(net)(seen)
    with torch.no_grad():
        expected = net.model(torch.from_numpy(seen))
    assert logits.shape == (33, shape.actions)
    assert values.shape == (33,)
    np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(values, expected[1].numpy(), atol=1e-5)
    assert (np.abs(values) <= 1.0).all()
    assert logits.std(axis=0).min() > 1e-4, "the position must matter"


def test_the_perceptron_is_the_formula(tmp_path: Path) -> None:
    shape = SHAPES[0]
    net, seen = some_net(shape, tmp_path), views(shape, 7)
    held = {name: tensor.numpy().astype(np.float64) for name, tensor in net.model.state_dict().items()}
    x = np.maximum(seen.reshape(7, -1) @ held["intake.weight"].T + held["intake.bias"], 0.0)
    for layer in range(shape.layers):
        inner = x @ held[f"blocks.{layer}.weight"].T + held[f"blocks.{layer}.bias"]
        x = x + held["scales"][layer] * np.maximum(inner, 0.0)
    heads = x @ held["heads.weight"].T + held["heads.bias"]
    logits, values = board_net.evaluator(net)(seen)
    np.testing.assert_allclose(logits, heads[:, :-1], atol=1e-5)
    np.testing.assert_allclose(values, np.tanh(heads[:, -1]), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flops_are_those_that_torch_counts(shape: BoardShape, tmp_path: Path) -> None:
    net, seen = some_net(shape, tmp_path), torch.from_numpy(views(shape, 3))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.model(seen)
    assert counter.get_total_flops() == 3 * shape.flops


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_snapshot_comes_back_as_it_was_and_is_named_by_its_weights(shape: BoardShape, tmp_path: Path) -> None:
    first = board_net.create(shape, 1, tmp_path / "a")
    assert board_net.create(shape, 1, tmp_path / "b") == first
    assert board_net.create(shape, 2, tmp_path / "c") != first
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    net = board_net.load(tmp_path / "a")
    assert (net.shape, net.snapshot) == (shape, first)
    assert net.parameters == sum(p.numel() for p in board_net.build(shape).parameters())
    assert board_net.save(net.model, net.shape, tmp_path / "d") == first


def test_creating_a_network_leaves_torch_s_own_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    board_net.create(SHAPES[0], 4, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_no_snapshot_of_these_boards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        board_net.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="a model of kind llama, expected a network for Hex"):
        board_net.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is no JSON"):
        board_net.load(tmp_path)
    board_net.create(SHAPES[0], 1, tmp_path)
    with pytest.raises(ModelError, match="5 cells a side without the swap rule, expected 7 without"):
        board_net.require(board_net.shape_of(tmp_path), 7, False, "gen/3")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 25}))
    with pytest.raises(ModelError, match="does not hold the weights of the network"):
        board_net.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "network": "rnn"}))
    with pytest.raises(ModelError, match="network 'rnn', expected mlp or conv"):
        board_net.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(ModelError, match="does not say what the network is"):
        board_net.load(tmp_path)
