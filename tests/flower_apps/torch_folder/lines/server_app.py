"""A query to all nodes, then a strategy and a number of rounds."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from lines.task import network, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    asked = [Message(RecordDict(), node, "query.histogram") for node in grid.get_node_ids()]
    counts = [answer.content["counts"]["classes"] for answer in grid.send_and_receive(asked)]
    assert sum(map(sum, counts)) == 60 * len(counts)
    torch.manual_seed(0)
    FedAvg(fraction_train=1.0, fraction_evaluate=1.0).start(
        grid=grid,
        initial_arrays=ArrayRecord(network().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"lr": context.run_config["optimizer.lr"]}),
        evaluate_fn=central,
    )


def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
    net = network()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(net, 50)
    return MetricRecord({"loss": loss, "accuracy": accuracy})
