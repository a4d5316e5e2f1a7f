"""Memory of all processes over 10,000 exchanges, one after every batch.

python benchmarks/constant_memory.py [--exchanges 10000] [--cohort local|ray]
"""

import argparse
import tempfile

import psutil

from pipelines.bench.exchanges import NAMES, STEPS, TASK, TEST, job, specs, standing
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator

LOOKED_AT = 10


def megabytes() -> float:
    """Return the private memory of this process and of those that it started, directly or not."""
    mine = psutil.Process()
    found = 0
    for process in [mine, *mine.children(recursive=True)]:
        try:
            found += process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended meanwhile
    return found / 1e6


def watched(coordinator, exchanges: int) -> None:
    coordinator_job = job("memory", exchanges, exchanges // STEPS)
    print("| exchanges | private memory of all processes |\n|---|---|")
    for record in coordinator.run(coordinator_job):
        if record.server_round and record.server_round % (exchanges // LOOKED_AT) == 0:
            print(f"| {record.server_round:,} | {megabytes():,.1f} MB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exchanges", type=int, default=10_000)
    parser.add_argument("--cohort", choices=("local", "ray"), default="local")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.cohort == "local":
            coordinator = Coordinator(LocalCohort(specs(folder), TASK, TEST), TASK, NAMES)
            coordinator.agree()
            watched(coordinator, options.exchanges)
            return
        with standing(folder) as there:
            watched(there, options.exchanges)


if __name__ == "__main__":
    main()
