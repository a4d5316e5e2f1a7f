"""Puts a federation into this process, onto Ray, or behind a hub that its sites dial, for the duration of a block."""

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pipelines.hub import HubSection, listening
from ray_fed.federation.cohort import Cohort, LocalCohort
from ray_fed.federation.coordinator import Agreement, Coordinator
from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Metrics, Vector
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.rounds.machine import AT_ONCE, StartRules
from ray_fed.federation.silo import Evaluator
from ray_fed.federation.strategies import State
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.perimeter.coordinator_record import CollectedLedgers, CoordinatorRecord, Keeper, collected, handed_over

if TYPE_CHECKING:
    from ray_fed.sites.cohort import SiteCohort
    from ray_fed.sites.requests import Invitation


class CoordinatorLike(Protocol):
    """What an experiment asks of a coordinator, in this process or behind an actor."""

    def agree(self, secure_threshold: int = 0) -> Agreement: ...

    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Generator[RoundRecord, None, None]: ...

    def count(self, question: str, given: tuple, silos: Sequence[str], secure_threshold: int = 0) -> CountedRows: ...

    def count_test(self, question: str, given: tuple) -> CountedRows | None: ...

    def predict_test(self, models: dict[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None: ...

    def ask_metrics(
        self, query: str, silos: Sequence[str], names: Sequence[str], given: tuple = (),
        own: Mapping[str, tuple] | None = None,
    ) -> tuple[dict[str, Mapping[str, Metrics]], dict[str, str]]: ...  # fmt: skip

    def collect_ledgers(self) -> CollectedLedgers: ...

    def hand_over_model(self, weights: np.ndarray, card: np.ndarray) -> dict[str, str]:
        """Hand the final model to the silos' owners; return silo -> why it did not take it, "" where it did.

        weights, card: uint8 [n], the bytes of a .safetensors file and of its card.
        """
        ...


class InProcessCoordinator(Coordinator):
    """A coordinator of silos in this process: they have no boundary, keep no ledger and have no owner but the user."""

    def collect_ledgers(self) -> CollectedLedgers:
        return CollectedLedgers()

    def hand_over_model(self, weights: np.ndarray, card: np.ndarray) -> dict[str, str]:  # noqa: ARG002
        return {}


@dataclass(frozen=True)
class FederationSpec:
    """Who stands in a federation, and what they work on."""

    silos: Sequence[SiloSpec]
    task: Task
    test: SiloSpec | None
    """The evaluator's samples, if there is a common test set."""
    training: Sequence[str]
    """The silos whose rows define the scaler."""
    sites: Sequence[tuple[str, "Invitation"]] = ()
    """(site, what its silo is asked for) of silos at sites that their owners run."""
    hub: HubSection | None = None
    """Where these dial in."""
    run: str = ""
    """Name of the run in ledgers; none is kept without one."""


@contextlib.contextmanager
def launched(
    members: FederationSpec,
    cohort: str = "ray",
    address: str = "local",
    answer_timeout: float | None = None,
    start: StartRules = AT_ONCE,
    every_state: bool = False,
) -> Iterator[tuple[CoordinatorLike, list[str]]]:
    """Yield the coordinator and notices for the user.

    answer_timeout: see RayCohort. start: whom it waits for. every_state: each record comes alone, with its state, for
    who may end the run after any of them.
    """
    silos, task, test, training = members.silos, members.task, members.test, members.training
    if members.sites:
        with _with_sites(members, cohort, address, answer_timeout, start) as standing:
            yield standing
        return
    if cohort == "local":
        yield InProcessCoordinator(LocalCohort(silos, task, test), task, training), []
        return
    from actors.session import session

    with session(address, sum(spec.num_cpus for spec in silos) + 1):
        from actors.federation import federation

        with federation(silos, task, test, training, answer_timeout, start, every_state) as standing:
            yield standing.coordinator, standing.notices


# ---- with sites: the coordinator works in this process, where the hub is


class HubCoordinator(Coordinator):
    """A coordinator beside a hub, of silos at sites and perhaps others."""

    def __init__(self, cohort: Cohort, members: FederationSpec, keepers: Mapping[str, Keeper]):
        """keepers: by silo, of those behind a boundary."""
        self._notes = CoordinatorRecord(members.task) if members.run else None
        self._all_keepers = keepers
        super().__init__(cohort, members.task, members.training, [self._notes] if self._notes else [])

    def collect_ledgers(self) -> CollectedLedgers:
        return collected(self._keepers(), self._notes)

    def hand_over_model(self, weights: np.ndarray, card: np.ndarray) -> dict[str, str]:
        return handed_over(self._keepers(), weights, card)

    def _keepers(self) -> dict[str, Keeper]:
        absent = self.cohort.absent()
        return {silo: keeper for silo, keeper in self._all_keepers.items() if silo not in absent}


@contextlib.contextmanager
def _with_sites(
    members: FederationSpec, cohort: str, address: str, answer_timeout: float | None, start: StartRules
) -> Iterator[tuple[CoordinatorLike, list[str]]]:
    """Yield a coordinator in this process: of the silos behind the hub alone, or together with those of this side."""
    from ray_fed.federation.joined_cohort import JoinedCohort

    torch.set_num_threads(1)  # sums over several threads differ in the last bits; silo actors have one, too
    assert members.hub is not None
    with contextlib.ExitStack() as stack:
        here, notices, keepers = None, [], {}
        if members.silos and cohort == "local":
            here = LocalCohort(members.silos, members.task, members.test)
        elif members.silos:  # before the hub: Ray starts processes, which a process with gRPC's threads does badly
            here, notices, keepers = stack.enter_context(_on_ray(members, address, answer_timeout, start))
        hub = stack.enter_context(listening(members.hub, Path(members.hub.tls)))
        evaluator = Evaluator(members.test, members.task) if members.test and not members.silos else None
        away = stack.enter_context(contextlib.closing(_site_cohort(hub, members, evaluator, answer_timeout, start)))
        both = JoinedCohort([here, away]) if here else away
        yield HubCoordinator(both, members, {**keepers, **dict.fromkeys(away.silos, away)}), notices


def _site_cohort(
    hub, members: FederationSpec, evaluator, answer_timeout: float | None, start: StartRules
) -> "SiteCohort":
    from ray_fed.sites.asking import SiteSilo
    from ray_fed.sites.cohort import SiteCohort

    silos = [SiteSilo(site, invitation) for site, invitation in members.sites]
    return SiteCohort(hub, silos, members.task, evaluator, answer_timeout, start)


@contextlib.contextmanager
def _on_ray(
    members: FederationSpec, address: str, answer_timeout: float | None, start: StartRules
) -> Iterator[tuple[Cohort, list[str], dict[str, Keeper]]]:
    """Yield the silos of this side as actors, notices, and who keeps their ledgers."""
    from actors.session import session

    with session(address, sum(spec.num_cpus for spec in members.silos) + 1):
        from actors.cohort import RayCohort
        from actors.federation import silo_actors

        with silo_actors(members.silos, members.task, members.test, answer_timeout, start) as actors:
            cohort = RayCohort(
                actors.handles, actors.evaluator, actors.specs, members.task, answer_timeout, actors.absent
            )
            yield cohort, actors.notices, dict.fromkeys(cohort.silos, cohort)
