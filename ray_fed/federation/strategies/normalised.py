"""FedNova: silos that take unequal numbers of local steps, averaged without favouring the busy ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ray_fed.config import require
from ray_fed.errors import ConfigError, UpdateRejected
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.one_model import SteppedModel, kept, num_learned, require_count, rounded_model
from ray_fed.federation.strategies.updates import usable


@dataclass(frozen=True, kw_only=True)
class FedNova(SteppedModel):
    """Average the silos' moves per local step, then go as far as the mean number of steps.

    Wang et al. 2020, Eq. (4) with w_i = p_i (Sec. 5) and a_i = (1, ..., 1), plain local SGD, so |a_i|_1 = tau_i:

        tau_eff = sum_i p_i tau_i
        x_{t+1} = x_t + tau_eff sum_i p_i Delta_i / tau_i,   Delta_i = x_i - x_t

        paper     code                             shape, unit
        x_t       state[name]                      float32 [num_parameters]
        x_i       update.vector                    float32 [num_parameters]
        -eta d_i  move / update.num_steps          float64 [num_parameters], move per step
        tau_i     update.num_steps                 steps
        p_i       rows of the silo / rows of all   dimensionless
        tau_eff   effective_steps                  steps

    The formula is exact for `optimizer="sgd"` without momentum and with proximal_mu = 0; with Adam the length of a
    move is not proportional to the number of steps and FedNova is a heuristic. Equal tau_i give FedAvg (up to one
    rounding). Streams: memory does not grow with the number of silos.
    """

    least_steps: ClassVar[int] = 1
    """It divides by them: an update of fewer is refused before it comes here."""
    num_examples: dict[str, int] | None = None
    """Silo -> its training rows, for p_i. None takes the rows seen in the round, which is the same thing where all
    silos make the same number of passes; where they do not, FedNova needs the rows themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for silo, rows in (self.num_examples or {}).items():
            require_count(1, **{f"num_examples[{silo!r}]": rows})

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        if self.num_examples is not None:
            for silo in silos:
                require(silo in self.num_examples, self._unknown(silo))
        return super().start(initial, silos)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model = state[self.name]
        total, weighted_steps = ExactWeightedSum(len(model)), 0
        for update in updates:
            weight = self._weight(update)
            _add(total, model, update, weight, num_learned(state, model))
            weighted_steps += weight * update.num_steps
        # The mean move per step is rounded to float32, not the parameters: tau_eff would magnify their rounding.
        direction = total.mean().astype(np.float64)
        effective_steps = weighted_steps / total.total_weight
        direction[: num_learned(state, model)] *= effective_steps
        moved = rounded_model(model + direction, "lower the silos' learning rate")
        return {**kept(state), self.name: moved}

    def _weight(self, update: Update) -> int:
        if self.num_examples is None:
            return update.num_examples
        if update.silo not in self.num_examples:
            raise ConfigError(self._unknown(update.silo))
        return self.num_examples[update.silo]

    def _unknown(self, silo: str) -> str:
        known = ", ".join(sorted(self.num_examples or {}))
        return f"fed_nova: num_examples has no silo {silo!r}; it has: {known}"


def _add(total: ExactWeightedSum, model: Vector, update: Update, weight: int, learned: int) -> None:
    if update.num_steps < 1:
        raise UpdateRejected(update.silo, update.server_round, f"num_steps={update.num_steps} must be at least 1")
    move = np.subtract(usable(update, len(model)).vector, model, dtype=np.float64)
    try:
        move[:learned] /= update.num_steps
        total.add(move, weight)
    except ValueError as error:
        raise UpdateRejected(update.silo, update.server_round, str(error)) from error
