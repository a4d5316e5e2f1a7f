"""Models per minute: stacks of pyramids against the one-by-one PyTorch loop, at equal epochs and equal data.

    OMP_NUM_THREADS=1 python benchmarks/library_training.py [--device cuda]

Times are CPU time of this process where it computes on the CPU (other processes may be busy), wall time on a GPU. Both
sides use one thread, the same initial weights, mini-batches, Adam and number of epochs, and no early stopping.
"""

import argparse
import time

import numpy as np
import torch

from ray_fed.learning.models import seeded_mlp
from ray_fed.materials.features.featurizers import make_featurizer
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.model_library.batched_training import Schedule, TrainingRows, train_pyramids
from ray_fed.model_library.stacked_networks import Pyramid, PyramidRanges, random_pyramids
from ray_fed.randomness import generator

CASES = {
    "guo65, first layer 16-48 (the default)": ("guo65", PyramidRanges(), 32),
    "guo65, first layer 16-48, batch 64": ("guo65", PyramidRanges(), 64),
    "guo65, first layer 100-348 (the paper's)": ("guo65", PyramidRanges(first=(100, 348)), 32),
    "rich (240 columns), first layer 16-48": ("rich", PyramidRanges(), 32),
    "rich (240 columns), first layer 100-348": ("rich", PyramidRanges(first=(100, 348)), 32),
}


def rows_of(features: str, count: int = 1000) -> TrainingRows:
    """Return standardised model crystals: `count` training rows and a fifth of that to validate."""
    frame = make_model_crystals(count + count // 5, seed=1)
    inputs = make_featurizer(features).transform(frame)
    target = frame["target"].to_numpy(float)
    inputs = (inputs - inputs[:count].mean(0)) / np.where(inputs[:count].std(0) > 0, inputs[:count].std(0), 1)
    target = (target - target[:count].mean()) / target[:count].std()
    return TrainingRows(inputs[:count], target[:count], inputs[count:], target[count:])


def train_alone(rows: TrainingRows, pyramid: Pyramid, schedule: Schedule) -> float:
    """Train one network the usual way; return its lowest validation error."""
    to = {"dtype": torch.float32, "device": schedule.device}
    inputs, targets = torch.tensor(rows.inputs, **to), torch.tensor(rows.targets, **to).reshape(-1, 1)
    held, wanted = torch.tensor(rows.validation_inputs, **to), torch.tensor(rows.validation_targets, **to)
    network = seeded_mlp(inputs.shape[1], pyramid.hidden, pyramid.seed).to(schedule.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=pyramid.learning_rate)
    best = float("inf")
    for epoch in range(1, pyramid.epochs + 1):
        order = torch.from_numpy(generator(schedule.seed, "library batches", epoch).permutation(len(inputs)))
        for chosen in order.to(schedule.device).split(schedule.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            best = min(best, float((network(held).squeeze(1) - wanted).square().mean()))
    return best


def measure(name: str, alone: int, together: int, epochs: int, repeats: int, device: str) -> None:
    """Print models per minute of both ways over `repeats` interleaved goes, and the errors they reach."""
    features, ranges, batch = CASES[name]
    rows = rows_of(features)
    pyramids = [Pyramid(p.hidden, p.learning_rate, epochs, p.seed) for p in random_pyramids(together, ranges, 0)]
    schedule = Schedule(batch_size=batch, patience=epochs + 1, device=device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    speeds, differences = [], []
    for repeat in range(repeats):
        sample = pyramids[repeat * alone : (repeat + 1) * alone]
        start = clock()
        one_by_one = [train_alone(rows, pyramid, schedule) for pyramid in sample]
        loop = 60 * alone / (clock() - start)
        start = clock()
        stacked = [result.validation_loss for result in train_pyramids(rows, pyramids, schedule)]
        speeds.append((loop, 60 * together / (clock() - start)))
        differences += list(zip(one_by_one, stacked[repeat * alone :], strict=False))
    report(name, np.array(speeds), np.sqrt(np.array(differences)))


def report(name: str, speeds: np.ndarray, errors: np.ndarray) -> None:
    """Print one line: medians and the range of the ratio, and validation RMSE in units of the target's spread."""
    ratios = speeds[:, 1] / speeds[:, 0]
    print(
        f"| {name} | {np.median(speeds[:, 0]):,.0f} | {np.median(speeds[:, 1]):,.0f} | "
        f"{np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f}) | "
        f"{errors[:, 0].mean():.4f} | {errors[:, 1].mean():.4f} | {np.abs(errors[:, 0] - errors[:, 1]).max():.4f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alone", type=int, default=4)
    parser.add_argument("--together", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", type=int, default=None, help="only this one, from 0")
    options = vars(parser.parse_args())
    case = options.pop("case")
    torch.set_num_threads(1)
    print("| case | one by one, models/min | stacked, models/min | ratio | RMSE alone | RMSE stacked | largest gap |")
    print("|---|---|---|---|---|---|---|")
    for name in [*CASES] if case is None else [[*CASES][case]]:
        measure(name, **options)


if __name__ == "__main__":
    main()
