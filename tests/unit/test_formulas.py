"""Formulas, dicts, Compositions and Structures to compositions: two readers, pymatgen, and reasons for the rest."""

import contextlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.errors import DataError
from ray_fed.materials.features.composition import CompositionRows, read_compositions
from ray_fed.materials.features.elements import SYMBOLS
from ray_fed.materials.features.featurizers import make_featurizer
from ray_fed.materials.features.formulas import flat_formulas, may_have_dots, read_formula


@given(
    st.lists(
        st.tuples(st.sampled_from((*SYMBOLS, "D")), st.from_regex(r"[0-9]{0,6}(\.[0-9]{1,6})?", fullmatch=True)),
        min_size=1,
    )
)
@settings(max_examples=150)
def test_the_fast_and_the_thorough_reader_agree_to_the_last_bit(parts):
    formula = "".join(symbol + ("" if amount.startswith(".") else amount) for symbol, amount in parts)
    flat = flat_formulas([formula])
    if flat.readable[0]:
        rows = CompositionRows.from_entries(flat.rows, flat.atomic_numbers, flat.amounts, 1)
        found = dict(zip(rows.atomic_numbers.tolist(), rows.amounts.tolist(), strict=True))
        assert found == read_formula(formula)
    elif may_have_dots(formula):  # one element on both sides of a full stop
        with contextlib.suppress(DataError):
            assert min(read_formula(formula).values()) >= 0
    else:  # an amount of zero, which needs the thorough reader
        assert min(read_formula(formula).values()) >= 0
        assert any(amount and float(amount) == 0 for _, amount in parts if not amount.startswith("."))


@given(st.lists(st.text(st.sampled_from("AaCcOoFeNn0129.()[]·* \n-+'x"), max_size=12), max_size=6))
@settings(max_examples=200)
def test_no_text_raises_and_every_row_has_either_elements_or_a_reason(texts):
    rows, reasons = read_compositions(texts)
    assert len(rows) == len(reasons) == len(texts)
    assert [bool(reason) for reason in reasons] == (rows.num_elements == 0).tolist()
    assert (rows.amounts > 0).all()
    assert all("\n" not in reason for reason in reasons)


@pytest.mark.parametrize("formula", [
    "Ca3(PO4)2", "KAl(SO4)2", "Mg3(Si2O5)2(OH)2", "[NH4]2SO4", "{Fe2}O3", "(Fe0.5Co0.5)2O3", "Fe2 O3", "Fe 2 O 3",
    "Fe.5O", "Fe1e-3O", "((CH3)3N)2", "CH3CH2OH", "D2O", "NaN", "Fe0O3", "SrFeO2.5F0.5", "Ca0.5H2O",
])  # fmt: skip
def test_pymatgen_reads_the_same_composition(formula):
    from pymatgen.core import Composition

    expected = {element.Z: amount for element, amount in Composition(formula).items()}
    rows, reasons = read_compositions([formula])
    assert reasons == [""]
    assert dict(zip(rows.atomic_numbers.tolist(), rows.amounts.tolist(), strict=True)) == pytest.approx(expected)


def test_hydrates_and_subscripts_are_read():
    rows, reasons = read_compositions(["CuSO4·5H2O", "CuSO4*5H2O", "CuSO₄·5H₂O", "CuSO4.5H2O", "H10CuSO9"])
    assert reasons == [""] * 5
    assert rows.amounts.reshape(5, 4).tolist() == [[10.0, 9.0, 1.0, 1.0]] * 5


@pytest.mark.parametrize(
    ("hydrate", "same"),
    [
        ("CaSO4*0.5H2O", "CaSO4.5H"), ("CaSO4.0.5H2O", "CaSO4(H2O)0.5"), ("CaSO4.H2O", "CaSO5H2"),
        ("Zn(NO3)2.6H2O", "Zn(NO3)2(H2O)6"), ("CaCl2.2H2O", "CaCl2(H2O)2"), ("LiOH.H2O", "LiOH(H2O)"),
        ("Na0.3CoO2.1.3H2O", "Na0.3CoO2(H2O)1.3"), ("[Cu(NH3)4]SO4.H2O", "Cu(NH3)4SO4(H2O)"),
    ],
)  # fmt: skip
def test_a_full_stop_before_water_is_the_dot_of_a_hydrate(hydrate, same):
    rows, reasons = read_compositions([hydrate, same])
    assert reasons == [""] * 2
    assert len(set(map(tuple, rows.amounts.reshape(2, -1).tolist()))) == 1


@pytest.mark.parametrize("formula", ["CaO.2SiO2", "Al2O3.2SiO2", "NaCl.2KCl", "Al2O3.2SiO2.2H2O"])
def test_a_full_stop_that_may_be_a_point_or_a_dot_is_refused(formula):
    rows, (reason,) = read_compositions([formula])
    assert reason.startswith("full stop may be a decimal point or the dot of a hydrate")
    assert rows.num_elements.tolist() == [0]


@pytest.mark.parametrize("formula", ["Fe.5Ni.5", "Li.5CoO2", "Sr0.3La0.7MnO3", "SrFeO2.5F0.5", "MoO2.5(OH)0.5", "O2.5"])
def test_decimal_amounts_stay_decimal(formula):
    from pymatgen.core import Composition

    rows, reasons = read_compositions([formula])
    assert reasons == [""]
    expected = {element.Z: amount for element, amount in Composition(formula).items()}
    assert dict(zip(rows.atomic_numbers.tolist(), rows.amounts.tolist(), strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize(("item", "reason"), [
    ("Xx2O3", "unknown element 'Xx' in 'Xx2O3'"),
    ("Uuo", "unknown element 'Uuo' in 'Uuo'"),
    ("Fe3+", "cannot read 'Fe3+' at '+'"),
    ("fe2o3", "cannot read 'fe2o3' at 'fe2o3'"),
    ("nan", "cannot read 'nan' at 'nan'"),
    ("Fe1.5.2O", "cannot read 'Fe1.5.2O' at '.2O'"),
    ("Fe(OH", "cannot read 'Fe(OH': bracket '(' is not closed"),
    ("FeO)2", "cannot read 'FeO)2': bracket ')' closes nothing"),
    ("(FeO]2", "cannot read '(FeO]2': bracket ']' closes nothing"),
    ("Fe0", "no atoms in 'Fe0'"),
    ("Fe1e999", "amount '1e999' of 'Fe' in 'Fe1e999' must be a number, 0 or more"),
    ("Fe２", "cannot read 'Fe２' at '２': it begins with 'U+FF12 FULLWIDTH DIGIT TWO'"),
    ("", "formula is empty"),
    ("  ", "formula is empty"),
    (None, "formula is missing"),
    (np.nan, "formula is missing"),
    (pd.NA, "formula is missing"),
    (26, "'26' is of type int: give a formula, a dict, a Composition or a Structure"),
    ({}, "no atoms in '{}'"),
    ({"Zz": 1}, "unknown element 'Zz' in '{\"Zz\": 1}'"),
    ({"Fe": -1}, "amount '-1' of 'Fe' in '{\"Fe\": -1}' must be a number, 0 or more"),
    ({"Fe": np.nan}, "amount 'nan' of 'Fe' in '{\"Fe\": nan}' must be a number, 0 or more"),
    ({"Fe": "two"}, "amount 'two' of 'Fe' in '{\"Fe\": \"two\"}' must be a number, 0 or more"),
])  # fmt: skip
def test_what_cannot_be_read_stays_as_a_row_of_nan_with_its_reason(item, reason):
    features, reasons = make_featurizer("guo65").transform_with_reasons(["NaCl", item, "Fe2O3"])
    assert reasons == ["", reason, ""]
    assert np.isnan(features[1]).all()
    np.testing.assert_array_equal(features[[0, 2]], make_featurizer("guo65").transform(["NaCl", "Fe2O3"]))


def test_formulas_dicts_compositions_and_structures_mean_the_same():
    from pymatgen.core import Composition, Lattice, Species, Structure

    rock_salt = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    ions = Composition({Species("Na", 1): 1, Species("Cl", -1): 1})
    items = ["NaCl", {"Na": 1, "Cl": 1.0}, {"Na+": 2, "Cl1-": 2}, Composition("NaCl"), ions, rock_salt]
    features, reasons = make_featurizer("guo65").transform_with_reasons(items)
    assert reasons == [""] * len(items)
    np.testing.assert_allclose(features, np.broadcast_to(features[0], features.shape), rtol=1e-15)


def test_deuterium_is_hydrogen():
    features = make_featurizer("guo65").transform(["H2O", "D2O", {"D": 2, "O": 1}, "HDO"])
    np.testing.assert_array_equal(features, np.broadcast_to(features[0], features.shape))
