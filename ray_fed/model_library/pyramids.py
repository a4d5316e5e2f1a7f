"""Random pyramid networks: depth, falling widths, learning rate and epochs drawn from ranges.

Yamada et al. 2019, Table 1 ("NN setup"): "the hyperparameters of each model were randomly selected from fixed ranges".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ray_fed.config import require
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
