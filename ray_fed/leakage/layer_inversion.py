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
from torch.nn import functional

from ray_fed.config import require
from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.targets import trainable
from ray_fed.leakage.traced import Operation, Trace, applied, rearrangement, trace

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


def why_no_chain(observation: AttackObservation) -> str:
    """Return why a message cannot be inverted layer by layer; empty where it can."""
    knows = observation.knows
    if knows.batch_size > 1 or knows.local_steps > 1 or knows.optimizer != "sgd":
        return "layers are inverted one by one for the gradient of a single example alone"
    recorded = trace_of(observation)
    if recorded.no_chain:
        return f"the network is no chain of layers that can be inverted: {recorded.no_chain}"
    weighted = [one for one in recorded.chain if one.weight]
    if not weighted or weighted[-1].kind != "linear" or recorded.chain[-1].kind not in ("linear", "rearrange"):
        return "the outputs are not those of a linear layer"
    missing = [one.weight for one in weighted if one.weight not in trainable(observation.network)]
    return f"the gradient of '{missing[0]}' is not in the message" if missing else ""


def is_chain(observation: AttackObservation) -> bool:
    """Whether the network is a chain this method can invert, and the message comes from one example and one step."""
    return not why_no_chain(observation)


def trace_of(observation: AttackObservation) -> Trace:
    """Return what the network computes, for one sample of the shape that the attacker knows."""
    knows = observation.knows
    kind = torch.long if knows.is_tokens else observation.parameters[0].dtype
    return trace(observation.network, torch.zeros(1, *knows.input_shape, dtype=kind))


@dataclass(frozen=True)
class LayerChain:
    """A chain, the messages and the weights of many observations in float64."""

    recorded: Trace
    message: dict[str, torch.Tensor]
    """[n, ...] by name of the parameter."""
    weights: dict[str, torch.Tensor]
    """[n, ...] by name, constants among them."""

    @classmethod
    def of(cls, observations: Sequence[AttackObservation]) -> "LayerChain":
        first = observations[0]
        names = trainable(first.network)
        message = [
            torch.stack(part).double().cpu() for part in zip(*(one.message for one in observations), strict=True)
        ]
        sent = [
            torch.stack(part).double().cpu() for part in zip(*(one.parameters for one in observations), strict=True)
        ]
        kept = {
            name: torch.stack([one.constants[name] for one in observations]).double().cpu() for name in first.constants
        }
        every = dict(zip(names, sent, strict=True))
        return cls(trace_of(first), dict(zip(names, message, strict=True)), {**every, **kept})

    def __len__(self) -> int:
        return len(next(iter(self.message.values())))

    def bias(self, one: Operation) -> torch.Tensor:
        """Return a layer's bias [n, out], zeros where it has none."""
        return (
            self.weights[one.bias] if one.bias else self.weights[one.weight].new_zeros(len(self), one.output_shape[0])
        )

    def tensors(self, problem: int) -> dict[str, torch.Tensor]:
        """Return the weights of one problem."""
        return {name: value[problem] for name, value in self.weights.items()}

    def undo_affine(
        self, one: Operation, after: torch.Tensor, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and dL/d of them before an operation that scales and shifts each value, e.g. a normalisation
        with given statistics."""
        scale, shift = [], []
        for problem in range(len(after)):
            nothing = torch.zeros(1, *one.input_shape, dtype=torch.float64)
            low, high = (applied(self.recorded, one, x, self.tensors(problem)) for x in (nothing, nothing + 1))
            scale.append((high - low)[0])
            shift.append(low[0])
        factor = torch.stack(scale)
        return (after - torch.stack(shift)) / factor, delta * factor


ConvolutionSolver = Callable[[Operation, LayerChain, Known, float], torch.Tensor]
"""(layer, chain, what is known of its output, guess for what nothing determines) -> its input."""


def invert_layers(observations: Sequence[AttackObservation]) -> torch.Tensor:
    """Return the inputs [n, 1, *input_shape] of chains (`is_chain`), inside the value range, in the message's dtype."""
    return walk_back(observations, _in_turn)


def walk_back(observations: Sequence[AttackObservation], solve: ConvolutionSolver) -> torch.Tensor:
    """Go through chains from the outputs to the inputs [n, 1, *input_shape]; `solve` inverts a convolution."""
    chain = LayerChain.of(observations)
    delta, values, known = output_delta(observations, chain), torch.empty(0), None
    sigmoids = any(one.kind == "sigmoid" for one in chain.recorded.chain)
    for place, one in reversed(list(enumerate(chain.recorded.chain))):
        if one.kind in ("linear", "convolution"):
            if known is None:
                last = values.numel() == 0
                known = Known(delta if last else values, torch.full_like(delta, float(not last)), delta)
            known = Known(*(part.reshape(-1, *one.output_shape) for part in (known.before, known.certain, known.delta)))
            if one.kind == "linear":
                values, delta = _linear(chain.weights[one.weight], chain.message[one.weight], known)
            else:
                # What nothing determines is guessed: the middle of the inputs' range, or of a sigmoid's.
                first = not any(other.weight for other in chain.recorded.chain[:place])
                values = solve(one, chain, known, 0.5 if first else 0.5 * sigmoids)
                delta = ConvolutionMaps(one, chain.weights[one.weight]).adjoint(known.delta.flatten(2))
            known = None
        elif one.kind in ACTIVATIONS:
            known = ACTIVATIONS[one.kind](values, delta, one)
            values, delta = known.before, known.delta
        elif values.numel() == 0:  # outputs that are only rearranged
            delta = _put_back(delta, chain.recorded, one)
        elif one.kind == "rearrange":
            values, delta = (_put_back(part, chain.recorded, one) for part in (values, delta))
            known = known and Known(values, _put_back(known.certain, chain.recorded, one), delta)
        else:
            values, delta = chain.undo_affine(
                one, values.reshape(-1, *one.output_shape), delta.reshape(-1, *one.output_shape)
            )
            certain = torch.ones_like(values) if known is None else known.certain.reshape(values.shape)
            known = Known(values, certain, delta)
    found = values.reshape(-1, 1, *observations[0].knows.input_shape).clamp(0.0, 1.0)
    return found.to(observations[0].message[0])


def _put_back(values: torch.Tensor, recorded: Trace, one: Operation) -> torch.Tensor:
    places = rearrangement(recorded, one)
    back = torch.empty_like(values.flatten(1))
    back[:, places] = values.flatten(1)
    return back.reshape(-1, *one.input_shape)


SCALES = 400
"""Lengths tried for the last layer's input, where the message has no bias gradient."""


def output_delta(observations: Sequence[AttackObservation], chain: LayerChain) -> torch.Tensor:
    """Return dL/d of the outputs of the last layer [n, out].

    It is the gradient of the layer's bias. Without one, dL/dW = d u^T gives both up to a factor s, which the outputs
    themselves decide: d = softmax(W s u + b) - y for cross-entropy, y from the sign.
    """
    output = chain.recorded.output
    assert output is not None
    if output.bias in chain.message and bool(chain.message[output.bias].any()):
        return chain.message[output.bias]
    require(
        observations[0].loss == "cross_entropy",
        "without the output bias's gradient only a cross-entropy can be inverted",
    )
    bias = chain.weights.get(output.bias)
    return torch.stack(
        [
            _scaled_delta(
                chain.weights[output.weight][i], chain.message[output.weight][i], None if bias is None else bias[i]
            )
            for i in range(len(chain))
        ]
    )


def _scaled_delta(weight: torch.Tensor, seen: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    left, size, right = torch.linalg.svd(seen, full_matrices=False)
    direction = right[0] * torch.sign(right[0].sum())  # features after a ReLU or sigmoid are not negative
    pull = size[0] * left[:, 0] * torch.sign(right[0].sum())
    label = int(pull.argmin())

    def misfit(scales: torch.Tensor) -> torch.Tensor:
        outputs = scales[:, None] * (weight @ direction) + (0 if bias is None else bias)
        wanted = outputs.softmax(1)
        wanted[:, label] -= 1
        return (wanted - pull / scales[:, None]).square().sum(1)

    low, high = 1e-4, 1e4
    for _ in range(4):
        scales = torch.logspace(torch.tensor(low).log10().item(), torch.tensor(high).log10().item(), SCALES).to(weight)
        best = int(misfit(scales).argmin())
        low, high = (float(scales[min(max(place, 0), SCALES - 1)]) for place in (best - 1, best + 1))
    return pull / scales[best]


def _linear(weight: torch.Tensor, seen: torch.Tensor, known: Known) -> tuple[torch.Tensor, torch.Tensor]:
    delta = known.delta.flatten(1)
    inputs = torch.einsum("noi,no->ni", seen, delta) / delta.square().sum(1, keepdim=True)
    return inputs, torch.einsum("noi,no->ni", weight, delta)


def _in_turn(one: Operation, chain: LayerChain, known: Known, middle: float) -> torch.Tensor:
    """Solve system (ii), then (i) for what it leaves open."""
    maps = ConvolutionMaps(one, chain.weights[one.weight])
    delta = known.delta.flatten(2)
    found, basis = _from_gradient(maps, delta, chain.message[one.weight], middle)
    wanted = (known.before - chain.bias(one)[:, :, None, None]).flatten(2)
    certain = known.certain.flatten(2)

    def project(u: torch.Tensor) -> torch.Tensor:
        flat = u.flatten(2)
        return (flat - flat @ basis @ basis.mT).reshape(u.shape)

    residual = certain * (wanted - maps.forward(found))
    step = least_squares(
        lambda u: certain * maps.forward(project(u)), lambda r: project(maps.adjoint(certain * r)), residual, found
    )
    return found + project(step)


class ConvolutionMaps:
    """A convolution with per-problem weights [n, out, channels, k, k] as a linear map, and its adjoint."""

    def __init__(self, one: Operation, weight: torch.Tensor):
        self.weight, self.shape, self.kernel = weight.flatten(2), one.input_shape, tuple(weight.shape[-2:])
        self.geometry = {"padding": one.padding, "stride": one.stride, "dilation": one.dilation}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, height, width] -> [n, out, positions]"""
        return self.weight @ functional.unfold(images, self.kernel, **self.geometry)

    def adjoint(self, values: torch.Tensor) -> torch.Tensor:
        """[n, out, positions] -> [n, channels, height, width]"""
        return functional.fold(self.weight.mT @ values, self.shape[1:], self.kernel, **self.geometry)

    def gradient_system(self, delta: torch.Tensor) -> torch.Tensor:
        """Return M [n, out * k * k, pixels]: what one channel's pixels contribute to its part of dL/dW."""
        pixels, size = self.shape[1] * self.shape[2], self.kernel[0] * self.kernel[1]
        place = self.places()
        system = delta.new_zeros(*delta.shape[:2], size, pixels + 1)
        system[:, :, torch.arange(size)[:, None], place] = delta[:, :, None]
        return system[..., 1:].flatten(1, 2)

    def gradient_columns(self, seen: torch.Tensor) -> torch.Tensor:
        """Return dL/dW [n, out, channels, k, k] as the right side of (ii): [n, out * k * k, channels]."""
        n, out, channels = seen.shape[:3]
        return seen.reshape(n, out, channels, -1).transpose(2, 3).reshape(n, -1, channels)

    def places(self) -> torch.Tensor:
        """Return the pixel, counted from 1, under each weight at each position [k * k, positions]; 0 is padding."""
        pixels = self.shape[1] * self.shape[2]
        numbers = torch.arange(1.0, pixels + 1, dtype=torch.float64).reshape(1, 1, *self.shape[1:])
        return functional.unfold(numbers, self.kernel, **self.geometry)[0].long()


def _from_gradient(
    maps: ConvolutionMaps, delta: torch.Tensor, seen: torch.Tensor, middle: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve (ii) where it is well determined, around `middle`; return inputs and the basis V of those directions."""
    # A message that does not determine delta (a withheld bias) must not break the decomposition of the others.
    system = torch.nan_to_num(maps.gradient_system(delta), nan=0.0, posinf=0.0, neginf=0.0)
    residual = maps.gradient_columns(seen) - middle * system.sum(2, keepdim=True)
    basis, squares = _row_space(system)
    found = basis @ ((basis.mT @ (system.mT @ residual)) / squares[:, :, None])
    return (found + middle).mT.reshape(-1, *maps.shape), basis


def _row_space(system: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an orthonormal basis [n, columns, r] of well-determined directions (zero columns where fewer) and s^2."""
    if system.shape[1] >= system.shape[2]:
        squares, basis = torch.linalg.eigh(system.mT @ system)
    else:
        squares, left = torch.linalg.eigh(system @ system.mT)
        basis = system.mT @ (left / squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()[:, None])
    kept = squares > RELATIVE_CUTOFF**2 * squares[:, -1:]
    return basis * kept[:, None], torch.where(kept, squares, 1.0)


def least_squares(
    forward: Callable[[torch.Tensor], torch.Tensor],
    adjoint: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor,
    like: torch.Tensor,
    steps: int = CONJUGATE_STEPS,
) -> torch.Tensor:
    """CGLS (Hestenes & Stiefel 1952): the u of least norm that minimises |forward(u) - residual|, per problem."""
    u = torch.zeros_like(like)
    slope = adjoint(residual)
    direction, size = slope, _squares(slope)
    start = size.clone()
    for _ in range(steps):
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


def _undo_sigmoid(after: torch.Tensor, delta: torch.Tensor, _: Operation) -> Known:
    after = after.clamp(EDGE, 1 - EDGE)
    return Known(torch.logit(after), torch.ones_like(after), delta * after * (1 - after))


def _undo_tanh(after: torch.Tensor, delta: torch.Tensor, _: Operation) -> Known:
    after = after.clamp(EDGE - 1, 1 - EDGE)
    return Known(torch.atanh(after), torch.ones_like(after), delta * (1 - after.square()))


def _undo_relu(after: torch.Tensor, delta: torch.Tensor, _: Operation) -> Known:
    largest = after.flatten(1).amax(1).reshape(-1, *[1 for _ in after.shape[1:]])
    live = (after > LIVE * largest).to(after)  # what was found carries errors: zero comes out as nearly zero
    return Known(after * live, live, delta * live)


def _undo_leaky_relu(after: torch.Tensor, delta: torch.Tensor, one: Operation) -> Known:
    factor = torch.ones_like(after).masked_fill(after <= 0, one.slope)
    return Known(after / factor, torch.ones_like(after), delta * factor)


def _undo_elu(after: torch.Tensor, delta: torch.Tensor, _: Operation) -> Known:
    low = after.clamp(EDGE - 1, 0)
    before = torch.where(after > 0, after, torch.log1p(low))
    return Known(before, torch.ones_like(after), delta * torch.where(after > 0, 1.0, low + 1))


def _undo_softplus(after: torch.Tensor, delta: torch.Tensor, _: Operation) -> Known:
    after = after.clamp_min(EDGE)
    return Known(after + torch.log(-torch.expm1(-after)), torch.ones_like(after), delta * -torch.expm1(-after))


def _undo_by_bisection(function: Callable[[torch.Tensor], torch.Tensor], lowest: float) -> "Undo":
    """Undo a function that rises from its minimum at `lowest`: what lies left of the minimum is taken for the value
    right of it that is as high, and not certain where a value below zero may have come from either side."""

    def undo(after: torch.Tensor, delta: torch.Tensor, _: Operation) -> Known:
        low, high = torch.full_like(after, lowest), after.clamp_min(0) + 2.0
        for _step in range(BISECTIONS):
            middle = (low + high) / 2
            above = function(middle) > after
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        before = ((low + high) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(function(before).sum(), before)
        return Known(before.detach(), (after > 0).to(after), delta * slope)

    return undo


Undo = Callable[[torch.Tensor, torch.Tensor, Operation], Known]
BISECTIONS = 60
ACTIVATIONS: dict[str, Undo] = {
    "sigmoid": _undo_sigmoid,
    "tanh": _undo_tanh,
    "relu": _undo_relu,
    "leaky_relu": _undo_leaky_relu,
    "elu": _undo_elu,
    "softplus": _undo_softplus,
    "gelu": _undo_by_bisection(functional.gelu, -0.7517916),
    "silu": _undo_by_bisection(functional.silu, -1.2784645),
}
"""Undoes an activation: (after, dL/d after, operation) -> what is known before it."""
