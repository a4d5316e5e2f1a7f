"""A federation on a Ray cluster: silo actors, an evaluator and coordinators, for the duration of a block."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from actors import placement, waiting
from actors.cohort import value_of
from actors.coordinator import CoordinatorActor, RemoteCoordinator
from actors.packing import hardest_first
from actors.silo import EvaluatorActor, Handle, SiloActor
from actors.silo_logs import readable_logs
from actors.user_code import travelling
from ray_fed.errors import FedError, PlacementError
from ray_fed.federation.messages import Artifact, SiloDescription
from ray_fed.federation.rounds.machine import AT_ONCE, StartRules
from ray_fed.federation.task import SiloSpec, Task

CONTROL_CPUS = 0.01
"""Actors that mostly wait; a sliver keeps them schedulable next to the silos."""


@dataclass(frozen=True)
class Federation:
    """A federation that runs: the driver's end of the coordinator, what the user should know, the actors' handles."""

    coordinator: RemoteCoordinator
    notices: list[str]
    silos: Mapping[str, Handle]
    evaluator: Handle | None = None


@contextlib.contextmanager
def federation(
    specs: Sequence[SiloSpec],
    task: Task,
    test: SiloSpec | None,
    training: Sequence[str],
    answer_timeout: float | None = None,
    start: StartRules = AT_ONCE,
    every_state: bool = False,
) -> Iterator[Federation]:
    """Place all actors, one coordinator among them, and yield them; kill them afterwards. See `silo_actors`, and of
    every_state `RemoteCoordinator`."""
    with (
        silo_actors(specs, task, test, answer_timeout, start) as silos,
        silos.coordinator(task, every_state, training) as coordinator,
    ):
        yield Federation(coordinator, silos.notices, silos.handles, silos.evaluator)


@contextlib.contextmanager
def silo_actors(
    specs: Sequence[SiloSpec],
    task: Task,
    test: SiloSpec | None = None,
    answer_timeout: float | None = None,
    start: StartRules = AT_ONCE,
) -> Iterator["SiloActors"]:
    """Place silos and evaluator and yield them; kill them afterwards. `answer_timeout`: see RayCohort.

    PlacementError within seconds when the cluster cannot hold them, but for what `start` says of sites without a
    machine: their actors stand in line, which is also how an autoscaler learns of them.
    """
    settled, notices, awaited = _settled(specs, start)
    with readable_logs([*settled, *([test] if test else [])]) as logged:
        settled, test = logged[: len(settled)], logged[-1] if test else None
        silos = SiloActors(settled, task, notices, answer_timeout)
        try:
            for spec in hardest_first(settled):
                silos.start(spec)
            silos.handles = {spec.name: silos.handles[spec.name] for spec in settled}
            silos.evaluator = (
                EvaluatorActor.options(**placement.evaluator_options(test)).remote(test, silos.carried)
                if test
                else None
            )
            waiting.refuse_late({name: silos.handles[name] for name in silos.handles if name not in awaited}, settled)
            silos.absent = _absent({name: silos.handles[name] for name in awaited}, settled, start)
            yield silos
        finally:
            _kill([*silos.handles.values(), *([silos.evaluator] if silos.evaluator else [])])


class SiloActors:
    """Silos that stay while coordinators come and go, and what the driver asks of them between two trainings.

    `query`, `exchange` and `coordinator` are those of `ray_fed.style_transfer.exchange.StyleFederation`.
    """

    def __init__(self, specs: Sequence[SiloSpec], task: Task, notices: list[str], answer_timeout: float | None):
        self.specs, self.task, self.notices, self.answer_timeout = specs, task, notices, answer_timeout
        self.carried = travelling(task)
        self.handles: dict[str, Handle] = {}
        self.evaluator: Handle | None = None
        self.absent: list[str] = []
        self._had_coordinator = False

    def start(self, spec: SiloSpec) -> None:
        self.handles[spec.name] = SiloActor.options(**placement.actor_options(spec)).remote(spec, self.carried)

    def open(self) -> dict[str, SiloDescription]:
        """Let all silos open their data at once."""
        refs = {name: silo.open.remote() for name, silo in self.handles.items()}
        return {name: value_of(ref, name, "opening its data") for name, ref in refs.items()}

    def query(self, silos: Sequence[str], query: str, *given: Any) -> dict[str, Artifact]:
        refs = {name: self.handles[name].query.remote(query, *given) for name in silos}
        return {name: value_of(ref, name, f"answering '{query}'") for name, ref in refs.items()}

    def exchange(self, silos: Sequence[str], out: str, back: str, *given: Any) -> dict[tuple[str, str], int]:
        """Each answer goes from the node of its sender to that of its receiver, past the driver and every coordinator;
        only receipts come here.

        A sender's error reaches the receiver in place of its message, and from there comes here as itself.
        """
        made = {name: self.handles[name].query.remote(out, *given) for name in silos}
        refs = {
            (sender, receiver): self.handles[receiver].query.remote(back, *given, made[sender])
            for sender in silos
            for receiver in silos
            if sender != receiver
        }
        return {(sender, receiver): _receipt(ref, sender, receiver) for (sender, receiver), ref in refs.items()}

    @contextlib.contextmanager
    def coordinator(
        self, task: Task, every_state: bool = False, training: Sequence[str] | None = None
    ) -> Iterator[RemoteCoordinator]:
        """Start a coordinator for the duration of a block. task: as the training to come sees it.

        every_state: see `RemoteCoordinator`. training: whose rows define the scaler; all silos' if not given.
        """
        if self._had_coordinator:
            self._restart_dead()
        self._had_coordinator = True
        actor = CoordinatorActor.options(**placement.options_beside_driver()).remote(
            self.handles, self.evaluator, self.specs, travelling(task),
            tuple(self.handles if training is None else training), self.answer_timeout, self.absent,
        )  # fmt: skip
        try:
            yield RemoteCoordinator(actor, every_state)
        finally:
            _kill([actor])

    def _restart_dead(self) -> None:
        """Start those again that were lost in an earlier training; what they keep stands in their own folders."""
        there = [spec for spec in self.specs if spec.name not in self.absent]
        refs = {spec.name: self.handles[spec.name].__ray_ready__.remote() for spec in there}
        for spec in there:
            try:
                ray.get(refs[spec.name])
            except RayActorError:
                self.start(spec)
                value_of(self.handles[spec.name].open.remote(), spec.name, "starting again")


def _receipt(ref: "ray.ObjectRef[Artifact]", sender: str, receiver: str) -> int:
    doing = f"taking what '{sender}' sent"
    try:
        return int(value_of(ref, receiver, doing).facts["bytes"])
    except FedError as error:  # the receiver's boundary says what went wrong, and no more
        error.add_note(f"silo '{receiver}' was {doing}")
        raise


def _kill(actors: Sequence[Handle]) -> None:
    for actor in actors:
        with contextlib.suppress(RayError):  # one that is gone already must not save the others
            ray.kill(actor)


def _settled(specs: Sequence[SiloSpec], start: StartRules) -> tuple[list[SiloSpec], list[str], list[str]]:
    """Return the specs as they can be placed, notices, and the names of those whose site has no machine yet."""
    nodes = placement.offers()
    here, elsewhere = placement.divided(specs, nodes)
    if not (start.timeout or start.may_be_late):
        here, elsewhere = specs, []
    settled, notices = placement.settle(here, nodes)
    found = {spec.name: spec for spec in [*settled, *placement.unseen(elsewhere, nodes)]}
    return [found[spec.name] for spec in specs], notices, [spec.name for spec in elsewhere]


def _absent(silos: Mapping[str, Handle], specs: Sequence[SiloSpec], start: StartRules) -> list[str]:
    """Wait for machines as long as the rules say; return the silos that the run begins without."""
    if not silos:
        return []
    absent = sorted(waiting.until_ready(silos, specs, start.timeout))
    by_name = {spec.name: spec for spec in specs}
    for name in absent:
        if name not in start.may_be_late:
            placement.refuse_absent(by_name[name], start.timeout)
    there = len(specs) - len(absent)
    if there < start.fewest:
        sites = ", ".join(sorted({by_name[name].site for name in absent}))
        raise PlacementError(
            f"{there} of {len(specs)} silos have a machine, min_fit_clients is {start.fewest}; no machine at: {sites}"
        )
    return absent
