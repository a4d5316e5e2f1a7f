"""`ray-fed train --model boosted_trees`: numbers and classes, the model file, predictions, and what does not go with
trees."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from pipelines.training.config import TrainConfig
from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.materials.trained_model import predict
from ray_fed.reporting.model_files import load_model
from ray_fed.trees.settings import tree_settings

COMMON = [
    "--model",
    "boosted_trees",
    "--features",
    "guo65",
    "--cohort",
    "local",
    "--silos",
    "60,120",
    "--personal",
    "none",
]


@pytest.fixture(scope="module")
def crystals(tmp_path_factory) -> Path:
    """A file with a number, a class of two and a class of three per formula."""
    table = make_model_crystals(num_rows=260)
    energy = table["target"]
    frame = pd.DataFrame({
        "formula": table["formula"], "energy": energy, "is_stable": energy < energy.median(),
        "kind": pd.cut(energy, [-99, *energy.quantile([0.3, 0.7]), 99], labels=["low", "middle", "high"]).astype(str),
    })  # fmt: skip
    path = tmp_path_factory.mktemp("crystals") / "crystals.csv"
    frame.to_csv(path, index=False)
    return path


def train(out: Path, *options: str) -> dict:
    assert main(["train", *COMMON, "--out", str(out), *options]) == 0
    return json.loads((out / "summary.json").read_text())


def test_federated_trees_are_those_of_the_pooled_rows_and_are_saved_with_their_card(tmp_path, crystals, capsys):
    options = ["--data", str(crystals), "--target", "energy", "--unit", "eV/atom"]
    summary = train(tmp_path / "run", *options, "--tree-options", "trees=8,depth=3,learning_rate=0.3")
    assert "add --secure-aggregation yes" in capsys.readouterr().err
    assert summary["federated.mae"] == summary["pooled.mae"]
    arrays, card = load_model(tmp_path / "run" / "models" / "federated")
    assert card.architecture == {"type": "boosted_trees", "trees": 8, "depth": 3, "losses": ["squared"]}
    assert card.hyperparameters["feature_fraction"] == 0.5
    assert arrays["feature"].shape == arrays["threshold"].shape == (8, 7)
    assert arrays["value"].shape == (8, 8)
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} >= {"parity.png", "learning_curves.png"}
    assert main(["predict", str(tmp_path / "run"), str(crystals), "--out", str(tmp_path / "predicted.csv")]) == 0
    predicted = pd.read_csv(tmp_path / "predicted.csv")["predicted_energy"]
    assert np.corrcoef(predicted, pd.read_csv(crystals)["energy"])[0, 1] > 0.8
    with pytest.raises(DataError, match="different forests"):
        predict(np.zeros((1, 65)), {**arrays, "value": arrays["value"][:, :4]}, card)


def test_forests_have_intervals_that_their_predictions_tell(tmp_path):
    options = ["--rows", "700", "--calibration-fraction", "0.4", "--tree-options", "trees=12,depth=3,learning_rate=0.3"]
    summary = train(tmp_path / "run", *options, "--alone", "network", "--analysis", "no")
    assert summary["federated.calibration_rows"] > 50
    assert 0.7 < summary["federated.coverage_90"] <= 1.0
    assert summary["pooled.coverage_90"] == summary["federated.coverage_90"]
    (tmp_path / "new.csv").write_text("formula\nNaCl\nMgO\nOgO2\n")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--out", str(tmp_path / "p.csv")]) == 0
    found = pd.read_csv(tmp_path / "p.csv")
    target = "formation_energy_per_atom"
    assert (found[f"uncertainty_{target}"] > 0).all()
    assert (found[f"lower_90_{target}"] < found[f"lower_50_{target}"]).all()
    assert found["flag"].tolist() == [False, False, True]


def test_a_number_and_two_kinds_of_classes_are_learned_by_one_forest(tmp_path, crystals):
    options = ["--data", str(crystals), "--target", "energy,is_stable,kind", "--baselines", "no"]
    options += ["--task", "classification", "--classes=-,false|true,low|middle|high", "--secure-aggregation", "yes"]
    summary = train(tmp_path / "run", *options, "--tree-options", "trees=6,depth=3,learning_rate=0.3,min_rows=5")
    assert summary["status"] == "completed"
    assert main(["predict", str(tmp_path / "run"), str(crystals), "--out", str(tmp_path / "predicted.csv")]) == 0
    predicted, true = pd.read_csv(tmp_path / "predicted.csv"), pd.read_csv(crystals)
    assert (predicted["predicted_kind"] == true["kind"]).mean() > 0.6
    assert (predicted["predicted_is_stable"] == true["is_stable"]).mean() > 0.7


def test_quantiles_of_a_number_are_learned_and_predicted(tmp_path, crystals):
    options, below = ["--data", str(crystals), "--target", "energy", "--unit", "eV/atom", "--baselines", "no"], {}
    for share in (0.1, 0.9):
        out = tmp_path / f"q{share}"
        train(out, *options, "--tree-options", f"loss=quantile:{share},trees=25,depth=2,learning_rate=0.3,min_rows=10")
        assert load_model(out / "models" / "federated")[1].architecture["losses"] == [f"quantile:{share}"]
        assert main(["predict", str(out), str(crystals), "--out", str(tmp_path / "predicted.csv")]) == 0
        below[share] = (
            pd.read_csv(crystals)["energy"] < pd.read_csv(tmp_path / "predicted.csv")["predicted_energy"]
        ).mean()
    assert below[0.1] < 0.3 < 0.7 < below[0.9]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"strategy": "median"}, "strategy=median"),
        ({"fraction_fit": 0.5}, "fraction_fit=0.5"),
        ({"compression": "int8"}, "compression=int8"),
        ({"dp_noise_multiplier": 1.0, "baselines": False, "tree_options": ("patience=3",)}, "rows to stop by"),
        ({"dp_noise_multiplier": 1.0, "baselines": False, "dp_clip": 2.0}, "dp_clip=2.0"),
        ({"tree_options": ("treees=3",)}, "treees"),
        ({"tree_options": ("losses=log",)}, "losses"),
        ({"tree_options": ("loss=log",)}, "squared or quantile"),
        ({"tree_options": ("loss=quantile:2",)}, "quantile:SHARE"),
        ({"model": "mlp", "tree_options": ("trees=3",)}, "need model=boosted_trees"),
    ],
)
def test_what_does_not_go_with_trees_is_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"model": "boosted_trees", **option})


def test_later_tree_options_count():
    assert tree_settings(["trees=3", "feature_fraction=0.5", "feature_fraction=0.2"]).feature_fraction == 0.2
