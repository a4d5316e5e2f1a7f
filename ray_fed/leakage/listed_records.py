"""Which records of a list are behind a message: the attack of one who holds the records of public databases.

Two tests, both without an optimiser, and both of messages of one step, of several, or of a sum over silos:

- **Row space.** The first layer's part of a message, [dL/dW, dL/db] = D^T [X, 1], has its rows in the span of the
  records behind it. A listed record counts by the part of [x, 1] outside that span. It needs nothing but the list, and
  ends where as many records are behind a message as a row has features.
- **Least squares on output gradients.** By the chain rule the gradient of a batch is, in all of its parameters,

        dL/dw = sum_j c_j  df(x_j; w)/dw,        c_j = dL/df_j   (2 (f(x_j) - y_j) / B for the squared error)

  a linear system with one unknown per listed record and output, and as many equations as the network has parameters:
  it ends only where the list is longer than that. c_j tells membership and, of one batch, the target. Updates of
  several steps are such sums as long as the network has not moved far (Jacot et al. 2018 call it the tangent kernel).
  Noise counts as in ridge regression, with the ratio of signal to noise that has the largest likelihood.

    symbol        code          shape
    [x, 1]        extended      [listed, num_features + 1]
    df/dw         (factors)     [listed * outputs, parameters], never written out: per linear layer delta and input
    K = J J^T     gram          [listed * outputs, listed * outputs]
    c             coefficients  [listed, outputs]
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import poisson
from torch import nn

ROW_SPACE, LEAST_SQUARES = "row space", "least squares"
BEYOND_CHANCE = 1e-3
"""Largest probability with which naming at random would name as many, below which a message counts as leaking."""
SIGNAL_TO_NOISE = 10.0 ** np.arange(-10, 13)
"""Variance of a coefficient times a gradient's mean square, over the noise of one coordinate: the values tried."""
SMALLEST_EIGENVALUE = 1e-10
"""Directions of the Gram matrix below this share of the largest carry rounding errors only."""


@dataclass(frozen=True)
class Named:
    """How many records of one silo a test named rightly, over messages."""

    right: int
    """Of those named, how many are behind the message."""
    named: int
    """Listed records behind the message, and as many are named: the attacker knows the number."""
    by_chance: float
    """How many of a random choice would be right, on average."""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether a random choice names as many with a probability below `BEYOND_CHANCE`. That of a Poisson variable is
        the larger one: a choice without replacement varies less."""
        return float(poisson.sf(self.right - 1, self.by_chance)) < BEYOND_CHANCE

    @property
    def share(self) -> float:
        """Return the share of the listed records behind the message that is named beyond chance, 0 to 1."""
        left = self.named - self.by_chance
        return max(0.0, (self.right - self.by_chance) / left) if self.is_beyond_chance and left > 0 else 0.0


class RecordList:
    """Records [listed, num_features], as the network sees them, that an attacker suspects."""

    def __init__(self, rows: np.ndarray):
        self.rows = np.unique(np.asarray(rows, np.float32), axis=0)
        self._known: dict[bytes, ListedGradients] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _positions(self) -> dict[bytes, int]:
        return {row.tobytes(): number for number, row in enumerate(self.rows)}

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Return where rows [num_rows, num_features] stand on the list, each once; those that do not are left out."""
        found = (self._positions.get(row.tobytes()) for row in np.ascontiguousarray(rows, np.float32))
        return np.array(sorted({position for position in found if position is not None}), np.intp)

    def strengths(
        self, message: Sequence[Any], network: nn.Module, together: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return attack -> how strongly each listed record is suspected [listed], and the coefficients [listed,
        outputs]. The strongest are named.

        message: one array per parameter; network: with the parameters that the silo was sent; together: records behind
        the message.
        """
        coefficients = self.gradients(network).coefficients(message)
        outside = row_space_residuals(np.asarray(message[0]), np.asarray(message[1]), self.rows, together)
        return {ROW_SPACE: -outside, LEAST_SQUARES: np.abs(coefficients).max(1)}, coefficients

    def gradients(self, network: nn.Module) -> "ListedGradients":
        """Return the output gradients of all listed records; kept for the last parameters asked for."""
        key = b"".join(parameter.detach().cpu().numpy().tobytes() for parameter in network.parameters())
        if key not in self._known:
            self._known = {key: ListedGradients(network, self.rows)}
        return self._known[key]


def row_space_residuals(weights: np.ndarray, bias: np.ndarray, rows: np.ndarray, together: int) -> np.ndarray:
    """Return |[x, 1] outside the span of the message| / |[x, 1]| of each listed record [listed], 0 to 1.

    weights [units, num_features], bias [units]: the first layer's part; together: records behind the message. All are
    equal where these are as many as a row's entries: then every row is in the span.
    """
    message = np.column_stack([weights, bias]).astype(np.float64)
    if together >= message.shape[1]:
        return np.ones(len(rows))
    span = np.linalg.svd(message, full_matrices=False)[2][:together]
    extended = np.column_stack([rows, np.ones(len(rows))]).astype(np.float64)
    inside = np.square(extended @ span.T).sum(1) / np.square(extended).sum(1)
    return np.sqrt(np.clip(1 - inside, 0, 1))


@dataclass(frozen=True)
class _Layer:
    """A linear layer's part of the output gradients of all listed records."""

    weight: int
    """Position among the network's parameters."""
    bias: int | None
    inputs: torch.Tensor
    """[listed, in]"""
    deltas: torch.Tensor
    """[listed, outputs, out]: gradient of each output at what the layer gives."""


class ListedGradients:
    """Gradients of a network's outputs in its linear layers' parameters, of listed records."""

    def __init__(self, network: nn.Module, rows: np.ndarray):
        self.layers = _layers(network, torch.from_numpy(np.asarray(rows, np.float32)))
        self.listed, self.outputs = self.layers[0].deltas.shape[:2]

    @cached_property
    def _spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = torch.linalg.eigh(self.gram())
        kept = values > SMALLEST_EIGENVALUE * values[-1]
        return values[kept], vectors[:, kept]

    def gram(self) -> torch.Tensor:
        """Return J J^T [listed * outputs, listed * outputs] in float64."""
        total = torch.zeros(self.listed * self.outputs, self.listed * self.outputs, dtype=torch.float64)
        for layer in self.layers:
            alike = layer.inputs @ layer.inputs.T + (layer.bias is not None)
            deltas = layer.deltas.flatten(0, 1)
            total += (deltas @ deltas.T) * alike.repeat_interleave(self.outputs, 0).repeat_interleave(self.outputs, 1)
        return total

    def products(self, message: Sequence[Any]) -> torch.Tensor:
        """Return J m [listed * outputs]."""
        total = torch.zeros(self.listed, self.outputs, dtype=torch.float64)
        for layer in self.layers:
            moved = layer.inputs @ _double(message[layer.weight]).T
            if layer.bias is not None:
                moved = moved + _double(message[layer.bias])
            total += (layer.deltas * moved[:, None]).sum(2)
        return total.flatten()

    def coefficients(self, message: Sequence[Any]) -> np.ndarray:
        """Return c [listed, outputs] with the smallest expected error under the message's own noise."""
        values, vectors = self._spectrum
        inside = vectors.T @ self.products(message) / values.sqrt()
        entries = [_double(message[position]) for layer in self.layers for position in _positions_of(layer)]
        size, length = sum(part.numel() for part in entries), sum(float(part.square().sum()) for part in entries)
        outside = max(0.0, length - float(inside.square().sum()))
        ratio = _likeliest_ratio(values, inside, outside, size)
        shrunk = inside * (ratio * values / (1 + ratio * values)) / values.sqrt()
        return (vectors @ shrunk).reshape(self.listed, self.outputs).numpy()


def _positions_of(layer: _Layer) -> tuple[int, ...]:
    return (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)


def _double(part: Any) -> torch.Tensor:
    return torch.as_tensor(part).detach().cpu().double()


def _likeliest_ratio(values: torch.Tensor, inside: torch.Tensor, outside: float, size: int) -> float:
    """Return the variance of coefficients over that of noise with the largest likelihood, both normal with mean 0."""
    best, chosen = -np.inf, 0.0
    for scale in SIGNAL_TO_NOISE:
        ratio = float(scale / values.mean())
        spread = 1 + ratio * values
        noise = (outside + float((inside.square() / spread).sum())) / size
        likelihood = -size / 2 * np.log(max(noise, np.finfo(float).tiny)) - float(spread.log().sum()) / 2
        if likelihood > best:
            best, chosen = likelihood, ratio
    return chosen


def _layers(network: nn.Module, rows: torch.Tensor) -> list[_Layer]:
    """Return inputs and output gradients of every linear layer that is called once."""
    network = copy.deepcopy(network).cpu().double().eval()
    numbers = {id(parameter): number for number, parameter in enumerate(network.parameters())}
    seen: dict[nn.Linear, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def keep(layer: nn.Module, given: tuple[torch.Tensor, ...], returned: torch.Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        seen.setdefault(layer, []).append((given[0].detach(), returned))

    hooks = [layer.register_forward_hook(keep) for layer in network.modules() if isinstance(layer, nn.Linear)]
    outputs = network(rows.double())
    for hook in hooks:
        hook.remove()
    once = {layer: calls[0] for layer, calls in seen.items() if len(calls) == 1 and calls[0][0].dim() == 2}
    gradients = [
        torch.autograd.grad(column.sum(), [returned for _, returned in once.values()], retain_graph=True)
        for column in outputs.reshape(len(rows), -1).unbind(1)
    ]
    return [
        _Layer(
            numbers[id(layer.weight)], None if layer.bias is None else numbers[id(layer.bias)], given,
            torch.stack([of_output[place] for of_output in gradients], 1),
        )
        for place, (layer, (given, _)) in enumerate(once.items())
    ]  # fmt: skip


def named(strengths: np.ndarray, behind: np.ndarray, mine: np.ndarray) -> tuple[Named, np.ndarray]:
    """Return how many of `mine` are among the records named, and these right ones: named are the strongest, as many as
    there are listed ones `behind`.

    strengths [listed]; behind, mine: positions on the list, mine a part of behind (all of it unless several silos are
    in a sum).
    """
    chosen = np.argsort(-strengths, kind="stable")[: len(behind)] if np.ptp(strengths) > 0 else np.array([], np.intp)
    right = np.intersect1d(chosen, mine)
    return Named(len(right), len(mine), len(behind) * len(mine) / len(strengths)), right


def together(of_messages: Sequence[Named]) -> Named:
    """Return the tests of several messages as one."""
    return Named(
        sum(one.right for one in of_messages), sum(one.named for one in of_messages),
        sum(one.by_chance for one in of_messages),
    )  # fmt: skip
