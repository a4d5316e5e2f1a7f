"""`ray-fed train` in this process: any property, in any unit, numbers and classes, one and several."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipelines.cli import main
from pipelines.training.pipeline import options_of, pipeline_of
from pipelines.training.setup import Setup, jobs, resolve
from ray_fed.errors import ConfigError, DataError, SiloRefused, Trouble
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.federation.silo import Evaluator, Silo
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.perimeter.guarded_evaluator import GuardedEvaluator
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import SITE_VARIABLE
from ray_fed.reporting.model_files import load_model
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_plain

SMALL = {"silos": (60, 90), "test_rows": 80, "epochs": 6, "rounds": 2, "hidden": (16,), "cohort": "local"}
QUICK = [
    "--cohort",
    "local",
    "--silos",
    "60,90",
    "--test-rows",
    "80",
    "--epochs",
    "4",
    "--rounds",
    "2",
    "--hidden",
    "8",
    "--alone",
    "network",
    "--analysis",
    "no",
]


@pytest.fixture(scope="module")
def crystals() -> pd.DataFrame:
    """Embedded crystals as a user's table: energies, a positive property, truth values, kinds."""
    frame = make_model_crystals(260).drop(columns="reason").rename(columns={"target": "energy"})
    frame["spread"] = 10.0 ** frame["energy"]
    frame["is_stable"] = frame["energy"] < frame["energy"].median()
    frame["kind"] = pd.qcut(frame["energy"], 3, labels=["low", "middle", "high"]).astype(str)
    return frame


def written(frame: pd.DataFrame, path: Path) -> str:
    frame.to_csv(path, index=False)
    return str(path)


def last_record(setup: Setup, secure: int = 0) -> RoundRecord:
    """Train the setup's federation; return what is said in the end."""
    coordinator = Coordinator(LocalCohort(setup.members, setup.task, setup.test), setup.task, setup.training)
    agreement = coordinator.agree(secure)
    job = jobs(setup, dict(agreement.silos), setup.config.seed)[0]
    return list(coordinator.run(job))[-1]


def train(data: str, **options: object) -> RoundRecord:
    return last_record(resolve({**SMALL, "data": data, **options}, (), "train"))


# ---- the unit does not matter


def test_a_power_of_ten_changes_no_r2(crystals, tmp_path):
    found = []
    for factor in (1e-3, 1.0, 10.0, 1e3):
        data = written(crystals.assign(energy=crystals["energy"] * factor), tmp_path / f"{factor:g}.csv")
        found.append(train(data, target="energy", baselines=True).metrics)
    r2 = [one["federated.r2"] for one in found]
    assert r2 == pytest.approx([r2[1]] * 4, abs=1e-4)
    mae = [one["federated.mae"] / factor for one, factor in zip(found, (1e-3, 1.0, 10.0, 1e3), strict=True)]
    assert mae == pytest.approx([mae[1]] * 4, rel=1e-4)


def test_silos_alone_and_pooled_rows_learn_on_the_same_scale(crystals, tmp_path):
    found = []
    for factor in (1.0, 1000.0):
        data = written(crystals.assign(energy=crystals["energy"] * factor), tmp_path / f"{factor:g}.csv")
        setup = resolve({**SMALL, "data": data, "target": "energy"}, (), "train")
        coordinator = Coordinator(LocalCohort(setup.members, setup.task, setup.test), setup.task, setup.training)
        alone = jobs(setup, dict(coordinator.agree().silos), 0)[1]
        found.append({key: value for key, value in list(coordinator.run(alone))[-1].metrics.items() if "r2" in key})
    assert set(found[0]) >= {"silo-1.r2", "silo-2.r2", "pooled.r2"}
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_a_transform_is_undone_in_what_is_told(crystals, tmp_path):
    data = written(crystals.assign(spread=crystals["spread"].where(crystals.index > 9, -1.0)), tmp_path / "rows.csv")
    setup = resolve({**SMALL, "data": data, "target": "spread", "transform": ("log10",), "unit": "nm"}, (), "train")
    silos = [LocalCohort(setup.members, setup.task, setup.test).silos[name] for name in setup.training]
    unreadable = [silo.open().unreadable for silo in silos]
    assert sum(one.get("target is outside of log10", 0) for one in unreadable) == 10
    record = last_record(setup)
    plain = train(data, target="spread")
    assert record.metrics["federated.mae"] < 2 * plain.metrics["federated.mae"], "in nm, not in decades"
    assert [metric.heading for metric in setup.task.metrics[:2]] == ["MAE (nm)", "R²"]


def test_moments_of_targets_under_masks_give_the_same_model(crystals, tmp_path):
    path = written(crystals, tmp_path / "rows.csv")
    options = {**SMALL, "silos": (50, 50, 50), "data": path, "target": ("energy", "spread"), "baselines": False,
               "transform": ("none", "log10")}  # fmt: skip
    clear = resolve(options, (), "train")
    masked = resolve({**options, "secure_aggregation": True}, (), "train")
    models = [last_record(clear).models, last_record(masked, secure=2).models]
    assert models[0]["federated"].tobytes() == models[1]["federated"].tobytes()


# ---- units


def federation(folder: Path, frame: pd.DataFrame, units: dict[str, tuple[str, float]], **training: object) -> str:
    """Write a federation file and the tables of its sites, each in its unit."""
    lines = ["silos:"]
    for at, (name, (unit, factor)) in enumerate(units.items()):
        rows = frame.iloc[at :: len(units)]
        written(rows.assign(energy=rows["energy"] * factor), folder / f"{name}.csv")
        lines.append(f"  - {{name: {name}, data: {name}.csv" + (f", unit: '{unit}'}}" if unit else "}"))
    options = {"epochs": 4, "rounds": 2, "hidden": "'8'", "baselines": "no", **training}
    lines.append(f"training: {{{', '.join(f'{key}: {value}' for key, value in options.items())}}}")
    (folder / "federation.yaml").write_text("\n".join(lines))
    return str(folder / "federation.yaml")


@pytest.mark.parametrize("pipeline", ["train", "formation-energy"])
def test_sites_that_all_say_mev_train_in_mev(crystals, tmp_path, pipeline):
    path = federation(tmp_path, crystals, {"a": ("meV", 1e3), "b": ("meV", 1e3)}, target="energy")
    setup = resolve({"federation": path, "cohort": "local"}, (), pipeline)
    assert [metric.unit for metric in setup.task.metrics] == ["meV", "", "(meV)²"]
    assert last_record(setup).metrics["federated.mae"] > 50


def test_a_site_in_another_unit_trains_the_same_model_as_one_in_the_federations(crystals, tmp_path):
    models = []
    for name, unit in (("one", ("eV", 1.0)), ("other", ("meV", 1e3))):
        (tmp_path / name).mkdir()
        path = federation(tmp_path / name, crystals, {"a": ("eV", 1.0), "b": unit}, target="energy")
        models.append(last_record(resolve({"federation": path, "cohort": "local"}, (), "train")).models["federated"])
    assert models[0] == pytest.approx(models[1], abs=1e-4)


def test_an_incompatible_unit_is_refused_before_anything_starts_with_both(crystals, tmp_path):
    path = federation(tmp_path, crystals, {"a": ("eV", 1.0), "b": ("K", 1.0)}, target="energy")
    with pytest.raises(ConfigError, match="silo 'b': energy is in 'K' there, in 'eV' in the federation"):
        resolve({"federation": path, "cohort": "local"}, (), "train")


def test_an_unknown_unit_is_said_and_never_ev_per_atom(crystals, tmp_path):
    data = written(crystals, tmp_path / "rows.csv")
    setup = resolve({**SMALL, "data": data, "target": "spread"}, (), "train")
    assert setup.task.targets[0].unit == "unknown unit"
    assert setup.notes == (
        "the unit of 'spread' is not given, and its values are shown as 'unknown unit'; say it with --unit, e.g. GPa",
    )
    preset = resolve({**SMALL, "data": data, "target": "spread"})
    assert "it is taken to be in 'eV/atom'" in preset.notes[0], "the preset says what it assumes"


# ---- several targets, classes


def test_several_targets_with_gaps_are_scored_where_they_are(crystals, tmp_path):
    frame = crystals.assign(
        energy=crystals["energy"].where(crystals.index % 3 > 0),
        spread=crystals["spread"].where(crystals.index % 3 != 1),
    )
    data, units = written(frame, tmp_path / "rows.csv"), ("eV", "nm", "1")
    setup = resolve({**SMALL, "data": data, "target": ("energy", "spread", "is_stable"), "unit": units}, (), "train")
    names = [metric.name for metric in setup.task.metrics]
    assert names[:2] == ["energy.mae", "energy.r2"]
    assert "is_stable.roc_auc" in names
    silo = LocalCohort(setup.members, setup.task, setup.test).silos["silo-2"].open()
    assert 0 < silo.fingerprint["labels.energy"] < silo.num_examples == silo.fingerprint["labels.is_stable"]
    metrics = last_record(setup).metrics
    assert all(np.isfinite(metrics[f"federated.{name}"]) for name in names)


@pytest.mark.parametrize(("column", "classes"), [("is_stable", ("false", "true")), ("kind", ("high", "low", "middle"))])
def test_classes_are_seen_in_the_data_and_said(crystals, tmp_path, column, classes):
    data = written(crystals, tmp_path / "rows.csv")
    setup = resolve({**SMALL, "epochs": 40, "data": data, "target": column}, (), "train")
    assert setup.config.classes == setup.task.targets[0].classes == classes
    assert setup.notes[0].startswith(f"{column} holds {len(classes)} classes ({', '.join(classes)}): it is classified")
    metrics = last_record(setup).metrics
    assert metrics["federated.roc_auc"] > 0.8
    with pytest.raises(DataError, match=f"target '{column}' holds .*, no numbers; give --task classification"):
        train(data, target=column, task="regression")


@pytest.mark.parametrize("target", ["is_stable", "kind", "'energy,kind'"])
def test_sites_with_classes_where_numbers_are_asked_for_are_refused_with_the_remedy(crystals, tmp_path, target):
    path = federation(tmp_path, crystals, {"a": ("", 1.0), "b": ("", 1.0)}, target=target)
    with pytest.raises(DataError, match=r"^silo 'a': the target '.*' holds .*, no numbers; give --task") as told:
        last_record(resolve({"federation": path, "cohort": "local", "features": "rich"}, (), "train"))
    assert told.value.failure is Trouble.CLASSES


def test_sites_agree_on_classes_that_are_given(crystals, tmp_path):
    path = federation(
        tmp_path, crystals, {"a": ("", 1.0), "b": ("", 1.0)}, target="kind", classes="[low, middle, high]", epochs=60
    )
    setup = resolve({"federation": path, "cohort": "local"}, (), "train")
    assert last_record(setup).metrics["federated.roc_auc"] > 0.7
    other = replace(setup.task, targets=(replace(setup.task.targets[0], classes=("low", "high")),))
    cohort = LocalCohort(setup.members, other)
    assert cohort.open()["a"].unreadable["label is none of the classes"] > 20
    with pytest.raises(SiloRefused, match="target"):
        Coordinator(cohort, setup.task, setup.training).agree()


def test_formulas_alone_give_rich_features_with_a_note(crystals, tmp_path):
    with_cells = resolve({**SMALL, "data": written(crystals, tmp_path / "a.csv"), "target": "energy"}, (), "train")
    assert (with_cells.config.features, len(with_cells.notes)) == ("rich+structure", 1)
    data = written(crystals[["formula", "energy"]], tmp_path / "b.csv")
    without = resolve({**SMALL, "data": data, "target": "energy", "unit": "eV"}, (), "train")
    assert without.config.features == "rich"
    assert without.notes == (
        "the data have formulas without structures: features are 'rich' instead of 'rich+structure'",
    )
    assert (
        resolve({**SMALL, "data": data, "target": "energy", "features": "guo65"}, (), "train").task.features == "guo65"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ()}, "which column shall be learned"),
        ({"target": ("energy", "energy")}, "must be different names"),
        ({"target": ("energy", "spread"), "unit": "eV"}, "must be one unit for each of the 2 targets"),
        ({"target": "energy", "transform": ("log10", "none")}, "one for all targets, or one for each"),
        ({"target": "energy", "transform": ("log2",)}, "unknown transform 'log2'"),
        ({"target": "energy", "unit": "electronvolts per atom"}, "is no unit that can be read"),
        ({"target": "energy", "classes": ("a", "b"), "task": "regression"}, "need task=classification"),
        ({"target": "energy", "task": "classification"}, "too many different labels to be classes"),
        ({"target": "nonsense"}, "has no column 'nonsense'"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_remedy(crystals, tmp_path, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        resolve({**SMALL, "data": written(crystals, tmp_path / "rows.csv"), **options}, (), "train")


def test_gates_let_scores_of_gaps_and_classes_through(crystals, tmp_path, monkeypatch):
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path))
    frame = crystals.assign(energy=crystals["energy"].where(crystals.index % 4 > 0))
    options = {
        **SMALL,
        "data": written(frame, tmp_path / "rows.csv"),
        "target": ("energy", "kind"),
        "unit": ("eV", "1"),
    }
    setup = resolve({**options, "baselines": False}, (), "train")
    cohort = LocalCohort(setup.members, setup.task, setup.test)
    bare = last_record(setup)
    for spec in setup.silos:
        cohort.silos[spec.name] = GuardedSilo(spec, lambda spec=spec: Silo(spec, setup.task))  # type: ignore[assignment]
    assert setup.test is not None
    cohort.evaluator = GuardedEvaluator(setup.test, lambda: Evaluator(setup.test, setup.task))  # type: ignore
    coordinator = Coordinator(cohort, setup.task, setup.training)
    record = list(coordinator.run(jobs(setup, dict(coordinator.agree().silos), 0)[0]))[-1]
    assert record.models["federated"].tobytes() == bare.models["federated"].tobytes()
    assert record.metrics == bare.metrics
    true, predicted = coordinator.predict_test(record.models)
    assert (true.shape[1], predicted["federated"].shape[1]) == (2, 4)
    assert 0 < np.isnan(true[:, 0]).sum() < len(true)


@pytest.mark.parametrize("options", [{"target": ("kind",)}, {"target": ("energy", "is_stable"), "unit": ("eV", "")}])
def test_what_was_settled_stands_in_the_configuration_and_makes_the_same_task(crystals, tmp_path, options):
    setup = resolve({**SMALL, "data": written(crystals, tmp_path / "rows.csv"), **options}, (), "train")
    written_down = yaml.safe_load(yaml.safe_dump(to_plain({"pipeline": "train", **asdict(setup.config)})))
    again = resolve(options_of(written_down), (), pipeline_of(written_down))
    assert again.config == setup.config
    assert again.task == setup.task
    assert again.silos == setup.silos
    assert again.notes == (), "what was said once is given now"


def test_a_run_of_before_goes_on_as_the_preset():
    before = {"target": "formation_energy_per_atom", "features": "guo65", "silos": [60, 90], "rows": 200}
    setup = resolve(options_of(before), (), pipeline_of(before))
    assert setup.task == resolve({"features": "guo65", "silos": (60, 90), "rows": 200}).task
    assert setup.config.PIPELINE == "formation-energy"


# ---- a whole run


@pytest.fixture(scope="module")
def run(crystals, tmp_path_factory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("train")
    data = written(crystals, folder / "rows.csv")
    more = ["--target", "band_gap,kind", "--transform", "log1p", "--out", str(folder / "run")]
    crystals.assign(band_gap=crystals["spread"]).to_csv(data, index=False)
    assert main(["train", "--data", data, *QUICK, *more]) == 0
    return RunDirectory(folder / "run")


def test_report_card_and_summary_speak_of_the_task_alone(run):
    report, card = run.report_path.read_text(), load_model(run.models / "federated")[1]
    assert "Multi-source training: band gap, kind" in report
    assert "MAE of band_gap (eV)" in report
    for text in (report.replace("formation-energy", ""), str(card.to_mapping()), str(run.read_summary())):
        assert "eV/atom" not in text
        assert "formation energy" not in text.lower()
    assert (card.property, card.unit, card.target_transform) == ("band_gap, kind", "eV, 1", "log1p, classes")
    assert [dict(one)["classes"] for one in card.targets] == [[], ["high", "low", "middle"]]
    assert (run.figures / "parity-band_gap.png").is_file()


def test_predict_gives_values_in_the_unit_and_chances(run, crystals, tmp_path):
    rows, out = str(run.path.parent / "rows.csv"), tmp_path / "predictions.csv"
    assert main(["predict", str(run.path), rows, "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert np.isfinite(table["predicted_band_gap"]).all()
    assert (table["predicted_band_gap"] > -1).all(), "log1p has no smaller value"
    assert set(table["predicted_kind"]) <= {"low", "middle", "high"}
    chances = table[[f"probability_kind_{label}" for label in ("high", "low", "middle")]].to_numpy()
    assert chances.sum(axis=1) == pytest.approx(np.ones(len(crystals)))


def test_a_run_that_is_complete_is_known_as_one_of_train(run, capsys):
    assert run.read_config()["pipeline"] == "train"
    assert main(["resume", str(run.path)]) == 0
    assert "nothing to resume" in capsys.readouterr().out
