"""Models as arrays predict what their makers predict; frozen features are the network's own layers."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import ElasticNet, Ridge
from sklearn.pipeline import make_pipeline

from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.models import seeded_mlp
from ray_fed.model_library import predictors
from ray_fed.model_library.building import BuildJob, divided, run_job, split_rows, with_target_scale
from ray_fed.model_library.cards import regression_metrics, unpack
from ray_fed.model_library.descriptors import (
    GRID,
    check_fingerprint,
    make_descriptor,
    radial_distribution,
    radial_distributions,
)
from ray_fed.model_library.predictors import boosting_arrays, forest_arrays, predict_boosting, predict_forest
from ray_fed.model_library.property_catalogue import embedded_tables
from ray_fed.model_library.property_tables import find_table, user_table
from ray_fed.model_library.transfer import FrozenFeaturizer

KEY = "model_oxides/formation_energy"


@pytest.fixture(scope="module")
def tables():
    return embedded_tables(2000)


@pytest.fixture(scope="module")
def numbers():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 8)).round(2)  # rounded: many rows lie exactly on a threshold's value
    return x, x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]), draw.normal(size=(500, 8)).round(2)


@pytest.fixture(scope="module")
def network(tables):
    result = run_job(BuildJob(KEY, "guo65", "mlp", 3, 0, max_rows=150), tables[KEY])
    model = result.models[1]
    return unpack(model.weights, model.card, "test", model.id)


@pytest.mark.parametrize("options", [{}, {"max_depth": 3}, {"max_features": 0.3, "min_samples_leaf": 4}])
def test_a_forest_of_arrays_predicts_the_very_bits_of_scikit_learn(numbers, options):
    x, y, new = numbers
    forest = RandomForestRegressor(17, random_state=1, **options).fit(x, y)
    np.testing.assert_array_equal(predict_forest(forest_arrays(forest), new), forest.predict(new))


@pytest.mark.parametrize("options", [{}, {"max_depth": 3}, {"learning_rate": 1.0, "max_iter": 30}])
def test_boosted_trees_of_arrays_predict_the_very_bits_of_scikit_learn(numbers, options):
    x, y, new = numbers
    model = HistGradientBoostingRegressor(random_state=1, **options).fit(x, y)
    np.testing.assert_array_equal(predict_boosting(boosting_arrays(model), new), model.predict(new))


def test_a_forest_of_one_row_has_trees_that_are_leaves():
    forest = RandomForestRegressor(3).fit([[1.0]], [2.5])
    assert predict_forest(forest_arrays(forest), np.array([[9.0], [1.0]])).tolist() == [2.5, 2.5]


@pytest.mark.parametrize("method", ["random_forest", "gradient_boosting", "elastic_net"])
def test_every_method_goes_through_bytes_and_back_with_its_metrics(tables, method):
    job = BuildJob(KEY, "guo65", method, 2, 0, max_rows=150)
    result = run_job(job, tables[KEY])
    assert len(result.models) == 2
    again = run_job(job, tables[KEY])
    assert [model.weights for model in again.models] == [model.weights for model in result.models]
    arrays, card = unpack(result.models[0].weights, result.models[0].card, "test")
    rows = split_rows(tables[KEY].sample(150, _rows_generator(job)), make_descriptor("guo65"), job)
    features, wanted = rows.of("test")
    assert np.abs(predictors.predict(arrays, card, features) - wanted).mean() == pytest.approx(
        card.metrics["test"]["mae"]
    )


def _rows_generator(job):
    from ray_fed.randomness import generator

    return generator(job.seed, "library rows", job.table)


def test_an_elastic_net_of_arrays_predicts_what_scikit_learn_does(numbers):
    x, y, new = numbers
    model = ElasticNet(alpha=0.01).fit(x, y)
    assert np.array_equal(new @ model.coef_ + model.intercept_, model.predict(new))


def test_a_stored_network_predicts_like_torch(network):
    arrays, card = network
    hidden = card.architecture["hidden"]
    module = seeded_mlp(65, hidden, 0)
    module.load_state_dict({name: torch.tensor(arrays[name]) for name in module.state_dict()})
    features = np.random.default_rng(0).normal(size=(20, 65))
    inputs = predictors.standardised(arrays, card, features)
    with torch.no_grad():
        expected = module(torch.tensor(inputs)).squeeze(1).numpy()
    np.testing.assert_allclose(predictors.predict(arrays, card, features), expected, rtol=1e-5, atol=1e-5)


def test_the_target_scale_goes_into_the_last_layer():
    arrays = {"0.weight": np.ones((1, 1), np.float32), "0.bias": np.array([2.0], np.float32)}
    scaled = with_target_scale(arrays, centre=10.0, spread=3.0)
    assert predictors.forward(scaled, np.array([[5.0]], np.float32))[-1].tolist() == [[10 + 3 * 7]]


def test_frozen_features_are_the_layers_before_relu(network):
    arrays, card = network
    x = np.random.default_rng(1).normal(size=(9, 65))
    layers = predictors.forward(arrays, predictors.standardised(arrays, card, x))
    np.testing.assert_array_equal(FrozenFeaturizer(network).fit_transform(x), layers[-2])
    both = FrozenFeaturizer(network, layers=(-2, -1))
    np.testing.assert_array_equal(both.transform(x), np.hstack([layers[-3], layers[-2]]))
    names = both.get_feature_names_out()
    assert len(names) == both.transform(x).shape[1]
    assert names[0] == "L(-2)_1"
    assert FrozenFeaturizer(network, "all").transform(x).shape[1] == sum(card.architecture["hidden"])


def test_frozen_features_work_in_a_pipeline_and_are_clonable(network):
    x = np.random.default_rng(1).normal(size=(30, 65))
    pipeline = make_pipeline(FrozenFeaturizer(network, (-1,)), Ridge())
    assert clone(pipeline).fit(x, x[:, 0]).predict(x).shape == (30,)
    assert FrozenFeaturizer(network).set_output(transform="pandas").fit(x).transform(x).columns[0] == "L(-1)_1"


def test_layers_that_are_not_there_and_features_of_another_width_are_refused(network):
    with pytest.raises(ConfigError, match="hidden layers -"):
        FrozenFeaturizer(network, (-9,)).fit()
    with pytest.raises(DataError, match="takes features"):
        FrozenFeaturizer(network).transform(np.zeros((3, 7)))


def test_another_feature_table_is_refused(network):
    with pytest.raises(DataError, match="descriptor table hash"):
        check_fingerprint(make_descriptor("rich"), network[1].descriptor, network[1].id)


def test_a_composition_is_on_one_side_of_the_split_only():
    groups = np.repeat(np.arange(30), 3)
    parts = divided(groups, np.random.default_rng(0))
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(90))
    assert len({int(g) for part in parts.values() for g in set(groups[part])}) == 30
    assert sum(len(set(groups[part])) for part in parts.values()) == 30


def test_a_job_that_cannot_be_done_is_a_failure_with_its_reason(tables):
    pytest.importorskip("rdkit", reason="RDKit (extra: molecules) is not installed")
    result = run_job(BuildJob(KEY, "morgan", "mlp", 5, 0), tables[KEY])
    assert result.models == []
    assert "reads 'smiles'" in result.failures[0].reason


def test_metrics_by_hand():
    found = regression_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 3.0]), 2.0)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["rmse"] == pytest.approx(np.sqrt(2 / 3))
    assert found["max_abs_error"] == 1
    assert found["baseline_mae"] == 1
    assert found["r2"] == pytest.approx(1 - 2 / (14 / 3))
    assert found["spearman"] == pytest.approx(0.8660254)


def test_metrics_agree_with_scipy():
    from scipy.stats import pearsonr, spearmanr

    draw = np.random.default_rng(0)
    x = draw.normal(size=50).round(1)
    y = (x + draw.normal(size=50)).round(1)
    found = regression_metrics(x, y, 0.0)
    assert found["pearson"] == pytest.approx(pearsonr(x, y).statistic)
    assert found["p_value"] == pytest.approx(pearsonr(x, y).pvalue)
    assert found["spearman"] == pytest.approx(spearmanr(x, y).statistic)


def test_the_radial_distribution_of_a_simple_cube_by_hand():
    g = radial_distribution(np.eye(3) * 3.05, np.zeros((1, 3)))
    shell = 4 / 3 * np.pi * (3.1**3 - 3.0**3)
    assert g[np.argmin(np.abs(GRID - 3.0))] == pytest.approx(6 / (shell / 3.05**3))
    assert g[:30].sum() == 0


def test_the_radial_distribution_does_not_depend_on_the_choice_of_cell():
    one = radial_distribution(np.eye(3) * 3.05, np.zeros((1, 3)))
    two = radial_distribution(np.diag([6.1, 3.05, 3.05]), np.array([[0.1, 0, 0], [0.6, 0, 0]]))
    np.testing.assert_allclose(one, two)


def test_a_cell_without_atoms_has_a_reason_and_no_silent_zero():
    frame = pd.DataFrame({"a": [3.0], "b": 3.0, "c": 3.0, "alpha": 90.0, "beta": 90.0, "gamma": 90.0})
    values, reasons = radial_distributions(frame.assign(frac_coords=[[]]))
    assert np.isnan(values).all()
    assert "0 atoms" in reasons[0]


def test_a_table_of_ones_own_is_a_property(tmp_path):
    path = tmp_path / "mine.csv"
    formulas = [f"{a}{b}" for a in ("Li", "Na", "K", "Rb", "Cs") for b in ("F", "Cl", "Br", "I")]
    pd.DataFrame({"formula": formulas, "gap": np.arange(20.0)}).to_csv(path, index=False)
    table = user_table(path, "gap", "eV")
    assert (table.key, table.unit, len(table.frame)) == ("mine/gap", "eV", 20)
    with pytest.raises(DataError, match="no column 'gop'"):
        user_table(path, "gop", "eV")


def test_an_unknown_or_ambiguous_property_is_named(tables):
    with pytest.raises(ConfigError, match="did you mean 'formation_energy'"):
        find_table(tables, "formation_enrgy")
    with pytest.raises(ConfigError, match="in 4 tables"):
        find_table(tables, "formation_energy")


def test_molecules_have_fingerprints_and_formulas():
    pytest.importorskip("rdkit", reason="RDKit is an extra")
    frame = pd.DataFrame({"smiles": ["CCO", "*CC*", "not a molecule"]})
    bits, reasons = make_descriptor("morgan").transform(frame)
    assert np.isfinite(bits[:2]).all()
    assert "cannot read SMILES 'not a molecule'" in reasons[2]
    features, reasons = make_descriptor("guo65").transform(frame)
    expected, _ = make_descriptor("guo65").transform(pd.DataFrame({"formula": ["C2H6O", "C2H4"]}))
    np.testing.assert_array_equal(features[:2], expected)
    assert reasons[2]
