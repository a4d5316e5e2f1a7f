"""Exchange after every batch: rounds per second of a plain loop, of one process, and of actors with everything on.

Four silos (1,000 to 4,000 rows), the network of Guo et al. 2022 (55,201 parameters, 221 kB), one local step of 20 to 80
rows a round. All in one run, so that the ratios mean something on whatever machine it runs.

    python benchmarks/exchange.py [--rounds 600]
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from actors.session import session, set_private_token
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator, Job
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.randomness import generator

set_private_token()
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
        x = generator(0, "rows", spec.name).normal(size=(spec.source, FEATURES))
        return LocalRows(x, x[:, 0], x[:0], x[:0, 0], {}, {}, {})


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


def job(rounds: int) -> Job:
    plan = TrainingPlan(0, rounds // STEPS, STEPS, rounds)
    return Job("exchange", NAMES, dict.fromkeys(NAMES, plan), 0, evaluate_every=10**9, evaluate_silos=False)


def rate(numbers: Iterator[int], rounds: int) -> float:
    """Return rounds per second after the first few."""
    start = 0.0
    for number in numbers:
        if number == WARM_UP:
            start = time.perf_counter()
    return (rounds - WARM_UP) / (time.perf_counter() - start)


def numbers(coordinator, the_job: Job) -> Iterator[int]:
    coordinator.agree()
    return (record.server_round for record in coordinator.run(the_job))


def specs(folder: str) -> list[SiloSpec]:
    return [SiloSpec(name, size, 0.0, state_folder=folder) for name, size in zip(NAMES, SIZES, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=600)
    rounds = parser.parse_args().rounds
    test, task, found = SiloSpec("test", 100, 0.0), Drawn(), {}
    found["plain loop, one process"] = rate(plain_loop(rounds), rounds)
    with tempfile.TemporaryDirectory() as folder:
        local = Coordinator(LocalCohort(specs(""), task, test), task, NAMES)
        found["LocalCohort: guard, exact sum, records"] = rate(numbers(local, job(rounds)), rounds)
        kept = Coordinator(LocalCohort(specs(f"{folder}/l"), task, test), task, NAMES)
        found["LocalCohort, silo states kept"] = rate(numbers(kept, job(rounds)), rounds)
        with session("local", num_cpus=8):
            from actors.cohort import RayCohort
            from actors.federation import federation
            from actors.session import carry_by_value

            carry_by_value(task)
            with federation(specs(f"{folder}/r"), task, test, NAMES) as standing:
                direct = Coordinator(RayCohort(standing.silos), task, NAMES)
                found["Ray actors, coordinator in the driver"] = rate(numbers(direct, job(rounds)), rounds)
                last = replace(job(rounds), name="last")
                found["Ray actors, coordinator actor, everything on"] = rate(
                    numbers(standing.coordinator, last), rounds
                )
    print(f"{rounds} rounds, {platform.platform()}\n\n| design | rounds/s | of the plain loop |\n|---|---|---|")
    plain = found["plain loop, one process"]
    for design, value in found.items():
        print(f"| {design} | {value:.0f} | {value / plain:.2f} |")


if __name__ == "__main__":
    main()
