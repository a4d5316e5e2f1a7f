"""XGBoost: each round every client grows one tree, and the server puts them into one model."""

import numpy as np
import xgboost as xgb
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedXgbBagging

from tests.flower_apps.rows import points

PARAMS = {"objective": "binary:logistic", "max_depth": 2, "eta": 0.5, "nthread": 1, "eval_metric": "auc"}
client_app, server_app = ClientApp(), ServerApp()


def matrix(context):
    features, classes = points(context.node_config["partition-id"])
    return xgb.DMatrix(features, classes)


def booster(message):
    model = xgb.Booster(PARAMS)
    model.load_model(bytearray(message.content["arrays"]["0"].numpy().tobytes()))
    return model


@client_app.train()
def grow(message, context):
    rows = matrix(context)
    if message.content["config"]["server-round"] == 1:
        grown = xgb.train(PARAMS, rows, 1)
    else:
        model = booster(message)
        model.update(rows, model.num_boosted_rounds())
        grown = model[model.num_boosted_rounds() - 1 :]
    record = ArrayRecord([np.frombuffer(grown.save_raw("json"), np.uint8)])
    told = MetricRecord({"num-examples": rows.num_row()})
    return Message(RecordDict({"arrays": record, "metrics": told}), reply_to=message)


@client_app.evaluate()
def mark(message, context):
    model, rows = booster(message), matrix(context)
    auc = float(model.eval_set([(rows, "rows")]).split(":")[1])
    return Message(RecordDict({"metrics": MetricRecord({"auc": auc, "num-examples": 60})}), reply_to=message)


@server_app.main()
def main(grid, context):
    empty = ArrayRecord([np.zeros(0, np.uint8)])
    FedXgbBagging(fraction_train=1.0, fraction_evaluate=1.0).start(grid, empty, context.run_config["rounds"])
