"""Heads against scikit-learn, and rules of choosing judged where the truth is known."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ray_fed.errors import ConfigError, DataError
from ray_fed.model_library.heads import PENALTIES, cross_validated, find_head, random_forest, ridge
from ray_fed.model_library.members import fold_rows
from ray_fed.model_library.selection import Protocol, SourceFeatures, TransferTarget, draw_rows, one_draw
from ray_fed.model_library.silo_search import SearchingSilo, SiloErrors, SiloTarget


def ridge_by_hand(x, y, new):
    """Brute force: scikit-learn's Ridge refitted without each row, for each penalty."""
    x, new = np.asarray(x, float), np.asarray(new, float)
    centre, scale = x.mean(0), np.where(x.std(0) < 1e-12, 1, x.std(0))
    root = np.sqrt((x.std(0) > 1e-12).sum())
    x, new = (x - centre) / scale / root, (new - centre) / scale / root
    errors = []
    for penalty in PENALTIES:
        left = []
        for row in range(len(y)):
            # As in the head: the mean is that of all rows, one row is left out of the fit.
            rest = np.delete(np.arange(len(y)), row)
            model = Ridge(alpha=penalty).fit(x[rest], y[rest])
            left.append((y[row] - model.predict(x[row : row + 1])[0]) ** 2)
        errors.append(np.mean(left))
    return Ridge(alpha=PENALTIES[int(np.argmin(errors))]).fit(x, y).predict(new)


@pytest.mark.parametrize("width", [5, 30])
def test_the_stacked_ridge_equals_scikit_learn_source_by_source(width):
    draw = np.random.default_rng(4)
    x, y, new = draw.normal(size=(3, 20, width)), draw.normal(size=20), draw.normal(size=(3, 7, width))
    y = y + 2 * x[0, :, 0]
    x[1, :, 2] = 4.0  # a dead unit
    found = ridge(x, y, new)
    for source in range(3):
        np.testing.assert_allclose(found[source], ridge_by_hand(x[source], y, new[source]), rtol=1e-6)


def test_more_columns_than_rows_are_no_trouble():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 10, 40))
    assert np.isfinite(ridge(x, draw.normal(size=10), x)).all()


def test_a_unit_that_wakes_on_a_new_row_moves_its_prediction_only_so_far():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1, 20, 3))
    x[0, :, 1] = 1e-9 * draw.normal(size=20)
    new = np.array([[[0.0, 5.0, 0.0]]])
    assert np.abs(ridge(x, x[0, :, 0], new)).max() < 10


def test_a_source_of_dead_units_predicts_the_mean():
    y = np.arange(8.0)
    np.testing.assert_allclose(ridge(np.ones((1, 8, 3)), y, np.ones((1, 4, 3))), 3.5)


def test_every_row_is_predicted_by_a_head_that_has_not_seen_it():
    seen = []

    def head(features, targets, new, seed):  # noqa: ARG001
        seen.append((set(features[0, :, 0]), set(new[0, :, 0])))
        return np.zeros((len(features), new.shape[1]))

    x = np.arange(12.0).reshape(1, 12, 1)
    folds = fold_rows(np.arange(12), 4, np.random.default_rng(0))
    cross_validated(head, [x], np.zeros(12), folds, 0)
    assert all(not inside & outside for inside, outside in seen)
    assert set().union(*(outside for _, outside in seen)) == set(range(12))


def test_forest_heads_do_not_depend_on_how_many_sources_there_are():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(3, 20, 4)), draw.normal(size=20)
    np.testing.assert_array_equal(random_forest(x, y, x, 5)[:2], random_forest(x[:2], y, x[:2], 5))


def study(good: bool, permutations=0, count=4):
    """200 useless sources, and one that knows the target if `good`."""
    draw = np.random.default_rng(1)
    values = draw.normal(size=400)
    features = draw.normal(size=(200, 400, 6))
    if good:
        features[17, :, 0] = values + 0.05 * draw.normal(size=400)
    ids, errors = tuple(f"{i:03d}" for i in range(200)), np.linspace(0.2, 0.9, 200)
    sources = SourceFeatures((features,), ids, errors, features[10:20].sum(2).T, tuple("abcdefghij"))
    target = TransferTarget({"rich": draw.normal(size=(400, 10))}, values, np.arange(400))
    protocol = Protocol(rows=24, ensemble=5, permutations=permutations, max_held_out=300, num_trees=5)
    return [one_draw(target, sources, find_head("ridge"), protocol, number) for number in range(count)]


def test_a_source_that_knows_the_target_is_found_and_all_estimates_agree():
    draws = study(good=True, count=3)
    assert all(draw.chosen == "017" for draw in draws)
    assert np.mean([draw.held_out["paper"] for draw in draws]) < 0.25 * np.mean(
        [draw.held_out["median"] for draw in draws]
    )
    assert np.mean([draw.cv["nested"] for draw in draws]) < 0.4


def test_without_a_good_source_the_paper_protocol_promises_what_only_nested_cv_denies():
    draws = study(good=False, permutations=2)
    claimed = np.mean([draw.cv["paper"] for draw in draws])
    nested = np.mean([draw.cv["nested"] for draw in draws])
    truth = np.mean([draw.held_out["paper"] for draw in draws])
    assert claimed < 0.9 * truth
    assert abs(nested - truth) < abs(claimed - truth)
    assert np.mean([draw.permuted for draw in draws]) < 1


def test_a_draw_keeps_materials_apart_and_takes_each_once():
    groups = np.repeat(np.arange(40), 3)
    inside, outside = draw_rows(groups, Protocol(rows=10, max_held_out=50), 0)
    assert len(set(groups[inside])) == 10
    assert not set(groups[inside]) & set(groups[outside])
    with pytest.raises(DataError, match="lower --rows"):
        draw_rows(groups, Protocol(rows=39), 0)


def test_draws_repeat_and_differ():
    groups = np.arange(100)
    first = draw_rows(groups, Protocol(rows=10), 0)[0]
    np.testing.assert_array_equal(first, draw_rows(groups, Protocol(rows=10), 0)[0])
    assert set(first) != set(draw_rows(groups, Protocol(rows=10), 1)[0])


def test_what_leaves_a_silo_holds_no_row_and_no_prediction():
    draw = study(good=True, count=1)[0]

    def arrays(errors):
        return {name: np.size(value) for name, value in vars(errors).items() if isinstance(value, np.ndarray)}

    assert arrays(SiloErrors.of(draw, per_source=False)) == {"source_cv": 0, "source_held_out": 0}
    assert arrays(SiloErrors.of(draw, per_source=True)) == {"source_cv": 200, "source_held_out": 200}
    assert not hasattr(SiloErrors.of(draw, per_source=True), "parity")


def test_a_silo_without_models_says_so():
    silo = SearchingSilo("mit", SiloTarget("model_pnictides/formation_energy"))
    with pytest.raises(DataError, match="silo 'mit' has no source models"):
        _ = silo.prepared


def test_an_unknown_head_is_named():
    with pytest.raises(ConfigError, match="did you mean 'ridge'"):
        find_head("ride")
