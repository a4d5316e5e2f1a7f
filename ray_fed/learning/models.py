"""The networks of the pipelines, built reproducibly from a seed."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from ray_fed.randomness import derived_seed

Network = TypeVar("Network")


def mlp(num_features: int, hidden: Sequence[int] = (200, 200), num_outputs: int = 1) -> nn.Sequential:
    """Return Linear-ReLU-...-Linear: the network of Guo et al. 2022, Fig. 2, is `mlp(73, (200, 200))`.

    Input [rows, num_features], output [rows, num_outputs].
    """
    layers: list[nn.Module] = []
    width = num_features
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, num_outputs))


def seeded_mlp(num_features: int, hidden: Sequence[int], seed: int, num_outputs: int = 1) -> nn.Sequential:
    """Return an `mlp` whose initial weights depend on `seed` alone; the global generator is left as it was."""
    return seeded(lambda: mlp(num_features, hidden, num_outputs), seed)


def seeded(make: Callable[[], Network], seed: int) -> Network:
    """Return a network whose initial weights depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "initial weights"))
        return make()
