"""Local training steps per second: our flat trainer against the usual PyTorch loops.

Network and batch sizes are those of Guo et al. 2022: 73-200-200-1, MSE, Adam; a global batch of 200 rows is 20, 40, 60
and 80 rows at silos of 1-4 thousand rows, 100 at each of two. `eager + DataLoader` is the loop of most tutorials,
`eager` the same without a DataLoader. The three are measured in turn, and again; medians count.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pipelines.bench.measurement import Measurement
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


def measured(device: str, steps: int, repeats: int) -> list[Measurement]:
    """Return steps per second at batches of 20, 40, 80 and 200 rows."""
    return [one for batch in (20, 40, 80, 200) for one in _at(batch, device, steps, repeats)]


def _at(batch: int, device: str, steps: int, repeats: int) -> list[Measurement]:
    ways = {"eager PyTorch": eager, "eager PyTorch, DataLoader": with_loader, "ray-fed": ours}
    loops = [make(batch, device) for make in ways.values()]
    for take in loops:
        take(50)
    timings = [[seconds_per_step(take, steps, device) for take in loops] for _ in range(repeats)]
    rates = [1 / statistics.median(column) for column in zip(*timings, strict=True)]
    what = f"local step, batch {batch}, {device}"
    return [Measurement(what, way, rate, "steps/s", rates[0]) for way, rate in zip(ways, rates, strict=True)]
