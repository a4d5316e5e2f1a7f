"""Network and rows."""

import torch
from torch import nn
from torch.nn import functional

from tests.flower_apps.rows import points


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def load(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
    features, classes = points(partition)
    return torch.from_numpy(features), torch.from_numpy(classes)


def train(net: nn.Module, partition: int, epochs: int, lr: float) -> float:
    features, classes = load(partition)
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=lr), torch.zeros(())
    for _ in range(epochs):
        for batch in torch.randperm(len(features)).split(20):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(features[batch]), classes[batch])
            loss.backward()
            optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def test(net: nn.Module, partition: int) -> tuple[float, float]:
    features, classes = load(partition + 100)
    outputs = net(features)
    return float(functional.cross_entropy(outputs, classes)), float((outputs.argmax(1) == classes).float().mean())
