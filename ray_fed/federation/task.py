"""What is trained: rows, a network, a loss. A silo opens its rows through its task, inside its own process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from ray_fed.learning.gradients import Loss


@dataclass(frozen=True)
class SiloSpec:
    """Everything needed to put a silo somewhere and let it open its own data there."""

    name: str
    """Name in every message, figure and error."""
    source: object
    """Where the silo finds its rows, in the terms of its task; opened by the silo, never by the driver."""
    num_gpus: float | None = None
    """GPUs reserved for the silo's actor: 1 pins it to one, 0.25 shares one among four, 0 trains on CPU; None takes an
    even share of what its site has, at most 1."""
    num_cpus: float = 1.0
    site: str = ""
    """Value of the node label `site` the silo must stand on; empty: anywhere."""
    state_folder: str = ""
    """Folder on the silo's own disk for its optimiser state, so that a restarted silo redoes a round exactly; empty: a
    restarted silo begins with fresh moments."""


@dataclass(frozen=True)
class LocalRows:
    """A silo's own rows after featurisation. Never leaves the process that made it."""

    features: np.ndarray
    """float64 [num_examples, num_features], finite."""
    targets: np.ndarray
    """float64 [num_examples]."""
    held_out_features: np.ndarray
    held_out_targets: np.ndarray
    unreadable: Mapping[str, int]
    fingerprint: Mapping[str, object]
    agreement: Mapping[str, str]


class Task(Protocol):
    """What silos and coordinator have in common: how rows become numbers, which network, which loss."""

    loss: Loss

    def load(self, spec: SiloSpec) -> LocalRows:
        """Open and featurise the silo's rows; DataError names the silo."""
        ...

    def model(self, seed: int) -> nn.Module:
        """Return the network with initial weights that depend on `seed` alone."""
        ...

    def agreement(self) -> Mapping[str, str]:
        """Return what every silo's rows must agree with."""
        ...
