"""Message generation: train, evaluate and query, with a counter in the context's state."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lines.task import load, network, test, train

app = ClientApp()


@app.train()
def fit(msg: Message, context: Context) -> Message:
    net, partition = network(), context.node_config["partition-id"]
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loss = train(net, partition, context.run_config["local-epochs"], msg.content["config"]["lr"])
    seen = context.state.get("seen", MetricRecord({"rounds": 0}))["rounds"] + 1
    context.state["seen"] = MetricRecord({"rounds": seen})
    told = MetricRecord({"train_loss": loss, "rounds_seen": seen, "num-examples": 60})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": told}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    net = network()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loss, accuracy = test(net, context.node_config["partition-id"])
    told = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": 60})
    return Message(RecordDict({"metrics": told}), reply_to=msg)


@app.query("histogram")
def histogram(msg: Message, context: Context) -> Message:
    _, classes = load(context.node_config["partition-id"])
    counts = [int((classes == each).sum()) for each in (0, 1)]
    return Message(RecordDict({"counts": MetricRecord({"classes": counts})}), reply_to=msg)
