"""Build `tables/ionic_data.csv` and `tables/ionic_data.json` from mendeleev, pymatgen and a few literature numbers.

    python -m tests.golden.make_ionic_data

Needs mendeleev and pymatgen; `model_crystals.py` needs neither. The CSV has one row per ion and coordination number.
The JSON has the numbers of each prototype (Ewald sums, bond lengths), units, sources, versions, how far the model is
from experiment, and the sha256 of the CSV.

Where the numbers come from
    ionic radii          mendeleev (Shannon, Acta Cryst. A32, 751 (1976); stored there in pm). High spin where both spin
                         states are listed, as in most oxides and halides. Square-planar and pyramidal entries are left
                         out. P3-, As3-, Sb3- are not in Shannon: crystal radii of Pauling, The Nature of the Chemical
                         Bond (1960), which is also where Shannon's S2-, Cl-, Br-, I- come from.
    other coordinations  interpolated, or continued by d ~ CN^x with d = r + 1.40 Å (the bond in an oxide) and x fitted
                         to all pairs Shannon lists. The column `radius_source` says which.
    ionisation energies  mendeleev (NIST), summed up to the charge. First electron affinities: mendeleev.
    atomisation          mendeleev `heat_of_formation`: gaseous atom from the element's standard state at 298 K.
    oxidation states     pymatgen `common_oxidation_states` and `icsd_oxidation_states`, +1 to +6.
    O2-, S2-, N3-, ...   Gaseous anions with two or three charges are unbound, so their electron gain enthalpy cannot be
                         measured. As is usual in thermochemistry, it is what closes the Born-Haber cycle of known
                         compounds: the mean over `REFERENCE_COMPOUNDS`, with the lattice energy of *this* model.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.materials.model_crystals.crystals import (
    COULOMB_EV_ANGSTROM,
    PROVENANCE,
    STRUCTURE_EXPONENT,
    TABLES,
    Geometry,
    Ions,
    ions_from_table,
    lattice_energy_ev,
)
from ray_fed.materials.model_crystals.prototypes import PROTOTYPES, Prototype

TABLE_VERSION = 1
KJ_PER_MOL_IN_EV = 1 / 96.4853321
CATION_COORDINATIONS = (2, 4, 5, 6, 7, 8, 9, 12)
ANION_COORDINATIONS = tuple(range(2, 13))
ROMAN = {"II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10, "XI": 11, "XII": 12}
SPIN_RANK = {"HS": 0, "": 1, None: 1, "LS": 2}
OXIDE_RADIUS = 1.40
MAX_CHARGE = 6

# Nonmetals make molecules rather than cations; Tc, Pm and Po to Pa lack data or long-lived isotopes.
NOT_CATIONS = {"H", "He", "B", "C", "N", "O", "F", "Ne", "P", "S", "Cl", "Ar", "Se", "Br", "Kr", "Tc", "I", "Xe", "Pm",
               "Po", "At", "Rn", "Fr", "Ra", "Ac", "Pa"}  # fmt: skip
LAST_CATION = 92
ANION_CHARGES = {"F": -1, "Cl": -1, "Br": -1, "I": -1, "O": -2, "S": -2, "Se": -2, "Te": -2,
                 "N": -3, "P": -3, "As": -3, "Sb": -3}  # fmt: skip
PAULING_RADII = {"P": 2.12, "As": 2.22, "Sb": 2.45}

# (prototype, cation, charge, experimental formation energy at 298 K in eV/atom after Kim et al., Sci. Data 4, 170162
# (2017)). The references are the most ionic compounds of each anion that have a prototype of ours. P, As and Sb have
# few: alkali and alkaline-earth pnictides are mixed with III-V compounds, and their spread of 4 to 6 eV per ion says
# that one number serves them poorly (O to N: 0.2 to 0.5 eV).
REFERENCE_COMPOUNDS = {
    "O": (("rocksalt", "Mg", 2, -3.118), ("rocksalt", "Ca", 2, -3.290), ("rocksalt", "Sr", 2, -3.063),
          ("rocksalt", "Ba", 2, -2.840), ("antifluorite", "Li", 1, -2.066), ("antifluorite", "Na", 1, -1.444)),
    "S": (("rocksalt", "Mg", 2, -1.803), ("rocksalt", "Ca", 2, -2.462), ("rocksalt", "Sr", 2, -2.487),
          ("rocksalt", "Ba", 2, -2.436), ("antifluorite", "Li", 1, -1.542), ("antifluorite", "Na", 1, -1.294)),
    "Se": (("rocksalt", "Mg", 2, -1.414), ("rocksalt", "Ca", 2, -1.908), ("rocksalt", "Sr", 2, -1.999),
           ("antifluorite", "Li", 1, -1.388), ("antifluorite", "Na", 1, -1.185)),
    "Te": (("wurtzite", "Mg", 2, -1.084), ("rocksalt", "Ca", 2, -1.891), ("rocksalt", "Ba", 2, -2.123),
           ("antifluorite", "Na", 1, -1.084)),
    "N": (("antibixbyite", "Mg", 2, -0.957), ("antibixbyite", "Ca", 2, -0.893), ("rocksalt", "Sc", 3, -1.626),
          ("rocksalt", "Y", 3, -1.550), ("rocksalt", "La", 3, -1.572), ("wurtzite", "Al", 3, -1.648)),
    "P": (("antibixbyite", "Mg", 2, -0.963), ("antibixbyite", "Ca", 2, -1.049), ("zincblende", "Al", 3, -0.852),
          ("zincblende", "Ga", 3, -0.594)),
    "As": (("li3bi", "Na", 1, -0.531), ("zincblende", "Al", 3, -0.603), ("zincblende", "Ga", 3, -0.460)),
    "Sb": (("li3bi", "Na", 1, -0.512), ("li3bi", "K", 1, -0.499), ("zincblende", "Al", 3, -0.261),
           ("zincblende", "Ga", 3, -0.216)),
}  # fmt: skip
# (prototype, cation, charge, anion, same source): not used for the anions; the structure exponent is judged on them.
CHECK_COMPOUNDS = (
    ("rocksalt", "Li", 1, "F", -3.197), ("rocksalt", "Na", 1, "F", -2.982), ("rocksalt", "Na", 1, "Cl", -2.130),
    ("rocksalt", "K", 1, "Br", -2.039), ("rocksalt", "Rb", 1, "I", -1.729), ("cscl", "Cs", 1, "Cl", -2.292),
    ("fluorite", "Ca", 2, "F", -4.242), ("fluorite", "Ba", 2, "F", -4.176), ("rutile", "Mg", 2, "F", -3.884),
    ("rutile", "Zn", 2, "F", -2.641), ("cdi2", "Ca", 2, "I", -1.853), ("cdcl2", "Mg", 2, "Cl", -2.226),
    ("tysonite", "La", 3, "F", -4.404), ("reo3", "Al", 3, "F", -3.914), ("ucl3", "La", 3, "Cl", -2.777),
    ("bii3", "Y", 3, "Cl", -2.591), ("rocksalt", "Ni", 2, "O", -1.242), ("wurtzite", "Zn", 2, "O", -1.816),
    ("zincblende", "Zn", 2, "S", -1.052), ("corundum", "Al", 3, "O", -3.473), ("bixbyite", "Y", 3, "O", -3.949),
    ("a-la2o3", "La", 3, "O", -3.722), ("rutile", "Ti", 4, "O", -3.261), ("rutile", "Sn", 4, "O", -1.996),
    ("fluorite", "Zr", 4, "O", -3.801), ("fluorite", "Ce", 4, "O", -3.767), ("fluorite", "U", 4, "O", -3.748),
    ("cristobalite", "Si", 4, "O", -3.146),
)  # fmt: skip
# For comparison only: Pearson, Inorg. Chem. 30, 2856 (1991), as quoted in secondary sources; approximate, the original
# was not at hand. His N3- is far below what closes the cycle of any nitride with this lattice energy.
PEARSON_EV = {"O": 6.25, "S": 2.65, "Se": 2.23, "N": 18.1, "P": 13.3, "As": 12.0}


@cache
def element_record(symbol: str) -> Any:
    """Return mendeleev's record of an element; one database query each."""
    from mendeleev.mendeleev import element

    return element(symbol)


def shannon_radii(symbol: str) -> dict[int, dict[int, float]]:
    """Return {charge: {coordination: radius in Å}} of one element; high spin overrides low spin."""
    found: dict[int, dict[int, float]] = {}
    for entry in sorted(element_record(symbol).ionic_radii, key=lambda entry: SPIN_RANK[entry.spin], reverse=True):
        if entry.coordination in ROMAN:
            found.setdefault(entry.charge, {})[ROMAN[entry.coordination]] = entry.ionic_radius / 100
    return found


def cation_charges(symbol: str, radii: dict[int, dict[int, float]]) -> list[int]:
    """Return the oxidation states +1..+6 that pymatgen lists and Shannon has a radius for."""
    from pymatgen.core import Element

    listed = {*Element(symbol).common_oxidation_states, *Element(symbol).icsd_oxidation_states}
    return sorted(charge for charge in listed if 1 <= charge <= MAX_CHARGE and radii.get(charge))


def cations() -> Iterator[tuple[str, int, dict[int, float]]]:
    """Yield (symbol, charge, {coordination: radius in Å}) of every cation of the model."""
    from pymatgen.core import Element

    for number in range(1, LAST_CATION + 1):
        symbol = Element.from_Z(number).symbol
        if symbol not in NOT_CATIONS:
            radii = shannon_radii(symbol)
            yield from ((symbol, charge, radii[charge]) for charge in cation_charges(symbol, radii))


def fitted_exponent(tables: list[dict[int, float]]) -> float:
    """Return x of d ~ CN^x over all pairs of coordination numbers from 4 that Shannon lists for one cation."""
    pairs = [(a, b, t[a] + OXIDE_RADIUS, t[b] + OXIDE_RADIUS) for t in tables for a in t for b in t if 4 <= a < b]
    log_cn = np.array([math.log(b / a) for a, b, _, _ in pairs])
    log_bond = np.array([math.log(far / near) for _, _, near, far in pairs])
    return float(log_cn @ log_bond / (log_cn @ log_cn))


def cation_radius(table: dict[int, float], coordination: int, exponent: float) -> tuple[float, str]:
    """Return (radius in Å, source) at any coordination number; the table must not be empty."""
    if coordination in table:
        return table[coordination], "shannon"
    known = sorted(table)
    if known[0] < coordination < known[-1]:
        return float(np.interp(coordination, known, [table[cn] for cn in known])), "interpolated"
    nearest = known[0] if coordination < known[0] else known[-1]
    bond = (table[nearest] + OXIDE_RADIUS) * (coordination / nearest) ** exponent
    return bond - OXIDE_RADIUS, "extrapolated"


def anion_radius(symbol: str, table: dict[int, float], coordination: int) -> tuple[float, str]:
    """Return (radius in Å, source) of an anion; constant beyond the coordination numbers Shannon lists."""
    if symbol in PAULING_RADII:
        return PAULING_RADII[symbol], "pauling"
    known = sorted(table)
    radius = float(np.interp(coordination, known, [table[cn] for cn in known]))
    inside = known[0] <= coordination <= known[-1]
    return radius, "shannon" if coordination in table else "interpolated" if inside else "extrapolated"


def element_energies_ev(symbol: str, charge: int) -> tuple[float, float]:
    """Return (atomisation, gaseous atom -> gaseous ion) in eV; for anions the second is minus the affinity of X."""
    record = element_record(symbol)
    steps = [record.ionenergies[i] for i in range(1, charge + 1)] if charge > 0 else [-record.electron_affinity]
    return record.heat_of_formation * KJ_PER_MOL_IN_EV, float(sum(steps))


def ion_row(symbol: str, charge: int, coordination: int, radius: tuple[float, str]) -> dict[str, object]:
    """Return one row of the CSV."""
    from pymatgen.core import Element

    atomisation, ionisation = element_energies_ev(symbol, charge)
    return {
        "element": symbol,
        "atomic_number": Element(symbol).Z,
        "electronegativity": float(Element(symbol).X),
        "charge": charge,
        "coordination": coordination,
        "radius_angstrom": round(radius[0], 4),
        "radius_source": radius[1],
        "atomisation_ev": round(atomisation, 5),
        "gas_ion_ev": round(ionisation, 5),
    }


def ion_table(exponent: float) -> pd.DataFrame:
    """Return the whole CSV; `gas_ion_ev` of the multiply charged anions is still that of one electron."""
    rows = [
        ion_row(symbol, charge, cn, cation_radius(table, cn, exponent))
        for symbol, charge, table in cations()
        for cn in CATION_COORDINATIONS
        if cn > 2 or cn in table
    ]
    for symbol, charge in ANION_CHARGES.items():
        table = shannon_radii(symbol).get(charge, {})
        rows += [ion_row(symbol, charge, cn, anion_radius(symbol, table, cn)) for cn in ANION_COORDINATIONS]
    return pd.DataFrame(rows)


def ideal_structure(prototype: Prototype, a: float = 10.0):
    """Return the pymatgen Structure of a prototype; Na, Mg, Al stand for the cations in order, O for the anion."""
    from pymatgen.core import Lattice, Structure

    lattice = Lattice.from_parameters(a, a * prototype.b_over_a, a * prototype.c_over_a, 90, 90, prototype.gamma)
    labels = zip(("Na", "Mg", "Al"), prototype.cations, strict=False)
    sites = [(label, position) for label, site in labels for position in site.positions]
    sites += [("O", position) for position in prototype.anion_positions]
    species, positions = zip(*sites, strict=True)
    return Structure.from_spacegroup(prototype.space_group, lattice, species, positions)


def species_index(structure) -> np.ndarray:
    """Return for every atom [atoms] the number of its cation, in formula order; the anion comes last."""
    symbols = [site.specie.symbol for site in structure]
    order = [symbol for symbol in ("Na", "Mg", "Al", "O") if symbol in symbols]
    return np.array([order.index(symbol) for symbol in symbols])


def mean_bond_over_a(structure, species: np.ndarray, cation: int, coordination: int) -> float:
    """Return the mean distance of a cation to its first `coordination` anions, divided by a."""
    anion = species.max()
    shells = []
    for atom in np.flatnonzero(species == cation).tolist():
        near = structure.get_neighbors(structure[atom], 0.9 * structure.lattice.a)
        shells.append(sorted(n.nn_distance for n in near if species[n.index] == anion)[:coordination])
    assert {len(shell) for shell in shells} == {coordination}
    return float(np.mean(shells)) / structure.lattice.a


def pair_coefficients(structure, species: np.ndarray, prototype: Prototype) -> np.ndarray:
    """Return P [K + 1, K + 1] of Eq. (4): electrostatic energy = (k_e / a) sum_st z_s z_t P_st per formula unit.

    The Ewald sum is bilinear in the charges, so one sum over one neutral set of charges serves all others.
    """
    from pymatgen.analysis.ewald import EwaldSummation

    positive = sum(site.count for site in prototype.cations)
    charges = np.where(species == species.max(), -positive / prototype.anion_count, 1.0)
    decorated = structure.copy()
    decorated.add_oxidation_state_by_site(charges.tolist())
    energies = EwaldSummation(decorated, acc_factor=14.0).total_energy_matrix / np.outer(charges, charges)
    member = np.eye(species.max() + 1)[species]
    return member.T @ energies @ member * structure.lattice.a / (COULOMB_EV_ANGSTROM * prototype.formula_units)


def geometry_of(prototype: Prototype) -> Geometry:
    """Return the numbers of one prototype after checking its space group and composition."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    structure = ideal_structure(prototype)
    found = SpacegroupAnalyzer(structure, 0.01).get_space_group_number()
    assert found == prototype.space_group, f"{prototype.name}: spglib says {found}, declared {prototype.space_group}"
    assert len(structure) == prototype.atoms_per_formula * prototype.formula_units, prototype.name
    species = species_index(structure)
    bonds = [mean_bond_over_a(structure, species, i, s.coordination) for i, s in enumerate(prototype.cations)]
    pairs = np.round(pair_coefficients(structure, species, prototype), 7).tolist()
    return Geometry(prototype, tuple(np.round(bonds, 7).tolist()), tuple(tuple(row) for row in pairs))


class BinaryCycle:
    """The Born-Haber cycle of binary compounds, for fitting and checking."""

    def __init__(self, table: pd.DataFrame, geometries: dict[str, Geometry], exponent: float):
        self.cations = ions_from_table(table.loc[table["charge"] > 0])
        self.anions = ions_from_table(table.loc[table["charge"] < 0])
        self.geometries = geometries
        self.exponent = exponent

    def energy_ev(self, prototype_name: str, cation: str, charge: int, anion: str) -> float:
        """Return the energy of formation per formula unit in eV."""
        geometry = self.geometries[prototype_name]
        prototype, site = geometry.prototype, geometry.prototype.cations[0]
        plus, minus = _find(self.cations, cation, charge), _find(self.anions, anion, ANION_CHARGES[anion])
        bonds, six = (
            np.array([[self.cations.radii[plus, c] + self.anions.radii[minus, x]]])
            for c, x in ((site.coordination, prototype.anion_coordination), (6, 6))
        )
        lattice = lattice_energy_ev(geometry, (charge, ANION_CHARGES[anion]), bonds, six, self.exponent)[0]
        gas = site.count * self.cations.gas_ev[plus] + prototype.anion_count * self.anions.gas_ev[minus]
        return float(gas - lattice)


def _find(ions: Ions, element: str, charge: int) -> int:
    return int(np.flatnonzero((ions.elements == element) & (ions.charges == charge))[0])


def electron_gains_ev(cycle: BinaryCycle, anion: str) -> list[float]:
    """Return what must be added to the anion's gas-phase energy to close the cycle of each reference, eV per ion."""
    missing = []
    for name, cation, charge, measured in REFERENCE_COMPOUNDS[anion]:
        prototype = cycle.geometries[name].prototype
        energy = cycle.energy_ev(name, cation, charge, anion)
        missing.append((measured * prototype.atoms_per_formula - energy) / prototype.anion_count)
    return missing


def close_cycles(table: pd.DataFrame, geometries: dict[str, Geometry], exponent: float) -> tuple[pd.DataFrame, dict]:
    """Return the table with the multiply charged anions set, and {anion: [mean, standard deviation]} in eV."""
    table, fitted = table.copy(), {}
    cycle = BinaryCycle(table, geometries, exponent)
    for anion in REFERENCE_COMPOUNDS:
        rows = (table["element"] == anion) & (table["charge"] < 0)
        gains = np.array(electron_gains_ev(cycle, anion)) + table.loc[rows, "gas_ion_ev"].iloc[0]
        fitted[anion] = [round(float(gains.mean()), 4), round(float(gains.std()), 4)]
        table.loc[rows, "gas_ion_ev"] = fitted[anion][0]
    return table, fitted


def check(table: pd.DataFrame, geometries: dict[str, Geometry], exponent: float) -> list[dict[str, object]]:
    """Return experiment and model side by side for `CHECK_COMPOUNDS`, eV/atom."""
    cycle = BinaryCycle(table, geometries, exponent)
    return [
        {
            "compound": f"{cation}{charge}+ {anion}, {name}",
            "experiment": measured,
            "model": round(
                cycle.energy_ev(name, cation, charge, anion) / geometries[name].prototype.atoms_per_formula, 3
            ),
        }
        for name, cation, charge, anion, measured in CHECK_COMPOUNDS
    ]


def rms_error(compounds: list[dict]) -> float:
    """Return the root-mean-square of model minus experiment, eV/atom."""
    return round(math.sqrt(np.mean([(c["model"] - c["experiment"]) ** 2 for c in compounds])), 3)


def exponent_scan(table: pd.DataFrame, geometries: dict[str, Geometry]) -> dict[str, float]:
    """Return {structure exponent: rms error in eV/atom}, the anions fitted anew each time."""
    exponents = (0.0, 0.125, 0.25, 0.375, 0.5, 1.0)
    return {str(p): rms_error(check(close_cycles(table, geometries, p)[0], geometries, p)) for p in exponents}


UNITS = {
    "electronegativity": "Pauling scale",
    "charge": "e",
    "radius_angstrom": "Å",
    "atomisation_ev": "eV, element in its standard state to the gaseous atom, 298 K",
    "gas_ion_ev": "eV, gaseous atom to gaseous ion; multiply charged anions: thermochemical, see electron_gain_ev",
    "pair_coefficients": "dimensionless: electrostatic energy per formula unit in units of k_e/a",
    "bond_over_a": "dimensionless",
}
SOURCES = {
    "radii": "Shannon, Acta Cryst. A32, 751 (1976), from mendeleev; P3-, As3-, Sb3-: Pauling (1960)",
    "ionisation energies, electron affinities, atomisation": "mendeleev",
    "electronegativity, oxidation states": "pymatgen",
    "Ewald sums": "pymatgen EwaldSummation of the structures in prototypes.py",
    "formation energies of references": "Kim et al., Sci. Data 4, 170162 (2017), experimental",
}


def write_tables(folder: Path) -> None:
    """Write `ionic_data.csv` and `ionic_data.json` into a folder."""
    geometries = {prototype.name: geometry_of(prototype) for prototype in PROTOTYPES}
    x = fitted_exponent([table for _, _, table in cations()])
    raw = ion_table(x)
    table, gains = close_cycles(raw, geometries, STRUCTURE_EXPONENT)
    text = table.to_csv(index=False, lineterminator="\n")
    compounds = check(table, geometries, STRUCTURE_EXPONENT)
    record = {
        "about": PROVENANCE,
        "table_version": TABLE_VERSION,
        "csv_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "built_with": {name: version(name) for name in ("mendeleev", "pymatgen", "numpy")},
        "sources": SOURCES,
        "units": UNITS,
        "radius_exponent": round(x, 4),
        "electron_gain_ev": {
            anion: {"mean": mean, "std": std, "pearson_1991": PEARSON_EV.get(anion)}
            for anion, (mean, std) in gains.items()
        },
        "structure_exponent": STRUCTURE_EXPONENT,
        "rms_error_ev_per_atom_by_structure_exponent": exponent_scan(raw, geometries),
        "known_compounds_ev_per_atom": compounds,
        "prototypes": {
            name: {"bond_over_a": g.bond_over_a, "pair_coefficients": g.pair_coefficients}
            for name, g in geometries.items()
        },
    }
    (folder / "ionic_data.csv").write_text(text, encoding="utf-8")
    (folder / "ionic_data.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_tables(TABLES)
