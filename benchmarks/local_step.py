"""Local training steps per second: our flat trainer against the usual PyTorch loops, in one run.

Network and batch sizes are those of Guo et al. 2022: 73-200-200-1, MSE, Adam; a global batch of 200 rows is 20, 40, 60
and 80 rows at silos of 1-4 thousand rows, 100 at each of two. `eager + DataLoader` is the loop of most tutorials,
`eager` the same without a DataLoader. Rounds of the three are interleaved; medians are printed.

    python benchmarks/local_step.py [--steps 500] [--rounds 7] [--device cpu]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan

ROWS, FEATURES = 10_000, 73


def rows(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, FEATURES, generator=generator)
    return x.to(device), x.square().mean(1, keepdim=True).to(device)


def ours(batch: int, device: str) -> Callable[[int], None]:
    x, y = rows(device)
    plan = TrainingPlan(seed=0, epochs=10**6, steps_per_epoch=ROWS // batch, num_rounds=1)
    trainer = LocalTrainer(seeded_mlp(FEATURES, (200, 200), 0), nn.functional.mse_loss, x, y, plan, "silo")
    vector = trainer.vector()
    return lambda steps: trainer.fit(vector, range(steps)) and None


def eager(batch: int, device: str) -> Callable[[int], None]:
    x, y = rows(device)
    module, loss = seeded_mlp(FEATURES, (200, 200), 0).to(device), nn.MSELoss()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def take(steps: int) -> None:
        for step in range(steps):
            if step % (ROWS // batch) == 0:
                order = torch.randperm(ROWS, device=device)
            index = order[step % (ROWS // batch) * batch :][:batch]
            optimizer.zero_grad()
            loss(module(x[index]), y[index]).backward()
            optimizer.step()

    return take


def with_loader(batch: int, device: str) -> Callable[[int], None]:
    x, y = rows("cpu")
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)
    module, loss = seeded_mlp(FEATURES, (200, 200), 0).to(device), nn.MSELoss()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def take(steps: int) -> None:
        done = 0
        while done < steps:
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(module(inputs.to(device)), targets.to(device)).backward()
                optimizer.step()
                done += 1
                if done == steps:
                    break

    return take


def seconds_per_step(take: Callable[[int], None], steps: int, device: str) -> float:
    start = time.perf_counter()
    take(steps)
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {options.device} ({name}), 1 thread, Python {platform.python_version()}")
    print(f"{'batch':>5} {'ours':>9} {'eager':>9} {'+ DataLoader':>13}   steps/s   ratio to eager, to DataLoader")
    for batch in (20, 40, 80, 100, 200):
        loops = [make(batch, options.device) for make in (ours, eager, with_loader)]
        for take in loops:
            take(50)
        timings = [
            [seconds_per_step(take, options.steps, options.device) for take in loops] for _ in range(options.rounds)
        ]
        flat, plain, loader = (statistics.median(column) for column in zip(*timings, strict=True))
        print(
            f"{batch:>5} {1 / flat:>9.0f} {1 / plain:>9.0f} {1 / loader:>13.0f}             "
            f"{plain / flat:>12.2f} {loader / flat:>14.2f}"
        )


if __name__ == "__main__":
    main()
