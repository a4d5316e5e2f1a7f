"""Objective and slope of an attack on a chain of layers, written out: about half the work of two passes of autograd.

The objective D(g'(x), g) has the slope (dg'/dx)^T v with v = dD/dg'. Mixed derivatives commute, so this is the
derivative of dL/dx along the weights' direction v: one forward and one backward pass of tangents beside the usual ones
(Pearlmutter 1994), instead of a backward pass through the backward pass. With u a layer's input, P(u) its windows,
z = W P(u) + b, d = dL/dz, F the adjoint of P, f the activation, and dots for tangents:

    dL/dW = d P(u)^T                                  dL/db = sum d
    z'  = v_W P(u) + W P(u') + v_b                    u'_next = f'(z) z'
    e   = F(W^T d)                                    e' = F(v_W^T d + W^T d')
    d_before  = f'(z) e                               d'_before = f'(z) e' + f''(z) z' e

At the outputs d = (p - q) / B and d' = (diag(p) - p p^T) z' / B for labels q.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ray_fed.leakage.distances import Distance, squared_error
from ray_fed.leakage.layer_inversion import trace_of
from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.targets import trainable
from ray_fed.leakage.traced import Operation, rearrangement

Slopes = tuple[torch.Tensor, torch.Tensor | None]
"""f'(z) and f''(z); no f'' where it is zero everywhere."""


def _sigmoid(z: torch.Tensor, out: torch.Tensor, _: Operation) -> Slopes:  # noqa: ARG001
    first = out * (1 - out)
    return first, first * (1 - 2 * out)


def _tanh(z: torch.Tensor, out: torch.Tensor, _: Operation) -> Slopes:  # noqa: ARG001
    first = 1 - out.square()
    return first, -2 * out * first


def _relu(z: torch.Tensor, out: torch.Tensor, _: Operation) -> Slopes:  # noqa: ARG001
    return (z > 0).to(z), None


def _leaky_relu(z: torch.Tensor, out: torch.Tensor, one: Operation) -> Slopes:  # noqa: ARG001
    return torch.ones_like(z).masked_fill(z <= 0, one.slope), None


Activation = tuple[Callable[[torch.Tensor, Operation], torch.Tensor], Callable[..., Slopes]]
ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": (lambda z, _: torch.sigmoid(z), _sigmoid),
    "tanh": (lambda z, _: torch.tanh(z), _tanh),
    "relu": (lambda z, _: torch.relu(z), _relu),
    "leaky_relu": (lambda z, one: functional.leaky_relu(z, one.slope), _leaky_relu),
}


@dataclass
class _Passed:
    """What the first pass leaves of one operation."""

    columns: torch.Tensor | None = None
    """P(u) [n, batch, k, positions]"""
    slopes: Slopes | None = None
    delta: torch.Tensor | None = None
    """d [n, batch, out, positions] of a layer, e of an activation."""


class ChainKernel:
    """Chains of linear layers, convolutions and activations under cross-entropy, one gradient of a batch."""

    def __init__(self, observation: AttackObservation):
        self.operations = trace_of(observation).chain
        self.names = trainable(observation.network)
        recorded = trace_of(observation)
        self.places = {
            place: rearrangement(recorded, one)
            for place, one in enumerate(self.operations)
            if one.kind == "rearrange"
            and not torch.equal(order := rearrangement(recorded, one), torch.arange(len(order)))
        }
        """Orders of the operations that do more than change a shape."""

    @classmethod
    def fits(cls, observation: AttackObservation) -> bool:
        """Whether this kernel computes the attacks on an observation."""
        knows, chain = observation.knows, trace_of(observation).chain
        single = knows.local_steps == 1 and knows.optimizer == "sgd" and not knows.minibatch
        plain = observation.loss == "cross_entropy" and knows.statistics == "stored" and not knows.is_tokens
        kinds = {one.kind for one in chain} <= {"linear", "convolution", "rearrange", *ACTIVATIONS}
        names = {name for one in chain for name in (one.weight, one.bias) if name}
        known = names == set(trainable(observation.network)) and len(names) == sum(
            bool(name) for one in chain for name in (one.weight, one.bias)
        )
        return bool(chain) and single and plain and kinds and known and len(chain[-1].output_shape) == 1

    def __call__(
        self, inputs: torch.Tensor, labels: torch.Tensor, parameters: Sequence[torch.Tensor],
        seen: Sequence[torch.Tensor], distance: Distance,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Return the distance [n] and its slopes by inputs [n, batch, ...] and by labels [n, batch, classes].

        labels: shares of the classes [n, batch, classes].
        """
        weights = dict(zip(self.names, parameters, strict=True))
        outputs, passed = self._forward(inputs, weights)
        gradients = self._backward(outputs, labels, weights, passed)
        value, pull = _pulled(distance, [gradients[name] for name in self.names], seen)
        pulls = dict(zip(self.names, pull, strict=True))
        tangent = self._forward_tangent(weights, pulls, passed)
        share = outputs.softmax(2)
        mean = (share * tangent).sum(2, keepdim=True)
        slope = self._backward_tangent(share * (tangent - mean) / inputs.shape[1], weights, pulls, passed)
        by_label = (mean - tangent) / inputs.shape[1]
        return value, slope.reshape(inputs.shape), by_label

    def _forward(self, inputs: torch.Tensor, weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[_Passed]]:
        values, passed, n, batch = inputs, [], *inputs.shape[:2]
        for place, one in enumerate(self.operations):
            if one.weight:
                columns = _columns(one, values, weights[one.weight])
                values = _matrix(weights[one.weight])[:, None] @ columns
                if one.bias:
                    values = values + weights[one.bias][:, None, :, None]
                values = values.reshape(n, batch, *one.output_shape)
                passed.append(_Passed(columns))
            elif one.kind == "rearrange":
                values = self._moved(place, values)
                passed.append(_Passed())
            else:
                function, slopes = ACTIVATIONS[one.kind]
                out = function(values, one)
                passed.append(_Passed(slopes=slopes(values, out, one)))
                values = out
        return values, passed

    def _moved(self, place: int, values: torch.Tensor) -> torch.Tensor:
        flat = values.flatten(2)
        flat = flat[:, :, self.places[place]] if place in self.places else flat
        return flat.reshape(*values.shape[:2], *self.operations[place].output_shape)

    def _moved_back(self, place: int, values: torch.Tensor) -> torch.Tensor:
        flat = values.flatten(2)
        if place in self.places:
            back = torch.empty_like(flat)
            back[:, :, self.places[place]] = flat
            flat = back
        return flat.reshape(*values.shape[:2], *self.operations[place].input_shape)

    def _backward(
        self, outputs: torch.Tensor, labels: torch.Tensor, weights: dict[str, torch.Tensor], passed: list[_Passed]
    ) -> dict[str, torch.Tensor]:
        # Of soft labels that do not sum to one, the loss keeps the sum: d = p sum(q) - q.
        delta = (outputs.softmax(2) * labels.sum(2, keepdim=True) - labels) / outputs.shape[1]
        gradients: dict[str, torch.Tensor] = {}
        first = next(place for place, one in enumerate(self.operations) if one.weight)
        for place in range(len(self.operations) - 1, first - 1, -1):
            one, kept = self.operations[place], passed[place]
            if one.weight:
                delta = delta.reshape(*delta.shape[:2], one.output_shape[0], -1)
                kept.delta = delta
                assert kept.columns is not None
                gradients[one.weight] = _over_batch(delta @ kept.columns.mT).reshape(weights[one.weight].shape)
                if one.bias:
                    gradients[one.bias] = delta.sum((1, 3))
                if place > first:
                    delta = _images(one, _matrix(weights[one.weight]).mT[:, None] @ delta, weights[one.weight])
            elif one.kind == "rearrange":
                delta = self._moved_back(place, delta)
            else:
                kept.delta = delta
                assert kept.slopes is not None
                delta = delta * kept.slopes[0]
        return gradients

    def _forward_tangent(
        self, weights: dict[str, torch.Tensor], pulls: dict[str, torch.Tensor], passed: list[_Passed]
    ) -> torch.Tensor:
        """Return the tangent of the outputs, and leave those of the activations' inputs."""
        tangent: torch.Tensor | None = None
        for place, (one, kept) in enumerate(zip(self.operations, passed, strict=True)):
            if one.weight:
                assert kept.columns is not None
                moved = _matrix(pulls[one.weight])[:, None] @ kept.columns
                if tangent is not None:
                    columns = _columns(one, tangent, weights[one.weight])
                    moved = moved + _matrix(weights[one.weight])[:, None] @ columns
                if one.bias:
                    moved = moved + pulls[one.bias][:, None, :, None]
                tangent = moved.reshape(*moved.shape[:2], *one.output_shape)
            elif tangent is not None and one.kind == "rearrange":
                tangent = self._moved(place, tangent)
            elif tangent is not None:
                assert kept.slopes is not None
                assert kept.delta is not None
                slope, bend = kept.slopes
                kept.delta = None if bend is None else bend * tangent * kept.delta
                tangent = slope * tangent
        assert tangent is not None
        return tangent

    def _backward_tangent(
        self, tangent: torch.Tensor, weights: dict[str, torch.Tensor], pulls: dict[str, torch.Tensor],
        passed: list[_Passed],
    ) -> torch.Tensor:  # fmt: skip
        for place in range(len(self.operations) - 1, -1, -1):
            one, kept = self.operations[place], passed[place]
            if one.weight:
                assert kept.delta is not None
                tangent = tangent.reshape(kept.delta.shape)
                both = _matrix(pulls[one.weight]).mT[:, None] @ kept.delta
                both = both + _matrix(weights[one.weight]).mT[:, None] @ tangent
                tangent = _images(one, both, weights[one.weight])
            elif one.kind == "rearrange":
                tangent = self._moved_back(place, tangent)
            else:
                assert kept.slopes is not None
                tangent = tangent * kept.slopes[0]
                tangent = tangent if kept.delta is None else tangent + kept.delta
        return tangent


def _pulled(
    distance: Distance, virtual: list[torch.Tensor], seen: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Return a distance [n] and its slopes by the virtual message."""
    if distance is squared_error:
        off = [a - b for a, b in zip(virtual, seen, strict=True)]
        return squared_error(virtual, seen), [2 * part for part in off]
    leaves = [part.requires_grad_() for part in virtual]
    value = distance(leaves, seen)
    return value.detach(), torch.autograd.grad(value.sum(), leaves)


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(2)


def _columns(one: Operation, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the windows of inputs [n, batch, ...] as [n, batch, k, positions]; one position of a vector."""
    if one.kind == "linear":
        return values[..., None]
    flat = values.flatten(0, 1)
    kernel = tuple(weight.shape[-2:])
    found = functional.unfold(flat, kernel, one.dilation, one.padding, one.stride)
    return found.reshape(*values.shape[:2], *found.shape[1:])


def _images(one: Operation, columns: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Add windows up: the adjoint of `_columns`."""
    if one.kind == "linear":
        return columns[..., 0]
    kernel, size = tuple(weight.shape[-2:]), one.input_shape[1:]
    found = functional.fold(columns.flatten(0, 1), size, kernel, one.dilation, one.padding, one.stride)
    return found.reshape(*columns.shape[:2], *one.input_shape)


def _over_batch(values: torch.Tensor) -> torch.Tensor:
    return values[:, 0] if values.shape[1] == 1 else values.sum(1)
