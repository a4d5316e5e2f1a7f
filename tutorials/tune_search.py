"""A search of one's own with Ray Tune over networks and learning rates, on silos that stand; a table at the end."""

import tempfile

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from torch import nn
from torch.nn import functional

from pipelines import Training, federated_trainable
from ray_fed import SiloSpec, TorchTask


def rows(seed):
    drawn = np.random.default_rng(seed)
    x = drawn.normal(size=(120, 4)).astype("f4")
    y = (x[:, 0] * x[:, 1] > 0).astype("i8")
    return x[40:], y[40:], x[:40], y[:40]


def task(config):
    size = config["hidden"]
    return TorchTask(
        lambda: nn.Sequential(nn.Linear(4, size), nn.ReLU(), nn.Linear(size, 2)), functional.cross_entropy, rows
    )


if __name__ == "__main__":
    space = {"hidden": tune.grid_search([4, 32]), "learning_rate": tune.grid_search([0.03, 0.001])}
    asha = ASHAScheduler(time_attr="rung", max_t=4, grace_period=2)
    training, silos = Training(rounds=8, epochs=16, batch_size=16), [SiloSpec("a", 1), SiloSpec("b", 2)]
    with federated_trainable(task, silos, training, rungs=4) as trainable, tempfile.TemporaryDirectory() as folder:
        settings = tune.TuneConfig(metric="loss", mode="min", scheduler=asha, max_concurrent_trials=1)
        run = tune.RunConfig(storage_path=folder, verbose=0)
        found = tune.Tuner(trainable, param_space=space, tune_config=settings, run_config=run).fit()
        best = found.get_best_result()
        model = trainable.load(best.checkpoint, best.config)
    print(found.get_dataframe()[["config/hidden", "config/learning_rate", "rung", "local_steps", "loss"]])
    print("best:", model)
