"""Algebraic attacks as they were published: the yardstick for `layer_inversion`, which is of their family.

- The analytic attack (Phong et al. 2018; Geiping et al. 2020, Prop. 3.1): in a first layer that is linear and has a
  bias, dL/dW_i = dL/db_i x for a single example, so x = (dL/dW)^T (dL/db) / |dL/db|^2.
- R-GAP (Zhu & Blaschko 2021): layer by layer from the outputs, each convolution by the least squares of both its
  systems at once, W * u = z - b and sum over positions of d x patches(u) = dL/dW. Written for biases and any
  activation that `layer_inversion` undoes; the systems are scaled to the same size and solved by conjugate gradients.
"""

from collections.abc import Sequence

import torch

from ray_fed.leakage.layer_inversion import ConvolutionMaps, Known, LayerChain, least_squares, trace_of, walk_back
from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.targets import trainable
from ray_fed.leakage.traced import Operation

STACKED_STEPS = 1500
"""Conjugate gradient steps: both systems at once are worse conditioned than one after the other."""


def recursive_inputs(observations: Sequence[AttackObservation]) -> torch.Tensor:
    """Return the inputs [n, 1, *input_shape] of chains by R-GAP."""
    return walk_back(observations, _stacked)


def _stacked(one: Operation, chain: LayerChain, known: Known, middle: float) -> torch.Tensor:  # noqa: ARG001
    """Return a convolution's input [n, channels, height, width] of least norm."""
    maps = ConvolutionMaps(one, chain.weights[one.weight])
    certain, delta = known.certain.flatten(2), known.delta.flatten(2)
    wanted = certain * (known.before - chain.bias(one)[:, :, None, None]).flatten(2)
    seen = maps.gradient_columns(chain.message[one.weight])
    system = torch.nan_to_num(maps.gradient_system(delta), nan=0.0, posinf=0.0, neginf=0.0)
    sizes = [_size(maps.weight), _size(system)]
    split = wanted[0].numel()

    def forward(u: torch.Tensor) -> torch.Tensor:
        outputs, gradient = certain * maps.forward(u), system @ u.flatten(2).mT
        return torch.cat([(outputs / sizes[0]).flatten(1), (gradient / sizes[1]).flatten(1)], dim=1)

    def adjoint(r: torch.Tensor) -> torch.Tensor:
        outputs, gradient = r[:, :split].reshape(wanted.shape), r[:, split:].reshape(seen.shape)
        back = (system.mT @ gradient / sizes[1]).mT.reshape(-1, *one.input_shape)
        return maps.adjoint(certain * outputs / sizes[0]) + back

    right = torch.cat([(wanted / sizes[0]).flatten(1), (seen / sizes[1]).flatten(1)], dim=1)
    return least_squares(forward, adjoint, right, wanted.new_zeros(len(wanted), *one.input_shape), STACKED_STEPS)


def _size(system: torch.Tensor) -> torch.Tensor:
    return system.flatten(1).square().mean(1).sqrt().clamp_min(1e-300)[:, None, None]


def why_no_ratio(observation: AttackObservation) -> str:
    """Return why the analytic attack cannot be used; empty where it can."""
    knows = observation.knows
    if knows.batch_size > 1 or knows.local_steps > 1 or knows.optimizer != "sgd":
        return "the ratio dW/db gives one sample's values for the gradient of a single example alone"
    first, scaled = _first_layer(observation)
    if first is None or first.kind != "linear":
        kind = first.kind if first else trace_of(observation).no_chain
        return f"the ratio dW/db needs a linear first layer, and the network begins otherwise ({kind})"
    if scaled:
        return "the inputs are scaled before the first layer"
    missing = [name for name in (first.weight, first.bias) if name not in trainable(observation.network)]
    return (
        f"the first layer's {'bias is' if first.bias in missing else 'weight is'} not in the message" if missing else ""
    )


def _first_layer(observation: AttackObservation) -> tuple[Operation | None, bool]:
    """Return the first operation with weights, and whether values are changed before it."""
    changed = False
    for one in trace_of(observation).first:
        if one.weight:
            return one, changed
        changed = changed or one.kind != "rearrange"
    return None, changed


def first_layer_ratio(observations: Sequence[AttackObservation]) -> torch.Tensor:
    """Return the inputs [n, 1, *input_shape] of networks that begin with a linear layer, by the analytic attack."""
    first, _ = _first_layer(observations[0])
    assert first is not None
    names = trainable(observations[0].network)
    weight, bias = (
        torch.stack([one.message[names.index(name)] for one in observations]).double()
        for name in (first.weight, first.bias)
    )
    found = torch.einsum("noi,no->ni", weight, bias) / bias.square().sum(1, keepdim=True)
    return found.reshape(-1, 1, *observations[0].knows.input_shape).clamp(0.0, 1.0)
