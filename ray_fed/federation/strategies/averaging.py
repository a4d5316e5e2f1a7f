"""Plain averaging (FedAvg) and its opposite, no exchange at all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ray_fed.errors import UpdateRejected
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.messages import SummedUpdate, Update, Vector
from ray_fed.federation.strategies.base import Models, State


def fed_avg(num_parameters: int, updates: Iterable[Update]) -> Vector:
    """Return the sample-weighted mean of the silos' parameters, bit-equal for every order of arrival.

    Guo et al. 2022, Eq. (1) and Algorithm 1, line 7; McMahan et al. 2017, Algorithm 1.

        paper     code                                        shape
        w_i       update.vector                               float32 [num_parameters]
        alpha_i   update.num_examples / sum of num_examples   dimensionless

    A sum of updates that came masked (privacy/secure_sum) counts as its summands.
    Updates are consumed one by one: memory does not grow with the number of silos. UpdateRejected for a vector that
    is not finite or has another shape, and for a non-positive weight.
    """
    total = ExactWeightedSum(num_parameters)
    for update in updates:
        if isinstance(update, SummedUpdate):
            total.merge(update.total)
            continue
        try:
            total.add(update.vector, update.num_examples)
        except ValueError as error:
            raise UpdateRejected(update.silo, update.server_round, str(error)) from error
    return total.mean()


@dataclass(frozen=True)
class FedAvg:
    """One global model, the sample-weighted mean of the silos' parameters: McMahan et al. 2017, Algorithm 1; Guo et al.
    2022, Eq. (1)."""

    name: str = "federated"
    """Name of the model, first part of its metrics' names."""

    def start(self, initial: Vector, silos: Sequence[str]) -> State:  # noqa: ARG002
        """Return the initial vector as the state."""
        return {self.name: initial}

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        """Return the global model, for every silo."""
        return dict.fromkeys(silos, state[self.name])

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        """Return the weighted mean (see `fed_avg`); UpdateRejected for an update that cannot be averaged."""
        return {self.name: fed_avg(len(state[self.name]), updates)}

    def models(self, state: State) -> Models:
        """Return the one model."""
        return state


@dataclass(frozen=True)
class LocalOnly:
    """No exchange: every silo goes on from its own parameters. The baseline of Guo et al. 2022, Fig. 3 and 4."""

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        return dict.fromkeys(silos, initial)

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        return {silo: state[silo] for silo in silos}

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        return {**state, **{update.silo: update.vector for update in updates}}

    def models(self, state: State) -> Models:
        return state
