"""Message generation, a strategy of one's own: a learning rate per client, written into each client's own message."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def fit(message, context):  # noqa: ARG001
    rate = message.content["config"]["rate"]
    moved = [array - rate for array in message.content["arrays"].to_numpy_ndarrays()]
    told = MetricRecord({"rate": rate, "num-examples": 10})
    return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": told}), reply_to=message)


@client_app.evaluate()
def mark(message, context):
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    told = {"loss": float(np.abs(weights).sum()), "partition": context.node_config["partition-id"], "num-examples": 10}
    return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)


class OwnRates(FedAvg):
    """0.1 for the first node, 0.2 for the second, and so on."""

    def configure_train(self, server_round, arrays, config, grid):
        for number, message in enumerate(super().configure_train(server_round, arrays, config, grid), start=1):
            own = ConfigRecord({**message.content["config"], "rate": number / 10})
            message.content = RecordDict({"arrays": arrays, "config": own})
            yield message


@server_app.main()
def main(grid, context):
    strategy = OwnRates(fraction_train=1.0, fraction_evaluate=1.0)
    strategy.start(grid, ArrayRecord([np.ones(3)]), context.run_config["rounds"])
