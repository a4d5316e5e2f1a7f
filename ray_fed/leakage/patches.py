"""Invert a vision transformer's first layer: windows that touch, and a learned position embedding after it.

With u_j the j-th window and h_j = W u_j + b + p_j, the gradient of the positions is dL/dp_j = dL/dh_j, and that of the
weight dL/dW = sum_j (dL/dh_j) u_j^T. Where there are at least as many features as windows, the windows are the least
squares solution (Lu et al. 2022, APRIL). It holds whatever comes after.

    code     shape
    pull     [n, windows, features]   dL/dp
    seen     [n, features, pixels]    dL/dW
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from ray_fed.leakage.layer_inversion import trace_of
from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.targets import trainable


def why_no_patches(observation: AttackObservation) -> str:
    """Return why the windows cannot be solved for; empty where they can."""
    knows, recorded = observation.knows, trace_of(observation)
    if knows.batch_size > 1 or knows.local_steps > 1 or knows.optimizer != "sgd":
        return "windows are solved for the gradient of a single example alone"
    if recorded.patches is None or not recorded.positions:
        return "the network does not begin with windows and positions that are learned"
    names = trainable(observation.network)
    if recorded.positions not in names or recorded.patches.weight not in names:
        return "the gradients of windows and positions are not both in the message"
    features, *windows = recorded.patches.output_shape
    count = windows[0] * windows[1]
    if features < count:
        return f"{features} features do not tell {count} windows apart"
    held = observation.parameters[names.index(recorded.positions)].numel()
    return "" if held == features * count else "the positions belong to more than the windows"


def invert_patches(observations: Sequence[AttackObservation]) -> torch.Tensor:
    """Return the inputs [n, 1, *input_shape], inside the value range."""
    recorded, shape = trace_of(observations[0]), observations[0].knows.input_shape
    names = trainable(observations[0].network)
    first = recorded.patches
    assert first is not None
    features = first.output_shape[0]
    pull = torch.stack([one.message[names.index(recorded.positions)] for one in observations]).double()
    pull = pull.reshape(len(observations), -1, features)
    seen = torch.stack([one.message[names.index(first.weight)] for one in observations]).double().flatten(2)
    windows = torch.linalg.lstsq(pull.mT, seen).solution
    found = functional.fold(windows.mT, shape[1:], first.stride, stride=first.stride)
    return found.reshape(-1, 1, *shape).clamp(0.0, 1.0)
