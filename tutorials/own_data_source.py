"""Samples from wherever they are: each laboratory has a database, and reads it in batches; no row leaves it.

python tutorials/own_data_source.py
"""

import sqlite3
import tempfile

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from pipelines import Training, federate
from ray_fed import SiloSpec, TorchTask


class Measurements(Dataset):
    """Rows of a query: a sample is what the network takes, and what it should say."""

    def __init__(self, path: str, which: str):
        query = f"SELECT temperature, pressure, density FROM measured WHERE {which} ORDER BY id"
        self.rows = sqlite3.connect(path).execute(query).fetchall()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, at):
        temperature, pressure, density = self.rows[at]
        return torch.tensor([temperature, pressure]), torch.tensor([density])


def samples(source: str) -> tuple[Dataset, Dataset]:
    """Runs inside the silo's process, on its machine: what is trained on, what is held out."""
    return Measurements(source, "id % 5 > 0"), Measurements(source, "id % 5 = 0")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))


def make_database(path: str, coldest: float) -> None:
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"temperature": random.uniform(coldest, coldest + 1, 400), "pressure": random.normal(size=400)})
    rows["density"] = np.exp(-rows["temperature"]) + 0.3 * rows["pressure"]
    rows.to_sql("measured", sqlite3.connect(path), index_label="id")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        silos = [SiloSpec(name, f"{folder}/{name}.db") for name in ("cryostat", "bench", "furnace")]
        for number, silo in enumerate(silos):
            make_database(silo.source, 0.5 * number - 0.5)
        mae = {"error": lambda out, y: (out - y).abs().squeeze(1)}
        task = TorchTask(network, functional.mse_loss, samples, mae, name="density")
        result = federate(task, silos, Training(rounds=15, epochs=30, learning_rate=0.01), cohort="local")
        print(result.history().filter(like="error").iloc[[0, 5, 10, 15]].round(3).to_string())
