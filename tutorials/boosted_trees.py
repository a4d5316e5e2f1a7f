"""Boosted trees over three tables: bit for bit the forest that the tables together would give, and no row leaves.

python tutorials/boosted_trees.py
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from torch import nn

from pipelines import Training, federate
from ray_fed import LocalRows, SiloSpec, Task
from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.strategies.boosting import BoostedTrees
from ray_fed.trees.settings import TreeSettings

COLUMNS = 10


@dataclass(frozen=True)
class Patients(Task):
    """Rows first to last of a table of ten columns; what is learned is how far a disease has come in a year."""

    loss = staticmethod(nn.functional.mse_loss)

    def load(self, spec: SiloSpec) -> LocalRows:
        x, y = load_diabetes(return_X_y=True)
        x, y = x[slice(*spec.source)], y[slice(*spec.source)]
        return LocalRows(x, y, x[:0], y[:0], {}, {"rows": len(x)}, {})

    def model(self, seed: int) -> nn.Module:  # noqa: ARG002
        return nn.Linear(COLUMNS, 1)

    def agreement(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class PatientsByTrees(BoostedTask, Patients):
    """The same rows, learned by trees."""


if __name__ == "__main__":
    settings = TreeSettings(trees=20, depth=3, leaves=8, bins=32, min_rows=10, learning_rate=0.15)
    task, strategy = PatientsByTrees(settings), BoostedTrees(settings, COLUMNS)
    training = Training(rounds=strategy.num_rounds, epochs=strategy.num_rounds, batch_size=1000)
    clinics = {"north": (0, 60), "south": (60, 160), "west": (160, 340)}
    test = SiloSpec("test", (340, 442))
    rows = {}
    for who in (*clinics, "together"):
        silos = [SiloSpec(name, part) for name, part in clinics.items() if who in (name, "together")]
        result = federate(task, silos, training, test=test, strategy=strategy, cohort="local")
        metrics = {name: result.metrics[f"federated.{name}"] for name in ("mae", "r2")}
        rows[who] = {"rows": sum(np.ptp(spec.source) for spec in silos), **metrics}
    print(pd.DataFrame(rows).T.round(3).to_string())
