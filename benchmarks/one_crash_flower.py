"""The one-crash scenario as a Flower simulation. Started by one_crash.py with a Python that has `flwr[simulation]`.

    python one_crash_flower.py MARKER NUM_ACTORS SECONDS_PER_FIT

Prints one JSON line per round: [round, clients that took part, number of failures].
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

NUM_CLIENTS, NUM_ROUNDS, STEPS, CRASH_STEP = 8, 3, 10, 5
MARKER, NUM_ACTORS, SECONDS = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


class Regression(NumPyClient):
    """Least squares on 60 drawn rows by gradient steps; client 2 exits hard in the middle of its first round."""

    def __init__(self, number: int):
        self.number = number
        random = np.random.default_rng([0, number])
        self.x = random.normal(size=(60, 3))
        self.y = self.x @ np.array([1.0, 2.0, 3.0]) + 0.1 * random.normal(size=60)

    def fit(self, parameters, config):
        weights = parameters[0]
        for step in range(STEPS):
            if self.number == 2 and config["server_round"] == 1 and step == CRASH_STEP and not MARKER.exists():
                MARKER.touch()
                os._exit(1)
            time.sleep(SECONDS / STEPS)
            weights = weights - 0.1 * self.x.T @ (self.x @ weights - self.y) / len(self.x)
        return [weights], len(self.x), {"number": self.number}


class SayingFedAvg(FedAvg):
    """FedAvg that prints who took part."""

    def aggregate_fit(self, server_round, results, failures):
        took_part = sorted(result.metrics["number"] for _, result in results)
        print(json.dumps([server_round, took_part, len(failures)]), flush=True)
        return super().aggregate_fit(server_round, results, failures)


def client_fn(context: Context) -> Client:
    return Regression(int(context.node_config["partition-id"]) + 1).to_client()


def server_fn(_context: Context) -> ServerAppComponents:
    strategy = SayingFedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=NUM_CLIENTS,
        min_available_clients=NUM_CLIENTS,
        initial_parameters=ndarrays_to_parameters([np.zeros(3)]),
        on_fit_config_fn=lambda server_round: {"server_round": server_round},
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=NUM_ROUNDS))


if __name__ == "__main__":
    run_simulation(
        ServerApp(server_fn=server_fn),
        ClientApp(client_fn=client_fn),
        num_supernodes=NUM_CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": NUM_ACTORS}},
    )
