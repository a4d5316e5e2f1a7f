"""Write a strategy: take part by turns, and move the model less and less. Then draw it against plain averaging.

python tutorials/own_strategy.py
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import FedAvg, SiloSpec, TorchTask

ROUND = "server.round"


@dataclass(frozen=True)
class ByTurns(FedAvg):
    """Every other silo in each round; the step of the server falls by `decay` a round. State is named arrays."""

    decay: float = 0.95

    def start(self, initial, silos):
        return {**super().start(initial, silos), ROUND: np.zeros(1)}

    def dispatch(self, state, silos):
        first = int(state[ROUND][0]) % 2
        return dict.fromkeys(sorted(silos)[first::2], state[self.name])  # who is not named takes no part

    def aggregate(self, state, updates):
        model = state[self.name]
        mean = super().aggregate({self.name: model}, updates)[self.name]
        step = self.decay ** float(state[ROUND][0])
        return {self.name: (model + step * (mean - model)).astype(np.float32), ROUND: state[ROUND] + 1}

    def models(self, state):
        return {self.name: state[self.name]}


def samples(source: slice) -> tuple[np.ndarray, ...]:
    images, labels = load_digits().images[source] / 16.0, load_digits().target[source]
    return images[50:], labels[50:], images[:50], labels[:50]


if __name__ == "__main__":
    network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))  # noqa: E731
    task = TorchTask(network, functional.cross_entropy, samples, {"accuracy": lambda out, y: out.argmax(1) == y})
    silos = [SiloSpec(f"lab-{number}", slice(300 * number, 300 * number + 300)) for number in range(5)]
    axes = Figure(layout="constrained").subplots()
    for strategy in (FedAvg(), ByTurns()):
        history = federate(task, silos, Training(rounds=12, epochs=12), strategy=strategy, cohort="local").history()
        axes.plot(history.index, history["federated.accuracy"], "o-", label=type(strategy).__name__)
        print(f"{type(strategy).__name__:8} {history['federated.accuracy'].iloc[-1]:.3f}")
    axes.set(xlabel="round", ylabel="accuracy on held-out digits")
    axes.legend()
    axes.figure.savefig("own_strategy.png")
