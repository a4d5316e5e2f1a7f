"""Epsilon against error for the formation-energy federation: example-level DP-SGD in four silos, embedded data.

    python benchmarks/privacy_tradeoff.py --noises 0 0.6 1 2 4 --seeds 0 1 2

A noise of 0 is private training without noise or account: the cost of clipping and of Poisson batches alone. "none" is
plain training of the same length. Each line is one run; the table at the end has mean and standard deviation.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from pipelines.training.config import FormationEnergyConfig
from pipelines.training.setup import _study, jobs
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import EPSILON
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.reporting.figure_style import FEDERATED, INK, POOLED, dress, new_figure, save_figure


def point(noise: str, clip: float, seed: int, epochs: int, learning_rate: float, batch: int) -> dict[str, object]:
    """Train one federation and return its epsilon and its error on the common test set."""
    multiplier = float(noise) if noise not in ("none", "0") else None
    config = FormationEnergyConfig(
        epochs=epochs, batch_size=batch, rounds=10, baselines=False, seed=seed, cohort="local", optimizer="adam",
        learning_rate=learning_rate, dp_noise_multiplier=multiplier, dp_clip=clip,
    )  # fmt: skip
    setup = _study(config)
    coordinator = Coordinator(LocalCohort(setup.silos, setup.task, setup.test), setup.task, setup.training)
    job = jobs(setup, dict(coordinator.agree().silos), seed)[0]
    job = replace(job, evaluate_silos=False)
    if noise == "0":
        plans = {name: replace(plan, private=PrivateSteps(1e-12, clip)) for name, plan in job.plans.items()}
        job = replace(job, plans=plans)
    last = list(coordinator.run(job))[-1].metrics
    epsilon = last.get(EPSILON)
    return {"noise": noise, "clip": clip, "seed": seed, "epsilon": epsilon, "mae": last["federated.mae"]}


def table(points: list[dict[str, object]]) -> list[str]:
    """Return Markdown rows: one noise each."""
    lines = ["| noise multiplier | epsilon (delta 1e-5) | MAE, eV/atom |", "|---:|---:|---:|"]
    for noise in dict.fromkeys(str(found["noise"]) for found in points):
        same = [found for found in points if found["noise"] == noise]
        errors = [float(found["mae"]) for found in same]  # type: ignore[arg-type]
        epsilon = same[0]["epsilon"]
        shown = "none" if epsilon is None else f"{epsilon:.2f}"
        spread = statistics.stdev(errors) if len(errors) > 1 else float("nan")
        lines.append(f"| {noise} | {shown} | {statistics.mean(errors):.4f} ± {spread:.4f} |")
    return lines


def figure(points: list[dict[str, object]]) -> Figure:
    """Return error against epsilon, with every seed as a point, mean and standard deviation, and plain training as a
    band."""
    drawing = new_figure(6.4, 4.2)
    axes = drawing.subplots()
    dress(axes, "both")
    plain = [float(found["mae"]) for found in points if found["noise"] == "none"]  # type: ignore[arg-type]
    low, high = statistics.mean(plain) - statistics.stdev(plain), statistics.mean(plain) + statistics.stdev(plain)
    axes.axhspan(low, high, color=POOLED, alpha=0.35, linewidth=0, label="without noise or clipping")
    by_epsilon: dict[float, list[float]] = {}
    for found in points:
        if found["epsilon"] is not None:
            by_epsilon.setdefault(float(found["epsilon"]), []).append(float(found["mae"]))  # type: ignore[arg-type]
    epsilons = sorted(by_epsilon)
    means = [statistics.mean(by_epsilon[epsilon]) for epsilon in epsilons]
    spreads = [statistics.stdev(by_epsilon[epsilon]) for epsilon in epsilons]
    axes.errorbar(epsilons, means, spreads, color=FEDERATED, marker="o", capsize=3, label="DP-SGD in every silo")
    each = [(epsilon, error) for epsilon in epsilons for error in by_epsilon[epsilon]]
    axes.scatter(*zip(*each, strict=True), s=10, color=INK, zorder=3, label="one seed")
    axes.set_xscale("log")
    axes.set_xticks(epsilons, [f"{epsilon:.3g}" for epsilon in epsilons])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epsilon after the whole run, at delta 1e-5 (smaller is more private)")
    axes.set_ylabel("MAE on the common test set [eV/atom]")
    axes.legend(frameon=False)
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noises", nargs="+", default=["none", "0", "0.6", "1", "2", "4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--keep", default=str(Path(tempfile.gettempdir()) / "privacy_tradeoff.jsonl"))
    parser.add_argument("--figure", default=None, help="PNG to draw of all that is kept")
    parser.add_argument("--only-draw", action="store_true", help="train nothing")
    options = parser.parse_args()
    kept = Path(options.keep)
    for seed in (
        () if options.only_draw else options.seeds
    ):  # the whole curve for one seed first: a run that is cut short is still a curve
        for noise in options.noises:
            found = point(noise, options.clip, seed, options.epochs, options.learning_rate, options.batch)
            with kept.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), file=sys.stderr, flush=True)
    points = [json.loads(line) for line in kept.read_text().splitlines()]
    print("\n".join(table(points)))
    if options.figure:
        save_figure(figure(points), options.figure)


if __name__ == "__main__":
    main()
