"""Networks that look at a Hex board: policy logits and a value from the mover's view.

    mlp    views [n, planes * cells] -> linear -> x + a_i relu(linear(x)), `layers` times -> heads
           Jones 2021, *Scaling Scaling Laws with Board Games*; residuals as ReZero's (Bachlechner et al. 2020): each
           begins with a_i = 0, so that a deep net starts as a shallow one
    conv   views [n, planes, size, size] -> 3 x 3 convolution -> `layers` residual blocks -> heads over all cells

The value is tanh of a number, what the mover may expect in -1..1. A snapshot is a folder: `model.safetensors`, and
`config.json` with the sizes; its name is the digest of its weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flywheel.errors import ModelError
from flywheel.models.checkpoints import weights_digest

GAME = "hex"


@dataclass(frozen=True, slots=True)
class BoardShape:
    """What a network is, and the boards it is for."""

    network: Literal["mlp", "conv"]
    width: int
    layers: int
    size: int
    swap: bool = False

    @property
    def cells(self) -> int:
        return self.size * self.size

    @property
    def planes(self) -> int:
        return 2 + self.swap

    @property
    def actions(self) -> int:
        return self.cells + self.swap

    @property
    def flops(self) -> float:
        """FLOPs to look at one position: 2 a multiply-add of its matrices and kernels. Known error: biases, activations
        and a kernel's reach over the border, which is counted as if the board went on, are not taken off or added."""
        heads = self.width * (1 if self.network == "mlp" else self.cells) * (self.actions + 1)
        if self.network == "mlp":
            body = self.layers * self.width**2
        else:
            body = 9 * self.cells * 2 * self.layers * self.width**2
        return 2.0 * (self._intake + body + heads)

    @property
    def training_flops(self) -> float:
        """FLOPs to learn from one position: forward, and backward at twice its price, but for the gradient of the
        views, which nobody asks for."""
        return 3.0 * self.flops - 2.0 * self._intake

    @property
    def _intake(self) -> int:
        return (1 if self.network == "mlp" else 9) * self.planes * self.cells * self.width


class Perceptron(nn.Module):
    """The `mlp`."""

    def __init__(self, shape: BoardShape) -> None:
        super().__init__()
        self.intake = nn.Linear(shape.planes * shape.cells, shape.width)
        self.blocks = nn.ModuleList(nn.Linear(shape.width, shape.width) for _ in range(shape.layers))
        self.scales = nn.Parameter(torch.zeros(shape.layers))
        self.heads = nn.Linear(shape.width, shape.actions + 1)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """[n, planes, size, size] to logits [n, actions] and values [n]."""
        x = self.intake(views.flatten(1)).relu()
        for scale, block in zip(self.scales, self.blocks, strict=True):
            x = x + scale * block(x).relu()
        found = self.heads(x)
        return found[:, :-1], found[:, -1].tanh()


class Convolution(nn.Module):
    """The `conv`."""

    def __init__(self, shape: BoardShape) -> None:
        super().__init__()
        width = shape.width
        self.intake = nn.Conv2d(shape.planes, width, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(shape.layers))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(shape.layers))
        self.scales = nn.Parameter(torch.zeros(shape.layers))
        self.heads = nn.Linear(width * shape.cells, shape.actions + 1)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """[n, planes, size, size] to logits [n, actions] and values [n]."""
        x = self.intake(views).relu()
        for scale, first, second in zip(self.scales, self.first, self.second, strict=True):
            x = (x + scale * second(first(x).relu())).relu()
        found = self.heads(x.flatten(1))
        return found[:, :-1], found[:, -1].tanh()


@dataclass(frozen=True, slots=True)
class BoardNet:
    """A network with its name and sizes."""

    model: nn.Module
    shape: BoardShape
    snapshot: str

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def build(shape: BoardShape) -> nn.Module:
    """A network of this shape with weights drawn from torch's generator."""
    return Perceptron(shape) if shape.network == "mlp" else Convolution(shape)


def create(shape: BoardShape, seed: int, folder: Path) -> str:
    """A network with random weights, a function of the seed, in `folder`; its snapshot digest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = build(shape)
    return save(model, shape, folder)


def save(model: nn.Module, shape: BoardShape, folder: Path) -> str:
    """Write `model.safetensors` and `config.json`; the snapshot digest."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    config = {"game": GAME, **asdict(shape)}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return weights_digest(folder)


def shape_of(folder: Path) -> BoardShape:
    """The shape of a snapshot. Raises ModelError where the folder holds none of a board network."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no snapshot: it has no config.json") from None
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if config.get("game") != GAME:
        kind = config.get("model_type") or config.get("game") or "something else"
        raise ModelError(f"{folder} holds a model of kind {kind}, expected a network for Hex, as domain hex trains")
    try:
        shape = BoardShape(**{name: value for name, value in config.items() if name != "game"})
    except TypeError as error:
        raise ModelError(f"{path} does not say what the network is: {error}") from error
    if shape.network not in {"mlp", "conv"}:
        raise ModelError(f"{path} names network {shape.network!r}, expected mlp or conv")
    return shape


def load(folder: Path, device: str = "cpu") -> BoardNet:
    """Load a snapshot, ready for inference. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shape = shape_of(folder)
    model = build(shape)
    snapshot = weights_digest(folder)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ModelError(f"{folder} does not hold the weights of the network its config.json names: {error}") from error
    return BoardNet(model.to(device).eval(), shape, snapshot)


def require(shape: BoardShape, size: int, swap: bool, source: str) -> None:
    """Raise ModelError for a network of other boards than these."""
    if (shape.size, shape.swap) != (size, swap):
        raise ModelError(
            f"{source} is a network for boards of {shape.size} cells a side{' with' if shape.swap else ' without'} the "
            f"swap rule, expected {size}{' with' if swap else ' without'}; name a snapshot of that kind"
        )


def evaluator(
    net: BoardNet,
) -> Callable[[npt.NDArray[np.float32]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """What a tree search asks: views to logits and values, without autograd, on the network's own device.

    For the `mlp` the products are written out, one a layer: the modules' own calls take longer at the sizes where a
    search is quick (`benchmarks/board_net.py`).
    """
    device = next(net.model.parameters()).device

    run: Callable[[Tensor], tuple[Tensor, Tensor]] = net.model
    if isinstance(net.model, Perceptron):
        run = _products(net.model)

    def evaluate(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        with torch.inference_mode():
            logits, values = run(torch.from_numpy(views).to(device))
            return logits.float().cpu().numpy(), values.float().cpu().numpy()

    return evaluate


def _products(model: Perceptron) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    held = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def layer(name: str) -> tuple[Tensor, Tensor]:
        # Contiguous as it is multiplied.
        return held[f"{name}.weight"].t().contiguous(), held[f"{name}.bias"]

    (intake, bias), (heads, heads_bias) = layer("intake"), layer("heads")
    blocks, scales = [layer(f"blocks.{number}") for number in range(len(model.blocks))], held["scales"].tolist()

    def run(views: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.addmm(bias, views.flatten(1), intake).relu_()
        for scale, (weight, offset) in zip(scales, blocks, strict=True):
            x.add_(torch.addmm(offset, x, weight).relu_(), alpha=scale)
        found = torch.addmm(heads_bias, x, heads)
        return found[:, :-1], found[:, -1].tanh()

    return run
