"""ScaffoldAdam: what Adam builds on is common to all silos, so unlike silos drift apart no further than alike ones.

With Adam's moments kept in each silo, a silo whose rows are unlike the others' scales and steers its steps by its own
gradients; the mean of such steps is no step of the whole, however often the silos meet. Here nothing that steers a step
is a silo's own but the gradients of its mini-batches.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from torch import nn

from ray_fed.config import require
from ray_fed.federation.messages import SummedUpdate, Update, Vector
from ray_fed.federation.strategies.averaging import fed_avg
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.one_model import SteppedModel, kept, require_decay, rounded_model, stepped
from ray_fed.learning.trainer import TrainingPlan

MOMENTUM = "server.momentum"
SECOND = "server.second"
CONTROL = "server.control"


@dataclass(frozen=True, kw_only=True)
class ScaffoldAdam(SteppedModel):
    """SCAFFOLD's control variates (Karimireddy et al. 2020, Algorithm 1) inside Adam (Kingma & Ba 2015, Algorithm 1).

    Local step t of the run, y = x and m = c and v = v_bar at the start of a round, a = beta_1^K, K steps in a round:

        d    = g_i(y) - c_i + c
        m, v = beta_1 m + (1 - beta_1) d,  beta_2 v + (1 - beta_2) d^2
        y    = y - eta_t m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)
        c_i  = a c_i + (1 - a) mean of the round's g_i(y)

    and at the server, with the means weighted by rows, over the silos that answered:

        Delta = mean y - x,  u = mu u + Delta,  x = x + Delta + mu u
        v_bar = mean v,  c = c + |S|/N (mean c_i - c)

    The mean of several silos' noisy paths goes less far than pooled training in as many steps; Nesterov's momentum on
    the server (as in DiLoCo, Douillard et al. 2023) makes up for it. Values that are not learned are averaged alone.

        symbol  code                       shape
        x       state[name]                float32 [num_values]
        u       state["server.momentum"]   float64 [num_values]; none of a state written without it
        v_bar   state["server.second"]     float32 [num_values]; zero where a value is a buffer
        c       state["server.control"]    float32 [num_values]; zero where a value is a buffer
        N       number of silos in `start`

    Where a round is one step, x moves as Adam does on the batches of all silos together, but for v, which is of each
    silo's corrected gradients. SCAFFOLD with SGD has no v, and c_i the plain mean. A message is three times as long as
    FedAvg's, as long as with FedAvg's averaged moments. It needs sums alone. Use it with a learning rate that decays
    (`TrainingPlan.decay`): few exchanges then end as near to pooled training as many (benchmarks/unlike_silos.md).
    The silo's half is in ray_fed/learning/steps.py. ConfigError for another optimiser than Adam.
    """

    momentum: float = 0.4
    """mu, on the server; 0 has none."""
    sums_only: ClassVar[bool] = True
    """It can be had from a sum of updates (secure aggregation, hubs on the way)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay(momentum=self.momentum)

    def local_plan(self, plan: TrainingPlan, module: nn.Module) -> TrainingPlan:  # noqa: ARG002
        states = f"optimizer_state={plan.optimizer_state} has no meaning with scaffold_adam; leave it out"
        require(plan.optimizer_state in ("keep", "common"), states)
        other = f"optimizer={plan.optimizer}: scaffold_adam is made for adam; use it, or strategy=scaffold"
        require(plan.optimizer == "adam", other)
        return replace(plan, control_variates=True, optimizer_state="common")

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        zeros = np.zeros_like(initial)
        return {
            self.name: initial, SECOND: zeros, CONTROL: zeros, MOMENTUM: np.zeros(len(initial)),
            "server.num_silos": np.array([len(silos)], np.int64),
        }  # fmt: skip

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        return dict.fromkeys(silos, np.concatenate([state[self.name], state[SECOND], state[CONTROL]]))

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        """Return the means; UpdateRejected for an update that cannot be averaged."""
        heard, before = Heard(), state[self.name]
        mean = fed_avg(3 * len(before), heard.noted(updates))
        model, second, control = np.split(mean, 3)
        delta = np.subtract(model, before, dtype=np.float64)
        momentum = delta + self.momentum * state.get(MOMENTUM, 0.0)
        moved = stepped(state, model, before + delta + self.momentum * momentum, f"lower momentum={self.momentum}")
        share = heard.count / int(state["server.num_silos"][0])
        if share != 1:
            known = state[CONTROL].astype(np.float64)
            control = rounded_model(known + share * (control - known), "lower the learning rate")
        num_silos = {"server.num_silos": state["server.num_silos"]}
        return {**kept(state), **num_silos, self.name: moved, SECOND: second, CONTROL: control, MOMENTUM: momentum}


@dataclass
class Heard:
    """Counts silos as their updates, or sums of several, go by."""

    count: int = field(default=0, init=False)

    def noted(self, updates: Iterable[Update]) -> Iterator[Update]:
        for update in updates:
            self.count += update.total.num_summands if isinstance(update, SummedUpdate) else 1
            yield update
