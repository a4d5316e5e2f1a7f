"""A Flower app moves here as it is: its ClientApp and its strategy, two silos on Ray, a table at the end.

Needs Flower beside ray-fed: pip install 'ray-fed[flower]' -c constraints-flower.txt
"""

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from pipelines import run_flower_app

client, server = ClientApp(), ServerApp()


@client.train()
def train(message, context):
    drawn = np.random.default_rng(context.node_config["partition-id"])
    x = drawn.normal(size=(50, 2))
    (w,) = message.content["arrays"].to_numpy_ndarrays()
    error = x @ w - x @ [2.0, -1.0]
    told = MetricRecord({"loss": float(np.square(error).mean()), "num-examples": len(x)})
    moved = ArrayRecord([w - 0.3 * x.T @ error / len(x)])
    return Message(RecordDict({"arrays": moved, "metrics": told}), reply_to=message)


@server.main()
def main(grid, context):
    FedAvg(fraction_train=1.0, fraction_evaluate=0.0).start(grid, ArrayRecord([np.zeros(2)]), context.run_config["n"])


if __name__ == "__main__":
    done = run_flower_app(server_app=server, client_app=client, silos=2, run_config={"n": 5})
    print(done.history()[["num_participants", "bytes_sent", "train.loss"]])
    print("weights", done.arrays["0"].round(2))
