"""Random pyramid networks, and many of one depth as one set of arrays: one matrix product serves them all.

Depth, falling widths, learning rate and epochs are drawn from ranges (Yamada et al. 2019, Table 1, "NN setup": "the
hyperparameters of each model were randomly selected from fixed ranges").

    symbol  code         shape                         meaning
    M                                                  networks in the stack
    B                                                  rows of a batch
    D                                                  features
    W_k     weights[k]   [M, outputs_k, inputs_k]      padded with zeros to the widest network of the stack
    b_k     biases[k]    [M, outputs_k]

All parameters are views of one flat vector, so that Adam is one pass over memory. Two things make it right:

- Padding stays zero. A padded unit has zero weights in and out, so its activation and its gradient are zero, too.
- Every network has a learning rate of its own, though Adam knows one. Adam's direction u does not depend on the scale
  of a parameter, so we let it move q = p / rate by u and take p = rate * q, which is p <- p - rate * u. The factor is
  0 for padding: rate and mask are one multiplication.

The gradients are written out: autograd's bookkeeping costs more than the arithmetic of networks this small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ray_fed.config import require
from ray_fed.learning.models import seeded_mlp
from ray_fed.randomness import derived_seed, generator


@dataclass(frozen=True)
class Pyramid:
    """One network to train: Linear-ReLU layers of falling width, then Linear(1)."""

    hidden: tuple[int, ...]
    """Widths of the hidden layers, first to last."""
    learning_rate: float
    """Step size of Adam."""
    epochs: int
    """Most passes over the training rows; early stopping may end sooner."""
    seed: int
    """Seed of the initial weights (`ray_fed.learning.models.seeded_mlp`)."""

    def __post_init__(self) -> None:
        require(bool(self.hidden) and min(self.hidden) >= 1, f"hidden={self.hidden} must be widths of 1 or more")
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.epochs >= 1, f"epochs={self.epochs} must be 1 or more")

    def num_parameters(self, num_features: int) -> int:
        """Return the number of weights and biases for inputs [rows, num_features]."""
        widths = (num_features, *self.hidden, 1)
        return sum(inputs * outputs + outputs for inputs, outputs in pairwise(widths))


@dataclass(frozen=True)
class PyramidRanges:
    """From where the hyperparameters of a random pyramid come."""

    depth: tuple[int, int] = (3, 6)
    """Fewest and most hidden layers (NN setup 3: 3 to 6)."""
    first: tuple[int, int] = (16, 48)
    """Narrowest and widest first hidden layer; the paper's widest is 348 (NN setup 3) to 1,640 (NN setup 2)."""
    last: tuple[int, int] = (5, 12)
    """Narrowest and widest last hidden layer (NN setup 3: at least 5); those between fall geometrically."""
    learning_rate: tuple[float, float] = (1e-3, 1e-2)
    """Drawn log-uniformly."""
    epochs: tuple[int, int] = (60, 120)
    """Most epochs of a model."""
    variants: int = 8
    """Networks in a row that share depth and widths and differ in learning rate, epochs and initial weights: equal
    widths need no padding where networks are trained together."""

    def __post_init__(self) -> None:
        for name in ("depth", "first", "last", "learning_rate", "epochs"):
            low, high = getattr(self, name)
            require(0 < low <= high, f"{name}={low},{high} must be positive and rising")
        require(self.last[0] <= self.first[0], f"last={self.last} must not be wider than first={self.first}")
        require(self.variants >= 1, f"variants={self.variants} must be 1 or more")


def random_pyramids(count: int, ranges: PyramidRanges, seed: int, *indices: int | str) -> list[Pyramid]:
    """Return `count` random pyramids; equal arguments give equal networks, and the first n never depend on `count`."""
    shapes = [
        _widths(ranges, generator(seed, "pyramid widths", *indices, number))
        for number in range(-(-count // ranges.variants))
    ]
    return [_pyramid(shapes[number // ranges.variants], ranges, seed, *indices, number) for number in range(count)]


def _pyramid(hidden: tuple[int, ...], ranges: PyramidRanges, seed: int, *indices: int | str) -> Pyramid:
    draw = generator(seed, "pyramid", *indices)
    rate = np.exp(draw.uniform(*np.log(ranges.learning_rate)))
    epochs = int(draw.integers(ranges.epochs[0], ranges.epochs[1] + 1))
    return Pyramid(hidden, float(f"{rate:.3g}"), epochs, derived_seed(seed, "pyramid weights", *indices))


def _widths(ranges: PyramidRanges, draw: np.random.Generator) -> tuple[int, ...]:
    """Draw depth, first and last width; the widths between fall by equal factors."""
    depth = int(draw.integers(ranges.depth[0], ranges.depth[1] + 1))
    first = int(draw.integers(ranges.first[0], ranges.first[1] + 1))
    last = int(draw.integers(ranges.last[0], min(ranges.last[1], first) + 1))
    return tuple(round(width) for width in np.geomspace(first, last, depth))


def stack_order(pyramids: Sequence[Pyramid]) -> list[int]:
    """Return positions sorted by depth, then widths: neighbours need little padding when they are stacked."""
    return sorted(range(len(pyramids)), key=lambda at: (len(pyramids[at].hidden), pyramids[at].hidden, at))


BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's defaults (Kingma & Ba 2015); kept on every card."""


class StackedNetworks:
    """M pyramids of one depth over the same D inputs, with their optimiser."""

    def __init__(self, pyramids: Sequence[Pyramid], num_features: int, device: str = "cpu"):
        assert len({len(pyramid.hidden) for pyramid in pyramids}) == 1, "a stack holds networks of one depth"
        self.pyramids, self.num_features, self.device = list(pyramids), num_features, torch.device(device)
        widest = [max(widths) for widths in zip(*(pyramid.hidden for pyramid in pyramids), strict=True)]
        self.widths = (num_features, *widest, 1)
        parameters, rates = zip(*(self._padded(pyramid) for pyramid in pyramids), strict=True)
        self._set(
            [torch.stack(tensors).to(self.device) for tensors in zip(*parameters, strict=True)],
            [torch.stack(tensors).to(self.device) for tensors in zip(*rates, strict=True)],
        )

    def __len__(self) -> int:
        return len(self.pyramids)

    def _padded(self, pyramid: Pyramid) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the initial parameters of a network and its rate at each of them; 0 in the padding."""
        initial = seeded_mlp(self.num_features, pyramid.hidden, pyramid.seed).parameters()
        shapes = [shape for inputs, outputs in pairwise(self.widths) for shape in ((outputs, inputs), (outputs,))]
        padded, rates = [], []
        for tensor, shape in zip(initial, shapes, strict=True):
            place = tuple(slice(0, size) for size in tensor.shape)
            padded.append(torch.zeros(shape))
            rates.append(torch.zeros(shape))
            padded[-1][place] = tensor.detach()
            rates[-1][place] = pyramid.learning_rate
        return padded, rates

    def _set(self, parameters: list[torch.Tensor], rates: list[torch.Tensor]) -> None:
        """Lay the tensors into flat vectors; Adam's state starts from zero."""
        self.shapes = [tensor.shape for tensor in parameters]
        self.parameters, self.rates = _flat(parameters), _flat(rates)
        self.scaled = torch.where(self.rates > 0, self.parameters / self.rates, 0.0)
        self.gradient = torch.zeros_like(self.parameters)
        self.scaled.grad = self.gradient
        self.optimizer = torch.optim.Adam([self.scaled], lr=1.0, betas=BETAS, eps=EPSILON, fused=True)
        self.weights, self.biases = self._layers(self.parameters)
        self._weight_gradients, self._bias_gradients = self._layers(self.gradient)

    def tensors(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return a flat vector as views weight, bias, weight, ...; each [M, ...]."""
        sizes = [shape.numel() for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]

    def _layers(self, flat: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        views = self.tensors(flat)
        return views[0::2], views[1::2]

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the activations of every hidden layer [M, B, width] and the outputs [M, B, 1] of inputs [B, D]."""
        count, first = len(self), self.widths[1]
        # The inputs are the same for all: the first layers are one product of two matrices.
        stacked = torch.addmm(self.biases[0].reshape(1, -1), inputs, self.weights[0].view(count * first, -1).T)
        activations = [stacked.relu_().view(len(inputs), count, first).transpose(0, 1)]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            output = torch.baddbmm(bias.unsqueeze(1), activations[-1], weight.transpose(1, 2))
            activations.append(output)
            if len(activations) < len(self.weights):
                output.relu_()
        return activations

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Move every network one step of Adam down its mean squared error over inputs [B, D], targets [B, 1]."""
        activations = self.forward(inputs)
        error = (activations[-1] - targets) * (2.0 / len(inputs))
        for layer in range(len(self.weights) - 1, 0, -1):
            before = activations[layer - 1]
            torch.bmm(error.transpose(1, 2), before, out=self._weight_gradients[layer])
            torch.sum(error, 1, out=self._bias_gradients[layer])
            error = torch.ops.aten.threshold_backward(torch.bmm(error, self.weights[layer]), before, 0)
        stacked = error.transpose(0, 1).reshape(len(inputs), -1)
        torch.mm(stacked.T, inputs, out=self._weight_gradients[0].view(-1, self.num_features))
        torch.sum(stacked, 0, out=self._bias_gradients[0].view(-1))
        self.optimizer.step()
        torch.mul(self.scaled, self.rates, out=self.parameters)

    def keep(self, positions: torch.Tensor) -> None:
        """Drop all networks but those at `positions`; the others go on as if nothing had happened."""
        state = self.optimizer.state[self.scaled]
        kept = {
            name: _flat([tensor.index_select(0, positions) for tensor in self.tensors(flat)])
            for name, flat in (("scaled", self.scaled), ("exp_avg", state["exp_avg"]),
                               ("exp_avg_sq", state["exp_avg_sq"]))
        }  # fmt: skip
        parameters, rates = (
            [tensor.index_select(0, positions) for tensor in self.tensors(flat)]
            for flat in (self.parameters, self.rates)
        )
        self.pyramids = [self.pyramids[at] for at in positions.tolist()]
        self._set(parameters, rates)
        self.scaled.copy_(kept.pop("scaled"))
        self.optimizer.state[self.scaled] = {"step": state["step"], **kept}


def unpadded(tensors: Sequence[torch.Tensor], at: int, pyramid: Pyramid) -> dict[str, np.ndarray]:
    """Return network `at` of stacked tensors as the arrays of `mlp(...)`: "0.weight", "0.bias", "2.weight", ..."""
    arrays = {}
    widths = (tensors[0].shape[2], *pyramid.hidden, 1)
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        weight, bias = tensors[2 * layer][at], tensors[2 * layer + 1][at]
        arrays[f"{2 * layer}.weight"] = weight[:outputs, :inputs].cpu().numpy().copy()
        arrays[f"{2 * layer}.bias"] = bias[:outputs].cpu().numpy().copy()
    return arrays


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
