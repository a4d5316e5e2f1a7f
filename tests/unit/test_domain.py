"""Inputs unlike the silos' rows: each flag with its reason, and none for what is like them."""

import math

import numpy as np
import pandas as pd
import pytest

from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.materials.domain import (
    Domain,
    counted_elements,
    counted_places,
    distances,
    elements_of,
    flags,
    spread_flags,
    usual,
)
from ray_fed.materials.features.feature_sets import make_feature_set

CRYSTALS = [("NaCl", 225, 5.6), ("KCl", 225, 6.3), ("MgO", 225, 4.2), ("NaF", 225, 4.6), ("KBr", 225, 6.6)] * 40


def frame_of(crystals):
    rows = [
        {"formula": formula, "a": a, "b": a, "c": a, "alpha": 90.0, "beta": 90.0, "gamma": 90.0, "volume": a**3,
         "spacegroup_number": float(group), "num_atoms": 8.0}
        for formula, group, a in crystals
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def silo():
    """A silo's features, its scaler, and what is known of it from counts."""
    feature_set, frame = make_feature_set("guo73"), frame_of(CRYSTALS)
    features, reasons = feature_set.transform_with_reasons(frame)
    assert not any(reasons)
    scaler = Standardizer.from_moments(ColumnMoments.of(features))
    places = counted_places(scaler(features), feature_set.num_imputed(frame["formula"].tolist()), 5)
    domain = Domain(
        elements_of(counted_elements(frame["formula"].tolist(), 5)), 5, round(usual(places[1])), usual(places[0])
    )
    return feature_set, scaler, domain


def reasons_of(silo, frame):
    feature_set, scaler, domain = silo
    features, _ = feature_set.transform_with_reasons(frame)
    imputed = feature_set.num_imputed(frame["formula"].tolist())
    return flags(frame, features, feature_set.feature_labels(), domain, scaler, imputed)


def test_what_is_like_the_silos_rows_has_no_flag(silo):
    assert reasons_of(silo, frame_of(CRYSTALS[:5])) == [[]] * 5


def test_an_element_that_no_silo_has_is_named_and_so_are_its_imputed_properties(silo):
    (found,) = reasons_of(silo, frame_of([("OgO2", 225, 5.0)]))
    assert found[0] == "rare or unseen element Og: no silo has 5 training rows with it"
    assert any("element properties are imputed" in reason for reason in found)


def test_a_cell_too_small_for_its_atoms_is_named(silo):
    (found,) = reasons_of(silo, frame_of([("NaCl", 225, 2.0)]))
    assert "atoms too close: 1 Å³ per atom, and below 3 Å³ they overlap" in found


def test_a_feature_out_of_range_is_named_with_its_value_and_what_it_was_in_training(silo):
    (found,) = reasons_of(silo, frame_of([("NaCl", 225, 56.0)]))
    assert any(reason.startswith("beyond 10 deviations: ") and "training:" in reason for reason in found)
    assert any(reason.startswith("far from every silo") for reason in found)


def test_rows_that_cannot_be_predicted_have_no_flag(silo):
    assert reasons_of(silo, frame_of([("NaCl", 225, 5.6)]).assign(a=np.nan)) == [[]]


def test_what_is_not_known_gives_no_reason(silo):
    feature_set, scaler, _ = silo
    found = reasons_of((feature_set, scaler, Domain()), frame_of([("OgO2", 225, 5.0)]))
    assert not any("unseen" in reason or "imputed" in reason for reason in found[0])


def test_elements_of_few_rows_are_not_told_and_of_many_only_that_they_are_there():
    counts = counted_elements(["NaCl"] * 30 + ["KCl"] * 4, 5)
    assert elements_of(counts) == ("Na", "Cl")
    assert set(counts.tolist()) == {0, 5}


def test_one_odd_column_does_not_make_a_distance():
    row = np.zeros((1, 100))
    row[0, 0] = 1e6
    assert distances(row)[0] == pytest.approx(2.0)


def test_few_rows_tell_no_usual_bound():
    assert usual(counted_places(np.ones((98, 3)), np.zeros(98), 5)[0]) == math.inf


def test_models_that_differ_more_than_usual_are_named():
    assert spread_flags(np.array([0.1, 3.0]), 0.5, 2.0, "eV") == {
        1: "the silos' own models differ by 6 eV (99% of the calibration rows: at most 1)"
    }
