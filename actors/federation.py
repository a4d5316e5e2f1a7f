"""A federation on a Ray cluster: silo actors, an examiner and a coordinator, for the duration of a block."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from actors import placement
from actors.coordinator import CoordinatorActor, RemoteCoordinator
from actors.silo import ExaminerActor, Handle, SiloActor
from ray_fed.errors import PlacementError
from ray_fed.federation.task import SiloSpec, Task

START_TIMEOUT_SECONDS = 120.0
CONTROL_CPUS = 0.01
"""Actors that mostly wait; a sliver keeps them schedulable next to the silos."""


@dataclass(frozen=True)
class Federation:
    """A federation that stands: the driver's end of the coordinator, what the user should know, the actors' handles."""

    coordinator: RemoteCoordinator
    notices: list[str]
    silos: Mapping[str, Handle]
    examiner: Handle | None = None


@contextlib.contextmanager
def federation(
    specs: Sequence[SiloSpec],
    task: Task,
    test: SiloSpec | None,
    training: Sequence[str],
    patience: float | None = None,
) -> Iterator[Federation]:
    """Place all actors and yield them; kill them afterwards. `patience`: see RayCohort.

    PlacementError within seconds when the cluster cannot hold them.
    """
    settled, notices = placement.settle(specs, placement.offers())
    actors = []
    try:
        silos = {spec.name: SiloActor.options(**placement.actor_options(spec)).remote(spec, task) for spec in settled}
        actors += silos.values()
        examiner = ExaminerActor.options(**placement.examiner_options(test)).remote(test, task) if test else None
        actors += [examiner] if examiner else []
        coordinator = CoordinatorActor.options(**placement.options_beside_driver()).remote(
            silos, examiner, settled, task, tuple(training), patience
        )
        actors.append(coordinator)
        _wait_for_places(silos)
        yield Federation(RemoteCoordinator(coordinator), notices, silos, examiner)
    finally:
        for actor in actors:
            with contextlib.suppress(RayError):  # one that is gone already must not save the others
                ray.kill(actor)


def _wait_for_places(silos: dict) -> None:
    """Another user may have taken what was free a moment ago: do not wait for it for ever."""
    refs = {silo.__ray_ready__.remote(): name for name, silo in silos.items()}
    _, late = ray.wait(list(refs), num_returns=len(refs), timeout=START_TIMEOUT_SECONDS)
    if late:
        names = ", ".join(f"'{refs[ref]}'" for ref in late)
        free = {key: value for key, value in ray.available_resources().items() if key in ("CPU", "GPU")}
        raise PlacementError(f"silos {names} found no place within {START_TIMEOUT_SECONDS:g} s; free now: {free}")
