"""Peak memory of the coordinator against the number of silos, with a model of 25 million parameters.

The silos' maths does not matter here: each answers with its vector plus noise. Several silos share a process (of one
actor's mailbox), so that the machine holds 128 of them; the coordinator, its round rules, guard and exact sum are the
real ones, in this process, whose private memory is sampled.

    python benchmarks/coordinator_memory.py [--silos 2 8 32 128] [--million-parameters 25]
"""

import argparse
import platform
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
from torch import nn
from torch.nn import functional

from actors.cohort import RayCohort
from actors.session import session
from ray_fed.federation.coordinator import Coordinator, Evaluation
from ray_fed.federation.messages import SiloDescription, Update
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.strategies import make_strategy
from ray_fed.federation.torch_task import TorchTask
from ray_fed.learning.trainer import TrainingPlan

HOSTS = 3
ROUNDS = 2


class RowMatcher:
    """Plays silos: sends back what it was sent, moved a little."""

    def open(self):
        return SiloDescription("", 1, 0, {}, {"task": "torch"}, {}, "cpu")

    def prepare(self, standardizer):
        pass

    def open_session(self, spec):
        return spec.layout_digest

    def close_session(self, session):
        pass

    def fit(self, session, server_round, vector, silo):
        noise = np.random.default_rng(server_round).random(1024, np.float32)
        moved = vector + np.resize(noise, len(vector))
        return Update(silo, session, server_round, moved, 10, 1, 0.0)


class Named:
    """A handle under which one actor plays one of its silos."""

    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def __getattr__(self, method):
        return getattr(self.actor, method)

    @property
    def fit(self):
        actor, name = self.actor, self.name

        class Call:
            @staticmethod
            def remote(*arguments):
                return actor.fit.remote(*arguments, name)

        return Call


class Peak:
    """Samples this process's private memory (USS: shared pages of the object store do not count)."""

    def __enter__(self):
        self.base = self.peak = psutil.Process().memory_full_info().uss
        self.runs = True
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.runs = False
        self.thread.join()

    def _sample(self):
        process = psutil.Process()
        while self.runs:
            self.peak = max(self.peak, process.memory_full_info().uss)
            time.sleep(0.02)


def measured(num_silos: int, width: int, strategy: str, echo) -> tuple[float, float]:
    """Return (MB above the start, seconds per round) of a job of two rounds."""
    actors = [echo.options(num_cpus=0.1).remote() for _ in range(min(HOSTS, num_silos))]
    names = tuple(f"silo-{number:03d}" for number in range(num_silos))
    handles = {name: Named(actors[number % len(actors)], name) for number, name in enumerate(names)}
    task = TorchTask(lambda: nn.Linear(width, width, bias=False), functional.mse_loss, lambda _: ())
    coordinator = Coordinator(RayCohort(handles), task, names)
    coordinator.agree()
    plan = TrainingPlan(0, 2, 1, ROUNDS)
    job = Job("memory", names, dict.fromkeys(names, plan), 0, make_strategy(strategy), evaluate_every=ROUNDS + 1)
    coordinator._evaluation = lambda *_: Evaluation()  # type: ignore[method-assign]  # there is nothing to evaluate on
    with Peak() as memory:
        start = time.perf_counter()
        for record in coordinator.run(job):
            assert len(record.participants) in (0, num_silos)
        seconds = (time.perf_counter() - start) / ROUNDS
    import ray

    for actor in actors:
        ray.kill(actor)
    return (memory.peak - memory.base) / 1e6, seconds


def in_a_fresh_process(strategy: str, num_silos: int, width: int) -> tuple[float, float]:
    """Measure where no earlier measurement has left memory behind."""
    command = [sys.executable, __file__, "--one", strategy, str(num_silos), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, seconds = done.stdout.split()[-2:]
    return float(peak), float(seconds)


def one(strategy: str, num_silos: int, width: int) -> None:
    with session("local", num_cpus=8):
        import ray

        print(*measured(num_silos, width, strategy, ray.remote(RowMatcher)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silos", type=int, nargs="+", default=[2, 8, 32, 128])
    parser.add_argument("--million-parameters", type=float, default=25.0)
    parser.add_argument("--strategies", nargs="+", default=["fed_avg"])
    options = parser.parse_args()
    width = int((options.million_parameters * 1e6) ** 0.5)
    vector = 4 * width * width / 1e6
    print(f"{width * width:,} parameters, a vector is {vector:.0f} MB; {platform.platform()}\n")
    print("| strategy | silos | peak of the coordinator above its start | in vectors | seconds per round | per silo |")
    print("|---|---|---|---|---|---|")
    for strategy in options.strategies:
        for num_silos in options.silos:
            peak, seconds = in_a_fresh_process(strategy, num_silos, width)
            cells = [strategy, str(num_silos), f"{peak:,.0f} MB", f"{peak / vector:.1f}", f"{seconds:.1f}"]
            print(f"| {' | '.join(cells)} | {seconds / num_silos:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
