"""Invert a chain of layers from a single-example gradient, last layer first, by linear algebra alone.

In a layer z = W u + b with dL/dz = d, the message holds dL/dW = d u^T and dL/db = d. Known d, the input u of

- a linear layer is exact:  u = (dL/dW)^T d / |d|^2  (Phong et al. 2018; Geiping et al. 2020, Prop. 3.1)
- a convolution solves two linear systems, as in recursive gradient attacks (Zhu & Blaschko 2021, R-GAP):
      (i)  W * u = z - b          where z is known, from inverting the activation of the layer above
      (ii) sum over positions of d x patches(u) = dL/dW

Ours differs in how these are solved. System (ii) falls apart into one small system per input channel, with the same
matrix M for all of them, and is well conditioned where it has full rank (measured: 3 for DLG's LeNet). So it is solved
first, by its well-determined directions V; what it leaves open, (I - V V^T) u, comes from (i) by conjugate gradients.

    code       shape
    delta      [n, out, positions]         dL/dz
    seen       [n, out, channels * k * k]  dL/dW
    system     [n, out * k * k, pixels]    M of (ii)
    basis      [n, pixels, r]              V: directions of one channel that (ii) determines
    inputs     [n, channels, height, width]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.targets import PatchConv2d, image_patches, images_from_patches

RELATIVE_CUTOFF = 1e-3
"""Singular values of (ii) below this share of the largest are left to (i): float32 messages carry 1e-7."""
CONJUGATE_STEPS = 200
EDGE = 1e-7
"""Distance kept from 0 and 1 before a sigmoid is inverted."""
LIVE = 1e-4
"""Share of the largest value above which a ReLU counts as on."""


@dataclass(frozen=True)
class Known:
    """What is known of a layer's output after its activation was undone; all [n, ...] in the layer's output shape."""

    before: torch.Tensor
    """z, where `certain`."""
    certain: torch.Tensor
    """1 where the activation can be inverted, 0 where it cannot (a ReLU that is off)."""
    delta: torch.Tensor
    """dL/dz"""


def is_chain(observation: AttackObservation) -> bool:
    """Whether the network is a chain this method can invert, and the message comes from one example and one step."""
    knows, layers = (
        observation.knows,
        list(observation.network) if isinstance(observation.network, nn.Sequential) else [],
    )
    known = all(isinstance(layer, (PatchConv2d, nn.Linear, nn.Flatten, *ACTIVATIONS)) for layer in layers)
    weighted = [layer for layer in layers if isinstance(layer, PatchConv2d | nn.Linear)]
    single = knows.batch_size == 1 and knows.local_steps == 1
    return bool(single and known and weighted and layers[-1] is weighted[-1] and _fits(weighted))


def _fits(weighted: Sequence[nn.Module]) -> bool:
    """The last layer must be linear; every layer needs its bias."""
    return isinstance(weighted[-1], nn.Linear) and all(layer.bias is not None for layer in weighted)  # type: ignore


def invert_layers(observations: Sequence[AttackObservation]) -> torch.Tensor:
    """Return the inputs [n, 1, *input_shape] of chains (`is_chain`), inside the value range, in the message's dtype."""
    first = observations[0]
    assert isinstance(first.network, nn.Sequential)
    message = [torch.stack(part).double() for part in zip(*(one.message for one in observations), strict=True)]
    weights = [torch.stack(part).double() for part in zip(*(one.parameters for one in observations), strict=True)]
    shapes = _input_shapes(first)
    delta, values, known, place = message[-1], torch.empty(0), None, len(weights)
    for layer, shape in zip(reversed(first.network), reversed(shapes), strict=True):
        if isinstance(layer, nn.Linear | PatchConv2d):
            place -= 2
            known = known or Known(delta, torch.zeros_like(delta), delta)
            weight, bias, seen = weights[place], weights[place + 1], message[place]
            if isinstance(layer, nn.Linear):
                values, delta = _linear(weight, seen, known)
            else:
                middle = _middle(first, place)
                values, delta = _convolution(layer, weight, bias, seen, known, shape, middle)
        elif isinstance(layer, nn.Flatten):
            values, delta = values.reshape(-1, *shape), delta.reshape(-1, *shape)
        else:
            known = ACTIVATIONS[type(layer)](values, delta)
    return values.reshape(-1, 1, *first.knows.input_shape).clamp(0.0, 1.0).to(first.message[0].dtype)


def _input_shapes(observation: AttackObservation) -> list[tuple[int, ...]]:
    """Return the shape of each layer's input, without the batch."""
    shapes, values = [], torch.zeros(1, *observation.knows.input_shape)
    assert isinstance(observation.network, nn.Sequential)
    with torch.no_grad():
        for layer in observation.network.cpu():
            shapes.append(tuple(values.shape[1:]))
            values = layer(values)
    return shapes


def _middle(observation: AttackObservation, place: int) -> float:
    """Return the guess for what nothing determines: the middle of the inputs' range, or of a sigmoid's."""
    sigmoids = any(isinstance(layer, nn.Sigmoid) for layer in observation.network.modules())
    return 0.5 if place == 0 else 0.5 * sigmoids


def _linear(
    weight: torch.Tensor,
    seen: torch.Tensor,
    known: Known,
) -> tuple[torch.Tensor, torch.Tensor]:
    delta = known.delta.flatten(1)
    inputs = torch.einsum("noi,no->ni", seen, delta) / delta.square().sum(1, keepdim=True)
    return inputs, torch.einsum("noi,no->ni", weight, delta)


def _convolution(
    layer: PatchConv2d, weight: torch.Tensor, bias: torch.Tensor, seen: torch.Tensor, known: Known,
    shape: tuple[int, ...], middle: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    maps = ConvolutionMaps(layer, weight.flatten(2), shape)
    delta = known.delta.flatten(2)
    found, basis = _from_gradient(maps, delta, seen.flatten(2), middle)
    wanted = (known.before - bias[:, :, None, None]).flatten(2)
    certain = known.certain.flatten(2)

    def project(u: torch.Tensor) -> torch.Tensor:
        flat = u.flatten(2)
        return (flat - flat @ basis @ basis.mT).reshape(u.shape)

    residual = certain * (wanted - maps.forward(found))
    step = _least_squares(
        lambda u: certain * maps.forward(project(u)), lambda r: project(maps.adjoint(certain * r)), residual, found
    )
    return found + project(step), maps.adjoint(delta)


class ConvolutionMaps:
    """A convolution with per-problem weights [n, out, channels * k * k] as a linear map, and its adjoint."""

    def __init__(self, layer: PatchConv2d, weight: torch.Tensor, shape: tuple[int, ...]):
        self.weight, self.shape = weight, shape
        self.geometry = (layer.kernel_size[0], int(layer.padding[0]), layer.stride[0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, height, width] -> [n, out, positions]"""
        return self.weight @ image_patches(images, *self.geometry)

    def adjoint(self, values: torch.Tensor) -> torch.Tensor:
        """[n, out, positions] -> [n, channels, height, width]"""
        return images_from_patches(self.weight.mT @ values, self.shape[1:], *self.geometry)

    def gradient_system(self, delta: torch.Tensor) -> torch.Tensor:
        """Return M [n, out * k * k, pixels]: what one channel's pixels contribute to its part of dL/dW."""
        kernel, padding, stride = self.geometry
        pixels = self.shape[1] * self.shape[2]
        numbers = torch.arange(1.0, pixels + 1).reshape(1, *self.shape[1:])
        place = image_patches(numbers, kernel, padding, stride).long()  # [k * k, positions]; 0 is padding
        system = delta.new_zeros(*delta.shape[:2], kernel**2, pixels + 1)
        system[:, :, torch.arange(kernel**2)[:, None], place] = delta[:, :, None]
        return system[..., 1:].flatten(1, 2)


def _from_gradient(
    maps: ConvolutionMaps, delta: torch.Tensor, seen: torch.Tensor, middle: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve (ii) where it is well determined, around `middle`; return inputs and the basis V of those directions."""
    # A message that does not determine delta (a withheld bias) must not break the decomposition of the others.
    system = torch.nan_to_num(maps.gradient_system(delta), nan=0.0, posinf=0.0, neginf=0.0)
    n, out, channels = len(delta), delta.shape[1], maps.shape[0]
    seen = seen.reshape(n, out, channels, -1).transpose(2, 3).reshape(n, -1, channels)
    residual = seen - middle * system.sum(2, keepdim=True)
    basis, squares = _row_space(system)
    found = basis @ ((basis.mT @ (system.mT @ residual)) / squares[:, :, None])
    return (found + middle).mT.reshape(n, *maps.shape), basis


def _row_space(system: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an orthonormal basis [n, columns, r] of well-determined directions (zero columns where fewer) and s^2."""
    if system.shape[1] >= system.shape[2]:
        squares, basis = torch.linalg.eigh(system.mT @ system)
    else:
        squares, left = torch.linalg.eigh(system @ system.mT)
        basis = system.mT @ (left / squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()[:, None])
    kept = squares > RELATIVE_CUTOFF**2 * squares[:, -1:]
    return basis * kept[:, None], torch.where(kept, squares, 1.0)


def _least_squares(
    forward: Callable[[torch.Tensor], torch.Tensor],
    adjoint: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor,
    like: torch.Tensor,
) -> torch.Tensor:
    """CGLS (Hestenes & Stiefel 1952): the u of least norm that minimises |forward(u) - residual|, per problem."""
    u = torch.zeros_like(like)
    slope = adjoint(residual)
    direction, size = slope, _squares(slope)
    start = size.clone()
    for _ in range(CONJUGATE_STEPS):
        running = size > 1e-24 * start
        if not bool(running.any()):
            break
        image = forward(direction)
        alpha = torch.where(running, size / _squares(image).clamp_min(torch.finfo(size.dtype).tiny), 0.0)
        u, residual = u + _each(alpha, direction), residual - _each(alpha, image)
        slope = adjoint(residual)
        new = _squares(slope)
        direction = slope + _each(torch.where(running, new / size, 0.0), direction)
        size = torch.where(running, new, size)
    return u


def _squares(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).square().sum(1)


def _each(factor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return factor.reshape(-1, *[1 for _ in values.shape[1:]]) * values


def _undo_sigmoid(after: torch.Tensor, delta: torch.Tensor) -> Known:
    after = after.clamp(EDGE, 1 - EDGE)
    return Known(torch.logit(after), torch.ones_like(after), delta * after * (1 - after))


def _undo_tanh(after: torch.Tensor, delta: torch.Tensor) -> Known:
    after = after.clamp(EDGE - 1, 1 - EDGE)
    return Known(torch.atanh(after), torch.ones_like(after), delta * (1 - after.square()))


def _undo_relu(after: torch.Tensor, delta: torch.Tensor) -> Known:
    largest = after.flatten(1).amax(1).reshape(-1, *[1 for _ in after.shape[1:]])
    live = (after > LIVE * largest).to(after)  # what was found carries errors: zero comes out as nearly zero
    return Known(after * live, live, delta * live)


ACTIVATIONS: dict[type[nn.Module], Callable[[torch.Tensor, torch.Tensor], Known]] = {
    nn.Sigmoid: _undo_sigmoid,
    nn.Tanh: _undo_tanh,
    nn.ReLU: _undo_relu,
}
"""Undoes an activation: (after, dL/d after) -> what is known before it."""
