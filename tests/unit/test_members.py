"""What each member makes of the federation's model for itself: offsets, mixtures, their file, what is said of it."""

import json
import stat
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from pipelines.training.config import FormationEnergyConfig, TrainConfig
from pipelines.training.members import Gain, MemberAnswers, MemberResult, gains
from ray_fed.errors import FedError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.silo import names_told
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.mixture import mixed, mixture_weights
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials import own_trees
from ray_fed.materials.databases.source import Source
from ray_fed.materials.element_offsets import atom_shares, fitted_offsets
from ray_fed.materials.learning_curve import names_of, points
from ray_fed.materials.member_answers import MEMBERS, workshop_of
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.materials.personal import ByVector
from ray_fed.materials.property_silo import OF_CURVES, OF_MEMBERS, OF_UNSEEN, PropertySilo
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.trained_model import predict
from ray_fed.metrics import Metric
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.reporting.model_files import load_model
from tests.sites import sites

MAE = Metric("mae", "eV/atom", higher_is_better=False, digits=4, label="MAE")
TASK = PropertyTask("guo65", hidden=(16,))
OXYGEN, OFFSET = 8, 8.0
GIVEN = (0, 4, 50, 1e-3, "adam")
"""Seed, epochs, batch size, learning rate, optimiser."""


# ---- mixtures


def test_a_mixture_is_convex_and_on_its_own_rows_no_worse_than_any_part():
    random = np.random.default_rng(0)
    truth = random.normal(size=(200, 1))
    parts = [truth + scale * random.normal(size=truth.shape) for scale in (0.3, 0.4, 2.0)]
    judge = lambda said: float(np.abs(said - truth).mean())  # noqa: E731
    weights = mixture_weights(parts, judge)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert weights[2] < 0.1
    assert judge(mixed(parts, weights)) < 0.95 * min(map(judge, parts))


def test_of_two_parts_as_good_the_first_has_all_the_weight():
    part = np.arange(6.0)[:, None]
    assert mixture_weights([part, part.copy()], lambda said: float(np.abs(said).mean())).tolist() == [1, 0]


# ---- element offsets


def formulas_of(num_rows: int) -> list[str]:
    return make_model_crystals(num_rows=num_rows)["formula"].tolist()


def test_a_known_offset_of_a_database_is_recovered_from_the_errors_of_the_others_model():
    formulas, random = formulas_of(400), np.random.default_rng(0)
    true = np.zeros(118)
    true[[OXYGEN - 1, 16]] = 0.6, -0.3
    errors = atom_shares(formulas) @ true + 0.02 * random.normal(size=400)
    offsets, unseen = fitted_offsets(formulas, errors, formulas)
    assert offsets.values[[OXYGEN - 1, 16]] == pytest.approx([0.6, -0.3], abs=0.03)
    assert np.abs(offsets.of(formulas) - atom_shares(formulas) @ true).mean() < 0.01
    assert np.abs(errors - unseen).mean() < 0.3 * np.abs(errors).mean()


def test_where_a_database_is_like_the_others_there_are_no_offsets_that_do_harm():
    formulas, random = formulas_of(120), np.random.default_rng(1)
    errors = 0.1 * random.standard_cauchy(size=120)
    offsets, unseen = fitted_offsets(formulas, errors, formulas)
    assert np.abs(errors - unseen).mean() <= np.abs(errors).mean()
    assert not offsets.values.any() or np.abs(offsets.of(formulas)).mean() < 0.1


# ---- in a silo


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """Forests of a tenth of the trees, which is enough for a few hundred rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_trees, "SETTINGS", replace(own_trees.SETTINGS, trees=30, learning_rate=0.2, depth=4))
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Model crystals, once as they are, and once with an offset of each oxygen atom: another functional."""
    folder, table = tmp_path_factory.mktemp("databases"), make_model_crystals(num_rows=500)
    frame = pd.DataFrame({"formula": table["formula"], "formation_energy_per_atom": table["target"]})
    frame.to_csv(folder / "plain.csv", index=False)
    shift = OFFSET * atom_shares(frame["formula"].tolist())[:, OXYGEN - 1]
    frame.assign(formation_energy_per_atom=frame["formation_energy_per_atom"] + shift).to_csv(
        folder / "shifted.csv", index=False
    )
    return folder


def spec_of(path: Path, personal: str = "") -> SiloSpec:
    source = Source(str(path), "formation_energy_per_atom")
    rows = CrystalRows(source, test_fraction=0.2, calibration_fraction=0.2)
    return SiloSpec("north", rows, personal_folder=personal)


def opened(spec: SiloSpec) -> PropertySilo:
    silo = TASK.silo(spec)
    silo.open()
    silo.prepare(TASK.standardizer(silo.moments()))
    return silo


@pytest.fixture(scope="module")
def others(tables) -> tuple[PropertySilo, np.ndarray]:
    """A silo with the plain energies, and a network trained there."""
    silo = opened(spec_of(tables / "plain.csv"))
    plan = TrainingPlan(0, 150, 6, 1, 3e-3)
    vector, _ = workshop_of(silo, plan).task_trainer(plan).fit_round(initial_vector(TASK.model(0), "average"), 1)
    return silo, vector


def test_offsets_make_a_model_of_another_database_as_good_as_it_is_at_home(tables, others):
    home, vector = others
    away = opened(spec_of(tables / "shifted.csv"))
    away.prepare(home.samples.standardizer)
    rows = workshop_of(away, TrainingPlan(0, 1, 1, 1)).calibration
    plain = ByVector(TASK, home.samples.standardizer, vector)
    found = workshop_of(away, TrainingPlan(0, 1, 1, 1)).personal("offsets", vector, None)
    before = np.abs(rows.targets - plain.values(rows.features, rows.formulas)[:, 0]).mean()
    after = np.abs(rows.targets - found.joined.judged[:, 0]).mean()
    at_home = workshop_of(home, TrainingPlan(0, 1, 1, 1)).calibration
    ideal = np.abs(at_home.targets - plain.values(at_home.features, at_home.formulas)[:, 0]).mean()
    assert found.joined.weights == {"offsets": 1.0}
    assert after < 0.6 * before
    assert after < 1.3 * ideal


def test_a_silo_tells_sums_and_keeps_the_model_for_its_owner(tables, others, tmp_path):
    home, vector = others
    silo = opened(spec_of(tables / "shifted.csv", str(tmp_path / "own")))
    silo.prepare(home.samples.standardizer)
    told = silo.query(OF_MEMBERS, names_told(MEMBERS), "offsets", *GIVEN, vector)
    assert set(told) == set(MEMBERS)
    unseen = len(silo.rows.held_out_features)
    assert {metrics.held_out.num_examples for metrics in told.values()} == {unseen}
    result = MemberResult.of(told)
    assert result.errors["personal"]["mae"] < result.errors["federated"]["mae"]
    assert 0 <= result.standard_error < 0.1
    assert told == silo.query(OF_MEMBERS, names_told(MEMBERS), "offsets", *GIVEN, vector), "asked again, the same"
    path = tmp_path / "own" / "north.safetensors"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    notes = silo.notes_for_owner()
    assert any(str(path) in note for note in notes)
    arrays, card = load_model(path)
    formulas = silo.rows.formulas["held out"]  # type: ignore[attr-defined]
    said = predict(silo.rows.held_out_features, arrays, card, formulas)
    exact = np.abs(said[:, 0] - silo.rows.held_out_targets).mean()
    assert result.errors["personal"]["mae"] == pytest.approx(exact, rel=0.05)


def test_the_file_of_a_whole_mixture_says_what_the_silo_says(tables, others, tmp_path):
    home, vector = others
    silo = opened(spec_of(tables / "shifted.csv", str(tmp_path)))
    silo.prepare(home.samples.standardizer)
    own = initial_vector(TASK.model(5), "average")
    silo.query(OF_MEMBERS, names_told(MEMBERS), "mixture", *GIVEN, vector, own)
    arrays, card = load_model(tmp_path / "north")
    workshop = workshop_of(silo, TrainingPlan(0, 4, ceil(len(silo.rows.features) / 50), 1))
    found = workshop.personal("mixture", vector, own)
    assert card.architecture["weights"] == found.chosen.weights
    assert sum(found.chosen.weights.values()) == pytest.approx(1)
    rows = workshop.calibration
    np.testing.assert_allclose(
        predict(rows.features, arrays, card, rows.formulas),
        found.chosen.values(rows.features, rows.formulas),
        rtol=1e-5,
    )


def test_where_nothing_shows_that_the_federation_helps_a_silo_uses_what_it_has_without_it(others):
    home, _ = others
    nonsense = 5 * initial_vector(TASK.model(9), "average")
    found = workshop_of(home, TrainingPlan(0, 2, 6, 1)).personal("offsets", nonsense, None)
    assert not found.joining_helps
    assert found.chosen is found.own
    assert found.chosen.weights == {"boosted": 1.0}


def test_with_few_calibration_rows_nothing_is_chosen(tables):
    silo = opened(spec_of(tables / "plain.csv"))
    object.__setattr__(silo.rows, "calibration_features", np.zeros((3, 65)))
    with pytest.raises(FedError, match="held out for calibration"):
        silo.query(OF_MEMBERS, names_told(MEMBERS), "offsets", *GIVEN, initial_vector(TASK.model(0), "average"))


def test_what_is_told_passes_the_gate_and_counts_as_models(tables, others):
    home, vector = others
    guarded = GuardedSilo(spec_of(tables / "shifted.csv"), lambda: TASK.silo(spec_of(tables / "shifted.csv")))
    guarded.open()
    guarded.prepare(home.samples.standardizer)
    told = guarded.query(OF_MEMBERS, names_told(MEMBERS), "offsets", *GIVEN, vector)
    assert set(told) == set(MEMBERS)
    assert guarded._num_marked == len(MEMBERS)


# ---- what is said


def gain(personal: float, alone: float, error: float) -> Gain:
    return Gain("north", MAE, personal, alone, "boosted trees", error, 300)


def test_each_member_is_told_in_one_sentence_which_way_it_came_out():
    pays, same, harm = gain(0.10, 0.12, 0.004), gain(0.119, 0.12, 0.004), gain(0.14, 0.12, 0.004)
    assert [one.verdict for one in (pays, same, harm)] == ["pays", "no difference", "does not pay"]
    assert "joining pays: MAE 0.1000 eV/atom with the federation, 0.1200 alone (boosted trees)" in pays.sentence()
    assert "16.7 ± 3.3 % better" in pays.sentence()
    assert "go alone" in harm.sentence()
    assert "16.7 ± 3.3 % worse" in harm.sentence()


def test_the_rival_is_the_better_of_the_best_learner_and_the_members_own_mixture():
    result = MemberResult({"personal": {"mae": 0.10}, "own": {"mae": 0.12}, "federated": {"mae": 0.2}}, 300, 0.001)
    answers = [MemberAnswers({"north": result})]
    assert gains(answers, {"north": (0.11, "boosted trees")}, MAE)[0].alone == 0.11
    assert gains(answers, {"north": (0.13, "boosted trees")}, MAE)[0].learner == "a mixture of its own models"
    seeds = [*answers, MemberAnswers({"north": replace(result, errors={**result.errors, "personal": {"mae": 0.14}})})]
    assert gains(seeds, {}, MAE)[0].standard_error == pytest.approx(0.04 / 2**0.5)
    assert gains(seeds, {}, MAE)[0].verdict == "no difference"


def test_of_a_metric_of_which_more_is_better_a_gain_is_a_share_of_what_is_missing():
    accuracy = Metric("roc_auc", "", higher_is_better=True, digits=3)
    one = Gain("north", accuracy, 0.9, 0.8, "boosted trees", float("nan"), 300)
    assert one.percent == pytest.approx(50)
    assert one.verdict == "pays"


def test_personal_models_are_the_default_of_train_alone_and_none_are_made_under_masks_or_noise():
    assert TrainConfig().makes_personal
    assert not FormationEnergyConfig().makes_personal
    assert not TrainConfig(secure_aggregation=True, baselines=False).makes_personal
    assert not TrainConfig(dp_noise_multiplier=1.0, baselines=False).makes_personal


# ---- in a run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A federation of two halves of one world and of a silo whose energies are another property: noise."""
    folder, table = tmp_path_factory.mktemp("run"), make_model_crystals(num_rows=700)
    frame = pd.DataFrame({"formula": table["formula"], "energy": table["target"]})
    noise = np.random.default_rng(0).permutation(frame["energy"])
    frame[:300].to_csv(folder / "alike.csv", index=False)
    frame[300:].to_csv(folder / "alike-too.csv", index=False)
    frame.assign(energy=noise)[:300].to_csv(folder / "unlike.csv", index=False)
    names = ("alike", "alike-too", "unlike")
    (folder / "three.yaml").write_text("silos:\n" + "".join(f"- {{name: {n}, data: {n}.csv}}\n" for n in names))
    options = ["--federation", str(folder / "three.yaml"), "--target", "energy", "--unit", "eV/atom"]
    options += ["--features", "guo65", "--hidden", "16", "--epochs", "8", "--calibration-fraction", "0.15"]
    options += ["--cohort", "local", "--alone", "network", "--early-stopping", "no", "--analysis", "no"]
    assert main(["train", *options, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_says_of_each_member_what_joining_comes_to(run):
    summary, report = json.loads((run / "summary.json").read_text()), (run / "report.html").read_text()
    for silo in ("alike", "alike-too", "unlike"):
        assert summary[f"member.{silo}.verdict"] in ("pays", "no difference", "does not pay")
        assert f"{silo}: joining " in report
        assert f"member.{silo}.gain_standard_error" in summary
    assert summary["member.unlike.verdict"] != "pays"
    assert "What joining comes to for each member" in report


def test_predict_uses_the_personal_model_of_a_silo(run, tmp_path, capsys):
    rows = run.parent / "alike.csv"
    for name, options in (("own", ["--silo", "alike"]), ("federated", [])):
        assert main(["predict", str(run), str(rows), "--out", str(tmp_path / f"{name}.csv"), *options]) == 0
    own, federated = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("own", "federated"))
    errors = [np.abs(one["predicted_energy"] - one["energy"]).mean() for one in (own, federated)]
    assert errors[0] < errors[1]
    assert "personal model these are not measured" in capsys.readouterr().err
    path = run / "personal" / "alike.safetensors"
    assert main(["predict", str(path), str(rows), "--out", str(tmp_path / "file.csv")]) == 0
    assert pd.read_csv(tmp_path / "file.csv")["predicted_energy"].tolist() == own["predicted_energy"].tolist()


def test_a_silo_without_a_personal_model_is_refused_with_those_that_are_there(run, capsys):
    assert main(["predict", str(run), str(run.parent / "alike.csv"), "--silo", "south"]) == 2
    assert "there is: alike, alike-too, unlike" in capsys.readouterr().err


def test_silos_at_sites_tell_what_silos_in_this_process_tell(tables):
    specs = [replace(spec_of(tables / f"{name}.csv"), name=name, personal_folder="") for name in ("plain", "shifted")]
    names, model = [spec.name for spec in specs], initial_vector(TASK.model(0), "average")
    asked = points((0.5,), 1)

    def told_to(cohort):
        coordinator = Coordinator(cohort, TASK, names)
        coordinator.agree()
        own = {"plain": (initial_vector(TASK.model(5), "average"),)}
        members = coordinator.ask_metrics(OF_MEMBERS, names, MEMBERS, ("offsets", *GIVEN, model), own)
        curves = coordinator.ask_metrics(
            OF_CURVES, names, names_of(asked), ("offsets", np.array([0.5]), 1, *GIVEN, model)
        )
        return members, curves, coordinator.ask_metrics(OF_UNSEEN, names, ("model",), (model,))

    ours = told_to(LocalCohort(specs, TASK))
    assert [set(told) for told, _ in ours] == [set(names)] * 3
    assert [silent for _, silent in ours] == [{}] * 3
    with sites(specs, TASK) as cohort:
        assert told_to(cohort) == ours
