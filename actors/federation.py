"""A federation on a Ray cluster: silo actors, an evaluator and a coordinator, for the duration of a block."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from actors import placement
from actors.coordinator import CoordinatorActor, RemoteCoordinator
from actors.silo import EvaluatorActor, Handle, SiloActor
from ray_fed.errors import PlacementError
from ray_fed.federation.rounds.machine import AT_ONCE, StartRules
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
    evaluator: Handle | None = None


@contextlib.contextmanager
def federation(
    specs: Sequence[SiloSpec],
    task: Task,
    test: SiloSpec | None,
    training: Sequence[str],
    answer_timeout: float | None = None,
    start: StartRules = AT_ONCE,
) -> Iterator[Federation]:
    """Place all actors and yield them; kill them afterwards. `answer_timeout`: see RayCohort.

    PlacementError within seconds when the cluster cannot hold them, but for what `start` says of sites without a
    machine: their actors stand in line, which is also how an autoscaler learns of them.
    """
    settled, notices, awaited = _settled(specs, start)
    actors = []
    try:
        silos = {spec.name: SiloActor.options(**placement.actor_options(spec)).remote(spec, task) for spec in settled}
        actors += silos.values()
        evaluator = EvaluatorActor.options(**placement.evaluator_options(test)).remote(test, task) if test else None
        actors += [evaluator] if evaluator else []
        _wait_for_places({name: silo for name, silo in silos.items() if name not in awaited})
        absent = _absent({name: silos[name] for name in awaited}, settled, start)
        coordinator = CoordinatorActor.options(**placement.options_beside_driver()).remote(
            silos, evaluator, settled, task, tuple(training), answer_timeout, absent
        )
        actors.append(coordinator)
        yield Federation(RemoteCoordinator(coordinator), notices, silos, evaluator)
    finally:
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
    refs = {silo.__ray_ready__.remote(): name for name, silo in silos.items()}
    _, late = ray.wait(list(refs), num_returns=len(refs), timeout=start.timeout)
    absent, by_name = sorted(refs[ref] for ref in late), {spec.name: spec for spec in specs}
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


def _wait_for_places(silos: Mapping[str, Handle]) -> None:
    """Another user may have taken what was free a moment ago: do not wait for it for ever."""
    if not silos:
        return
    refs = {silo.__ray_ready__.remote(): name for name, silo in silos.items()}
    _, late = ray.wait(list(refs), num_returns=len(refs), timeout=START_TIMEOUT_SECONDS)
    if late:
        names = ", ".join(f"'{refs[ref]}'" for ref in late)
        free = {key: value for key, value in ray.available_resources().items() if key in ("CPU", "GPU")}
        raise PlacementError(f"silos {names} found no place within {START_TIMEOUT_SECONDS:g} s; free now: {free}")
