"""Four Flower clients that train the network of Guo et al. 2022 by eager PyTorch. Started by against_flower.py.

    python against_flower_clients.py ROUNDS STEPS_PER_ROUND

Prints one JSON line: seconds from the start of the simulation to the end of round 1, seconds per round after it.
"""

import json
import sys
import time

import numpy as np
import torch
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

SIZES, FEATURES = (1000, 2000, 3000, 4000), 73
NUM_ROUNDS, STEPS = int(sys.argv[1]), int(sys.argv[2])
STARTED = time.perf_counter()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1)
    )  # fmt: skip


class Silo(NumPyClient):
    """A client is made anew for each round, as Flower's simulation does; its rows are drawn again from a seed."""

    def __init__(self, number: int):
        torch.set_num_threads(1)
        drawn = np.random.default_rng(number)
        self.x = torch.from_numpy(drawn.normal(size=(SIZES[number], FEATURES)).astype(np.float32))
        self.y, self.module = self.x[:, :1].clone(), network()

    def fit(self, parameters, config):  # noqa: ARG002
        with torch.no_grad():
            for parameter, value in zip(self.module.parameters(), parameters, strict=True):
                parameter.copy_(torch.from_numpy(value))
        optimizer, batch = torch.optim.Adam(self.module.parameters(), lr=1e-3), len(self.x) // 50
        for _ in range(STEPS):
            index = torch.randint(len(self.x), (batch,))
            optimizer.zero_grad()
            nn.functional.mse_loss(self.module(self.x[index]), self.y[index]).backward()
            optimizer.step()
        return [parameter.detach().numpy() for parameter in self.module.parameters()], len(self.x), {}


class Timed(FedAvg):
    """FedAvg that notes when rounds end."""

    ends: list[float] = []  # noqa: RUF012  # one simulation in the process

    def aggregate_fit(self, server_round, results, failures):
        assert len(results) == len(SIZES), failures
        mean = super().aggregate_fit(server_round, results, failures)
        self.ends.append(time.perf_counter())
        return mean


def client_fn(context: Context) -> Client:
    return Silo(int(context.node_config["partition-id"])).to_client()


def server_fn(_context: Context) -> ServerAppComponents:
    initial = ndarrays_to_parameters([parameter.detach().numpy() for parameter in network().parameters()])
    strategy = Timed(
        fraction_evaluate=0.0, min_fit_clients=4, min_available_clients=4, initial_parameters=initial
    )  # fmt: skip
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=NUM_ROUNDS))


if __name__ == "__main__":
    run_simulation(
        ServerApp(server_fn=server_fn),
        ClientApp(client_fn=client_fn),
        num_supernodes=len(SIZES),
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": int(sys.argv[3])}},
    )
    first, last = Timed.ends[0], Timed.ends[-1]
    print(json.dumps([first - STARTED, (last - first) / (NUM_ROUNDS - 1)]))
