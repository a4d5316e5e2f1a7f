"""Boosted trees: the silos' sums of whole numbers, added up, become the next splits or leaf values (ray_fed/trees)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from ray_fed.errors import UpdateRejected
from ray_fed.federation.messages import SummedUpdate, Update, Vector
from ray_fed.federation.strategies.base import Models, State
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.secure_sum.packed import UNIT_BITS
from ray_fed.trees.growth import Grower, Growth
from ray_fed.trees.question import Step
from ray_fed.trees.settings import TreeSettings


@dataclass(frozen=True)
class BoostedTrees:
    """One forest of gradient-boosted trees, with the bits that all rows in one place would give."""

    settings: TreeSettings = field(default_factory=TreeSettings)
    num_features: int = 1
    noise: float = 0.0
    """Standard deviation of the noise in a sum of what one row moves by 1: the silos' multiplier, times the root of
    their number. 0: the answers have none."""
    name: str = "federated"
    """Name of the model, first part of its metrics' names."""
    sums_only: bool = True
    """Nothing but the sum of the answers is used, so they may come under masks."""

    @property
    def grower(self) -> Grower:
        return Grower(self.settings, self.num_features, self.noise)

    @property
    def num_rounds(self) -> int:
        """Rounds after which a forest is whole, with room for iterations that silos came into or left; with noise, of
        which each round costs some, without."""
        most = self.grower.most_rounds()
        return most if self.noise else most * 5 // 4 + 50

    def local_plan(self, plan: TrainingPlan, module: nn.Module) -> TrainingPlan:  # noqa: ARG002
        """Return the plan of silos that answer sums, up to the longest that this forest asks for."""
        grower = self.grower
        return replace(plan, sums=grower.largest_answer(), all_sums=grower.all_answers() * 5 // 4)

    def start(self, initial: Vector, silos: Sequence[str]) -> State:  # noqa: ARG002
        """Return the state before anything is counted."""
        return Growth.begin(self.num_features).state()

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        """Return the next question, the same for every silo."""
        return dict.fromkeys(silos, self.grower.question(Growth.of(state)).vector())

    def catch_up(self, state: State) -> Vector:
        """Return the next question with the forest and the splits so far, for silos that have not seen them."""
        return self.grower.question(Growth.of(state), whole=True).vector()

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        """Return the state after the sum of the answers; UpdateRejected for one of another length."""
        growth, grower = Growth.of(state), self.grower
        total = np.zeros(grower.form(growth).num_values, np.int64)
        for update in updates:
            total += _whole_numbers(update, len(total))
        return grower.after(growth, total).state()

    def models(self, state: State) -> Models:
        return {self.name: self.grower.forest(Growth.of(state)).vector}

    def is_done(self, state: State) -> bool:
        return Growth.of(state).at is Step.DONE

    def fits(self, state: State) -> bool:
        """Whether a checkpoint's state is one of a forest on as many features."""
        first = Growth.begin(self.num_features).state()
        features = {len(state.get("missing", ())), state.get("bins", np.zeros(0)).shape[0]}
        return set(state) == set(first) and features <= {0, self.num_features}


def _whole_numbers(update: Update, length: int) -> np.ndarray:
    """Return an update's whole numbers, or the sum of several updates'."""
    if isinstance(update, SummedUpdate):
        high, _ = update.total.parts()
        numbers = high >> UNIT_BITS
    else:
        numbers = update.vector.astype(np.int64)
    if len(numbers) != length:
        raise UpdateRejected(update.silo, update.server_round, f"{len(numbers)} values instead of {length}")
    return numbers
