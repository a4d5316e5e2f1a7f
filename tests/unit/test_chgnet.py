"""`ray-fed train --model chgnet`: a pretrained potential over silos, whole or with a frozen trunk, and databases whose
energies of elements differ."""

import importlib.util
import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pipelines.cli import main
from pipelines.training.setup import jobs, resolve
from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.materials.crystal import CrystalSites
from ray_fed.materials.graphs import chgnet_network
from ray_fed.materials.graphs.chgnet_network import (
    ChgnetSettings,
    crystal_graph_of,
    pretrained,
    states_of,
)
from ray_fed.materials.graphs.chgnet_network import chgnet_network as network_of
from ray_fed.materials.graphs.chgnet_task import PRETRAINED_NOTE, fitted_line, with_states
from ray_fed.sites.tasks import PropertyOptions
from tests.graph_crystals import crystals

TARGET = "formation_energy_per_atom"
installed = pytest.mark.skipif(importlib.util.find_spec("chgnet") is None, reason="chgnet is not installed")
SALT = CrystalSites(np.array([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]]), np.array([[0, 0, 0], [0.5] * 3]),
                    np.array([11, 17]))  # fmt: skip


def test_without_the_package_its_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "chgnet"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "chgnet", None)
    monkeypatch.setattr(chgnet_network, "pretrained", pretrained.__wrapped__)
    chgnet_network.weights_digest.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'ray-fed\[chgnet\]'"):
        PropertyOptions(model="chgnet", cell="standard").task()
    with pytest.raises(ConfigError, match="train='half'"):
        PropertyOptions(model="chgnet", cell="standard", model_options=("train=half",)).task()


def test_references_of_a_silo_are_found_from_its_rows():
    random = np.random.default_rng(0)
    composition = np.zeros((200, 119))
    composition[:, [8, 22, 38]] = random.dirichlet(np.ones(3), 200)
    energies, references = random.normal(size=200), np.array([-4.0, 2.0, 1.0])
    line = fitted_line(energies, composition, 0.5 * energies + composition[:, [8, 22, 38]] @ references)
    assert line[0] == pytest.approx(0.5, abs=0.01)
    assert line[1] + line[[10, 24, 40]] == pytest.approx(references, abs=0.1)
    assert np.abs(np.delete(line, [0, 1, 10, 24, 40])).max() < 1e-12


@installed
def test_an_untrained_head_is_the_potential_and_so_is_the_whole_of_it():
    graph = crystal_graph_of(SALT)
    with torch.no_grad():
        energy = float(pretrained()([graph])["e"])
    table, reasons = np.zeros((1, 1)), [""]
    for train in ("head", "all"):
        settings = ChgnetSettings(train)
        rows, told = with_states(table, reasons, [SALT], settings, None)
        assert told == [""]
        assert float(network_of(settings, 1).eval()(rows).detach()) == pytest.approx(energy, abs=1e-5)
    assert sum(one.numel() for one in network_of(ChgnetSettings("head"), 1).parameters()) == 12_794
    assert states_of(graph).shape == (2, 64)


@installed
@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (replace(SALT, vectors=np.eye(3) * 30, positions=np.zeros((1, 3)), numbers=np.array([2])), "within 6 Å"),
        (replace(SALT, numbers=np.array([11, 95])), "elements up to '94'"),
        (replace(SALT, numbers=np.array([11, 0])), "partly empty"),
    ],
)
def test_what_the_potential_has_no_graph_of_is_refused_and_leaves_no_file(sites, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        crystal_graph_of(sites)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def disagreeing(tmp_path):
    """A file of two databases with the potential's own energies but for the references of elements."""
    frame = crystals(70, seed=1)
    frame["database"] = np.where(np.arange(70) % 2, "one", "two")
    frame["material_id"] = [f"mp-{at}" if at < 7 else f"x-{at}" for at in range(70)]
    frame.to_parquet(tmp_path / "crystals.parquet")
    lattices = [np.array(row) for row in frame[["a", "b", "c", "alpha", "beta", "gamma"]].to_numpy()]
    energies = []
    from ray_fed.materials.lattices import vectors_of_cells

    for cell, row in zip(lattices, frame.itertuples(), strict=True):
        sites = CrystalSites(
            vectors_of_cells(cell[None])[0], np.reshape(row.frac_coords, (-1, 3)), np.array(row.numbers)
        )
        with torch.no_grad():
            energy = float(pretrained()([crystal_graph_of(sites)])["e"])
        shift = 3.0 if row.database == "one" else -1.0
        energies.append(energy + shift * np.mean(np.array(row.numbers) > 18))
    frame.assign(**{TARGET: energies}).to_parquet(tmp_path / "crystals.parquet")
    return tmp_path / "crystals.parquet"


def trained(data, references: str):
    setup = resolve(
        {"data": str(data), "target": (TARGET,), "model": "chgnet", "model_options": (f"references={references}",),
         "partition": "column:database", "silos": (1, 1), "features": "guo65", "epochs": 12, "rounds": 3,
         "batch_size": 16, "baselines": False, "cohort": "local", "calibration_fraction": 0.0}, (), "train",
    )  # fmt: skip
    coordinator = Coordinator(LocalCohort(setup.silos, setup.task, setup.test), setup.task, setup.training)
    agreement = coordinator.agree()
    (job,) = jobs(setup, dict(agreement.silos), 0)
    return list(coordinator.run(job)), agreement, setup


@installed
def test_databases_of_other_references_meet_where_each_keeps_its_own(disagreeing):
    own, agreement, setup = trained(disagreeing, "own")
    none, _, _ = trained(disagreeing, "none")
    parts = agreement.layout.unflatten(own[-1].models["federated"])
    assert not parts["reference"].any()
    assert np.abs(parts["layers.7.weight"]).max() > 0
    assert own[-1].metrics["train_loss"] < 0.5 * none[-1].metrics["train_loss"]
    assert sum(silo.notes.get(PRETRAINED_NOTE, 0) for silo in agreement.silos.values()) > 0
    assert any("references of" not in note and "Materials Project" in note for note in setup.notes)


@installed
def test_a_run_with_a_frozen_trunk_sends_its_head_alone_and_predicts(disagreeing, tmp_path):
    words = [
        "--data",
        str(disagreeing),
        "--target",
        TARGET,
        "--model",
        "chgnet",
        "--features",
        "guo65",
        "--silos",
        "20,30",
    ]
    words += ["--epochs", "4", "--rounds", "2", "--batch-size", "16", "--cohort", "local", "--alone", "network"]
    assert main(["train", *words, "--analysis", "no", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_parameters"] == 12_794
    assert main(["predict", str(tmp_path / "run"), str(disagreeing), "--out", str(tmp_path / "p.csv")]) == 0
    predicted = pd.read_csv(tmp_path / "p.csv")
    assert np.corrcoef(predicted[f"predicted_{TARGET}"], predicted[TARGET])[0, 1] > 0.8
