"""`ray-fed train --model MODULE:CLASS`: a user's torch module on features or on graphs."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipelines.cli import main
from ray_fed.reporting.model_files import load_model
from tests.graph_crystals import written

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_features: int, num_outputs: int, width: int = 8, name="x"):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, width), nn.BatchNorm1d(width), nn.SiLU(), nn.Linear(width, num_outputs)
        )

    def forward(self, features):
        return self.layers(features)

    loss = staticmethod(nn.functional.l1_loss)


class Atoms(nn.Module):
    graphs = True

    def __init__(self, num_features: int, num_outputs: int):
        super().__init__()
        self.energies, self.output = nn.Embedding(119, num_outputs), nn.Linear(num_features, num_outputs)

    def forward(self, rows):
        total = torch.zeros(len(rows), self.output.out_features).index_add_(
            0, rows.crystal_of_atom, self.energies(rows.numbers)
        )
        return total / rows.sizes[:, None] + self.output(rows.table)


class TwoForOne(Net):
    def forward(self, features):
        return torch.cat([self.layers(features)] * 2, 1)


class Needs(nn.Module):
    def __init__(self, num_features, num_outputs, depth):
        super().__init__()


class NoModule:
    pass
"""
OPTIONS = ["--cohort", "local", "--silos", "20,30", "--epochs", "8", "--rounds", "2", "--batch-size", "16"]
OPTIONS += ["--features", "guo65", "--target", "formation_energy_per_atom", "--analysis", "no", "--baselines", "no"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_networks.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    written(tmp_path)
    return tmp_path


def train(*words: str) -> int:
    return main(["train", "--data", "crystals.parquet", *OPTIONS, *words])


def test_a_network_on_features_is_trained_saved_and_predicts_where_it_is_named_again(folder, capsys):
    assert train("--model", "my_networks:Net", "--model-options", "width=6", "--out", "run") == 0
    arrays, card = load_model(folder / "run" / "models" / "federated")
    assert card.architecture["network"] == "my_networks:Net"
    assert card.architecture["options"] == {"width": 6}
    assert card.hyperparameters["loss"] == "mae"
    assert arrays["layers.1.running_mean"].shape == (6,)
    assert main(["predict", "run", "crystals.parquet", "--out", "p.csv"]) == 2
    assert "if it is yours, say so: --network my_networks:Net" in capsys.readouterr().err
    assert main(["predict", "run", "crystals.parquet", "--out", "p.csv", "--network", "my_networks:Net"]) == 0
    predicted = pd.read_csv("p.csv")
    error = (predicted["predicted_formation_energy_per_atom"] - predicted["formation_energy_per_atom"]).abs().mean()
    assert 0 < error < 2
    (folder / "run" / "summary.json").unlink()
    assert main(["resume", "run"]) == 2
    assert "say so: --model my_networks:Net" in capsys.readouterr().err


def test_a_network_that_declares_graphs_gets_them(folder):
    assert train("--model", "my_networks:Atoms", "--out", "run", "--learning-rate", "0.01") == 0
    assert json.loads((folder / "run" / "summary.json").read_text())["num_parameters"] == 119 + 66
    assert main(["predict", "run", "crystals.parquet", "--out", "p.csv", "--network", "my_networks:Atoms"]) == 0
    assert pd.read_csv("p.csv")["predicted_formation_energy_per_atom"].notna().all()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "my_networks:Nets"], "has no attribute 'Nets'"),
        (["--model", "my_network:Net"], "No module named 'my_network'"),
        (["--model", "my_networks:NoModule"], "must be a class of torch.nn.Module"),
        (["--model", "my_networks:TwoForOne"], "returns (2, 2) for two rows; it must return [rows, 1]"),
        (["--model", "my_networks:Needs"], "depth must have a default"),
        (["--model", "my_networks:Net", "--model-options", "widht=3"], "did you mean 'width'"),
        (["--model", "my_networks:Net", "--model-options", "width=a"], "model_options: width='a'"),
    ],
)
def test_what_is_no_network_is_refused_before_a_folder_is_made(words, message, capsys):
    assert train(*words, "--out", "run") == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()
