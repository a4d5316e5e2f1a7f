"""PyTorch Lightning: a module and a Trainer in each client; a FedAdam of the message generation on the server."""

import logging

import lightning
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.flower_apps.rows import points

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
client_app, server_app = ClientApp(), ServerApp()


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, _):
        loss = functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def made(message):
    module = Classifier()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return module


def rows(context):
    return TensorDataset(*map(torch.from_numpy, points(context.node_config["partition-id"])))


@client_app.train()
def fit(message, context):
    module = made(message)
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows(context), 20, shuffle=True))
    told = MetricRecord({"loss": float(trainer.callback_metrics["loss"]), "num-examples": 60})
    return Message(RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": told}), reply_to=message)


@client_app.evaluate()
@torch.no_grad()
def mark(message, context):
    features, classes = rows(context).tensors
    loss = float(functional.cross_entropy(made(message).layer(features), classes))
    return Message(RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": 60})}), reply_to=message)


@server_app.main()
def main(grid, context):
    torch.manual_seed(0)
    strategy = FedAdam(fraction_train=1.0, fraction_evaluate=1.0, eta=0.1)
    strategy.start(grid, ArrayRecord(Classifier().state_dict()), context.run_config["rounds"])
