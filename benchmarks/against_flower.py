"""The same job in ray-fed and in Flower's simulation, one after the other on this machine.

Four silos of 1,000 to 4,000 rows, network 73-200-200-1, Adam: exchange after every batch, and communication frequency
0.25 (100 epochs of 50 steps in 25 rounds). ray-fed keeps everything on: guard, exact sum, records, silo states on disk.
Flower gets a virtual environment of its own; where it cannot be installed its half is skipped, and says why.

    python benchmarks/against_flower.py [--rounds 200] [--flower-python PYTHON]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from actors import forking
from pipelines.bench.exchanges import STEPS, job, standing

CLIENTS = Path(__file__).with_name("against_flower_clients.py")
EPOCHS, SLOW_ROUNDS = 100, 25


def ours(rounds: int) -> list[tuple[float, float]]:
    """Return (seconds to the first round, seconds per round) of both jobs."""
    found = []
    for name, num_rounds, epochs in (("batch", rounds, rounds // STEPS), ("frequency", SLOW_ROUNDS, EPOCHS)):
        start = time.perf_counter()
        forking.start()
        with tempfile.TemporaryDirectory() as folder, standing(folder) as coordinator:
            ends = [
                time.perf_counter() for record in coordinator.run(job(name, num_rounds, epochs)) if record.server_round
            ]
        found.append((ends[0] - start, (ends[-1] - ends[0]) / (num_rounds - 1)))
    return found


def flowers(python: str, rounds: int, num_actors: int) -> list[tuple[float, float]]:
    found = []
    for num_rounds, steps in ((rounds, 1), (SLOW_ROUNDS, EPOCHS * STEPS // SLOW_ROUNDS)):
        command = [python, str(CLIENTS), str(num_rounds), str(steps), str(num_actors)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"Flower failed:\n{done.stderr[-2000:]}")
        first, each = json.loads(done.stdout.splitlines()[-1])
        found.append((first, each))
    return found


def flower_pythons(given: str | None, folder: Path) -> Iterator[str]:
    """Yield a Python that has Flower's simulation and torch; nothing, after saying why, where there is none."""
    if given:
        yield given
        return
    python = folder / "flower" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "flower")], check=True)
    wanted = ["flwr[simulation]", f"numpy=={np.__version__}", f"torch=={torch.__version__.split('+')[0]}"]
    done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True)
    if done.returncode == 0:
        yield str(python)
    else:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        print(f"\nFlower's half is skipped: it cannot be installed here: {errors[-1]}")


def row(title: str, found: list[tuple[float, float]], reference: list[tuple[float, float]]) -> None:
    (batch_start, batch), (slow_start, slow) = found
    whole, ours_whole = slow_start + (SLOW_ROUNDS - 1) * slow, reference[1][0] + (SLOW_ROUNDS - 1) * reference[1][1]
    print(
        f"| {title} | {batch_start:.1f} s | {1 / batch:.1f} | {batch / reference[0][1]:.1f} | {slow:.2f} s "
        f"| {whole:.1f} s | {whole / ours_whole:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="of the exchange after every batch; a multiple of 50")
    parser.add_argument("--flower-python", help="a Python that has flwr[simulation] and torch; default: one is made")
    options = parser.parse_args()
    print(f"ray {metadata.version('ray')}, torch {torch.__version__}, {platform.platform()}\n")
    heads = ("", "to first round", "rounds/s, every batch", "ratio", "round at 0.25", "100 epochs in all", "ratio")
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    reference = ours(options.rounds)
    row("ray-fed", reference, reference)
    with tempfile.TemporaryDirectory() as name:
        for python in flower_pythons(options.flower_python, Path(name)):
            for num_actors in (2, 4):
                row(f"Flower, {num_actors} actors", flowers(python, options.rounds, num_actors), reference)


if __name__ == "__main__":
    main()
