"""What gate and ledger cost: per update in microseconds, and per round of an exchange after every batch.

Four silos (1,000 to 4,000 rows), the network of Guo et al. 2022 (55,201 parameters, 221 kB), one local step a round:
the shortest rounds there are. Federations with and without ledgers take turns, so that the ratio means something on a
busy machine; processor time of all processes is given besides, as it hardly depends on what else runs.

    python benchmarks/perimeter.py [--rounds 400] [--turns 5]
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.nn import functional

from actors.session import session, set_private_token
from pipelines.ledger.coordinator_ledger import CoordinatorLedger
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Update
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.checks import digest_of
from ray_fed.perimeter.coordinator_record import CoordinatorRecord
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.ledger import vector_digest
from ray_fed.privacy.signing import SigningKey
from ray_fed.randomness import generator
from ray_fed.reporting.run_directory import RunDirectory

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
        x = generator(0, "rows", spec.name).normal(size=(int(str(spec.source)), FEATURES))
        return LocalRows(x, x[:, 0], x[:0], x[:0, 0], {}, {}, {})


class Ready(Silo):
    """Answers at once: what is left is the boundary."""

    answer: Update

    def fit(self, session, server_round, vector):  # noqa: ARG002
        return replace(self.answer, server_round=server_round)


def microseconds(call: Callable[[int], object], count: int = 400) -> float:
    """Return the median time of a call."""
    times = []
    for number in range(1, count + 1):
        start = time.perf_counter()
        call(number)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def per_update(folder: str) -> dict[str, float]:
    """Return microseconds of the parts of one update's way out."""
    random = generator(0, "update")
    vector = random.normal(scale=0.05, size=55_201).astype(np.float32)
    update = Update("silo-4", "s", 1, vector, 80, 1, 0.5, 0.001)
    boundaries = {}
    for name, place in (("gate", ""), ("gate and ledger", folder)):
        spec = SiloSpec("silo-4", 4000, run="r", ledger_folder=place)
        silo = Ready(spec, Drawn())
        silo.answer = update
        boundary = boundaries[name] = GuardedSilo(spec, lambda silo=silo: silo)
        boundary.open()
        boundary.prepare(None)
    found = {
        name: microseconds(lambda n, boundary=boundary: boundary.fit("s", n, vector))
        for name, boundary in boundaries.items()
    }
    found["of this the SHA-256 of 221 kB"] = microseconds(lambda _: vector_digest(vector))
    found["coordinator: note of an update"] = microseconds(lambda _: digest_of(update).facts())
    found["coordinator: digest of the model"] = microseconds(lambda _: vector_digest(vector))
    return found


def job(name: str, rounds: int) -> Job:
    plan = TrainingPlan(0, rounds // STEPS, STEPS, rounds)
    return Job(name, NAMES, dict.fromkeys(NAMES, plan), 0, evaluate_every=10**9, evaluate_silos=False)


def specs(folder: str, run: str) -> list[SiloSpec]:
    sized = zip(NAMES, SIZES, strict=True)
    place = f"{folder}/ledger" if run else ""
    return [SiloSpec(name, size, 0.0, state_folder=folder, run=run, ledger_folder=place) for name, size in sized]


def processor_seconds() -> float:
    """Return what this process and all below it have computed so far."""
    members = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in members)


def rate(coordinator, ledger: CoordinatorLedger | None, the_job: Job) -> tuple[float, float]:
    """Return (rounds per second, processor milliseconds per round) after the first few, with the notes written as a run
    writes them."""
    start, computed = 0.0, 0.0
    for record in coordinator.run(the_job):
        if ledger:
            ledger.write(record.notes)
        if record.server_round == WARM_UP:
            start, computed = time.perf_counter(), processor_seconds()
    rounds = the_job.num_rounds - WARM_UP
    return rounds / (time.perf_counter() - start), 1e3 * (processor_seconds() - computed) / rounds


Rates = list[tuple[float, float]]


def rounds_per_second(rounds: int, turns: int, folder: str) -> tuple[Rates, Rates]:
    """Return rates without and with ledgers, one pair per turn."""
    from actors.federation import federation

    task, found = Drawn(), (Rates(), Rates())
    directory = RunDirectory(Path(folder) / "run")
    directory.path.mkdir()
    ledger = CoordinatorLedger(directory, "r", SigningKey.at(Path(folder) / "coordinator.key"))
    with (
        federation(specs(f"{folder}/without", ""), task, None, NAMES) as without,
        federation(specs(f"{folder}/with", "r"), task, None, NAMES) as with_ledgers,
    ):
        without.coordinator.agree()
        with_ledgers.coordinator.agree()
        for turn in range(turns):
            found[0].append(rate(without.coordinator, None, job(f"without-{turn}", rounds)))
            found[1].append(rate(with_ledgers.coordinator, ledger, job(f"with-{turn}", rounds)))
    ledger.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--one-process", action="store_true", help="no rounds on Ray actors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}\n")
    with tempfile.TemporaryDirectory() as folder:
        print("| part of one update of 55,201 values | µs |\n|---|---|")
        for name, value in per_update(folder).items():
            print(f"| {name} | {value:.0f} |")
    with tempfile.TemporaryDirectory() as folder:
        without, with_ledgers = in_one_process(options.rounds, options.turns, folder)
    print("\n| in one process | processor ms per round |\n|---|---|")
    for name, values in (("gate alone", without), ("gate and ledgers", with_ledgers)):
        print(f"| {name} | {shown(values, '.2f')} |")
    print(f"| ledgers | {shown([b - a for a, b in zip(without, with_ledgers, strict=True)], '+.2f')} |")
    if options.one_process:
        return
    with tempfile.TemporaryDirectory() as folder, session("local", num_cpus=12):
        without, with_ledgers = rounds_per_second(options.rounds, options.turns, folder)
    print("\n| | rounds/s | processor ms per round |\n|---|---|---|")
    columns = [[list(column) for column in zip(*rates, strict=True)] for rates in (without, with_ledgers)]
    for name, column in zip(("gate alone", "gate and ledgers"), columns, strict=True):
        print(f"| {name} | {' | '.join(shown(values, '.1f') for values in column)} |")
    changes = [[b / a - 1 for a, b in zip(*pair, strict=True)] for pair in zip(*columns, strict=True)]
    print(f"| change | {' | '.join(shown(values, '+.1%') for values in changes)} |")


def in_one_process(rounds: int, turns: int, folder: str) -> tuple[list[float], list[float]]:
    """Return processor milliseconds per round without and with ledgers, one pair per turn, of the same silos, gates and
    coordinator in one process: without Ray's calls, which take most of a round and vary most."""
    task, found = Drawn(), ([], [])
    directory = RunDirectory(Path(folder) / "one")
    directory.path.mkdir()
    ledger = CoordinatorLedger(directory, "r", SigningKey.at(Path(folder) / "coordinator.key"))
    sides = []
    for run, place in (("", f"{folder}/one-without"), ("r", f"{folder}/one-with")):
        cohort = LocalCohort(specs(place, run), task)
        boundaries = {spec.name: GuardedSilo(spec, lambda spec=spec: Silo(spec, task)) for spec in specs(place, run)}
        cohort.silos = boundaries  # type: ignore[assignment]  (they answer the same questions)
        coordinator = Coordinator(cohort, task, NAMES, [CoordinatorRecord(task)] if run else [])
        coordinator.agree()
        sides.append((coordinator, bool(run)))
    for turn in range(turns):
        for times, (coordinator, has_ledger) in zip(found, sides, strict=True):
            the_job, start = job(f"{turn}-{has_ledger}", rounds), 0.0
            for record in coordinator.run(the_job):
                ledger.write(record.notes)
                if record.server_round == WARM_UP:
                    start = time.process_time()
            times.append(1e3 * (time.process_time() - start) / (rounds - WARM_UP))
    ledger.close()
    return found


def shown(values: list[float], form: str) -> str:
    """Return median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
