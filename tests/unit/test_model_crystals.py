"""The embedded model crystals: physics against the literature, and the promises of the frame."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.errors import ConfigError
from ray_fed.materials.model_crystals.crystals import (
    ENERGY_WINDOW,
    PROVENANCE,
    STRUCTURE_EXPONENT,
    TABLES,
    cell_length,
    enumerate_model_crystals,
    kapustinskii_energy_ev,
    lattice_energy_ev,
    load_geometries,
    load_ions,
    madelung_ratio,
    make_model_crystals,
)

KJ_PER_MOL = 96.4853321
GEOMETRIES = {geometry.prototype.name: geometry for geometry in load_geometries()}
GOLDEN_DIGEST = "f9704daea7b435f06c6b0654a1ee383db84bb48b290d84202bb912dd34dbfd23"


def digest(crystals: pd.DataFrame) -> str:
    """Return the sha256 of the frame with its numbers rounded to 1e-9."""
    text = crystals.round(9).to_csv(index=False, lineterminator="\n", float_format="%.9f")
    return hashlib.sha256(text.encode()).hexdigest()


def atoms(formula: str) -> tuple[tuple[str, int], ...]:
    return tuple((symbol, int(count or 1)) for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula))


@pytest.fixture(scope="module")
def crystals() -> pd.DataFrame:
    return make_model_crystals()


def crystal(formula: str, prototype: str) -> dict:
    found = enumerate_model_crystals().query("formula == @formula and prototype == @prototype")
    assert len(found) == 1, f"{formula} {prototype}: {len(found)} rows"
    return found.to_dict("records")[0]


# Physics


@pytest.mark.parametrize(
    ("name", "charges", "constant"),
    [
        ("rocksalt", (1, -1), 1.747565),
        ("cscl", (1, -1), 1.762675),
        ("zincblende", (1, -1), 1.638055),
        ("wurtzite", (1, -1), 1.64132),
        ("fluorite", (2, -1), 5.03879),
        ("antifluorite", (1, -2), 5.03879),
    ],
)
def test_ewald_sums_give_the_madelung_constants_of_textbooks(name, charges, constant):
    geometry = GEOMETRIES[name]
    assert geometry.madelung(charges) * geometry.bond_over_a[0] == pytest.approx(constant, rel=1e-4)


def test_rocksalt_lattice_energy_is_the_published_kapustinskii_equation():
    # 121.38 kJ nm/mol (Glasser 1995), Na+ 1.02 Å and Cl- 1.81 Å: 2 * 1213.8 / 2.83 * (1 - 0.345 / 2.83)
    bonds = np.array([[2.83]])
    energy = lattice_energy_ev(GEOMETRIES["rocksalt"], (1, -1), bonds, bonds)[0] * KJ_PER_MOL
    assert energy == pytest.approx(753.2, abs=0.5)


def test_sodium_chloride_closes_the_born_haber_cycle_by_hand():
    # kJ/mol: sublimation of Na, ionisation, half the Cl2 bond, electron affinity, lattice energy
    by_hand = 107.5 + 495.8 + 121.3 - 348.6 - 753.2
    assert crystal("NaCl", "rocksalt")["target"] == pytest.approx(by_hand / 2 / KJ_PER_MOL, abs=0.003)


def test_magnesium_oxide_is_four_times_as_bound_as_a_salt_of_its_size():
    bonds = np.array([[2.12]])
    single = lattice_energy_ev(GEOMETRIES["rocksalt"], (1, -1), bonds, bonds)
    double = lattice_energy_ev(GEOMETRIES["rocksalt"], (2, -2), bonds, bonds)
    assert double == pytest.approx(4 * single)


CHARGES = {
    "rocksalt": (1, -1), "cdi2": (2, -1), "corundum": (3, -2), "perovskite": (2, 4, -2), "gdfeo3": (3, 3, -2),
    "spinel": (2, 3, -2), "elpasolite": (1, 1, 3, -1), "stannite": (1, 2, 4, -2),
}  # fmt: skip
LENGTHS = st.floats(1.6, 3.8)


@given(st.sampled_from(sorted(CHARGES)), st.lists(LENGTHS, min_size=3, max_size=3), st.floats(1.01, 2.0))
def test_structure_ratio_ignores_scale_and_lattice_energy_falls_with_size(name, lengths, factor):
    geometry, charges = GEOMETRIES[name], CHARGES[name]
    bonds = np.array([lengths[: len(charges) - 1]])
    near, far = (madelung_ratio(geometry, charges, s * bonds, s * bonds) for s in (1, factor))
    assert far == pytest.approx(near, rel=1e-9)
    assert cell_length(geometry, charges, factor * bonds) == pytest.approx(
        factor * cell_length(geometry, charges, bonds)
    )
    energies = [lattice_energy_ev(geometry, charges, s * bonds, s * bonds)[0] for s in (1, factor)]
    assert energies[1] < energies[0]


@given(st.lists(LENGTHS, min_size=2, max_size=2))
def test_ternary_kapustinskii_energy_is_the_sum_over_its_binary_compounds(lengths):
    bonds = np.array([lengths])
    ternary = kapustinskii_energy_ev(GEOMETRIES["perovskite"].prototype, (2, 4, -2), bonds)
    oxide = kapustinskii_energy_ev(GEOMETRIES["rocksalt"].prototype, (2, -2), bonds[:, :1])
    dioxide = kapustinskii_energy_ev(GEOMETRIES["rutile"].prototype, (4, -2), bonds[:, 1:])
    assert ternary == pytest.approx(oxide + dioxide)


def test_exponent_zero_makes_polymorphs_equal_and_exponent_one_is_the_point_ion_crystal():
    six, bonds = np.array([[2.40]]), np.array([[2.52]])
    charges = (2, -1)
    names = ("fluorite", "rutile", "cdi2")
    alike = [lattice_energy_ev(GEOMETRIES[n], charges, bonds, six, exponent=0.0)[0] for n in names]
    assert alike == pytest.approx([alike[0]] * 3)
    # k_e M/L with L = bond / f, times Kapustinskii's repulsion
    point_ions = 14.3996 * 5.03879 / 2.52 * (1 - 0.345 / 2.40)
    assert lattice_energy_ev(GEOMETRIES["fluorite"], charges, bonds, six, exponent=1.0)[0] == pytest.approx(
        point_ions, rel=1e-4
    )


def test_perovskite_size_rule_is_goldschmidts():
    a_site, b_site = GEOMETRIES["perovskite"].bond_over_a
    assert a_site / b_site == pytest.approx(np.sqrt(2), rel=1e-6)


# Experiment: Kim et al., Sci. Data 4, 170162 (2017). The tolerances are the measured errors, rounded up.


@pytest.mark.parametrize(
    ("formula", "prototype", "measured", "tolerance"),
    [
        ("NaCl", "rocksalt", -2.130, 0.20),
        ("LiF", "rocksalt", -3.197, 0.45),
        ("CsCl", "cscl", -2.292, 0.25),
        ("MgO", "rocksalt", -3.118, 0.10),
        ("CaF2", "fluorite", -4.242, 0.15),
        ("Na2O", "antifluorite", -1.444, 0.15),
        ("Al2O3", "corundum", -3.473, 0.05),
        ("MgAl2O4", "spinel", -3.425, 0.10),
        ("TiO2", "rutile", -3.261, 0.70),
        ("SrTiO3", "perovskite", -3.463, 0.85),
        ("Y2O3", "bixbyite", -3.949, 0.75),
        ("ZnO", "wurtzite", -1.816, 1.10),
    ],
)
def test_known_compounds_are_as_near_to_experiment_as_documented(formula, prototype, measured, tolerance):
    assert crystal(formula, prototype)["target"] == pytest.approx(measured, abs=tolerance)


@pytest.mark.parametrize(
    ("formula", "prototype", "measured"),
    [
        ("NaCl", "rocksalt", 5.640), ("MgO", "rocksalt", 4.212), ("CsCl", "cscl", 4.123), ("CaF2", "fluorite", 5.463),
        ("Li2O", "antifluorite", 4.619), ("ZnO", "wurtzite", 3.250), ("TiO2", "rutile", 4.594),
        ("Al2O3", "corundum", 4.759), ("SrTiO3", "perovskite", 3.905), ("MgAl2O4", "spinel", 8.083),
        ("CaWO4", "scheelite", 5.243), ("Y2Ti2O7", "pyrochlore", 10.10), ("K2NaAlF6", "elpasolite", 8.118),
    ],
)  # fmt: skip
def test_lattice_parameters_are_within_three_percent_of_experiment(formula, prototype, measured):
    assert crystal(formula, prototype)["a"] == pytest.approx(measured, rel=0.03)


def test_the_structure_exponent_has_the_lowest_rms_error_of_the_recorded_scan():
    record = json.loads((TABLES / "ionic_data.json").read_text(encoding="utf-8"))
    scan = record["rms_error_ev_per_atom_by_structure_exponent"]
    assert min(scan, key=scan.get) == str(STRUCTURE_EXPONENT)
    errors = [c["model"] - c["experiment"] for c in record["known_compounds_ev_per_atom"]]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(scan[str(STRUCTURE_EXPONENT)], abs=1e-3)


# Tables


def test_the_table_is_the_one_the_record_describes():
    record = json.loads((TABLES / "ionic_data.json").read_text(encoding="utf-8"))
    assert record["csv_sha256"] == hashlib.sha256((TABLES / "ionic_data.csv").read_bytes()).hexdigest()
    assert set(record["prototypes"]) == set(GEOMETRIES)


def test_radii_are_in_angstrom_and_high_spin():
    cations, anions = load_ions()
    sodium = np.flatnonzero((cations.elements == "Na") & (cations.charges == 1))[0]
    iron = np.flatnonzero((cations.elements == "Fe") & (cations.charges == 3))[0]
    oxide = np.flatnonzero(anions.elements == "O")[0]
    # Shannon 1976: Na+ VI 1.02 and XII 1.39, Fe3+ VI 0.645 (low spin would be 0.55), O2- IV 1.38 and VI 1.40
    assert cations.radii[sodium, [6, 12]] == pytest.approx([1.02, 1.39])
    assert cations.radii[iron, 6] == pytest.approx(0.645)
    assert anions.radii[oxide, [4, 6]] == pytest.approx([1.38, 1.40])


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
@pytest.mark.parametrize("name", ["fluorite", "wurtzite", "perovskite", "k2nif4", "elpasolite"])
def test_shipped_geometries_are_what_the_build_script_computes(name):
    from tests.golden.make_ionic_data import geometry_of

    built = geometry_of(GEOMETRIES[name].prototype)
    assert built.bond_over_a == pytest.approx(GEOMETRIES[name].bond_over_a, abs=1e-6)
    assert np.array(built.pair_coefficients) == pytest.approx(np.array(GEOMETRIES[name].pair_coefficients), abs=1e-5)


def test_shipped_ions_are_what_the_build_script_computes():
    from tests.golden.make_ionic_data import element_energies_ev, shannon_radii

    # CRC Handbook: Mg 147.1 kJ/mol, ionisation 7.646 + 15.035 eV
    assert element_energies_ev("Mg", 2) == pytest.approx((147.1 / KJ_PER_MOL, 22.682), abs=2e-3)
    assert element_energies_ev("Cl", -1)[1] == pytest.approx(-3.6127, abs=1e-3)
    assert shannon_radii("Ti")[4][6] == pytest.approx(0.605)


# The frame


def test_the_frame_keeps_the_contract_of_a_crystal_frame(crystals):
    numbers = ["a", "b", "c", "alpha", "beta", "gamma", "volume", "spacegroup_number", "target"]
    assert list(crystals.columns) == ["id", "formula", *numbers, "reason", "prototype", "anion"]
    assert isinstance(crystals.index, pd.RangeIndex)
    assert len(crystals) == 12_897
    assert all(crystals[name].dtype == np.float64 for name in numbers)
    assert np.isfinite(crystals[numbers].to_numpy()).all()
    assert crystals["id"].is_unique
    assert (crystals["reason"] == "").all()
    assert crystals["target"].between(*ENERGY_WINDOW).all()
    assert crystals["id"].str.fullmatch(r"model-\d{6}").all()


def test_the_data_say_that_they_are_not_dft():
    assert PROVENANCE.startswith("model data, not DFT")


def test_volume_is_that_of_the_cell(crystals):
    cell = crystals["a"] * crystals["b"] * crystals["c"] * np.sin(np.radians(crystals["gamma"]))
    assert crystals["volume"].to_numpy() == pytest.approx(cell.to_numpy(), rel=1e-5)


def test_every_crystal_is_neutral(crystals):
    cations, anions = load_ions()
    charges = {element: set(cations.charges[cations.elements == element].tolist()) for element in cations.elements}
    negative = dict(zip(anions.elements, anions.charges.tolist(), strict=True))
    for formula, anion in crystals[["formula", "anion"]].itertuples(index=False):
        *positive, (last, count) = atoms(formula)
        assert last == anion
        sums = itertools.product(*([z * n for z in charges[element]] for element, n in positive))
        assert any(sum(terms) == -count * negative[anion] for terms in sums), formula


def test_a_composition_has_one_name_and_one_row_in_a_prototype(crystals):
    names = {}
    for formula in crystals["formula"]:
        names.setdefault(tuple(sorted(atoms(formula))), set()).add(formula)
    assert all(len(spellings) == 1 for spellings in names.values())
    assert not crystals.duplicated(["formula", "prototype"]).any()


def test_polymorphs_share_a_formula_and_differ_in_energy(crystals):
    groups = crystals.groupby("formula")["target"]
    several = groups.nunique()[groups.size() > 1]
    assert len(several) > 1000
    assert (several > 1).mean() > 0.99


def test_no_family_dominates(crystals):
    assert crystals["prototype"].nunique() == len(GEOMETRIES)
    assert crystals["prototype"].value_counts(normalize=True).max() < 0.12
    assert crystals["anion"].value_counts(normalize=True).max() < 0.25
    assert crystals.groupby(["prototype", "anion"]).size().max() < 0.05 * len(crystals)


def test_energies_spread_like_those_of_a_database(crystals):
    assert -2.5 < crystals["target"].mean() < -1.0
    assert 0.8 < crystals["target"].std() < 1.3


def test_smaller_draws_are_part_of_larger_ones_and_seeds_differ(crystals):
    small, other = make_model_crystals(500), make_model_crystals(500, seed=1)
    assert set(small["id"]) <= set(crystals["id"])
    assert set(small["id"]) != set(other["id"])


def test_an_id_means_the_same_crystal_in_every_draw():
    first, second = make_model_crystals(20_000).set_index("id"), make_model_crystals(20_000, seed=1).set_index("id")
    shared = first.index.intersection(second.index)
    assert len(shared) > 1000
    pd.testing.assert_frame_equal(first.loc[shared], second.loc[shared])


@pytest.mark.parametrize("num_rows", [0, -1, 10**6])
def test_impossible_row_numbers_are_refused_with_the_maximum(num_rows):
    most = len(enumerate_model_crystals())
    assert most >= 20_000
    with pytest.raises(ConfigError, match=f"num_rows={num_rows} .* ask for 1 to {most} rows"):
        make_model_crystals(num_rows)
    assert len(make_model_crystals(most)) == most


def test_the_frame_is_golden(crystals):
    assert digest(crystals) == GOLDEN_DIGEST


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_model_crystals import digest, make_model_crystals
start = time.process_time()
frame = make_model_crystals()
print(digest(frame), time.process_time() - start, *sorted({"pymatgen", "mendeleev"} & set(sys.modules)))
"""


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_a_fresh_process_makes_the_same_frame_in_seconds_without_pymatgen(hash_seed):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, os.path.dirname(__file__)],  # noqa: PTH120
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    found, seconds, *heavy = done.stdout.split()
    assert found == GOLDEN_DIGEST
    assert float(seconds) < 10
    assert heavy == []


def test_ten_thousand_rows_teach_more_than_one_thousand(crystals):
    """The claim of the federated study, with a quick model instead of the network."""
    from sklearn.ensemble import ExtraTreesRegressor

    features, target = _quick_features(crystals), crystals["target"].to_numpy()

    def error(num_rows: int) -> float:
        model = ExtraTreesRegressor(20, random_state=0).fit(features[:num_rows], target[:num_rows])
        return float(np.abs(model.predict(features[10_000:]) - target[10_000:]).mean())

    assert error(1_000) > 1.3 * error(10_000)


def _quick_features(crystals: pd.DataFrame) -> np.ndarray:
    """Return mean, minimum and maximum of two ion properties plus the cell, [rows, 13]."""
    cations, anions = load_ions()
    both = [(i.elements, i.electronegativity, i.gas_ev) for i in (anions, cations)]
    table = {e: (x, g) for elements, xs, gs in both for e, x, g in zip(elements, xs, gs, strict=True)}
    rows = []
    for formula in crystals["formula"]:
        parts = atoms(formula)
        values = np.array([table[element] for element, _ in parts])
        weights = np.array([n for _, n in parts], dtype=float)
        rows.append([*(weights @ values / weights.sum()), *values.min(axis=0), *values.max(axis=0)])
    cell = crystals[["a", "b", "c", "gamma", "volume", "spacegroup_number"]].to_numpy()
    return np.hstack([np.array(rows), cell])
