"""Federate your own training loop: mixup and label noise, in the words of PyTorch, on three laboratories' digits.

python tutorials/own_loop.py
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import SiloSpec, TorchTask


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def samples(source: slice) -> tuple[np.ndarray, ...]:
    """Runs inside the silo's process."""
    digits = load_digits()
    images, labels = digits.images[source] / 16.0, digits.target[source]
    return images[50:], labels[50:], images[:50], labels[:50]


def fit(network: nn.Module, data, context):
    """One round. `network` has the values received; what it has at the end is sent. Kept for the next round, and
    through a restart: what is in `context.state`; torch's generator begins anew in each round, the same each time."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=context.learning_rate)
    if "optimizer" in context.state:
        optimizer.load_state_dict(context.state["optimizer"])
    losses = []
    for x, y in context.batches(data):  # or a DataLoader(data, ...) of your own
        share, other = torch.rand(()), torch.randperm(len(x))
        said = network(share * x + (1 - share) * x[other])
        loss = share * functional.cross_entropy(said, y) + (1 - share) * functional.cross_entropy(said, y[other])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    context.state["optimizer"] = optimizer.state_dict()
    return {"loss": float(np.mean(losses))}


if __name__ == "__main__":
    scores = {"accuracy": lambda out, y: out.argmax(1) == y}
    laboratories = {"north": slice(0, 300), "south": slice(300, 800), "west": slice(800, 1797)}
    silos = [SiloSpec(name, source) for name, source in laboratories.items()]
    task = TorchTask(network, functional.cross_entropy, samples, scores, fit=fit)
    result = federate(task, silos, Training(rounds=8, epochs=8, learning_rate=0.003), cohort="local")
    print(result.history()[["train_loss", "federated.loss", "federated.accuracy"]].round(3).to_string())
