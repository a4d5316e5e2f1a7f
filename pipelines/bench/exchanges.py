"""Rounds per second of a plain loop, of one process, and of actors with everything on.

Four silos (1,000 to 4,000 rows), the network of Guo et al. 2022 (55,201 parameters, 221 kB), one local step of 20 to 80
rows a round; and the share of computing when they exchange four times per hundred steps only.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.nn import functional

from actors.session import session
from pipelines.bench.measurement import Measurement
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.randomness import generator

if TYPE_CHECKING:
    from actors.coordinator import RemoteCoordinator

SIZES, FEATURES, STEPS, WARM_UP = (1000, 2000, 3000, 4000), 73, 50, 50
NAMES = tuple(f"silo-{number}" for number in range(1, 5))


@dataclass(frozen=True)
class Drawn(Task):
    """Rows from a generator, as many as the source says."""

    loss = staticmethod(functional.mse_loss)

    def model(self, seed):
        return seeded_mlp(FEATURES, (200, 200), seed)

    def agreement(self):
        return {}

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = int(str(spec.source))
        x = generator(0, "rows", spec.name).normal(size=(rows, FEATURES))
        return LocalRows(x, x[:, 0], x[:0], x[:0, 0], {}, {}, {})


TASK, TEST = Drawn(), SiloSpec("test", 100, 0.0)


def plain_loop(rounds: int) -> Iterator[int]:
    """The loop everybody writes first: four eager PyTorch models, torch.optim.Adam, a weighted mean of state_dicts."""
    torch.set_num_threads(1)
    task = Drawn()
    silos = [task.load(SiloSpec(name, size)) for name, size in zip(NAMES, SIZES, strict=True)]
    data = [
        (torch.from_numpy(s.features.astype(np.float32)), torch.from_numpy(s.targets.astype(np.float32))[:, None])
        for s in silos
    ]
    models = [task.model(0) for _ in silos]
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in models]
    weights = [size / sum(SIZES) for size in SIZES]
    for number in range(rounds):
        for (x, y), model, optimizer in zip(data, models, optimizers, strict=True):
            batch = torch.randint(len(x), (len(x) // STEPS,))
            optimizer.zero_grad()
            functional.mse_loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
        states = [model.state_dict() for model in models]
        mean = {key: sum(w * s[key] for w, s in zip(weights, states, strict=True)) for key in states[0]}
        for model in models:
            model.load_state_dict(mean)
        yield number + 1


def job(name: str, rounds: int, epochs: int) -> Job:
    plan = TrainingPlan(0, epochs, STEPS, rounds)
    return Job(name, NAMES, dict.fromkeys(NAMES, plan), 0, evaluate_every=10**9, evaluate_silos=False)


def rate(numbers: Iterator[int], rounds: int) -> float:
    """Return rounds per second after the first few."""
    start = 0.0
    for number in numbers:
        if number == WARM_UP:
            start = time.perf_counter()
    return (rounds - WARM_UP) / (time.perf_counter() - start)


def specs(folder: str) -> list[SiloSpec]:
    return [SiloSpec(name, size, 0.0, state_folder=folder) for name, size in zip(NAMES, SIZES, strict=True)]


def measured(rounds: int) -> list[Measurement]:
    """Return rounds per second with an exchange after every local step; `rounds` more than 50, a multiple of 50."""
    found = {"plain loop, one process, nothing checked": rate(plain_loop(rounds), rounds)}
    with tempfile.TemporaryDirectory() as folder:
        for way, state in (("LocalCohort: guard, exact sum, records", ""), ("the same, silo states kept", "/local")):
            local = _agreed(Coordinator(LocalCohort(specs(state and folder + state), TASK, TEST), TASK, NAMES))
            found[way] = rate(_numbers(local, job("local", rounds, rounds // STEPS)), rounds)
        with standing(f"{folder}/ray") as coordinator:
            numbers = _numbers(coordinator, job("actors", rounds, rounds // STEPS))
            found["Ray actors, everything on"] = rate(numbers, rounds)
    plain = next(iter(found.values()))
    what = "exchange after every batch, 4 silos"
    return [Measurement(what, way, value, "rounds/s", plain) for way, value in found.items()]


def at_frequency(epochs: int, frequency: float = 0.25) -> list[Measurement]:
    """Return epochs per second on actors at a communication frequency, against computing alone."""
    with tempfile.TemporaryDirectory() as folder, standing(folder) as coordinator:
        rounds = round(epochs * frequency)
        list(coordinator.run(job("warm", 2, 2)))
        start = time.perf_counter()
        records = list(coordinator.run(job("frequency", rounds, epochs)))
        wall = time.perf_counter() - start
    compute = sum(record.seconds.get("compute", 0.0) for record in records)
    what = f"frequency {frequency:g}, 4 silos, {epochs} epochs in {rounds} rounds"
    return [
        Measurement(what, "computing of the slowest silo alone", epochs / compute, "epochs/s", epochs / compute),
        Measurement(what, "whole job on Ray actors", epochs / wall, "epochs/s", epochs / compute),
    ]


@contextlib.contextmanager
def standing(folder: str) -> Iterator["RemoteCoordinator"]:
    with session("local", num_cpus=len(NAMES) + 2):
        from actors.federation import federation  # not before: Ray reads the session's token at its import

        with federation(specs(folder), TASK, TEST, NAMES) as standing:
            yield _agreed(standing.coordinator)


Coordinating = TypeVar("Coordinating", Coordinator, "RemoteCoordinator")


def _agreed(coordinator: Coordinating) -> Coordinating:
    coordinator.agree()
    return coordinator


def _numbers(coordinator: "Coordinator | RemoteCoordinator", the_job: Job) -> Iterator[int]:
    return (record.server_round for record in coordinator.run(the_job))
