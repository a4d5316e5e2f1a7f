"""How far predictions can be trusted: measured through silos, kept in cards, shown by `ray-fed predict`."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Raised
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.intervals import ALL
from ray_fed.learning.layout import initial_vector
from ray_fed.materials.databases.source import EMBEDDED_TARGET, Source
from ray_fed.materials.limits import ModelLimits, limits_of, measured_limits, told
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.study import StudyPart, StudyPlan
from ray_fed.materials.targets import Target

TARGET = EMBEDDED_TARGET
PLAN = StudyPlan((100, 200, 300), 900, 200)
NAMES = ("silo-1", "silo-2", "silo-3")
TASK = PropertyTask(features="guo65", hidden=(8,))


def specs_of(test_fraction=0.2, calibration_fraction=0.2):
    rows = CrystalRows(Source(rows=900), None, test_fraction, 0, calibration_fraction)
    return [SiloSpec(name, replace(rows, part=StudyPart(PLAN, name))) for name in NAMES]


def opened(task=TASK, specs=None):
    coordinator = Coordinator(LocalCohort(specs or specs_of(), task), task, NAMES)
    coordinator.agree()
    return coordinator


def asking(coordinator, threshold=0):
    return lambda question, given: coordinator.count(question, given, NAMES, threshold)


MODELS = {name: initial_vector(TASK.model(seed)) for seed, name in enumerate(["federated", *NAMES])}


@pytest.fixture(scope="module")
def measured():
    ask = asking(opened())
    return measured_limits(ask, TASK.targets, MODELS, NAMES, 5, ask)


def test_rows_for_calibration_are_in_no_other_part_and_all_of_a_formula_are_in_one():
    parts = [opened().cohort.silos[name].rows.formulas for name in NAMES]
    for part in parts:
        sets = [set(part[name]) for name in ("calibration", "held out", "test")]
        assert all(sets)
        assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
    everywhere = {name: {one for part in parts for one in part[name]} for name in parts[0]}
    assert not everywhere["calibration"] & everywhere["test"]  # not even in another silo


def test_without_a_share_for_calibration_silos_train_on_the_rows_they_always_did():
    without = opened(specs=specs_of(calibration_fraction=0.0)).cohort.silos["silo-1"].rows
    with_some = opened().cohort.silos["silo-1"].rows
    assert len(without.features) == len(with_some.features) + len(with_some.calibration_features)
    np.testing.assert_array_equal(without.held_out_features, with_some.held_out_features)


def test_intervals_of_every_model_cover_rows_that_nobody_used(measured):
    assert set(measured) == set(MODELS)
    for limits in measured.values():
        assert limits.why_none == ""
        assert limits.own_models == NAMES
        found = limits.intervals[TARGET]
        assert found.num_rows > 80
        assert 0.7 < found.coverage[ALL].shares["0.9"] < 1.0
        assert 0.3 < found.coverage[ALL].shares["0.5"] < 0.7
        assert sum(one.num_rows for name, one in found.coverage.items() if name != ALL) <= found.coverage[ALL].num_rows
        assert limits.domain.largest_spread[TARGET] > 0
    assert {"O", "Na"} <= set(measured["federated"].domain.elements)
    assert "Og" not in measured["federated"].domain.elements


def test_counts_under_masks_give_the_same_intervals_to_the_last_bit(measured):
    ask = asking(opened(), threshold=2)
    assert measured_limits(ask, TASK.targets, MODELS, NAMES, 5, ask) == measured


def test_one_silo_that_gives_no_counts_leaves_no_intervals_and_is_named():
    coordinator = opened()
    count = coordinator.cohort.count

    def refusing(question, given):
        answers = count(question, given)
        return {**answers, "silo-2": Raised("silo-2", 0, "its owner's 'counts' are none")}

    coordinator.cohort.count = refusing
    found = measured_limits(asking(coordinator), TASK.targets, MODELS, NAMES, 5)["federated"]
    assert found.why_none == "silo 'silo-2': its owner's 'counts' are none"
    assert found.domain.elements is None
    assert found.domain.unknown["elements"] == "silo 'silo-2': its owner's 'counts' are none"


def test_limits_come_back_from_a_card_as_they_were(measured):
    for limits in (measured["federated"], ModelLimits(why_none="x")):
        assert limits_of(json.loads(json.dumps(told(limits)))) == limits
    assert limits_of({}) == ModelLimits()


def test_too_few_calibration_rows_are_a_reason():
    nothing = lambda _question, _given: CountedRows(0, np.zeros(0, np.int64))  # noqa: E731
    found = measured_limits(nothing, TASK.targets, MODELS, NAMES, 5)["federated"]
    assert found.why_none == "no silo has enough rows held out for calibration"


def test_several_targets_and_classes_have_limits_of_their_own(tmp_path):
    frame = make_model_crystals(700).rename(columns={"target": "energy"})
    frame["gap"] = 10.0 ** frame["energy"]
    frame["stable"] = np.where(frame["energy"] < frame["energy"].median(), "yes", "no")
    frame.loc[::3, "gap"] = np.nan
    frame.to_csv(tmp_path / "rows.csv", index=False)
    targets = (Target("energy", "eV"), Target("gap", "eV", "log10"), Target("stable", classes=("no", "yes")))
    task = PropertyTask("guo65", (), (8,), targets, standardise_target=True)
    source = Source(str(tmp_path / "rows.csv"), None, targets=("energy", "gap", "stable"))
    rows = CrystalRows(source, None, 0.2, 0, 0.3, units=("eV", "eV", ""))
    coordinator = Coordinator(LocalCohort([SiloSpec("silo-1", rows)], task), task, ["silo-1"])
    coordinator.agree()
    models = {"federated": initial_vector(task.model(0))}
    found = measured_limits(lambda *asked: coordinator.count(*asked, ["silo-1"]), targets, models, (), 5)["federated"]
    assert found.why_none == ""
    assert set(found.intervals) == {"energy", "gap"}
    assert found.intervals["gap"].num_rows < found.intervals["energy"].num_rows
    assert found.sureness["stable"].num_rows > 100
    assert 0 < found.sureness["stable"].accuracy < 1


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits") / "run"
    options = "--rows 700 --silos 100,200 --epochs 4 --rounds 2 --features guo73 --hidden 16 --calibration-fraction 0.3"
    options += " --early-stopping no --analysis no"
    assert main(["train", "--cohort", "local", *options.split(), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def rows(tmp_path):
    frame = make_model_crystals(60, seed=5).rename(columns={"target": TARGET}).drop(columns="reason")
    frame.insert(0, "sample", [f"s{number}" for number in range(60)][::-1])
    frame["remark"] = "mine"
    frame.loc[7, "formula"] = "OgO2"
    frame.loc[8, "formula"] = "nonsense"
    frame.loc[9, TARGET] = np.nan
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path / "rows.csv"


def predicted(run, rows, *options):
    out = rows.with_name("out.csv")
    assert main(["predict", str(run), str(rows), "--out", str(out), *options]) == 0
    return pd.read_csv(out, keep_default_na=False)


def test_a_run_keeps_every_model_with_its_card_and_tells_what_its_intervals_cover(run):
    cards = {path.name.partition(".")[0]: json.loads(path.read_text()) for path in (run / "models").glob("*.json")}
    assert set(cards) == {"federated", "pooled", "silo-1", "silo-2"}
    for name, card in cards.items():
        assert card["name"] == name
        assert card["limits"]["own_models"] == ["silo-1", "silo-2"]
        assert card["limits"]["intervals"][TARGET]["num_rows"] > 100
        assert "promise nothing" in card["limits"]["promise"]
    summary = json.loads((run / "summary.json").read_text())
    assert 0.7 < summary["federated.coverage_90"] <= 1
    assert {"federated.coverage_90.oxide", "silo.silo-1.coverage_50", "pooled.coverage_90"} <= set(summary)
    assert "What the intervals of predictions cover" in (run / "report.html").read_text()


def test_predictions_keep_the_users_columns_and_order_and_have_bounds(run, rows):
    table, given = predicted(run, rows), pd.read_csv(rows, keep_default_na=False)
    assert list(table.columns[: len(given.columns)]) == list(given.columns)
    pd.testing.assert_frame_equal(table[list(given.columns)].astype(str), given.astype(str))
    usable = table["reason"] == ""
    names = [f"{name}_{TARGET}" for name in ("lower_90", "lower_50", "predicted", "upper_50", "upper_90")]
    bounds = table.loc[usable, names].astype(float).to_numpy()
    assert (np.diff(bounds, axis=1) > 0).all()
    half = (bounds[:, 4] - bounds[:, 0]) / 2
    np.testing.assert_allclose(table.loc[usable, f"uncertainty_{TARGET}"].astype(float), half, rtol=1e-6)
    assert len(set(half.round(9))) > 20  # each prediction has its own
    assert table["reason"][8].startswith("cannot read")
    assert (table.loc[8, names] == "").all()


def test_an_unseen_element_is_flagged_with_its_reason(run, rows):
    table = predicted(run, rows)
    assert table["flag"][7] in (True, "True")
    assert "unseen element Og" in table["why_flagged"][7]
    assert (table["flag"].astype(str) == "True").sum() < 30


def test_errors_are_printed_with_their_unit_where_the_true_values_are_there(run, rows, capsys):
    capsys.readouterr()
    table = predicted(run, rows)
    said = capsys.readouterr().out
    known = (table["reason"] == "") & (table[TARGET] != "")
    true, values = (table.loc[known, name].astype(float) for name in (TARGET, f"predicted_{TARGET}"))
    assert "MAE (eV/atom)" in said
    assert f"{np.abs(true - values).mean():.4f}" in said
    assert f"{known.sum()}" in said


def test_all_models_of_a_run_predict_side_by_side(run, rows, capsys):
    table = predicted(run, rows, "--model", "all")
    for model in ("federated", "pooled", "silo-1", "silo-2"):
        assert f"{model}.upper_90_{TARGET}" in table
        assert f"\n{model} " in capsys.readouterr().out or model != "federated"
    alone = predicted(run, rows, "--model", "silo-1")
    assert (table[f"silo-1.predicted_{TARGET}"] == alone[f"predicted_{TARGET}"]).all()
    assert main(["predict", str(run), str(rows), "--model", "silo-9", "--out", str(rows.with_name("x.csv"))]) == 2
    assert "there is: federated, pooled, silo-1, silo-2" in capsys.readouterr().err


def test_a_model_without_those_that_its_intervals_need_says_so(run, rows, tmp_path, capsys):
    for suffix in (".safetensors", ".card.json"):
        (tmp_path / f"federated{suffix}").write_bytes((run / "models" / f"federated{suffix}").read_bytes())
    table = predicted(tmp_path / "federated.safetensors", rows)
    assert f"upper_90_{TARGET}" not in table
    assert "no intervals: they need the models silo-1, silo-2" in capsys.readouterr().err


def test_other_kinds_of_file_and_names_that_are_taken(run, rows, capsys):
    frame = pd.read_csv(rows)
    frame.assign(flag="mine").to_parquet(rows.with_suffix(".parquet"))
    table = predicted(run, rows.with_suffix(".parquet"))
    assert set(table["given_flag"]) == {"mine"}
    assert "the file's column 'flag' is called 'given_flag'" in capsys.readouterr().err
    column = f"predicted_{TARGET}"
    np.testing.assert_allclose(pd.to_numeric(table[column]), pd.to_numeric(predicted(run, rows)[column]))


def test_a_sheet_is_read_and_written(run, rows, capsys):
    pytest.importorskip("openpyxl", reason="needs openpyxl")
    given, written = rows.with_suffix(".xlsx"), rows.with_name("out.xlsx")
    pd.read_csv(rows).to_excel(given, index=False)
    assert main(["predict", str(run), str(given), "--out", str(written)]) == 0
    table, column = pd.read_excel(written), f"predicted_{TARGET}"
    np.testing.assert_allclose(table[column], pd.to_numeric(predicted(run, rows)[column]))
    assert table["sample"].tolist() == pd.read_csv(rows)["sample"].tolist()
    capsys.readouterr()
    assert main(["predict", str(run), str(given), "--out", "out.docx"]) == 2
    assert "out=out.docx has an ending that is not written; give one of .csv, .tsv, .xlsx" in capsys.readouterr().err


def test_noise_leaves_no_intervals_and_no_rows_out(tmp_path, capsys):
    pytest.importorskip("dp_accounting")
    options = "--rows 500 --silos 100,200 --epochs 2 --rounds 1 --features guo65 --hidden 8 --baselines no"
    noisy = ["--dp-noise-multiplier", "1.0"]
    assert main(["train", "--cohort", "local", *options.split(), *noisy, "--out", str(tmp_path / "run")]) == 0
    assert "predictions have no intervals: noise hides single rows" in capsys.readouterr().err
    card = json.loads((tmp_path / "run" / "models" / "federated.card.json").read_text())
    assert card["limits"]["intervals"] == {}
    assert card["limits"]["domain"]["elements"] is None


def test_a_quantile_that_is_not_known_is_no_bound(measured):
    entry = told(measured["federated"])
    entry["intervals"][TARGET]["halves"]["0.9"]["by_group"] = {ALL: None}
    assert limits_of(entry).intervals[TARGET].halves["0.9"].of_group(ALL) == math.inf


def test_a_card_of_before_chemistries_had_quantiles_is_read(measured):
    entry = told(measured["federated"])
    for one in entry["intervals"].values():
        del one["halves"], one["own"]
        one |= {"scale": {"floor": 0.5, "by_group": {ALL: 1.0, "oxide": 3.0}}, "quantiles": {"0.5": 2.0, "0.9": None}}
    found = limits_of(entry).intervals[TARGET]
    assert found.halves["0.5"].of(np.array([0.5, 0.5]), ["oxide", "halide"]).tolist() == [6.0, 2.0]
    assert found.halves["0.9"].of_group("oxide") == math.inf
