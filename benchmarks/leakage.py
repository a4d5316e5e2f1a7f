"""Attacks per minute: our batched kernel as parallel Ray tasks against the plain loop, at equal iterations.

The plain loop attacks one image after another with `torch.optim.LBFGS` (step 1, history 100, no line search) and a
closure that runs the network, takes the gradient with `create_graph` and back-propagates the L2 distance: the shape of
the published DLG code, written anew here. Both sides do the same work: DLG's LeNet, joint labels, N(0, 1) starts, the
same images, at most `--evaluations` evaluations of the gradient each. Rates are per second of computing time of one
core, so that a busy machine slows neither side; tasks fill every core there is. The sides take turns.

    python benchmarks/leakage.py [--data digits] [--attacks 64] [--loop 16] [--evaluations 100] [--rounds 3]
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from actors.leakage import run_tasks
from actors.session import session
from ray_fed.leakage.attacks import DLG, OURS, Attack
from ray_fed.leakage.study import AttackJob, observations_of

EXACT = 1e-3


@dataclass(frozen=True)
class Pace:
    """One run of one side."""

    attacks_per_minute: float
    evaluations_per_second: float
    evaluations: float
    """Per attack: attacks that get stuck or have found the image end early."""
    success: float


def job(data: str, attack: Attack, problems: range, evaluations: int, images: int) -> AttackJob:
    return AttackJob(
        f"{attack.name}-{problems.start}", "benchmark", data, "lenet", attack, tuple(problems), images, evaluations
    )


class PlainLenet(nn.Sequential):
    """DLG's LeNet with torch's own convolutions."""

    @classmethod
    def like(cls, observation) -> "PlainLenet":
        layers = []
        for layer in observation.network:
            if isinstance(layer, nn.Conv2d):
                plain = nn.Conv2d(layer.in_channels, layer.out_channels, 5, padding=2, stride=layer.stride)
                layers.append(plain)
            else:
                layers.append(layer)
        network = cls(*layers)
        with torch.no_grad():
            for parameter, value in zip(network.parameters(), observation.parameters, strict=True):
                parameter.copy_(value)
        return network


def plain_attack(observation, truth: torch.Tensor, evaluations: int, seed: int) -> tuple[float, int]:
    """One attack of the plain loop; returns the mean squared error of its last image, and evaluations."""
    network = PlainLenet.like(observation)
    torch.manual_seed(seed)
    image = torch.randn(1, *observation.knows.input_shape).requires_grad_()
    label = torch.randn(1, observation.knows.num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS([image, label])
    spent = 0
    while spent < evaluations:

        def closure():
            nonlocal spent
            spent += 1
            optimizer.zero_grad()
            loss = -(label.softmax(1) * network(image).log_softmax(1)).sum(1).mean()
            virtual = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
            distance = sum(((a - b) ** 2).sum() for a, b in zip(virtual, observation.message, strict=True))
            distance.backward()
            return distance

        before = spent
        optimizer.step(closure)
        if spent - before <= 1:  # converged or stuck: the published loop would go on in vain
            break
    return float((image.detach() - truth).square().mean()), spent


def plain_loop(data: str, attacks: int, evaluations: int, images: int) -> Pace:
    """Attack one image after another, on one core."""
    observations, truth, _ = observations_of(job(data, DLG, range(attacks), evaluations, images))
    torch.set_num_threads(1)
    started = time.process_time()
    done = [plain_attack(one, truth[i], evaluations, i) for i, one in enumerate(observations)]
    rows = [{"evaluations": spent, "exact": error < EXACT} for error, spent in done]
    return _rates(rows, time.process_time() - started)


def tasks(data: str, attack: Attack, attacks: int, evaluations: int, images: int, size: int, judged: int) -> Pace:
    """Attack in Ray tasks of `size` attacks each, which measure their own computing time; success is that of the first
    `judged`, the plain loop's."""
    parts = [range(start, min(attacks, start + size)) for start in range(0, attacks, size)]
    results = list(run_tasks([job(data, attack, part, evaluations, images) for part in parts]))
    rows = sorted((row for result in results for row in result.rows), key=lambda row: int(str(row["problem"])))
    return _rates(rows, sum(result.seconds for result in results), judged)


def _rates(rows, seconds: float, judged: int | None = None) -> Pace:
    spent = [int(row["evaluations"]) for row in rows]
    success = statistics.mean(int(row["exact"]) for row in rows[:judged])
    return Pace(60 * len(rows) / seconds, sum(spent) / seconds, statistics.mean(spent), success)


def main() -> None:
    given = _given()
    common = (given.evaluations, given.attacks)
    sides: dict[str, Callable[[], Pace]] = {
        "plain loop, DLG": lambda: plain_loop(given.data, given.loop, *common),
        "tasks, DLG": lambda: tasks(given.data, DLG, given.attacks, *common, given.size, given.loop),
        "tasks, ours": lambda: tasks(given.data, OURS, given.attacks, *common, given.size, given.loop),
    }
    found: dict[str, list[Pace]] = {name: [] for name in sides}
    with session():
        list(
            run_tasks([job(given.data, DLG, range(1), 2, given.attacks)] * (os.cpu_count() or 1))
        )  # starts the workers
        for _ in range(given.rounds):
            for name, side in sides.items():
                found[name].append(side())
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {given}")
    print("| side | attacks/min, core | evaluations/s, core (min..max) | ev./attack | < 1e-3 | ratio of these rates |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(run.evaluations_per_second for run in found["plain loop, DLG"])
    for name, runs in found.items():
        pace = sorted(run.evaluations_per_second for run in runs)
        attacks = statistics.median(run.attacks_per_minute for run in runs)
        print(
            f"| {name} | {attacks:,.0f} | {statistics.median(pace):,.0f} ({pace[0]:,.0f}..{pace[-1]:,.0f}) | "
            f"{runs[0].evaluations:.0f} | {runs[0].success:.0%} | {statistics.median(pace) / base:.1f} |"
        )


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--attacks", type=int, default=64)
    parser.add_argument("--loop", type=int, default=16, help="attacks of the plain loop")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="attacks per task")
    return parser.parse_args()


if __name__ == "__main__":
    main()
