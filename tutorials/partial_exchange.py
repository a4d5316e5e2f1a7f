"""Share a part of a model: two clinics code the same findings by other numbers, so the trunk travels, the head stays.

python tutorials/partial_exchange.py
"""

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import SiloSpec, TorchTask


class TrunkAndHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.trunk(x))


def samples(clinic: int) -> tuple[np.ndarray, ...]:
    """Runs inside the silo's process: every third digit, and the clinic's own code for what it shows."""
    digits = load_digits()
    images, labels = digits.images[clinic::3] / 16.0, (digits.target[clinic::3] + clinic) % 10
    return images[200:], labels[200:], images[:200], labels[:200]


if __name__ == "__main__":
    silos = [SiloSpec(name, number) for number, name in enumerate(["north", "south", "west"])]
    training = Training(rounds=10, epochs=10, optimizer="adamw", optimizer_options={"weight_decay": 0.01})
    rows = {}
    for what, exchange in (("everything", None), ("the trunk", "trunk.*"), ("all but the head", ["!head.*"])):
        scores = {"accuracy": lambda out, y: out.argmax(1) == y}
        task = TorchTask(TrunkAndHead, functional.cross_entropy, samples, scores, exchange=exchange)
        result = federate(task, silos, training, cohort="local")
        accuracies = {spec.name: result.metrics[f"silo.{spec.name}.accuracy"] for spec in silos}
        rows[what] = {**accuracies, "values that travel": result.agreement.layout.size}
    print(pd.DataFrame(rows).T.round(3).to_string())
