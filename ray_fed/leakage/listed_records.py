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
  Noise counts as in ridge regression, with the ratio of signal to noise that has the largest likelihood. Where a
  defence has left out most entries, the same system of the entries that are left says more: left out is not zero.

Messages of several rounds are taken together by adding up what each says of a record (`added_up`). An attacker who does
not know how many records are behind a message has two kinds of strengths, small and large, and parts them
(`large_ones`).

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
from scipy.special import expit
from scipy.stats import poisson
from torch import nn

ROW_SPACE, LEAST_SQUARES, LEFT_ENTRIES = "row space", "least squares", "least squares of what is left"
KEPT_BYTES = 400e6
"""Of the output gradients of a list at several networks."""
SPARSE = 0.8
"""Share of zeros in a message from which on the entries that are left are a system of their own."""
MOST_LEFT = 800
"""Entries of that system: the largest."""
BEYOND_CHANCE = 1e-3
"""Largest probability with which naming at random would name as many, below which a message counts as leaking."""
SIGNAL_TO_NOISE = 10.0 ** np.arange(-10, 13)
"""Variance of a coefficient times a gradient's mean square, over the noise of one coordinate: the values tried."""
ITERATIONS = 200
SMALLEST_SQUARE = 1e-6
"""Of a strength, in units of the largest one: below it are rounding errors and records that hardly count."""
APART = 9.0
"""Ratio of the variances of large and small strengths from which on they are two kinds."""
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


@dataclass(frozen=True)
class Suspected:
    """Records that a test named without being told how many are behind the message."""

    right: int
    """Of those named, how many are behind the message."""
    named: int
    listed: int
    """Records on the list that are behind the message."""


NOBODY = Suspected(0, 0, 0)


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
        gradients = self.gradients(network)
        coefficients = gradients.coefficients(message)
        outside = row_space_residuals(np.asarray(message[0]), np.asarray(message[1]), self.rows, together)
        found = {ROW_SPACE: -outside, LEAST_SQUARES: np.abs(coefficients).max(1)}
        if gradients.is_sparse(message):
            found[LEFT_ENTRIES] = np.abs(gradients.coefficients_of_left(message)).max(1)
        return found, coefficients

    def gradients(self, network: nn.Module) -> "ListedGradients":
        """Return the output gradients of all listed records; kept for the last networks asked for."""
        key = b"".join(parameter.detach().cpu().numpy().tobytes() for parameter in network.parameters())
        found = self._known.pop(key, None) or ListedGradients(network, self.rows)
        self._known[key] = found
        while len(self._known) * (8 * len(self.rows) ** 2) > KEPT_BYTES and len(self._known) > 1:
            del self._known[next(iter(self._known))]
        return found


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
        return self._shrunk(vectors, values, inside, size, length)

    def is_sparse(self, message: Sequence[Any]) -> bool:
        """Whether so many entries are zero that a defence may have left them out."""
        parts = [np.asarray(part) for part in message]
        return sum(int((part == 0).sum()) for part in parts) > SPARSE * sum(part.size for part in parts)

    def coefficients_of_left(self, message: Sequence[Any]) -> np.ndarray:
        """Return c [listed, outputs] from the largest `MOST_LEFT` entries alone."""
        columns, told = self._largest(message)
        values, vectors = torch.linalg.eigh(columns.T @ columns)
        kept = values > SMALLEST_EIGENVALUE * values[-1]
        values, vectors = values[kept], vectors[:, kept]
        left = columns @ vectors / values.sqrt()
        return self._shrunk(left, values, vectors.T @ told, len(told), float(told.square().sum()))

    def _largest(self, message: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output gradients [listed * outputs, entries] at the largest entries, and these [entries]."""
        sizes = torch.cat([_double(message[layer.weight]).abs().flatten() for layer in self.layers])
        limit = sizes.topk(min(MOST_LEFT, int((sizes > 0).sum()))).values[-1]
        columns, told = [], []
        for layer in self.layers:
            part = _double(message[layer.weight])
            units, entries = torch.nonzero((part.abs() >= limit) & (part != 0), as_tuple=True)
            columns.append((layer.deltas[:, :, units] * layer.inputs[:, None, entries]).flatten(0, 1))
            told.append(part[units, entries])
        return torch.cat(columns, 1), torch.cat(told)

    def _shrunk(
        self, vectors: torch.Tensor, values: torch.Tensor, inside: torch.Tensor, size: int, length: float
    ) -> np.ndarray:
        """Return c [listed, outputs] of a message of `size` numbers and squared `length`, from its parts `inside` the
        directions `vectors` [listed * outputs, n] with eigenvalues `values`."""
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


def large_ones(strengths: np.ndarray) -> np.ndarray:
    """Return positions of the records that are suspected where nobody says how many are: those that more likely belong
    to the wider of two normal distributions with mean 0, fitted by expectation and maximisation; none where one is as
    good as two.

    strengths [listed], 0 or more.
    """
    squares = np.square(strengths / max(float(strengths.max(initial=0.0)), np.finfo(float).tiny)) + SMALLEST_SQUARE
    if np.ptp(squares) == 0:
        return np.array([], np.intp)
    order = np.sort(squares)
    share, narrow, wide = 0.1, float(np.mean(order[: len(order) // 2])), float(np.mean(order[-len(order) // 10 :]))
    for _ in range(ITERATIONS):
        log_odds = np.log(share / (1 - share)) + np.log(narrow / wide) / 2 + squares / 2 * (1 / narrow - 1 / wide)
        belongs = expit(log_odds)
        share = float(np.clip(belongs.mean(), 1 / len(squares), 1 - 1 / len(squares)))
        narrow = float((squares * (1 - belongs)).sum() / max((1 - belongs).sum(), 1e-12)) + SMALLEST_SQUARE
        wide = max(float((squares * belongs).sum() / max(belongs.sum(), 1e-12)), narrow)
    return np.flatnonzero(belongs > 0.5) if wide > APART * narrow else np.array([], np.intp)


def suspected(strengths: np.ndarray, behind: np.ndarray, mine: np.ndarray) -> Suspected:
    """Return how many of `mine` are named by one who does not know how many records are behind the message."""
    chosen = large_ones(strengths)
    others = np.setdiff1d(behind, mine)
    chosen = np.setdiff1d(chosen, others)  # rightly named, but of other silos
    return Suspected(len(np.intersect1d(chosen, mine)), len(chosen), len(mine))


def added_up(of_messages: Sequence[np.ndarray]) -> np.ndarray:
    """Return strengths [listed] of several messages of the same records taken together, each in units of its mean."""
    return np.sum([strengths / max(float(np.mean(strengths)), np.finfo(float).tiny) for strengths in of_messages], 0)


def together(of_messages: Sequence[Named]) -> Named:
    """Return the tests of several messages as one."""
    return Named(
        sum(one.right for one in of_messages), sum(one.named for one in of_messages),
        sum(one.by_chance for one in of_messages),
    )  # fmt: skip
