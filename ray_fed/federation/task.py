"""What is trained: samples, a network, a loss. A silo opens its samples through its task, inside its own process."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from ray_fed.learning.gradients import Loss
from ray_fed.learning.regression import RegressionSums, regression_metrics
from ray_fed.learning.scores import Metric, Scores

if TYPE_CHECKING:
    from ray_fed.federation.silo import Silo


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
    run: str = ""
    """Name of the run, for the file of the silo's ledger."""
    ledger_folder: str = ""
    """Folder on the silo's own disk for its ledger and its log, where its owner's site file names none; empty: it keeps
    no ledger."""


@dataclass(frozen=True)
class LocalRows:
    """A silo's own samples as arrays. Never leaves the process that made it."""

    features: np.ndarray
    """[num_examples, ...]; float64 [num_examples, num_features], finite, where the task standardises columns."""
    targets: np.ndarray
    """[num_examples, ...]: numbers, classes or masks, as the task's loss wants them."""
    held_out_features: np.ndarray
    held_out_targets: np.ndarray
    unreadable: Mapping[str, int]
    fingerprint: Mapping[str, object]
    agreement: Mapping[str, str]


class Task(ABC):
    """What silos and coordinator have in common: how samples become arrays, which network, which loss."""

    loss: Loss
    """(outputs, targets) -> mean loss, a 0-d tensor."""
    unit: str = ""
    """Unit of the target, where it has one."""
    standardises: bool = True
    """Whether the features are columns of a table that the federation standardises together before training."""

    @abstractmethod
    def load(self, spec: SiloSpec) -> LocalRows:
        """Open the silo's samples; DataError names the silo."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """Return the network with initial weights that depend on `seed` alone."""

    @abstractmethod
    def agreement(self) -> Mapping[str, str]:
        """Return what every silo's samples must agree with."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Whatever `score` may tell; the first is the one that tables, figures and comparisons begin with. A silo says
        these names when it opens its data, and no other ones leave it. Default: those of the default `score`."""
        return regression_metrics(self.unit)

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> Scores:
        """Return what an evaluation tells: sums over samples, none of them alone. Default: MAE, R² and MSE of one
        output [rows, 1] against targets [rows], in the target's unit."""
        return RegressionSums.of(targets, outputs[:, 0])

    def silo(self, spec: SiloSpec, device: str = "cpu") -> "Silo":
        """Return the silo that does this task."""
        from ray_fed.federation.silo import Silo

        return Silo(spec, self, device)
