"""Scores of classes: equal to scikit-learn's, exact under any split of the rows, and no count of single rows leaves."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from ray_fed.errors import PerimeterRefused
from ray_fed.federation.messages import Metrics, is_unmarked, sound_metrics, unmarked
from ray_fed.federation.tally import metrics_of, names_of, numbers_of_metrics
from ray_fed.metrics import (
    ClassificationSums,
    RegressionSums,
    Resolution,
    SeveralScores,
    classification_metrics,
    coin_of,
    merged,
    metrics_of_targets,
    regression_metrics,
    secret_of,
)
from ray_fed.metrics.classification import MOST_CLASSES, NO_ROWS, NOT_MARKED, ONE_CLASS, bin_edges
from ray_fed.perimeter.checks import KINDS, checked_scores
from ray_fed.perimeter.gate import Gate, Request
from ray_fed.perimeter.policy import Policy


def drawn(num_rows, num_classes, seed=0, skill=1.0, prior=None):
    """Return labels [rows] and probabilities [rows, classes] of a model with some skill."""
    random = np.random.default_rng(seed)
    labels = random.choice(num_classes, num_rows, p=prior)
    logits = random.normal(size=(num_rows, num_classes)) + skill * np.eye(num_classes)[labels]
    odds = np.exp(logits) * (1 if prior is None else np.array(prior))
    return labels, odds / odds.sum(1, keepdims=True)


def tied_pairs(sums):
    """Return, for each class, half the share of pairs that are in one bin: the most that binning can be off."""
    rest, own = sums.scores[:, 0].astype(float), sums.scores[:, 1].astype(float)
    return (rest * own).sum(1) / (rest.sum(1) * own.sum(1)) / 2


# ---- equal to scikit-learn's


@pytest.mark.parametrize(("num_classes", "prior"), [(2, None), (2, (0.97, 0.03)), (3, None), (7, None)])
@pytest.mark.parametrize("skill", [0.0, 0.1, 1.0, 12.0])
def test_all_metrics_are_scikit_learns_and_the_area_within_its_bins(num_classes, prior, skill):
    labels, p = drawn(2000, num_classes, 1, skill, prior)
    sums, predicted = ClassificationSums.of(labels, p), p.argmax(1)
    found = sums.values()
    average = {"average": "macro"} if num_classes > 2 else {}
    assert found["accuracy"] == reference.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert found["f1"] == pytest.approx(reference.f1_score(labels, predicted, **average), abs=1e-12)
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, p), abs=1e-6)
    assert np.array_equal(sums.matrix, reference.confusion_matrix(labels, predicted))
    exact = reference.roc_auc_score(labels, p[:, 1] if num_classes == 2 else p, multi_class="ovr")
    assert abs(found["roc_auc"] - exact) <= tied_pairs(sums).mean() + 1e-12
    assert found["roc_auc"] == pytest.approx(exact, abs=3e-3)
    assert set(found) == {metric.name for metric in classification_metrics(num_classes)}
    assert not sums.undefined()


def test_ties_count_half():
    labels, p = np.array([0, 1, 0, 1]), np.array([0.3, 0.3, 0.1, 0.9])
    assert ClassificationSums.of(labels, p).roc_auc == reference.roc_auc_score(labels, p) == 0.875


def test_the_curve_has_the_area_that_is_told():
    sums = ClassificationSums.of(*drawn(500, 2))
    false, true = sums.roc_curve()
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(sums.roc_auc, abs=1e-12)


def test_reliability_is_the_observed_share_of_what_was_predicted():
    random = np.random.default_rng(0)
    p = random.uniform(size=40_000)
    sums = ClassificationSums.of((random.uniform(size=p.size) < p).astype(int), p)
    predicted, observed, rows = sums.reliability()
    assert rows.sum() == p.size
    assert len(rows) == 10
    assert np.abs(predicted - observed).max() < 0.02
    assert predicted == pytest.approx(np.arange(0.05, 1, 0.1), abs=0.01)


def test_probabilities_of_class_one_stand_for_both():
    labels, p = drawn(50, 2)
    both = ClassificationSums.of(labels, p)
    assert ClassificationSums.of(labels, p[:, 1]) == ClassificationSums.of(labels, p[:, 1:]) == both


@pytest.mark.parametrize("num_classes", [2, 3, MOST_CLASSES])
def test_bins_are_in_order_from_nothing_to_certain(num_classes):
    edges = bin_edges(num_classes)
    assert (np.diff(edges) > 0).all()
    assert (edges[0], edges[-1]) == (0, 1)


# ---- what is missing


def test_rows_without_a_label_do_not_count():
    labels, p = drawn(60, 3)
    some = np.where(np.arange(60) % 3 == 0, -1, labels)
    assert ClassificationSums.of(some, p) == ClassificationSums.of(labels[some >= 0], p[some >= 0])


def test_with_one_class_there_is_no_area_and_the_reason_is_said():
    sums = ClassificationSums.of(np.ones(9, int), np.linspace(0.1, 0.9, 9))
    assert math.isnan(sums.roc_auc)
    assert sums.undefined() == {"roc_auc": ONE_CLASS}
    assert sums.accuracy == sums.balanced_accuracy == 4 / 9
    only_negative = ClassificationSums.of(np.zeros(9, int), np.full(9, 0.1))
    assert math.isnan(only_negative.f1)
    assert set(only_negative.undefined()) == {"roc_auc", "f1"}


def test_without_rows_there_is_no_metric():
    nothing = ClassificationSums.of(np.zeros(0, int), np.zeros((0, 3)))
    assert nothing == ClassificationSums.none(3)
    assert all(math.isnan(value) for value in nothing.values().values())
    assert set(nothing.undefined().values()) == {NO_ROWS}
    some = ClassificationSums.of(*drawn(20, 3))
    assert some + nothing == nothing + some == some


def test_a_class_without_rows_is_left_out_of_the_means():
    labels, p = drawn(200, 3)
    labels[labels == 2] = 0
    sums = ClassificationSums.of(labels, p)
    first = reference.roc_auc_score(labels == 0, p[:, 0]), reference.roc_auc_score(labels == 1, p[:, 1])
    assert sums.roc_auc == pytest.approx(np.mean(first), abs=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's: class 2 is predicted, never true
        expected = reference.balanced_accuracy_score(labels, p.argmax(1))
    assert sums.balanced_accuracy == pytest.approx(expected)
    assert sums.f1 == pytest.approx(reference.f1_score(labels, p.argmax(1), average="macro", zero_division=0))


def test_a_diverged_model_has_no_metric():
    sums = ClassificationSums.of(np.array([0, 1]), np.array([np.nan, 0.5]))
    assert not sums.is_marked
    assert set(sums.undefined().values()) == {NOT_MARKED}
    assert not (sums + ClassificationSums.of(*drawn(20, 2))).is_marked
    assert sums.num_examples == 2


@pytest.mark.parametrize("labels", [[0, 2], [-2, 1], [0.5, 1], [np.nan, 1]])
def test_labels_that_are_none_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be whole numbers from -1"):
        ClassificationSums.of(np.array(labels), np.array([0.1, 0.2]))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"labels \[rows\] and probabilities \[rows, classes\]"):
        ClassificationSums.of(np.zeros(3, int), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="65 classes; 2 to 64"):
        ClassificationSums.of(np.zeros(1, int), np.zeros((1, 65)))
    with pytest.raises(ValueError, match="scores of 2 and of 3 classes do not add up"):
        _ = ClassificationSums.none(2) + ClassificationSums.none(3)


# ---- the laws


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(0, 60), st.integers(0, 60))
def test_sums_add_up_exactly_over_any_split(seed, num_classes, num_rows, cut):
    labels, p = drawn(num_rows, num_classes, seed)
    parts = [ClassificationSums.of(labels[part], p[part]) for part in (slice(cut), slice(cut, None))]
    assert merged(parts) == ClassificationSums.of(labels, p)


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 300), st.integers(1, 12))
def test_what_leaves_is_in_groups_of_the_owners_fewest_rows(seed, num_classes, num_rows, fewest):
    labels, p = drawn(num_rows, num_classes, seed)
    exact, resolution = ClassificationSums.of(labels, p), Resolution(fewest)
    told = resolution.released(exact, coin_of(secret_of([labels]), p, "train"))
    assert told.objection() == exact.objection() == ""
    assert not any(count % fewest for count in (*told.confusion, *told.histograms))
    assert told.log_loss_steps % (fewest << 20) == 0
    assert (np.abs(told.matrix.sum(1) - exact.matrix.sum(1)) < fewest).all()
    assert resolution.released(told) == told
    for shown, true in ((told.matrix, exact.matrix), (told.scores, exact.scores)):
        assert not (shown[true == 0]).any()  # a group stands where a row is
    assert told.num_examples == exact.num_examples


def test_what_leaves_is_near_the_truth_and_right_in_the_mean():
    labels, p = drawn(400, 2, 3)
    exact, secret = ClassificationSums.of(labels, p), secret_of([labels])
    told = [Resolution().released(exact, coin_of(secret, np.array([i]), "train")).values() for i in range(300)]
    for name, value in exact.values().items():
        found = np.array([each[name] for each in told])
        assert np.abs(found - value).max() < 0.03, name
        assert found.mean() == pytest.approx(value, abs=3e-3), name


def test_how_many_rows_a_class_has_is_told_once_whatever_the_models():
    labels, p = drawn(103, 3)
    secret = secret_of([labels])
    told = [
        Resolution().released(ClassificationSums.of(labels, p), coin_of(secret, np.array([i]), "train"))
        for i in range(50)
    ]
    assert len({tuple(each.matrix.sum(1)) for each in told}) == 1
    assert len({each.confusion for each in told}) > 5


def test_one_row_more_changes_what_is_told_in_one_group_or_not_at_all():
    labels, p = drawn(101, 2, 5)
    secret = secret_of([labels])
    with_it, without = (
        Resolution().released(ClassificationSums.of(labels[:n], p[:n]), coin_of(secret, p, "train")) for n in (101, 100)
    )
    assert (np.abs(with_it.matrix - without.matrix) <= 5).all()


# ---- through the gate, added up under masks


def gate(**policy):
    made = Gate("a", Policy(**policy), KINDS)
    made.metrics |= {metric.name for metric in classification_metrics(3)}
    made.metrics |= {f"{target}.{name}" for target in ("gap", "metal") for name in ("mae", "r2", "mse", *made.metrics)}
    return made


REQUEST = Request("metrics", models=("m",))
SUMS = Resolution().released(ClassificationSums.of(*drawn(120, 3)))
SEVERAL = SeveralScores(
    130,
    {"gap": RegressionSums.of(np.arange(9.0), np.arange(9.0) + 1), "metal": ClassificationSums.of(*drawn(121, 2))},
)


def test_counts_leave_in_groups_even_where_a_silos_own_code_told_them_exactly():
    told = checked_scores(gate(min_examples=7), ClassificationSums.of(*drawn(120, 3)), REQUEST)
    assert not any(count % 7 for count in (*told.confusion, *told.histograms))
    assert checked_scores(gate(), SUMS, REQUEST) == SUMS
    assert checked_scores(gate(min_examples=121), SUMS, REQUEST) == ClassificationSums.none(3)
    known = replace(REQUEST, is_known=True)
    assert checked_scores(gate(), ClassificationSums.of(*drawn(120, 3)), known) == ClassificationSums.of(*drawn(120, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(SUMS, confusion=SUMS.confusion[:-1]),
        replace(SUMS, confusion=(-5, *SUMS.confusion[1:])),
        replace(SUMS, confusion=(SUMS.confusion[0] + 5, *SUMS.confusion[1:])),
        replace(SUMS, histograms=()),
        replace(SUMS, histograms=(0.5, *SUMS.histograms[1:])),
        replace(SUMS, num_classes=65),
        replace(SUMS, log_loss_steps=math.nan),
        replace(SUMS, num_examples=50),
        replace(SUMS.unmarked(), log_loss_steps=7),
    ],
)
def test_counts_that_are_none_or_contradict_each_other_stay_inside(wrong):
    with pytest.raises(PerimeterRefused):
        checked_scores(gate(), wrong, REQUEST)


def test_the_coordinator_leaves_out_a_silo_whose_counts_are_none():
    good, bad = SUMS, replace(SUMS, confusion=(5, *SUMS.confusion[1:]))
    by_silo = {name: {"m": Metrics(name, each, each)} for name, each in (("a", good), ("b", bad), ("c", good))}
    sound, failures = sound_metrics(by_silo, ["m"], [])
    assert (set(sound), failures) == ({"a", "c"}, {"b": "its counts contradict each other"})


def test_a_silo_that_does_not_mark_a_model_is_no_stranger_among_those_that_do():
    by_silo = {name: {"m": Metrics(name, each, each)} for name, each in (("a", SUMS), ("b", unmarked(SUMS)))}
    sound, failures = sound_metrics(by_silo, ["m"], [])
    assert set(sound) == {"a", "b"}
    assert failures == {}
    assert is_unmarked(unmarked(SUMS))
    assert checked_scores(gate(), unmarked(SUMS), REQUEST) == unmarked(SUMS)


def test_each_targets_scores_are_rounded_and_hidden_on_their_own():
    told = checked_scores(gate(min_examples=10), SEVERAL, REQUEST)
    assert told.num_examples == 130
    assert told.parts["gap"] == RegressionSums(0, 0.0, 0.0, 0.0, 0.0)
    assert not any(count % 10 for count in told.parts["metal"].confusion)
    assert set(told.values()) == set(SEVERAL.values())
    assert set(unmarked(SEVERAL).undefined().values()) == {NOT_MARKED}
    with pytest.raises(PerimeterRefused, match="one of its names is not allowed"):
        checked_scores(gate(), SeveralScores(9, {"other": SUMS}), REQUEST)
    with pytest.raises(PerimeterRefused):
        checked_scores(gate(), SeveralScores(9, {"gap": SEVERAL}), REQUEST)


def test_an_owner_who_allows_other_metrics_tells_no_counts():
    strict = Gate("a", Policy(metrics=("accuracy",)), KINDS)
    strict.metrics |= {"accuracy"}
    with pytest.raises(PerimeterRefused, match="one of its names is not allowed"):
        checked_scores(strict, SUMS, REQUEST)


@pytest.mark.parametrize("scores", [SUMS, SEVERAL], ids=["classes", "several targets"])
def test_the_sum_of_what_is_masked_is_what_would_be_added_up_in_clear(scores):
    by_model = {"m": Metrics("a", scores, scores), "n": Metrics("a", unmarked(scores), scores)}
    names, numbers = names_of(by_model), numbers_of_metrics(by_model)
    found = metrics_of([2 * number for number in numbers], names, ["m", "n"])
    assert found["m"][0].values() == pytest.approx((scores + scores).values())
    assert found["n"][0].values() == pytest.approx(metrics_of(numbers, names, ["m", "n"])["n"][0].values(), nan_ok=True)
    assert all(math.isnan(value) for value in found["n"][0].values().values())


# ---- several targets


def test_metrics_of_several_targets_have_their_targets_before_them():
    both = metrics_of_targets({"gap": regression_metrics("eV"), "metal": classification_metrics(2)})
    assert [metric.name for metric in both][:4] == ["gap.mae", "gap.r2", "gap.mse", "metal.roc_auc"]
    assert both[0].heading == "MAE of gap (eV)"
    assert {metric.name for metric in both} == set(SEVERAL.values())
    assert metrics_of_targets({"gap": regression_metrics("eV")}) == regression_metrics("eV")


def test_scores_of_several_targets_add_up_target_by_target():
    both = merged([SEVERAL, SEVERAL])
    assert both.num_examples == 260
    assert both.parts["metal"] == SEVERAL.parts["metal"] + SEVERAL.parts["metal"]
    with pytest.raises(ValueError, match="different targets"):
        _ = SEVERAL + SeveralScores(1, {"gap": SEVERAL.parts["gap"]})
    assert repr(SEVERAL).startswith("SeveralScores(130 rows: gap.mae 1, gap.r2 0.85, ")
