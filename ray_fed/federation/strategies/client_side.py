"""Strategies with a half inside the silos: what they ask of local training, and SCAFFOLD's half on the server."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ray_fed.config import require
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.strategies.averaging import FedAvg, fed_avg
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.one_model import SteppedModel, require_positive, rounded_model, stepped
from ray_fed.learning.trainer import TrainingPlan

CONTROL = "server.control"

NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of any dimension
    nn.GroupNorm,
    nn.LayerNorm,
)


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose silos are pulled towards the parameters they received (Li et al. 2020, Algorithm 2 and Eq. 2).

    The averaging is that of FedAvg; the pull mu (w - w_t) is added to every local gradient
    (ray_fed/learning/steps.py). mu = 0 is FedAvg.
    """

    mu: float = 0.01
    """Strength of the pull; the paper tries 0.001 to 1."""

    def __post_init__(self) -> None:
        require(self.mu >= 0, f"mu={self.mu} must not be negative")

    def local_plan(self, plan: TrainingPlan, module: nn.Module) -> TrainingPlan:  # noqa: ARG002
        return replace(plan, proximal_mu=self.mu)


@dataclass(frozen=True)
class FedBN(FedAvg):
    """FedAvg in which every silo keeps its normalisation layers: scales, shifts, statistics (Li et al. 2021, Sec. 4).

    The silos' feature distributions differ, their normalisation absorbs it. The global model has no normalisation of
    its own, so it is evaluated by the silos only. ConfigError for a network without a normalisation layer.
    """

    def local_plan(self, plan: TrainingPlan, module: nn.Module) -> TrainingPlan:
        own = normalisation_parameters(module)
        has_statistics = any(isinstance(layer, NORMALISATIONS) for layer in module.modules())
        require(has_statistics, "fed_bn: the network has no normalisation layer, so there is nothing to keep")
        return replace(plan, keep_local=tuple(dict.fromkeys([*plan.keep_local, *own])), buffers="local")


def normalisation_parameters(module: nn.Module) -> list[str]:
    """Return the names of the scales and shifts of all normalisation layers."""
    return [
        f"{layer_name}.{name}" if layer_name else name
        for layer_name, layer in module.named_modules()
        if isinstance(layer, NORMALISATIONS)
        for name, _ in layer.named_parameters(recurse=False)
    ]


@dataclass(frozen=True, kw_only=True)
class Scaffold(SteppedModel):
    """Control variates that cancel the drift of unlike silos (Karimireddy et al. 2020, Algorithm 1).

        x_{t+1} = x_t + eta mean_{i in S}(y_i - x_t)                        lines 16-17
        c_{t+1} = c_t + |S|/N mean_{i in S}(c_i+ - c_i)

        paper       code                              shape
        x_t         state[name]                       float32 [num_values]
        c_t         state["server.control"]           float32 [num_values]; zero where a value is a buffer
        y_i         first half of update.vector       float32 [num_values]
        c_t+c_i+-c_i second half of update.vector     float32 [num_values]
        eta         eta                               dimensionless
        N           number of silos in `start`

    The means are weighted by examples, as in FedAvg (the paper's silos count alike): c is then the weighted mean of the
    c_i, which is the gradient of the weighted objective. A message is twice as long as FedAvg's. The silo's half is in
    ray_fed/learning/steps.py; a silo that loses its c_i (restart without a state folder) begins again with 0.
    """

    eta: float = 1.0
    """Server learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(eta=self.eta)

    def local_plan(self, plan: TrainingPlan, module: nn.Module) -> TrainingPlan:  # noqa: ARG002
        return replace(plan, control_variates=True)

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        num_silos = np.array([len(silos)], np.int64)
        return {self.name: initial, CONTROL: np.zeros_like(initial), "server.num_silos": num_silos}

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        return dict.fromkeys(silos, np.concatenate([state[self.name], state[CONTROL]]))

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model, control, num_silos = state[self.name], state[CONTROL], int(state["server.num_silos"][0])
        heard: set[str] = set()
        mean = fed_avg(2 * len(model), _noted(updates, heard))
        moved, controlled = np.split(mean.astype(np.float64), 2)
        remedy = f"lower eta={self.eta} or the silos' learning rate"
        return {
            **state,
            self.name: mean[: len(model)]
            if self.eta == 1
            else stepped(state, mean[: len(model)], model + self.eta * (moved - model), remedy),
            CONTROL: rounded_model(control + len(heard) / num_silos * (controlled - control), remedy),
        }


def _noted(updates: Iterable[Update], heard: set[str]) -> Iterable[Update]:
    for update in updates:
        heard.add(update.silo)
        yield update
