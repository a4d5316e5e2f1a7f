"""`ray-fed study value`: what joining is worth before a member commits, and what each silo contributes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from pipelines.value.config import ValueConfig
from pipelines.value.findings import CurvePoint, ValueFindings
from ray_fed.errors import ConfigError
from ray_fed.federation.messages import Update
from ray_fed.federation.strategies.averaging import FedAvg
from ray_fed.federation.strategies.leave_out import LeftOut
from ray_fed.materials import own_trees
from ray_fed.materials.learning_curve import Point, drawn, names_of, points
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.metrics import Metric
from tests.events import shown

MAE = Metric("mae", "eV/atom", higher_is_better=False, digits=3, label="MAE")
SILOS = ("a", "b", "c")


# ---- updates left out


def updates(vectors: dict[str, list[float]], weights: dict[str, int], server_round: int = 1) -> list[Update]:
    return [
        Update(silo, "all", server_round, np.array(vector, np.float32), weights[silo], 1, 0.0, 0.0)
        for silo, vector in vectors.items()
    ]


def test_without_a_silo_the_model_moves_by_the_others_weighted_mean():
    strategy = LeftOut(FedAvg(), size=2)
    state = strategy.start(np.zeros(2, np.float32), SILOS)
    told = updates({"a": [1, 0], "b": [0, 4], "c": [3, 3]}, {"a": 1, "b": 2, "c": 1})
    models = strategy.models(strategy.aggregate(state, told))
    assert models["federated"].tolist() == [1.0, 2.75]
    assert models["without.c"].tolist() == pytest.approx([1 / 3, 8 / 3])
    assert models["without.b"].tolist() == [2.0, 1.5]


def test_the_model_of_all_has_the_bits_of_the_strategy_alone_in_any_order():
    random = np.random.default_rng(0)
    vectors = {silo: random.normal(size=5).tolist() for silo in SILOS}
    told = updates(vectors, dict.fromkeys(SILOS, 3))
    initial = np.ones(5, np.float32)
    alone = FedAvg().aggregate(FedAvg().start(initial, SILOS), told)["federated"]
    strategy = LeftOut(FedAvg(), size=5)
    states = [strategy.aggregate(strategy.start(initial, SILOS), order) for order in (told, told[::-1])]
    assert all(state["federated"].tobytes() == alone.tobytes() for state in states)
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])


def test_before_the_last_exchanges_nobody_is_left_out():
    strategy = LeftOut(FedAvg(), size=1, after=1)
    state = strategy.start(np.zeros(1, np.float32), ("a", "b"))
    weights = {"a": 1, "b": 1}
    state = strategy.aggregate(state, updates({"a": [2], "b": [4]}, weights))
    assert {name: float(model[0]) for name, model in strategy.models(state).items()} == {
        "federated": 3, "without.a": 3, "without.b": 3,
    }  # fmt: skip
    state = strategy.aggregate(state, updates({"a": [4], "b": [8]}, weights, 2))
    assert {name: float(model[0]) for name, model in strategy.models(state).items()} == {
        "federated": 6, "without.a": 8, "without.b": 4,
    }  # fmt: skip


# ---- draws of rows


def test_fewer_rows_of_a_draw_are_among_its_more_and_no_group_is_cut():
    groups = [f"g{number % 60}" for number in range(200)]
    few, many = (drawn(groups, Point(share, 1), 0, "a") for share in (0.25, 0.5))
    assert set(few) < set(many)
    assert 50 <= len(few) < 56
    taken = {groups[row] for row in few}
    assert sum(group in taken for group in groups) == len(few)
    assert set(drawn(groups, Point(0.25, 2), 0, "a")) != set(few)
    assert len(drawn(groups, Point(1.0, 0), 0, "a")) == 200


def test_shares_that_make_no_sense_are_refused():
    for shares in ((), (0.5, 0.25), (0.0, 1.0), (1.5,)):
        with pytest.raises(ConfigError, match="shares="):
            ValueConfig(shares=shares)
    assert len(names_of(points((0.5, 1.0), 3))) == 24


# ---- what is said


def test_a_member_with_enough_rows_of_its_own_is_told_that_joining_does_not_pay():
    few = CurvePoint("a", 100, (0.30, 0.32), (0.20, 0.21), (0.01, 0.01))
    many = CurvePoint("a", 5000, (0.100, 0.102), (0.110, 0.111), (0.001, 0.001))
    found = ValueFindings(MAE, {"a": [few, many]})
    assert found.sentence("a").startswith("a: with its 5,000 rows joining does not pay: MAE 0.101 eV/atom alone")
    assert "with 100 rows it would be +33.9 %" in found.sentence("a")
    same = replace(many, joined=(0.099, 0.103))
    assert "no difference" in ValueFindings(MAE, {"a": [same]}).sentence("a")
    assert "joining pays" in ValueFindings(MAE, {"a": [few]}).sentence("a")


# ---- a study


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Of three silos: two halves of one world, and one whose energies are noise."""
    folder, table = tmp_path_factory.mktemp("study"), make_model_crystals(num_rows=620)
    frame = pd.DataFrame({"formula": table["formula"], "energy": table["target"]})
    frame[:160].to_csv(folder / "few.csv", index=False)
    frame[160:].to_csv(folder / "many.csv", index=False)
    noise = np.random.default_rng(0).permutation(frame["energy"])
    frame.assign(energy=noise)[:160].to_csv(folder / "noise.csv", index=False)
    lines = "".join(f"- {{name: {name}, data: {name}.csv}}\n" for name in ("few", "many", "noise"))
    (folder / "three.yaml").write_text(f"silos:\n{lines}")
    options = ["--federation", str(folder / "three.yaml"), "--target", "energy", "--unit", "eV/atom"]
    options += [
        "--features",
        "guo65",
        "--model",
        "boosted_trees",
        "--tree-options",
        "trees=25,depth=4,learning_rate=0.3",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_trees, "SETTINGS", replace(own_trees.SETTINGS, trees=10, learning_rate=0.3, depth=4))
        arguments = ["study", "value", *options, "--cohort", "local", "--shares", "0.5,1", "--draws", "2"]
        assert main([*arguments, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_study_tells_each_member_its_gain_by_rows_and_each_silos_contribution(study):
    curves = pd.read_csv(study / "value.csv")
    assert curves.groupby("silo")["rows"].nunique().to_dict() == {"few": 1, "many": 2, "noise": 1}
    assert len(curves) == 8
    scores = pd.read_csv(study / "contributions.csv").set_index("silo")
    assert scores["updates_left_out"].isna().all()
    assert scores["retrained"]["many"] > scores["retrained"]["noise"]
    summary, report = json.loads((study / "summary.json").read_text()), (study / "report.html").read_text()
    assert summary["member.few.gain_percent"] > summary["member.noise.gain_percent"]
    assert "few: with its" in report
    assert "It is no payment rule" in report
    assert (study / "figures" / "value.png").stat().st_size > 1000
    found = shown(study / "tensorboard")
    assert {f"silo/{name}/{kind}" for name in ("few", "many", "noise") for kind in ("alone", "joined")} <= found.scalars
    assert {"result/member.few.gain_percent"} <= found.scalars
    assert found.pictures == {"picture/value"}
    assert (found.hyperparameters["pipeline"], found.hyperparameters["draws"]) == ("study-value", 2)
    assert found.hyperparameters["model"] == "boosted_trees"


@pytest.mark.parametrize("options", [["--secure-aggregation", "yes"], ["--personal", "mixture"], ["--silos", "10"]])
def test_what_a_study_cannot_do_is_refused_before_it_begins(options, tmp_path, capsys):
    assert main(["study", "value", "--cohort", "local", *options, "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err
