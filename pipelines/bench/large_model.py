"""Exchanges of a large model, where copies and checks of its values are the cost: one step of two silos a round."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from actors.session import session
from pipelines.bench.measurement import Measurement
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import RegressionSums
from ray_fed.randomness import generator

NAMES, ROWS = ("silo-1", "silo-2"), 8
SPECS = [SiloSpec(name, ROWS) for name in NAMES]
WIDTH = 5000
"""A layer of so many by so many: 25 million parameters, 100 MB."""


@dataclass(frozen=True)
class Wide(Task):
    """One wide layer."""

    width: int = WIDTH
    loss = staticmethod(functional.mse_loss)
    standardises: bool = False

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Linear(self.width, self.width, bias=False)

    def agreement(self) -> dict[str, str]:
        return {}

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> RegressionSums:
        return RegressionSums.of(targets[:, 0], outputs[:, 0])

    def load(self, spec: SiloSpec) -> LocalRows:
        x = generator(0, "rows", spec.name).normal(size=(ROWS, self.width)).astype(np.float32)
        return LocalRows(x, x, x[:0], x[:0], {}, {}, {})


def measured(rounds: int, width: int = WIDTH) -> list[Measurement]:
    """Return rounds per second of a plain loop, of one process, and of actors."""
    task = Wide(width)
    found = {"plain loop, one process, nothing checked": _rate(plain_loop(task, rounds), rounds)}
    local = Coordinator(LocalCohort(SPECS, task), task, NAMES)
    local.agree()
    found["LocalCohort: guard, exact sum, records"] = _rate(_numbers(local, rounds), rounds)
    with session("local", num_cpus=len(NAMES) + 1):
        from actors.federation import federation  # not before: Ray reads the session's token at its import

        with federation(SPECS, task, None, NAMES) as standing:
            standing.coordinator.agree()
            found["Ray actors, everything on"] = _rate(_numbers(standing.coordinator, rounds), rounds)
    plain = next(iter(found.values()))
    what = f"exchange of {width * width / 1e6:,.3g} M parameters, 2 silos"
    return [Measurement(what, way, value, "rounds/s", plain) for way, value in found.items()]


def plain_loop(task: Wide, rounds: int) -> Iterator[int]:
    """Yield round numbers, from 0, of eager steps of two models and a mean of their weights."""
    torch.set_num_threads(1)
    models = [task.model(0) for _ in NAMES]
    rows = [torch.from_numpy(task.load(spec).features) for spec in SPECS]
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in models]
    yield 0
    for number in range(rounds):
        for model, x, optimizer in zip(models, rows, optimizers, strict=True):
            optimizer.zero_grad()
            functional.mse_loss(model(x), x).backward()
            optimizer.step()
        states = [model.state_dict() for model in models]
        mean = {key: sum(state[key] for state in states) / len(states) for key in states[0]}
        for model in models:
            model.load_state_dict(mean)
        yield number + 1


def job(rounds: int) -> Job:
    plan = TrainingPlan(0, rounds, 1, rounds, optimizer="sgd")
    return Job("large", NAMES, dict.fromkeys(NAMES, plan), 0, evaluate_every=10**9, evaluate_silos=False)


def _numbers(coordinator, rounds: int) -> Iterator[int]:
    return (record.server_round for record in coordinator.run(job(rounds)))


def _rate(numbers: Iterator[int], rounds: int) -> float:
    """Return rounds per second after the first one, which warms up."""
    start = 0.0
    for number in numbers:
        if number == 1:
            start = time.perf_counter()
    return (rounds - 1) / (time.perf_counter() - start)
