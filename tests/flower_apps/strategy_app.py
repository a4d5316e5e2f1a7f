"""A strategy of one's own: it chooses clients, sends each a config of its own, weighs answers, and evaluates."""

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import FitIns, ndarrays_to_parameters
from flwr.server.strategy import FedAvg

from tests.flower_apps.rows import points


class Steps(NumPyClient):
    """Logistic regression by plain gradient steps, as many as the server says."""

    def __init__(self, partition):
        self.x, self.y = points(partition)

    def get_parameters(self, config):  # noqa: ARG002
        return [np.zeros(4)]

    def gradient(self, weights):
        return self.x.T @ (1 / (1 + np.exp(-self.x @ weights)) - self.y) / len(self.x)

    def fit(self, parameters, config):
        (weights,) = parameters
        for _ in range(config["steps"]):
            weights = weights - config["lr"] * self.gradient(weights)
        return [weights], len(self.x), {"steps": config["steps"], "size": float(np.abs(weights).sum())}

    def evaluate(self, parameters, config):  # noqa: ARG002
        return float(np.square(self.gradient(parameters[0])).sum()), len(self.x), {}


class Patient(FedAvg):
    """The slower half of the clients gets half of the steps; where too few answer, the model stays."""

    def configure_fit(self, server_round, parameters, client_manager):
        asked = super().configure_fit(server_round, parameters, client_manager)
        ordered = sorted(asked, key=lambda pair: pair[0].cid)
        half = len(ordered) // 2
        return [
            (client, FitIns(ins.parameters, {**ins.config, "steps": 2 if number < half else 4}))
            for number, (client, ins) in enumerate(ordered)
        ]

    def aggregate_fit(self, server_round, results, failures):
        if failures:
            raise RuntimeError(f"{len(failures)} clients failed")
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        return parameters, {**metrics, "clients": len(results)}


def lr_of(server_round):
    return {"lr": 1.0 / server_round}


def steps(told):
    return {"steps": sum(metrics["steps"] for _, metrics in told)}


def central(server_round, parameters, config):  # noqa: ARG001
    return float(np.abs(parameters[0]).sum()), {"is_finite": int(np.isfinite(parameters[0]).all())}


def strategy():
    return Patient(
        on_fit_config_fn=lr_of, fit_metrics_aggregation_fn=steps, evaluate_fn=central,
        initial_parameters=ndarrays_to_parameters([np.zeros(4)]), min_fit_clients=2, min_available_clients=2,
    )  # fmt: skip


def client_fn(context):
    return Steps(context.node_config["partition-id"]).to_client()


client_app = ClientApp(client_fn)
