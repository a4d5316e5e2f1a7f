"""Federate your own network: three laboratories learn to tell digits apart, none hands out an image.

python tutorials/own_model.py
"""

import numpy as np
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import SiloSpec, TorchTask


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))


def samples(source: slice) -> tuple[np.ndarray, ...]:
    """Runs inside the silo's process; a real one would read the file that `source` names."""
    digits = load_digits()
    images, labels = digits.images[source][:, None] / 16.0, digits.target[source]
    return images[50:], labels[50:], images[:50], labels[:50]


if __name__ == "__main__":
    task = TorchTask(network, functional.cross_entropy, samples, scores={"accuracy": lambda out, y: out.argmax(1) == y})
    laboratories = {"north": slice(0, 300), "south": slice(300, 800), "west": slice(800, 1797)}
    result = federate(
        task,
        [SiloSpec(name, source) for name, source in laboratories.items()],
        Training(rounds=10, epochs=10, learning_rate=0.003),
        strategy="fed_bn",
        callbacks=[lambda record: print(f"round {record.server_round}: {record.metrics['federated.accuracy']:.3f}")],
    )
    print(result.history().filter(like="accuracy").tail(1).T)
