"""Targets: units, transforms, classes, labels that are missing; from columns to a loss, and from outputs to people."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.standardisation import ColumnMoments, Standardizer, merge_moments
from ray_fed.materials.targets import (
    TRANSFORMS,
    MaskedLoss,
    Target,
    labels,
    learned_values,
    moment_columns,
    predicted_values,
    prediction_columns,
    target_scaler,
)
from ray_fed.materials.units import FAMILIAR, UNKNOWN_UNIT, can_convert, checked_unit, converted

GAP, LIFETIME = Target("gap", "eV"), Target("lifetime", "s", "log10")
METAL, KIND = Target("metal", "", classes=("false", "true")), Target("kind", "", classes=("a", "b", "c"))


# ---- units


@pytest.mark.parametrize(
    ("unit", "wanted", "value"),
    [
        ("meV", "eV", 1e-3),
        ("meV/atom", "eV/atom", 1e-3),
        ("eV/f.u.", "meV/formula_unit", 1e3),
        ("nm", "Å", 10.0),
        ("°C", "K", 274.15),
        ("%", "dimensionless", 0.01),
        ("log10(GPa)", "log10(MPa)", 4.0),
        ("ln(GPa)", "ln(GPa)", 1.0),
        ("μV/K", "mV/K", 1e-3),
        ("W/(m K)", "W/m/K", 1.0),
    ],
)
def test_a_value_is_the_same_in_another_unit(unit, wanted, value):
    assert converted(np.array([1.0]), unit, wanted) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("unit", "wanted"),
    [("eV", "eV/atom"), ("kJ/mol", "eV/atom"), ("eV/atom", "eV/f.u."), ("eV", "K"), ("GPa", "log10(GPa)"),
     (UNKNOWN_UNIT, "eV"), ("log10(GPa)", "ln(GPa)")],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused_with_both_units(unit, wanted):
    assert not can_convert(unit, wanted)
    with pytest.raises(ConfigError) as caught:
        converted(np.ones(2), unit, wanted)
    assert f"'{unit}'" in str(caught.value)
    assert f"'{wanted}'" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["electron-volts", "eV/", "10 eV", "log(GPa", "x" * 200, "m**9**9**9", "m^9 ^9", "m^(9^9)", "9⁹⁹⁹"]
)
def test_what_is_no_unit_is_refused_with_a_remedy(text):
    with pytest.raises(ConfigError, match="is no unit that can be read; write it as eV/atom"):
        checked_unit(text)


def test_a_unit_stays_as_its_owner_wrote_it_and_equal_texts_change_no_bit():
    assert [checked_unit(text) for text in ("  meV /atom ", "", "1", "C/m ^ 2", UNKNOWN_UNIT)] == [
        "meV /atom", "dimensionless", "dimensionless", "C/m ^ 2", UNKNOWN_UNIT,
    ]  # fmt: skip
    values = np.array([0.1, 1 / 3])
    assert converted(values, UNKNOWN_UNIT, UNKNOWN_UNIT) is values


@pytest.mark.parametrize("text", sorted(FAMILIAR))
def test_what_is_taken_unread_as_a_unit_is_one(text):
    assert not can_convert(text, "mol")  # and no error: both are read here


# ---- transforms


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@given(value=st.floats(1e-12, 1e12))
def test_a_transform_is_undone(name, value):
    transform = TRANSFORMS[name]
    assert transform.inverse(transform.forward(np.array([value])))[0] == pytest.approx(value, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_a_diverged_output_is_shown_as_a_finite_number(name):
    outputs = np.array([[1e9], [-1e9]])
    assert (np.abs(predicted_values(outputs, (Target("x", "m", name),), None)) <= 1e30).all()


@pytest.mark.parametrize(("name", "unusable"), [("none", 0), ("log10", 2), ("log1p", 1), ("sqrt", 1), ("asinh", 0)])
def test_values_outside_of_a_transform_are_counted_with_its_name(name, unusable):
    values, reasons = labels([pd.Series([-2.0, 0.0, 3.0])], [Target("x", "m", name)], ["m"])
    assert reasons == [f"target is outside of {name}"] * unusable + [""] * (3 - unusable)
    assert np.isnan(values[:, 0]).sum() == unusable


# ---- labels


def test_rows_have_a_label_of_any_target_or_a_reason():
    columns = [pd.Series([1000.0, np.nan, 5.0, np.nan]), pd.Series(["TRUE", "no", None, "perhaps"])]
    values, reasons = labels(columns, [GAP, METAL], ["meV", ""])
    assert np.array_equal(values, [[1.0, 1.0], [np.nan, 0.0], [0.005, np.nan], [np.nan, np.nan]], equal_nan=True)
    assert reasons == ["", "", "", "label is none of the classes"]


def test_labels_are_found_in_numbers_text_and_truth_values():
    for column in (pd.Series([0.0, 2.0, 1.0]), pd.Series(["0", " 2", "1 "]), pd.Series([0, 2, 1])):
        values, _ = labels([column], [Target("n", "", classes=("0", "1", "2"))], [""])
        assert values[:, 0].tolist() == [0.0, 2.0, 1.0]
    for column in (pd.Series([False, True]), pd.Series(["False", "True"]), pd.Series([0, 1]), pd.Series(["no", "yes"])):
        assert labels([column], [METAL], [""])[0][:, 0].tolist() == [0.0, 1.0]


def test_true_and_false_are_no_numbers_to_learn():
    with pytest.raises(DataError, match="'gap' holds true and false, no numbers; give --task classification"):
        labels([pd.Series([True, False])], [GAP], ["eV"])
    with pytest.raises(DataError, match="'gap' holds text, no numbers"):
        labels([pd.Series(["low", "high", "low"])], [GAP], ["eV"])
    assert labels([pd.Series(["1,2", "3,4", "5,6"])], [GAP], ["eV"])[1] == [
        "target is not a number; write a decimal point".replace("target", f"target '{one}'")
        for one in ("1,2", "3,4", "5,6")
    ]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"transform": "log2"}, "unknown transform 'log2'; did you mean 'log1p'"),
        ({"classes": ("a",)}, "must be 2 to 64 labels"),
        ({"classes": ("a", "a")}, "must differ"),
        ({"classes": ("a", "b"), "transform": "log10"}, "classes have no transform"),
        ({"classes": ("a", "x" * 65)}, "1 to 64 characters"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(given_, message):
    with pytest.raises(ConfigError, match=message):
        Target("x", "eV", **given_)


# ---- the scaler


def test_moments_of_a_target_are_those_of_the_rows_that_have_it():
    values = np.array([[1.0, np.nan, 1.0], [3.0, 1e3, np.nan], [np.nan, 1e5, 0.0]])
    targets = (GAP, LIFETIME, METAL)
    parts = [ColumnMoments.of(moment_columns(part, targets)) for part in (values[:1], values[1:])]
    scaler = target_scaler(merge_moments(parts), targets)
    assert scaler.mean.tolist() == [2.0, 4.0]
    assert scaler.scale.tolist() == [1.0, 1.0]


def test_a_target_that_does_not_vary_is_refused_by_name():
    values = np.array([[1.0, 7.0, 1.0], [3.0, 7.0, np.nan], [np.nan, np.nan, 0.0]])
    targets = (GAP, LIFETIME, METAL)
    with pytest.raises(DataError, match=f"target '{LIFETIME.name}' has one value in all, or all but a few"):
        target_scaler(ColumnMoments.of(moment_columns(values, targets)), targets)


@given(power=st.integers(-12, 12))
def test_standardised_targets_do_not_know_their_unit(power):
    values = np.random.default_rng(0).normal(3.0, 2.0, (50, 1))
    learned = []
    for factor in (1.0, 10.0**power):
        scaler = target_scaler(ColumnMoments.of(moment_columns(values * factor, (GAP,))), (GAP,))
        learned.append(learned_values(values * factor, (GAP,), scaler))
        assert predicted_values(learned[-1], (GAP,), scaler) == pytest.approx(values * factor, rel=1e-9)
    assert learned[0] == pytest.approx(learned[1], rel=1e-9)


def test_outputs_are_told_in_units_and_chances():
    scaler = Standardizer(np.array([2.0, 4.0]), np.array([0.5, 1.0]))
    outputs = np.array([[2.0, -1.0, 0.0, 0.0, 0.0, np.log(2.0)]], np.float32)
    told = predicted_values(outputs, (GAP, LIFETIME, METAL, KIND), scaler)
    assert told == pytest.approx(np.array([[3.0, 1000.0, 0.5, 0.5, 0.25, 0.25, 0.5]]), rel=1e-6)
    columns = prediction_columns(told, (GAP, LIFETIME, METAL, KIND))
    assert list(columns)[:3] == ["predicted_gap", "predicted_lifetime", "predicted_metal"]
    assert columns["predicted_kind"].tolist() == ["c"]
    assert columns["probability_kind_c"].tolist() == pytest.approx([0.5])


def test_one_plain_number_is_told_as_the_network_says_it():
    outputs = np.ones((3, 1), np.float32)
    assert predicted_values(outputs, (GAP,), None) is outputs


# ---- the loss


def test_a_label_that_is_missing_teaches_nothing():
    loss = MaskedLoss((0, 2, 3))
    outputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets = torch.tensor([[1.0, 1, 2], [2.0, 0, 1], [0.5, 1, 0], [1.0, 0, 1], [np.nan] * 3, [np.nan] * 3])
    known = [
        functional.mse_loss(outputs[:4, 0], targets[:4, 0]),
        functional.binary_cross_entropy_with_logits(outputs[:4, 1], targets[:4, 1]),
        functional.cross_entropy(outputs[:4, 2:], targets[:4, 2].long()),
    ]
    found = loss(outputs, targets)
    assert found.item() == pytest.approx(sum(known).item() / 3, rel=1e-6)
    found.backward()
    assert torch.count_nonzero(outputs.grad[4:]) == 0


def test_a_batch_without_any_label_has_loss_and_gradient_zero():
    outputs = torch.randn(4, 2, requires_grad=True)
    found = MaskedLoss((0, 2))(outputs, torch.full((4, 2), torch.nan))
    found.backward()
    assert found.item() == 0.0
    assert torch.count_nonzero(outputs.grad) == 0
