"""Rounds against the number of silos and of parameters, and what a fitted cost model says of a hundred institutions.

Every silo is an actor with a process of its own, on logical CPUs; it answers at once with its vector moved a little, so
that what is measured is the runtime: messages, guard, exact sum, records, silo boundary. Time of a round, and of the
coordinator's own processor time, are fitted as

    seconds = (fixed + per_byte_once * bytes) + silos * (per_silo + per_byte * bytes)      (bytes of a vector; all >= 0)

by least squares of relative errors. The prediction for other machines takes the coordinator's processor time, which
stays where it is, and the network's time for two vectors per silo; the silos' own time leaves for their machines.

    python benchmarks/scaling.py [--silos 1 2 4 8 16 32 64] [--parameters 55201 1000000 25000000]
"""

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from torch import nn
from torch.nn import functional

from actors.session import session, set_private_token
from ray_fed.federation.messages import SessionSpec, Update, Vector
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan

set_private_token()
MOST_BYTES = 3.3e9
"""Updates of one round, all alive at once in the worst case: more does not fit into this machine's object store."""
SECONDS = 4.0
"""Measured time of one setting, at least; at least three rounds."""
SITES, LINK_GBIT = 100, 25.0


class EchoSilo(Silo):
    """Answers at once: sends back what it was sent, moved a little."""

    def open_session(self, spec: SessionSpec) -> str:
        return Layout.of(self.task.model(spec.model_seed), spec.plan.buffers).digest

    def fit(self, session: str, server_round: int, vector: Vector) -> Update:
        return Update(self.spec.name, session, server_round, vector + np.float32(1e-6), 10, 1, 0.0)


@dataclass(frozen=True)
class EchoTask(Task):
    """One row, and a network of as many parameters as wanted."""

    parameters: int
    loss = staticmethod(functional.mse_loss)
    standardises = False

    def load(self, spec: SiloSpec) -> LocalRows:  # noqa: ARG002
        row = np.zeros((1, 1))
        return LocalRows(row, row[0], row[:0], row[:0, 0], {}, {}, {})

    def model(self, seed: int) -> nn.Module:  # noqa: ARG002
        return nn.Linear(self.parameters, 1, bias=False)

    def agreement(self) -> dict[str, str]:
        return {}

    def silo(self, spec: SiloSpec, device: str = "cpu") -> Silo:
        return EchoSilo(spec, self, device)


@dataclass(frozen=True)
class Measured:
    """One setting. Times in seconds per round."""

    silos: int
    bytes: int
    wall: float
    coordinator_cpu: float
    coordinator_memory: float
    """Private memory of the coordinator's process at the end, in bytes."""


def measured(num_silos: int, parameters: int) -> Measured:
    from actors.federation import federation

    task, names = EchoTask(parameters), tuple(f"silo-{number:02d}" for number in range(num_silos))
    with federation([SiloSpec(name, None, 0.0) for name in names], task, None, names) as standing:
        process = process_of(standing.coordinator.actor)
        standing.coordinator.agree()
        timed(standing.coordinator, names, 3, "warm")
        once, _ = timed(standing.coordinator, names, 6, "probe")
        rounds = max(3, int(SECONDS / once))
        before = sum(process.cpu_times()[:2])
        wall, done = timed(standing.coordinator, names, rounds, "measured")
        cpu = (sum(process.cpu_times()[:2]) - before) / done
        return Measured(num_silos, 4 * parameters, wall, cpu, process.memory_full_info().uss)


def timed(coordinator, names: tuple[str, ...], rounds: int, name: str) -> tuple[float, int]:
    """Return (seconds per round, rounds) of a job that evaluates nothing, its session's opening included."""
    plan = TrainingPlan(0, rounds, 1, rounds)
    job = Job(name, names, dict.fromkeys(names, plan), 0, evaluate_every=10**9, evaluate_silos=False)
    start = time.perf_counter()
    for record in coordinator.run(job):
        assert record.server_round == 0 or len(record.participants) == len(names)
    return (time.perf_counter() - start) / rounds, rounds


def process_of(actor):
    import os

    import psutil
    import ray

    return psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def fitted(points: Sequence[Measured], seconds: Sequence[float]) -> np.ndarray:
    """Return (fixed, per byte once, per silo, per byte and silo), in seconds."""
    terms = np.array([terms_of(point.silos, point.bytes) for point in points])
    target = np.array(seconds)
    scale = np.array([1e-3, 1e-9, 1e-3, 1e-9])
    found, _ = nnls(terms * scale / target[:, None], np.ones(len(points)))
    return found * scale


def terms_of(silos: int, num_bytes: float) -> list[float]:
    return [1.0, num_bytes, silos, silos * num_bytes]


def predicted(coefficients: np.ndarray, silos: int, num_bytes: float) -> float:
    return float(coefficients @ terms_of(silos, num_bytes))


def shown(points: Sequence[Measured], wall: np.ndarray, cpu: np.ndarray) -> None:
    print("| parameters | silos | rounds/s | model | MB/s both ways | coordinator CPU per round | its memory |")
    print("|---|---|---|---|---|---|---|")
    for p in points:
        rate = 2e-6 * p.silos * p.bytes / p.wall
        print(
            f"| {p.bytes // 4:,} | {p.silos} | {1 / p.wall:.3g} | {1 / predicted(wall, p.silos, p.bytes):.3g} "
            f"| {rate:,.0f} | {1e3 * p.coordinator_cpu:,.1f} ms | {p.coordinator_memory / 1e6:,.0f} MB |"
        )
    for name, found in (("a round here", wall), ("the coordinator's CPU", cpu)):
        fixed, once, silo, byte = found * [1e3, 1e9, 1e3, 1e9]
        print(
            f"\n{name}: {fixed:.2f} ms + {once:.2f} ns per byte, for each silo {silo:.3f} ms + {byte:.2f} ns per byte"
        )


def prophesied(cpu: np.ndarray, parameters: Sequence[int]) -> None:
    print(
        f"\n{SITES} silos on machines of their own, one coordinator behind {LINK_GBIT:g} Gbit/s, computing not counted:"
    )
    print("\n| parameters | coordinator CPU | network | round at least | at most |\n|---|---|---|---|---|")
    for count in parameters:
        busy, wire = predicted(cpu, SITES, 4 * count), 2 * SITES * 4 * count * 8 / (LINK_GBIT * 1e9)
        cells = (busy, wire, max(busy, wire), busy + wire)
        print(f"| {count:,} | " + " | ".join(f"{value:.3g} s" for value in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silos", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--parameters", type=int, nargs="+", default=[55_201, 1_000_000, 25_000_000])
    options, points = parser.parse_args(), []
    settings = [(n, p) for p in options.parameters for n in options.silos if 4 * n * p <= MOST_BYTES]
    with session("local", num_cpus=max(options.silos) + 2):
        for num_silos, parameters in settings:
            points.append(measured(num_silos, parameters))
            print(points[-1], file=sys.stderr, flush=True)
    wall, cpu = (fitted(points, [getattr(p, name) for p in points]) for name in ("wall", "coordinator_cpu"))
    print(f"{platform.platform()}\n")
    shown(points, wall, cpu)
    prophesied(cpu, options.parameters)


if __name__ == "__main__":
    main()
