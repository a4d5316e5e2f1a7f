"""Strategies that bound how far one silo can pull the model, by clipping its move before averaging."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.norms import clipped
from ray_fed.federation.strategies.averaging import fed_avg
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.one_model import OneModel, require_count, require_positive, rounded_model
from ray_fed.federation.strategies.updates import plain_mean, usable

DELTA = "server.delta"


def clipped_update(update: Update, centre: Vector, radius: float) -> Update:
    """Return the update with its vector brought into the ball of `radius` around `centre`."""
    return replace(update, vector=clipped(usable(update, len(centre)).vector, centre, radius))


@dataclass(frozen=True, kw_only=True)
class NormClipping(OneModel):
    """Clip each silo's move to a norm bound, then take the exact weighted mean. Streams.

    Sun et al. 2019 ("Can you really backdoor federated learning?"), norm thresholding of updates, without noise:

        x_{t+1} = x_t + sum_i alpha_i Delta_i / max(1, |Delta_i| / M),   Delta_i = w_i - x_t

        paper    code                                        shape, unit
        w_i      update.vector                               float32 [num_parameters]
        x_t      state[name]                                 float32 [num_parameters]
        M        max_norm                                    unit of the parameters
        alpha_i  update.num_examples / sum of num_examples   dimensionless

    A silo moves the model by at most alpha_i M, but it states its num_examples itself. If nothing is clipped the
    result has the bits of FedAvg.
    """

    max_norm: float = 1.0
    """Longest move that stays as it is. Depends on model and rounds; start from the median of honest silos' norms.
    The default is ours, the paper has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(max_norm=self.max_norm)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model = state[self.name]
        return {self.name: fed_avg(len(model), (clipped_update(update, model, self.max_norm) for update in updates))}


@dataclass(frozen=True, kw_only=True)
class CentredClipping(OneModel):
    """Clip each silo's move around the move of the round before, and average with equal weights.

    Karimireddy et al. 2021, the iteration labelled (CC), with the moves of a round in the place of momenta:

        v_0     = Delta_{t-1},   Delta_0 = 0
        v_{l+1} = v_l + 1/n sum_i (Delta_i - v_l) min(1, tau / |Delta_i - v_l|),   l = 0 ... num_iterations - 1
        x_{t+1} = x_t + Delta_t,   Delta_t = v_{num_iterations}

        paper    code                    shape, unit
        m_i      update.vector - x_t     float32 [num_parameters]
        v_l      centre - x_t            float32 [num_parameters]
        m        state["server.delta"]   float32 [num_parameters]
        tau      tau                     unit of the parameters
        L        num_iterations          count

    The paper clips worker momenta; silos here send whole rounds, whose length sets the scale of tau. A silo pulls by
    at most num_iterations * tau / n, whatever num_examples it claims. Streams with one iteration; more iterations
    hold all updates of the round.
    """

    tau: float = 10.0
    """Radius; the paper's value without momentum."""
    num_iterations: int = 1
    """The paper finds one enough, because the centre is remembered between rounds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(tau=self.tau)
        require_count(1, num_iterations=self.num_iterations)

    def start(self, initial: Vector, silos: Sequence[str]) -> State:  # noqa: ARG002
        return {self.name: initial, DELTA: np.zeros(len(initial), np.float32)}

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model, remedy = state[self.name], f"lower tau={self.tau}"
        centre = rounded_model(np.add(model, state[DELTA], dtype=np.float64), remedy)
        again = updates if self.num_iterations == 1 else list(updates)
        for _ in range(self.num_iterations):
            centre = plain_mean(_around(again, centre, self.tau), len(model))
        return {self.name: centre, DELTA: rounded_model(np.subtract(centre, model, dtype=np.float64), remedy)}


def _around(updates: Iterable[Update], centre: Vector, radius: float) -> Iterable[Update]:
    return (clipped_update(update, centre, radius) for update in updates)
