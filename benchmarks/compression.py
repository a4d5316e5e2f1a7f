"""Bytes saved and quality lost by coded updates: the formation-energy federation, embedded data, four silos.

python benchmarks/compression.py --seeds 0 1 2
"""

import argparse
import statistics
from dataclasses import replace

from pipelines.training.config import FormationEnergyConfig
from pipelines.training.setup import _study, jobs
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator

CODES: tuple[tuple[str, float], ...] = (
    ("none", 0.01), ("fp16", 0.01), ("bf16", 0.01), ("int8", 0.01), ("top_k", 0.1), ("top_k", 0.01), ("top_k", 0.001),
)  # fmt: skip


def errors(seed: int, epochs: int, rounds: int) -> list[tuple[float, float]]:
    """Return (MAE, bytes from silos a round) for each code, with one split and one set of silos."""
    config = FormationEnergyConfig(epochs=epochs, rounds=rounds, baselines=False, seed=seed, cohort="local")
    setup = _study(config)
    coordinator = Coordinator(LocalCohort(setup.silos, setup.task, setup.test), setup.task, setup.training)
    described = dict(coordinator.agree().silos)
    found = []
    for number, (method, share) in enumerate(CODES):
        coded = replace(setup, config=replace(config, compression=method, top_k_share=share))  # type: ignore[arg-type]
        job = replace(jobs(coded, described, seed)[0], name=f"federated-{number}", evaluate_silos=False)
        last = list(coordinator.run(job))[-1]
        assert last.state is not None
        down = len(setup.silos) * last.state["federated"].nbytes
        found.append((last.metrics["federated.mae"], last.bytes_sent - down))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    by_seed = [errors(seed, options.epochs, options.rounds) for seed in options.seeds]
    print("| code | bytes from a silo in a round | of float32 | MAE, eV/atom |\n|:--|---:|---:|---:|")
    for number, (method, share) in enumerate(CODES):
        maes, up = [found[number][0] for found in by_seed], by_seed[0][number][1]
        spread = statistics.stdev(maes) if len(maes) > 1 else float("nan")
        name = f"top_k, {share:g}" if method == "top_k" else method
        part = up / by_seed[0][0][1]
        print(f"| {name} | {up / 4:.0f} | {part:.1%} | {statistics.mean(maes):.4f} ± {spread:.4f} |")


if __name__ == "__main__":
    main()
