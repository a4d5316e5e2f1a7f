"""Style generators between silo actors: the driver hands object refs on and never holds what they refer to."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from actors import placement
from actors.cohort import RayCohort, value_of
from actors.coordinator import RemoteCoordinator
from actors.federation import CONTROL_CPUS, START_TIMEOUT_SECONDS
from actors.silo import Handle, SiloActor
from ray_fed.errors import PlacementError
from ray_fed.federation.coordinator import Agreement, Coordinator
from ray_fed.federation.job import Job, RoundRecord
from ray_fed.federation.messages import Artifact
from ray_fed.federation.strategies import State
from ray_fed.federation.task import SiloSpec
from ray_fed.style_transfer.exchange import MethodCoordinator, pairs_of
from ray_fed.style_transfer.task import FedTransferTask


@ray.remote
class MethodCoordinatorActor:
    """`Coordinator` of one method on silo actors that stand already. Each record comes alone and with its state: which
    round is the best is known only afterwards."""

    def __init__(
        self,
        silos: Mapping[str, Handle],
        specs: Sequence[SiloSpec],
        task: FedTransferTask,
        answer_timeout: float | None,
    ):
        import torch

        torch.set_num_threads(1)
        silo_task = task.of(task.method)
        self.coordinator = Coordinator(RayCohort(silos, None, specs, silo_task, answer_timeout), task, tuple(silos))

    @ray.method
    def agree(self) -> Agreement:
        return self.coordinator.agree()

    @ray.method(num_returns="streaming", _generator_backpressure_num_objects=1)
    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Iterator[list[RoundRecord]]:
        for record in self.coordinator.run(job, after_round, state):
            yield [record]


class RayStyleFederation:
    """See `ray_fed.style_transfer.exchange.StyleFederation`."""

    def __init__(
        self, silos: dict[str, Handle], specs: Sequence[SiloSpec], task: FedTransferTask, answer_timeout: float | None
    ):
        self.silos, self.specs, self.task, self.answer_timeout = silos, specs, task, answer_timeout
        self.notices: list[str] = []

    def query(self, silos: Sequence[str], query: str, *given: Any) -> dict[str, Artifact]:
        refs = {name: self.silos[name].query.remote(query, *given) for name in silos}
        return {name: value_of(ref, name, f"answering '{query}'") for name, ref in refs.items()}

    def exchange(self, silos: Sequence[str], out: str, back: str, *given: Any) -> dict[tuple[str, str], int]:
        """Each answer goes from the node of its sender to that of its receiver; only receipts come here.

        A sender's error reaches the receiver in place of its message, and from there comes here as itself.
        """
        made = {name: self.silos[name].query.remote(out, *given) for name in silos}
        refs = {pair: self.silos[pair[1]].query.remote(back, *given, made[pair[0]]) for pair in pairs_of(silos)}
        return {
            pair: int(value_of(ref, pair[1], f"taking what '{pair[0]}' sent").facts["bytes"])
            for pair, ref in refs.items()
        }

    @contextlib.contextmanager
    def coordinator(self, task: FedTransferTask) -> Iterator[MethodCoordinator]:
        self._restart_dead()
        actor = MethodCoordinatorActor.options(num_cpus=CONTROL_CPUS).remote(
            self.silos, self.specs, task, self.answer_timeout
        )
        try:
            yield RemoteCoordinator(actor)
        finally:
            _kill([actor])

    def _restart_dead(self) -> None:
        """A silo that was lost in an earlier method starts again; it finds its styles in its own folder."""
        for spec in self.specs:
            try:
                ray.get(self.silos[spec.name].__ray_ready__.remote())
            except RayActorError:
                self.silos[spec.name] = _start(spec, self.task)
                value_of(self.silos[spec.name].open.remote(), spec.name, "starting again")


@contextlib.contextmanager
def style_federation(
    specs: Sequence[SiloSpec], task: FedTransferTask, answer_timeout: float | None = None
) -> Iterator[RayStyleFederation]:
    """Place a silo actor per spec, let all open their micrographs, and kill them afterwards."""
    settled, notices = placement.settle(specs, placement.offers())
    silos: dict[str, Handle] = {}
    try:
        for spec in settled:
            silos[spec.name] = _start(spec, task)
        refs = {name: silo.open.remote() for name, silo in silos.items()}
        _, late = ray.wait(list(refs.values()), num_returns=len(refs), timeout=START_TIMEOUT_SECONDS)
        if late:
            names = ", ".join(f"'{name}'" for name, ref in refs.items() if ref in late)
            raise PlacementError(f"silos {names} found no place or opened nothing in {START_TIMEOUT_SECONDS:g} s")
        for name, ref in refs.items():
            value_of(ref, name, "opening its micrographs")
        standing = RayStyleFederation(silos, settled, task, answer_timeout)
        standing.notices = notices
        yield standing
    finally:
        _kill(list(silos.values()))


def _start(spec: SiloSpec, task: FedTransferTask) -> Handle:
    return SiloActor.options(**placement.actor_options(spec)).remote(spec, task)


def _kill(actors: Sequence[Handle]) -> None:
    for actor in actors:
        with contextlib.suppress(RayError):  # one that is gone already must not save the others
            ray.kill(actor)
