"""`ray-fed train --model crystal_graph`: rounds, models, predictions and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from pipelines.cli import main
from pipelines.training.config import TrainConfig
from pipelines.training.setup import jobs, resolve
from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.materials.predictions import Trained
from ray_fed.reporting.model_files import load_model
from ray_fed.sites.tasks import PropertyOptions
from tests.graph_crystals import crystals, written

SMALL = ["--model", "crystal_graph", "--model-options", "width=8,depth=2,hidden=8", "--features", "guo65"]
SHORT = ["--cohort", "local", "--silos", "20,30", "--epochs", "4", "--rounds", "2", "--batch-size", "16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("crystals"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--data", str(data), "--target", "formation_energy_per_atom", "--learning-rate", "0.01"]
    assert main(["train", *SMALL, *SHORT, *words, "--alone", "network", "--out", str(out)]) == 0
    return out


def setup_of(data: Path, **options):
    given = {"data": str(data), "target": ("formation_energy_per_atom",), "model": "crystal_graph", "features": "guo65"}
    more = {"model_options": ("width=8", "depth=1", "hidden=8"), "silos": (20, 30), "epochs": 4, "rounds": 4}
    return resolve({**given, **more, "cohort": "local", "batch_size": 16, "baselines": False, **options}, (), "train")


def records(setup, after: int = 0, state=None):
    coordinator = Coordinator(LocalCohort(setup.silos, setup.task, setup.test), setup.task, setup.training)
    agreement = coordinator.agree()
    (job,) = jobs(setup, dict(agreement.silos), 0)
    return list(coordinator.run(job, after, state))


def test_a_run_leaves_models_that_know_their_form_and_predict(run, data, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["num_parameters"] < 10_000
    arrays, card = load_model(run / "models" / "federated")
    form = {"type": "crystal_graph", "width": 8, "depth": 2, "hidden": 8, "descriptors": True}
    assert {name: card.architecture[name] for name in form} == form
    assert card.hyperparameters["loss"] == "mae"
    assert main(["predict", str(run), str(data), "--out", str(tmp_path / "p.csv")]) == 0
    predicted = pd.read_csv(tmp_path / "p.csv")
    assert predicted["predicted_formation_energy_per_atom"].notna().all()
    with pytest.raises(DataError, match="its graphs are"):
        _ = Trained(arrays, replace(card, architecture={**card.architecture, "graphs": "1"})).is_on_graphs


def test_a_structure_file_is_predicted_as_the_row_of_a_table_is(run, tmp_path):
    rows = crystals(4, seed=3)
    rows.to_parquet(tmp_path / "table.parquet")
    (tmp_path / "cifs").mkdir()
    for at, row in rows.iterrows():
        lattice = Lattice.from_parameters(row["a"], row["b"], row["c"], row["alpha"], row["beta"], row["gamma"])
        structure = Structure(lattice, row["numbers"], np.reshape(row["frac_coords"], (-1, 3))).make_supercell(
            [2, 1, 1], in_place=False
        )
        structure.to(str(tmp_path / "cifs" / f"{at}.cif"))
    for name in ("table.parquet", "cifs"):
        assert main(["predict", str(run), str(tmp_path / name), "--out", str(tmp_path / f"{name}.csv")]) == 0
    values = [pd.read_csv(tmp_path / f"{name}.csv")["predicted_formation_energy_per_atom"].to_numpy()
              for name in ("table.parquet", "cifs")]  # fmt: skip
    np.testing.assert_allclose(values[0], values[1], atol=2e-4)


def test_formulas_alone_are_no_input_of_a_model_on_graphs(run, tmp_path, capsys):
    pd.DataFrame({"formula": ["NaCl", "KF"]}).to_csv(tmp_path / "formulas.csv", index=False)
    assert main(["predict", str(run), str(tmp_path / "formulas.csv"), "--out", str(tmp_path / "p.csv")]) == 1
    assert "the places of its atoms are not known" in capsys.readouterr().err


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_is_gone_on_with_has_the_same_bits(data, after):
    setup = setup_of(data, optimizer_state="reset")
    whole = records(setup)
    rest = records(setup, after, whole[after].state)
    assert rest[-1].models["federated"].tobytes() == whole[-1].models["federated"].tobytes()


def test_other_strategies_and_a_bias_of_ones_own_work_on_graphs(data):
    for options in ({"strategy": "scaffold", "optimizer": "sgd"}, {"personal_bias": True}, {"strategy": "median"}):
        assert np.isfinite(records(setup_of(data, **options))[-1].models["federated"]).all()


def test_classes_are_learned_from_graphs(tmp_path):
    frame = crystals(80)
    frame["is_halide"] = [bool({9, 17} & set(numbers)) for numbers in frame["numbers"]]
    frame.to_parquet(tmp_path / "crystals.parquet")
    words = ["--data", str(tmp_path / "crystals.parquet"), "--target", "is_halide", "--learning-rate", "0.02"]
    words += ["--baselines", "no", "--analysis", "no", "--out", str(tmp_path / "run")]
    assert main(["train", *SMALL, *SHORT, *words, "--epochs", "20"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["federated.balanced_accuracy"] > 0.8


def test_silos_whose_graphs_or_networks_differ_do_not_agree(data):
    one, other = (setup_of(data, model_options=(f"width={width}",)).task for width in (8, 16))
    assert one.agreement() != other.agreement()
    assert "crystal graph 2" in one.agreement()["graphs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no atoms' places; give --data"),
        ({"data": "x.parquet", "dp_noise_multiplier": 1.0, "baselines": False}, "single crystals"),
        ({"data": "x.parquet", "model_options": ("widht=3",)}, "widht"),
        ({"data": "x.parquet", "model_options": ("width=0",)}, "width=0"),
        ({"data": "x.parquet", "tree_options": ("trees=3",)}, "need model=boosted_trees"),
        ({"data": "x.parquet", "model": "mlp", "model_options": ("width=3",)}, "need a network on graphs"),
        ({"data": "x.parquet", "model": "crystal_grap"}, "crystal_graph"),
    ],
)
def test_what_does_not_go_with_graphs_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"model": "crystal_graph", "target": ("x",), **options})


def test_a_site_refuses_a_network_that_would_fill_its_memory():
    with pytest.raises(ConfigError, match="width"):
        PropertyOptions(model="crystal_graph", cell="standard", model_options=("width=100000",)).task()
    with pytest.raises(ConfigError, match="standardised"):
        PropertyOptions(model="crystal_graph", cell="given").task()
