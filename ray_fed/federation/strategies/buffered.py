"""FedBuff: the server moves on after a few updates, so slow silos hold nobody up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.one_model import SteppedModel, require_count, require_positive, stepped
from ray_fed.federation.strategies.updates import plain_mean

TURNS = "server.turns"
"""Turns that each silo has done, int64 [num_silos]; kept by whoever drives the rounds."""


@dataclass(frozen=True, kw_only=True)
class FedBuff(SteppedModel):
    """Asynchronous aggregation with a buffer (Nguyen et al. 2022, Algorithm 1).

    Every silo works without pause: as soon as it answers it gets the newest model. After `buffer_size` answers the
    server moves by their mean, each discounted by its staleness:

        w_{t+1} = w_t + eta_g / K sum_i s(tau_i) Delta_i,   s(tau) = (1 + tau)^-exponent

        paper    code                       shape
        w_t      state[name]                float32 [num_parameters]
        Delta_i  answer - what it was sent  float32 [num_parameters]
        tau_i    staleness                  server steps taken while the silo worked
        K        buffer_size                updates

    A silo that is k times as fast is heard k times as often. The result depends on who answers first: the one strategy
    here whose runs on actors do not repeat bit for bit.
    """

    buffer_size: int = 2
    """Updates per server step (K)."""
    eta: float = 1.0
    """Server learning rate (eta_g)."""
    exponent: float = 0.5
    """How fast a stale update loses weight; 0 keeps all of it, 0.5 is the paper's 1/sqrt(1 + tau)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(1, buffer_size=self.buffer_size)
        require_positive(eta=self.eta)
        require_positive(**({"exponent": self.exponent} if self.exponent else {}))

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        return {self.name: initial, TURNS: np.zeros(len(silos), np.int64)}

    def discounted(self, update: Update, sent: Vector, model: Vector, staleness: int, learned: int) -> Update:
        """Return a stale update as if it had started from `model`: w_t + s(tau) (answer - sent), float32; of running
        statistics, which come after the first `learned` values, w_t + s(tau) (answer - w_t)."""
        weight = (1.0 + staleness) ** -self.exponent
        move = np.subtract(update.vector, sent, dtype=np.float64)
        move[learned:] = np.subtract(update.vector[learned:], model[learned:], dtype=np.float64)
        return replace(update, vector=(model + weight * move).astype(np.float32))

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model = state[self.name]
        mean = plain_mean(updates, len(model))
        moved = model + self.eta * np.subtract(mean, model, dtype=np.float64)
        return {**state, self.name: mean if self.eta == 1 else stepped(state, mean, moved, f"lower eta={self.eta}")}
