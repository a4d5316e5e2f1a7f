"""BatchNorm that stays with each client, in its context's state: only the other layers travel (FedBN)."""

import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ArrayRecord, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from torch import nn
from torch.nn import functional

from tests.flower_apps.rows import points


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"norm": nn.BatchNorm1d(4), "layer": nn.Linear(4, 2)})


class Normed(NumPyClient):
    def __init__(self, partition, state):
        self.net, self.state = network(), state
        self.x, self.y = map(torch.from_numpy, points(partition))
        if "norm" in state:
            self.net["norm"].load_state_dict(state["norm"].to_torch_state_dict())

    def take(self, parameters):
        names = self.net["layer"].state_dict()
        self.net["layer"].load_state_dict(dict(zip(names, map(torch.tensor, parameters), strict=True)))

    def forward(self):
        return self.net["layer"](self.net["norm"](self.x))

    def fit(self, parameters, config):  # noqa: ARG002
        self.take(parameters)
        self.net.train()
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            functional.cross_entropy(self.forward(), self.y).backward()
            optimizer.step()
        self.state["norm"] = ArrayRecord(self.net["norm"].state_dict())
        mean = float(self.net["norm"].running_mean[3])
        return [part.numpy() for part in self.net["layer"].state_dict().values()], len(self.x), {"own_mean": mean}

    @torch.no_grad()
    def evaluate(self, parameters, config):  # noqa: ARG002
        self.take(parameters)
        self.net.eval()
        outputs = self.forward()
        told = {"own_mean": float(self.net["norm"].running_mean[3])}
        return float(functional.cross_entropy(outputs, self.y)), len(self.x), told


def client_fn(context):
    return Normed(context.node_config["partition-id"], context.state).to_client()


def server_fn(context):
    initial = ndarrays_to_parameters([part.numpy() for part in network()["layer"].state_dict().values()])
    config = ServerConfig(num_rounds=context.run_config["rounds"])
    return ServerAppComponents(strategy=FedAvg(initial_parameters=initial), config=config)


client_app, server_app = ClientApp(client_fn), ServerApp(server_fn=server_fn)
