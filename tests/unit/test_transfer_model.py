"""Members and their stack where the truth is known, sources that are others, and a transfer that ends in a model."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process.kernels import Matern

from pipelines.cli import main
from ray_fed.errors import DataError
from ray_fed.model_library.building import BuildJob, run_job
from ray_fed.model_library.cards import pack, unpack
from ray_fed.model_library.few_rows import FITTERS, PREDICTORS, _matern
from ray_fed.model_library.members import (
    MEMBERS,
    Effort,
    FewRows,
    MemberInputs,
    fit_stack,
    member_predictions,
    stack_weights,
    weighed,
)
from ray_fed.model_library.property_catalogue import embedded_tables
from ray_fed.model_library.relations import SourceFacts, SourceRules, one_unit, quantity_of, relation
from ray_fed.model_library.selection import SourceFeatures, _of_ranked
from ray_fed.model_library.store import Library
from ray_fed.model_library.transfer import target_and_sources
from ray_fed.model_library.transfer_model import conformal_half, fit_transfer_model, predict_transfer

QUICK = Effort(folds=3, best=3, num_trees=5)
TABLES = embedded_tables(600)
TARGET = replace(
    TABLES["model_pnictides/formation_energy"], frame=TABLES["model_pnictides/formation_energy"].frame.head(40)
)


def trained(key, method, count=3, descriptor="guo65"):
    made = run_job(BuildJob(key, descriptor, method, count, 0, 120), TABLES[key])
    assert not made.failures
    return made.models


@pytest.fixture(scope="module")
def packed():
    return [
        *trained("model_oxides/cell_volume", "mlp"), *trained("model_halides/formation_energy", "mlp"),
        *trained("model_oxides/cell_length", "gradient_boosting", 1, "rich"),
        *trained("model_oxides/cell_volume", "mlp", 2, "guo73"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def models(packed):
    return [unpack(model.weights, model.card, "here") for model in packed]


@pytest.fixture(scope="module")
def prepared(models):
    return target_and_sources(TARGET, models)


def inputs(rows=30, seed=0):
    draw = np.random.default_rng(seed)
    frozen = [draw.normal(size=(4, rows, 3)), draw.normal(size=(2, rows, 5))]
    return MemberInputs({"a": draw.normal(size=(rows, 4)), "rich": draw.normal(size=(rows, 6))},
                        draw.normal(size=(rows, 3)), frozen)  # fmt: skip


def test_the_kernel_is_the_one_of_scikit_learn():
    x = np.random.default_rng(0).normal(size=(7, 2))
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.testing.assert_allclose(_matern(apart, 1.7), Matern(1.7, nu=2.5)(x), rtol=1e-12)


@pytest.mark.parametrize("learner", list(FITTERS))
def test_each_learner_finds_a_line_and_does_not_know_the_order_of_rows(learner):
    draw = np.random.default_rng(1)
    x, new = draw.normal(size=(60, 3)), draw.normal(size=(40, 3))
    arrays = FITTERS[learner](x, 3 * x[:, 0], 0, 30)
    assert np.abs(PREDICTORS[learner](arrays, new) - 3 * new[:, 0]).mean() < 1.2
    constant = FITTERS[learner](np.ones((8, 2)), np.arange(8.0), 0, 5)
    assert np.isfinite(PREDICTORS[learner](constant, np.ones((2, 2)))).all()


def test_weights_are_a_mean_and_follow_the_member_that_knows():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=50)
    predicted = np.stack([truth, draw.normal(size=50), draw.normal(size=50)], axis=1)
    weights = stack_weights(predicted, truth)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert weights[0] > 0.9
    np.testing.assert_allclose(stack_weights(predicted[:, [0, 0]], truth), 0.5)
    np.testing.assert_allclose(stack_weights(predicted, np.ones(50)).sum(), 1)


def test_members_predict_rows_they_have_not_seen_and_the_same_after_a_round_trip():
    everything, values = inputs(), np.random.default_rng(3).normal(size=30)
    stack = fit_stack(FewRows(everything, values, np.arange(30) // 2), QUICK)
    assert set(stack.weights) == set(MEMBERS)
    assert set(stack.out_of_fold) == {*MEMBERS, "direct", "stack"}
    new = inputs(10, seed=5)
    again = weighed(member_predictions({**stack.arrays}, new), stack.weights)
    np.testing.assert_array_equal(again, stack.predict(new))
    learners = [stack.out_of_fold[name] for name in FITTERS]
    np.testing.assert_allclose(stack.out_of_fold["direct"], np.mean(learners, axis=0))


def test_no_transfer_does_not_depend_on_the_order_of_descriptors():
    everything, values = inputs(), np.random.default_rng(3).normal(size=30)
    turned = replace(everything, descriptors=dict(reversed(everything.descriptors.items())))
    first, second = (fit_stack(FewRows(one, values, np.arange(30)), QUICK) for one in (everything, turned))
    np.testing.assert_allclose(first.out_of_fold["direct"], second.out_of_fold["direct"])


def test_sources_that_no_card_judges_have_no_rank_and_no_traceback():
    sources = SourceFeatures((), ("a", "b"), np.array([np.nan, np.nan]), np.zeros((1, 1)), ("x",))
    assert np.isnan(_of_ranked(sources, np.ones(2)))


def test_a_source_on_a_cell_is_skipped_with_its_reason_where_the_target_has_formulas_alone(models, prepared):
    bare = replace(TARGET, kind="formula", frame=TARGET.frame[["formula", "value"]])
    found = target_and_sources(bare, models)
    assert list(found.skipped.values()) == [2]
    assert "guo73 reads 'a'" in next(iter(found.skipped))
    assert (len(found.models), len(prepared.models)) == (7, 9)
    assert set(found.target.descriptors) == {"guo65", "rich"}
    assert found.sources.predictions.shape == (40, 3)
    with pytest.raises(DataError, match="guo73 reads"):
        target_and_sources(bare, models[-2:])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("formation_energy_per_atom", "formation_energy"), ("e_form", "formation_energy"), ("Eg", "band_gap_pbe"),
        ("max_phonon_mode", "last_phonon_peak"), ("K_VRH", "bulk_modulus"), ("kappa_dft_300K", "thermal_conductivity"),
    ],
)  # fmt: skip
def test_one_quantity_has_many_names(one, other):
    assert quantity_of(one) == quantity_of(other)
    assert quantity_of("bulk_modulus") != quantity_of("shear_modulus")


def test_units_decide_whether_one_name_means_one_quantity():
    assert one_unit("log10(GPa)", "GPa")
    assert one_unit("eV/atom", "meV/atom")
    assert not one_unit("eV/atom", "eV/cell")
    assert not one_unit("nonsense", "eV")


def facts(models, number, rows=None, predicted=None, **changed):
    card = replace(models[number][1], **changed)
    return SourceFacts(f"{card.data[0]['name']}/{card.property}", card, 3, rows, predicted)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (SourceRules(), "the target's own quantity"), (SourceRules(allow_related=True), ""),
        (SourceRules(allow_related=True, exclude=("model_halides",)), "--exclude model_halides"),
    ],
)  # fmt: skip
def test_a_federated_model_under_another_name_is_the_targets_own_quantity(models, rules, reason):
    federated = facts(models, 3, property="formation_energy_per_atom", federation={"strategy": "fed_avg"})
    assert relation(TARGET, federated, rules).reason == reason


def test_a_source_that_ranks_shared_formulas_as_the_target_does_is_no_other_source(models):
    twin = replace(TARGET, modelset="elsewhere", frame=TARGET.frame.assign(value=-np.exp(TARGET.frame["value"])))
    found = relation(TARGET, facts(models, 0, rows=twin), SourceRules())
    assert (found.shared, round(found.correlation, 6)) == (40, -1)
    assert "rank correlation on shared formulas -1.00" in found.reason
    assert not relation(TARGET, facts(models, 0, rows=twin), SourceRules(allow_related=True)).reason
    few = replace(twin, frame=twin.frame.head(10))
    assert not relation(TARGET, facts(models, 0, rows=few), SourceRules()).reason
    unseen = relation(TARGET, facts(models, 0, predicted=2 * TARGET.frame["value"].to_numpy()), SourceRules())
    assert (unseen.shared, "of its predictions 1.00" in unseen.reason) == (None, True)


def test_a_conformal_interval_needs_as_many_rows_as_its_level_says():
    errors = np.arange(1.0, 16)
    assert (conformal_half(errors, 0.8), conformal_half(errors, 0.9)) == (13, 15)
    assert np.isnan(conformal_half(errors[:5], 0.9))


def test_a_saved_transfer_predicts_new_rows_with_intervals_flags_and_reasons(prepared):
    stack, arrays, card = fit_transfer_model(TARGET, prepared, QUICK, "last")
    loaded, read = unpack(*(lambda model: (model.weights, model.card))(pack(arrays, card)), "here")
    found = predict_transfer(loaded, read, TARGET.frame)
    inside = stack.predict(MemberInputs(prepared.target.descriptors, prepared.sources.predictions,
                                        prepared.sources.groups))  # fmt: skip
    np.testing.assert_allclose(found.values, inside, rtol=1e-6)
    assert sum(bool(flag) for flag in found.flags) <= 2
    lower, upper = found.bounds[0.8]
    np.testing.assert_allclose(upper - lower, 2 * conformal_half(arrays["calibration.errors"], 0.8))
    sources = read.architecture["sources"]
    assert {source["id"] for source in sources} == {one.id for _, one in prepared.models}
    strange = TARGET.frame.head(2).assign(formula=["XeF2", "?"])
    found = predict_transfer(loaded, read, strange)
    assert "Xe" in found.flags[0]
    assert (np.isfinite(found.values).tolist(), bool(found.reasons[1])) == ([True, False], True)


def test_from_a_table_to_a_model_that_both_commands_predict_with(packed, tmp_path, capsys):
    library = Library.create(tmp_path / "library")
    library.add(packed)
    frame = TARGET.frame[["formula", "value"]].head(15).rename(columns={"formula": "Compound", "value": "E"})
    frame = pd.concat([frame.astype(object), pd.DataFrame({"Compound": [""], "E": ["<3"]})])
    frame.to_excel(tmp_path / "mine.xlsx", index=False)
    arguments = ["library", "transfer", "--library", str(library.path), "--source", str(tmp_path / "mine.xlsx")]
    arguments += ["--target", "E", "--unit", "eV/atom", "--material-column", "Compound", "--draws", "0"]
    saved = str(tmp_path / "model")
    assert main([*arguments, "--num-trees", "5", "--folds", "3", "--save", saved]) == 0
    said = capsys.readouterr()
    assert "warning: learned from 15 rows" in said.out
    assert "15 of 16 rows; 1 x no formula" in said.err
    assert "2 models are skipped: guo73 reads 'a'" in said.err
    (tmp_path / "new.csv").write_text("formula,note\nGaN,x\nnonsense,y\n")
    assert main(["predict", saved, str(tmp_path / "new.csv"), "--out", str(tmp_path / "one.csv")]) == 0
    assert main(["library", "add", "--library", str(library.path), f"{saved}.safetensors"]) == 0
    model_id = library.query("method = transfer_stack and transferred", ["id"])["id"].iloc[0]
    out = str(tmp_path / "two.csv")
    assert (
        main(["library", "predict", "--library", str(library.path), model_id, str(tmp_path / "new.csv"), "--out", out])
        == 0
    )
    one, two = pd.read_csv(tmp_path / "one.csv"), pd.read_csv(out)
    pd.testing.assert_frame_equal(one, two)
    assert np.isfinite(one["predicted_E"]).tolist() == [True, False]
    assert one["note"].tolist() == ["x", "y"]
