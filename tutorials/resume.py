"""A program that is killed in the middle is run again, and ends with the same bytes as one that was not.

python tutorials/resume.py
"""

import os
import signal
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import SiloSpec, TorchTask


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def samples(source: slice) -> tuple[np.ndarray, ...]:
    digits = load_digits()
    images, labels = digits.images[source] / 16.0, digits.target[source]
    return images[50:], labels[50:], images[:50], labels[:50]


def train(folder: Path, **options):
    """Optimiser, schedule and running statistics go on where they stood."""
    silos = [SiloSpec(name, part) for name, part in (("north", slice(0, 600)), ("south", slice(600, 1200)))]
    task = TorchTask(network, functional.cross_entropy, samples, {"accuracy": lambda out, y: out.argmax(1) == y})
    training = Training(rounds=8, epochs=8, learning_rate=0.01, optimizer="adamw", schedule="cosine", clip_norm=1.0)
    return federate(task, silos, training, cohort="local", out=folder, resume=True, tensorboard=False, **options)


def killed_in_round_four(folder: Path) -> None:
    train(folder, callbacks=[lambda record: record.server_round == 4 and os.kill(os.getpid(), signal.SIGKILL)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        broken, whole = Path(folder, "broken"), Path(folder, "whole")
        process = get_context("fork").Process(target=killed_in_round_four, args=(broken,))
        process.start()
        process.join()
        print(f"ended by signal {-process.exitcode}, in round 4 of 8")
        result = train(broken)
        train(whole)
        for name in ("history.jsonl", "models/federated.safetensors"):
            same = (broken / name).read_bytes() == (whole / name).read_bytes()
            print(f"{name}: {'the same bytes' if same else 'OTHER BYTES'}")
        print(result.history()[["federated.loss", "federated.accuracy"]].round(3).to_string())
