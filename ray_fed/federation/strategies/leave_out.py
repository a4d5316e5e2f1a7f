"""Beside a strategy's model those that its updates would have made without one silo: contribution scores for the price
of a sum.

    w_{t+1}^{-m} = w_t^{-m} + sum_{i != m} n_i (w_i - w_t) / sum_{i != m} n_i        for every silo m

(the reconstruction of Song, Tong and Wei 2019, "Profit Allocation for Federated Learning", there from the first
exchange on; here from exchange `after` on, up to which w_t^{-m} = w_t). What it cannot know: the updates of the others
were made at models that silo m had a part in. From the first exchange on these moves do not fit the model they are
added to, and the score is far too large; over a few last exchanges it is too small, as all that the silo gave before is
still in the model. Either way it is a rank, not an amount.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.strategies.base import Models, State, Strategy, local_plan
from ray_fed.learning.trainer import TrainingPlan

WITHOUT = "without."
"""Before a silo's name: the model without it."""
EXCHANGES = "left_out.exchanges"
"""How many exchanges there were."""


@dataclass(frozen=True)
class LeftOut:
    """A strategy, and beside its models one for each silo that is left out. For plans in which every silo's answer is a
    vector of parameters that is averaged."""

    inner: Strategy
    size: int
    """Numbers of a model; what travels behind them is the strategy's own affair."""
    after: int = 0
    """Exchanges before anybody is left out."""

    def local_plan(self, plan: TrainingPlan, module: nn.Module) -> TrainingPlan:
        return local_plan(self.inner, plan, module)

    @property
    def least_steps(self) -> int:
        """What the strategy wants of a guard."""
        return int(getattr(self.inner, "least_steps", 0))

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        without = {f"{WITHOUT}{silo}": np.array(initial[: self.size]) for silo in silos}
        return {**self.inner.start(initial, silos), **without, EXCHANGES: np.zeros(1, np.int64)}

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        return self.inner.dispatch(_own(state), silos)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        """Return the strategy's next state, and each model without a silo moved by the others' weighted mean move."""
        heard: dict[str, tuple[int, np.ndarray]] = {}
        done = state[EXCHANGES] + 1
        after = self.inner.aggregate(_own(state), self._noted(updates, heard))
        sent = self.inner.dispatch(_own(state), sorted(heard))
        moves = {
            silo: (weight, vector.astype(np.float64) - sent[silo][: self.size])
            for silo, (weight, vector) in sorted(heard.items())
        }
        without = {
            name: _moved(vector, [move for silo, move in moves.items() if name != f"{WITHOUT}{silo}"])
            for name, vector in state.items()
            if name.startswith(WITHOUT)
        }
        if done[0] <= self.after:  # nobody has been left out yet
            whole = next(iter(self.inner.models(after).values()))[: self.size]
            without = dict.fromkeys(without, np.array(whole))
        return {**after, **without, EXCHANGES: done}

    def models(self, state: State) -> Models:
        """Return the strategy's models, and those without a silo."""
        without = {name: vector for name, vector in state.items() if name.startswith(WITHOUT)}
        return {**self.inner.models(_own(state)), **without}

    def _noted(self, updates: Iterable[Update], heard: dict[str, Any]) -> Iterable[Update]:
        for update in updates:
            heard[update.silo] = (update.num_examples, np.array(update.vector[: self.size]))
            yield update


def _own(state: State) -> State:
    return {name: array for name, array in state.items() if not name.startswith(WITHOUT) and name != EXCHANGES}


def _moved(vector: Vector, moves: Sequence[tuple[int, np.ndarray]]) -> Vector:
    """Return a model after the weighted mean of moves (weight, move), added in the order given; as it is without."""
    whole = sum(weight for weight, _ in moves)
    if not whole:
        return vector
    return (vector + sum(weight * move for weight, move in moves) / whole).astype(np.float32)
