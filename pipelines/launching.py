"""Puts a federation into this process or onto Ray, for the duration of a block."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Agreement, Coordinator
from ray_fed.federation.messages import Vector
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.rounds.machine import AT_ONCE, StartRules
from ray_fed.federation.strategies import State
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.perimeter.coordinator_record import CollectedLedgers


class CoordinatorLike(Protocol):
    """What an experiment asks of a coordinator, in this process or behind an actor."""

    def agree(self, secure_threshold: int = 0) -> Agreement: ...

    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Iterator[RoundRecord]: ...

    def predict_test(self, models: dict[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None: ...

    def collect_ledgers(self) -> CollectedLedgers: ...


class InProcessCoordinator(Coordinator):
    """A coordinator of silos in this process: they have no boundary and keep no ledger."""

    def collect_ledgers(self) -> CollectedLedgers:
        return CollectedLedgers()


@dataclass(frozen=True)
class FederationSpec:
    """Who stands in a federation, and what they work on."""

    silos: Sequence[SiloSpec]
    task: Task
    test: SiloSpec | None
    """The evaluator's samples, if there is a common test set."""
    training: Sequence[str]
    """The silos whose rows define the scaler."""


@contextlib.contextmanager
def launched(
    members: FederationSpec,
    cohort: str = "ray",
    address: str = "local",
    answer_timeout: float | None = None,
    carried: Sequence[object] = (),
    start: StartRules = AT_ONCE,
) -> Iterator[tuple[CoordinatorLike, list[str]]]:
    """Yield the coordinator and notices for the user.

    answer_timeout: see RayCohort. start: whom it waits for. carried: objects whose classes stand in a user's own file
    and must travel with them.
    """
    silos, task, test, training = members.silos, members.task, members.test, members.training
    if cohort == "local":
        yield InProcessCoordinator(LocalCohort(silos, task, test), task, training), []
        return
    from actors.session import carry_by_value, session

    with session(address, sum(spec.num_cpus for spec in silos) + 1):
        from actors.federation import federation

        for instance in (task, *carried):
            carry_by_value(instance)
        with federation(silos, task, test, training, answer_timeout, start) as standing:
            yield standing.coordinator, standing.notices
