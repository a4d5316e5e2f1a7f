"""How the silos' updates become the next global model. Functions of values: no Ray, files, clocks or globals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ray_fed.errors import UpdateRejected
from ray_fed.federation.exact_sum import ExactWeightedSum
from ray_fed.federation.messages import Update, Vector

Models = Mapping[str, Vector]
"""Name -> vector. The state of the strategies here."""


class Strategy(Protocol):
    """`start` once, then per round `dispatch` and `aggregate`; `models` names what is evaluated."""

    def start(self, initial: Vector, silos: Sequence[str]) -> Models: ...

    def dispatch(self, state: Models, silos: Sequence[str]) -> Mapping[str, Vector]: ...

    def aggregate(self, state: Models, updates: Iterable[Update]) -> Models: ...


def fed_avg(num_parameters: int, updates: Iterable[Update]) -> Vector:
    """Return the sample-weighted mean of the silos' parameters, bit-equal for every order of arrival.

    Guo et al. 2022, Eq. (1) and Algorithm 1, line 7; McMahan et al. 2017, Algorithm 1.

        paper     code                                        shape
        w_i       update.vector                               float32 [num_parameters]
        alpha_i   update.num_examples / sum of num_examples   dimensionless

    Updates are consumed one by one: memory does not grow with the number of silos. UpdateRejected for a vector that
    is not finite or has another shape, and for a non-positive weight.
    """
    total = ExactWeightedSum(num_parameters)
    for update in updates:
        try:
            total.add(update.vector, update.num_examples)
        except ValueError as error:
            raise UpdateRejected(update.silo, update.server_round, str(error)) from error
    return total.mean()


@dataclass(frozen=True)
class FedAvg:
    """One global model, the weighted mean of Eq. (1)."""

    name: str = "federated"

    def start(self, initial: Vector, silos: Sequence[str]) -> Models:  # noqa: ARG002
        return {self.name: initial}

    def dispatch(self, state: Models, silos: Sequence[str]) -> Mapping[str, Vector]:
        return dict.fromkeys(silos, state[self.name])

    def aggregate(self, state: Models, updates: Iterable[Update]) -> Models:
        return {self.name: fed_avg(len(state[self.name]), updates)}


@dataclass(frozen=True)
class LocalOnly:
    """No exchange: every silo goes on from its own parameters. The baseline of Guo et al. 2022, Fig. 3 and 4."""

    def start(self, initial: Vector, silos: Sequence[str]) -> Models:
        return dict.fromkeys(silos, initial)

    def dispatch(self, state: Models, silos: Sequence[str]) -> Mapping[str, Vector]:
        return {silo: state[silo] for silo in silos}

    def aggregate(self, state: Models, updates: Iterable[Update]) -> Models:
        return {**state, **{update.silo: update.vector for update in updates}}
