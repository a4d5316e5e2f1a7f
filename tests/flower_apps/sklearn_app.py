"""scikit-learn: NumPyClients made by a client_fn, FedAvg with a function for their metrics."""

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from tests.flower_apps.rows import points


class Linear(NumPyClient):
    def __init__(self, partition):
        self.x, self.y = points(partition)
        self.x = self.x.astype(float)
        self.model = SGDClassifier("log_loss", learning_rate="constant", eta0=0.1, random_state=0)
        self.model.partial_fit(self.x[:2], [0, 1], classes=[0, 1])

    def get_parameters(self, config):  # noqa: ARG002
        return [self.model.coef_, self.model.intercept_]

    def set_parameters(self, parameters):
        self.model.coef_, self.model.intercept_ = (np.array(part) for part in parameters)

    def fit(self, parameters, config):  # noqa: ARG002
        self.set_parameters(parameters)
        self.model.partial_fit(self.x, self.y)
        return self.get_parameters({}), len(self.x), {"accuracy": self.model.score(self.x, self.y)}

    def evaluate(self, parameters, config):  # noqa: ARG002
        self.set_parameters(parameters)
        loss = log_loss(self.y, self.model.predict_proba(self.x))
        return float(loss), len(self.x), {"accuracy": self.model.score(self.x, self.y)}


def client_fn(context):
    return Linear(context.node_config["partition-id"]).to_client()


def mean(told):
    total = sum(num for num, _ in told)
    return {"accuracy": sum(num * metrics["accuracy"] for num, metrics in told) / total}


def server_fn(context):
    initial = ndarrays_to_parameters([np.zeros((1, 4)), np.zeros(1)])
    strategy = FedAvg(initial_parameters=initial, fit_metrics_aggregation_fn=mean, evaluate_metrics_aggregation_fn=mean)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=context.run_config["rounds"]))


client_app, server_app = ClientApp(client_fn), ServerApp(server_fn=server_fn)
