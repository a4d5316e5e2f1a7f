"""The embedded data set: model crystals with model formation energies (model data, not DFT).

Every crystal is a structure prototype filled with ions. Ionic radii set its cell; a Born-Haber cycle with a
Kapustinskii lattice energy sets its formation energy:

    dE_f = [ sum_s n_s (dH_at(s) + E_ion(s)) - U ] / N                                     (1)  Born-Haber
    U    = U_K eta^p                                                                       (2)
    U_K  = k_e A_0 sum_s (q_s / d_s) (1 - rho / d_s),  q_s = n_s z_s^2 + w_s n_X z_X^2     (3)  Kapustinskii 1956
    eta  = (M / L) / (A_0 sum_s q_s / d_s),            M = - sum_st z_s z_t P_st           (4)  Ewald
    L    = sum_s w_s (r_s + r_X) / f_s,                w_s = n_s z_s / sum_t n_t z_t       (5)

    symbol    code                           meaning, unit
    dE_f      target                         formation energy, eV/atom
    U         lattice_energy_ev              lattice energy, positive, eV per formula unit
    U_K       kapustinskii_energy_ev         that of the rocksalt-like arrangement of the same ions, eV per formula unit
    eta       madelung_ratio                 point-ion energy of the structure over that arrangement's, dimensionless
    p         STRUCTURE_EXPONENT             1/4, see below
    N         Prototype.atoms_per_formula    atoms per formula unit
    n_s, z_s  CationSite.count, charges      ions of cation s per formula unit, charge in e (X: the anion)
    w_s       charge_weights                 share of the positive charge on cation s
    dH_at     in Ions.gas_ev                 element in its standard state -> gaseous atom at 298 K, eV
    E_ion     in Ions.gas_ev                 gaseous atom -> gaseous ion, eV
    k_e, A_0  COULOMB_EV_ANGSTROM, ROCKSALT  e^2 / (4 pi eps_0) in eV Å; Madelung constant of rocksalt / 2
    rho       REPULSION_LENGTH               0.345 Å
    d_s       six_bonds                      sum of six-coordinate radii of cation s and the anion, Å
    r_s, r_X  Ions.radii                     ionic radii at the coordination numbers of the prototype, Å
    L         cell_length                    length of the a axis, Å
    f_s, P_st Geometry                       bond length over a; Ewald pair sums of the ideal cell with a = 1

For one cation (3) is 1213.9 kJ/mol Å sum(n z^2)/d (1 - rho/d), Kapustinskii's equation in the form of Glasser, Inorg.
Chem. 34, 4935 (1995); with several it is the sum over the binary compounds they would form. Kapustinskii found that one
constant serves all structures if six-coordinate radii are used: ions polarise where the site is lopsided, which makes
up for a small Madelung constant. That is p = 0, where all polymorphs are equal; p = 1 is the rigid point-ion crystal.
p = 1/4 has the lowest rms error over the known compounds (made by tests/golden/make_ionic_data.py; numbers in the JSON
beside the table). Covalent bonding, crystal-field energies and dispersion are not in the model: compounds of soft or
highly charged cations come out too weakly bound, by 1 eV/atom and more.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError
from ray_fed.materials.model_crystals.prototypes import PROTOTYPES, CationSite, Prototype
from ray_fed.randomness import generator

PROVENANCE = (
    "model data, not DFT: ionic crystals made from structure prototypes, ionic radii and a Born-Haber cycle with a "
    "Kapustinskii lattice energy"
)
TABLES = Path(__file__).parent / "tables"
COULOMB_EV_ANGSTROM = 14.3996454
ROCKSALT = 1.7475646 / 2
REPULSION_LENGTH = 0.345
STRUCTURE_EXPONENT = 0.25
MAX_COORDINATION = 12

# Pauling's radius-ratio windows (cation over anion, six-coordinate radii), widened so that polymorphs compete.
RADIUS_RATIOS = {
    2: (0.20, 1.00), 4: (0.15, 0.55), 5: (0.30, 0.80), 6: (0.33, 0.80),
    7: (0.50, 0.90), 8: (0.55, 1.10), 9: (0.60, 1.20), 12: (0.70, 1.60),
}  # fmt: skip
MAX_SIZE_MISMATCH = 1.12
"""Longest over shortest cell that the cations of one crystal ask for; in a perovskite it is Goldschmidt's t or 1/t."""
ENERGY_WINDOW = (-5.0, 0.25)
"""eV/atom; beyond it the compound would decompose, or the model fails."""
MAX_ABOVE_GROUND_STATE = 0.5
"""eV/atom; polymorphs further above the most stable one of their composition would not be in a database."""
DECIMALS = 6
"""Lengths and energies are rounded as in a database file, which also hides the last bits of the machine."""

Array = np.ndarray
Columns = dict[str, Array]
"""Column name -> values, [rows] each."""


@dataclass(frozen=True)
class Geometry:
    """A prototype with the numbers of its ideal cell, for K cation species."""

    prototype: Prototype
    bond_over_a: tuple[float, ...]
    """[K], mean cation-anion distance over a."""
    pair_coefficients: tuple[tuple[float, ...], ...]
    """[K + 1][K + 1], the anion last."""

    def madelung(self, charges: tuple[int, ...]) -> float:
        """Return M of Eq. (4) for charges [K + 1] in e, the anion last and negative."""
        pairs = zip(charges, self.pair_coefficients, strict=True)
        return -sum(z * other * p for z, row in pairs for other, p in zip(charges, row, strict=True))


@dataclass(frozen=True)
class Ions:
    """Ions of the model, one row each: all cations, or all anions."""

    elements: Array
    """[ions] of str"""
    charges: Array
    """[ions], e"""
    gas_ev: Array
    """[ions], standard state of the element to the gaseous ion, eV"""
    radii: Array
    """[ions, MAX_COORDINATION + 1] in Å, by coordination number; NaN where the table has none."""
    electronegativity: Array
    """[ions], Pauling scale"""


def charge_weights(prototype: Prototype, charges: tuple[int, ...]) -> list[float]:
    """Return w_s of Eq. (5), [K]."""
    carried = [site.count * z for site, z in zip(prototype.cations, charges[:-1], strict=True)]
    return [q / sum(carried) for q in carried]


def _weighted_sum(columns: Array, weights: list[float]) -> Array:
    """Return columns [rows, K] @ weights [K] in a fixed order of operations (BLAS differs between machines)."""
    total = columns[:, 0] * weights[0]
    for k in range(1, len(weights)):
        total = total + columns[:, k] * weights[k]
    return total


def _squared_charges(prototype: Prototype, charges: tuple[int, ...]) -> list[float]:
    """Return q_s of Eq. (3), [K]."""
    weights = charge_weights(prototype, charges)
    anions = prototype.anion_count * charges[-1] ** 2
    sites = zip(prototype.cations, charges[:-1], weights, strict=True)
    return [site.count * z**2 + w * anions for site, z, w in sites]


def kapustinskii_energy_ev(prototype: Prototype, charges: tuple[int, ...], six_bonds: Array) -> Array:
    """Return U_K of Eq. (3), [rows] in eV per formula unit, from six-coordinate radius sums [rows, K] in Å."""
    terms = (1 - REPULSION_LENGTH / six_bonds) / six_bonds
    return COULOMB_EV_ANGSTROM * ROCKSALT * _weighted_sum(terms, _squared_charges(prototype, charges))


def cell_length(geometry: Geometry, charges: tuple[int, ...], bonds: Array) -> Array:
    """Return L of Eq. (5), [rows] in Å, from radius sums [rows, K] in Å at the prototype's coordination numbers."""
    return _weighted_sum(bonds / np.array(geometry.bond_over_a), charge_weights(geometry.prototype, charges))


def madelung_ratio(geometry: Geometry, charges: tuple[int, ...], bonds: Array, six_bonds: Array) -> Array:
    """Return eta of Eq. (4), [rows]: 1 for rocksalt itself, 0.8 to 1.1 for the others."""
    point_ions = geometry.madelung(charges) / cell_length(geometry, charges, bonds)
    return point_ions / (ROCKSALT * _weighted_sum(1 / six_bonds, _squared_charges(geometry.prototype, charges)))


def lattice_energy_ev(
    geometry: Geometry, charges: tuple[int, ...], bonds: Array, six_bonds: Array, exponent: float = STRUCTURE_EXPONENT
) -> Array:
    """Return U of Eq. (2), [rows] in eV per formula unit, positive; bond sums [rows, K] in Å."""
    ratio = madelung_ratio(geometry, charges, bonds, six_bonds)
    # Two square roots are rounded alike on every machine; pow is not.
    power = np.sqrt(np.sqrt(ratio)) if exponent == STRUCTURE_EXPONENT else ratio**exponent
    return kapustinskii_energy_ev(geometry.prototype, charges, six_bonds) * power


def ions_from_table(table: pd.DataFrame) -> Ions:
    """Return the ions of `ionic_data.csv` rows (one row per element, charge and coordination number)."""
    first = table.drop_duplicates(["element", "charge"])
    names = list(zip(first["element"], first["charge"], strict=True))
    rows = {name: row for row, name in enumerate(names)}
    radii = np.full((len(names), MAX_COORDINATION + 1), np.nan)
    for element, charge, coordination, radius in table[
        ["element", "charge", "coordination", "radius_angstrom"]
    ].itertuples(index=False):
        radii[rows[element, charge], coordination] = radius
    return Ions(
        elements=first["element"].to_numpy(dtype=object),
        charges=first["charge"].to_numpy(),
        gas_ev=first["atomisation_ev"].to_numpy() + first["gas_ion_ev"].to_numpy(),
        radii=radii,
        electronegativity=first["electronegativity"].to_numpy(),
    )


@cache
def load_ions() -> tuple[Ions, Ions]:
    """Return (cations, anions) of the shipped table."""
    table = pd.read_csv(TABLES / "ionic_data.csv", keep_default_na=False)
    return ions_from_table(table.loc[table["charge"] > 0]), ions_from_table(table.loc[table["charge"] < 0])


@cache
def load_geometries() -> tuple[Geometry, ...]:
    """Return the geometry of every prototype, in the order of `PROTOTYPES`."""
    stored = json.loads((TABLES / "ionic_data.json").read_text(encoding="utf-8"))["prototypes"]
    return tuple(
        Geometry(
            prototype,
            tuple(stored[prototype.name]["bond_over_a"]),
            tuple(tuple(row) for row in stored[prototype.name]["pair_coefficients"]),
        )
        for prototype in PROTOTYPES
    )


def _fits(prototype: Prototype, site: CationSite, cations: Ions, anions: Ions, anion: int) -> Array:
    """Return the indices of the cations whose size and electronegativity suit a site beside an anion."""
    low, high = prototype.radius_ratios or RADIUS_RATIOS[site.coordination]
    ratio = cations.radii[:, 6] / anions.radii[anion, 6]
    fits = (ratio >= low) & (ratio <= high) & ~np.isnan(cations.radii[:, site.coordination])
    # As, Sb and Te are also anions: without this, one composition could be built with the roles exchanged.
    also_anion = np.isin(cations.elements, anions.elements)
    return np.flatnonzero(fits & ~(also_anion & (cations.electronegativity >= anions.electronegativity[anion])))


def _neutral_charges(prototype: Prototype, options: list[Array], cations: Ions, anion_charge: int) -> Iterator[tuple]:
    """Yield the charges [K + 1] that make the formula neutral."""
    for charges in product(*(np.unique(cations.charges[option]).tolist() for option in options)):
        positive = sum(site.count * z for site, z in zip(prototype.cations, charges, strict=True))
        if positive + prototype.anion_count * anion_charge == 0:
            yield (*charges, anion_charge)


def _combinations(options: list[Array], cations: Ions, charges: tuple[int, ...]) -> Array:
    """Return every choice of K different elements with these charges, [rows, K] of cation indices."""
    chosen = [option[cations.charges[option] == z] for option, z in zip(options, charges[:-1], strict=True)]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*chosen, indexing="ij")], axis=1)
    symbols = cations.elements[grid]
    clash = np.zeros(len(grid), dtype=bool)
    for i in range(grid.shape[1]):
        for j in range(i):
            clash |= symbols[:, i] == symbols[:, j]
    return grid[~clash]


def _formulas(prototype: Prototype, cations: Ions, rows: Array, anion: str) -> Array:
    """Return flat formulas [rows]: cations by rising electronegativity, then the anion ("BaTiO3")."""
    counts = [site.count for site in prototype.cations]
    tokens = np.stack([_tokens(cations.elements[rows[:, k]], n) for k, n in enumerate(counts)], axis=1)
    # Equal electronegativities (K and Rb) are put in the order of the symbols, so that a composition has one name.
    alphabetical = np.unique(cations.elements.astype(str), return_inverse=True)[1]
    order = np.lexsort((alphabetical[rows], cations.electronegativity[rows]), axis=1)
    tokens = np.take_along_axis(tokens, order, axis=1)
    return tokens.sum(axis=1) + _tokens(np.array([anion], dtype=object), prototype.anion_count)[0]


def _tokens(elements: Array, count: int) -> Array:
    return elements + (str(count) if count > 1 else "")


def _crystals(geometry: Geometry, cations: Ions, anions: Ions, anion: int, charges: tuple, rows: Array) -> Columns:
    """Return the crystals of one prototype, anion and charge pattern that pass the size and energy windows."""
    prototype = geometry.prototype
    coordination = [site.coordination for site in prototype.cations]
    bonds = np.stack([cations.radii[rows[:, k], cn] for k, cn in enumerate(coordination)], axis=1)
    bonds = bonds + anions.radii[anion, prototype.anion_coordination]
    wanted = bonds / np.array(geometry.bond_over_a)
    fits = wanted.max(axis=1) <= MAX_SIZE_MISMATCH * wanted.min(axis=1)
    rows, bonds = rows[fits], bonds[fits]
    energy = np.round(_formation_energy_ev(geometry, cations, anions, anion, charges, rows, bonds), DECIMALS)
    keep = (energy >= ENERGY_WINDOW[0]) & (energy <= ENERGY_WINDOW[1])
    return {
        "formula": _formulas(prototype, cations, rows[keep], anions.elements[anion]),
        "a": np.round(cell_length(geometry, charges, bonds[keep]), DECIMALS),
        "target": energy[keep],
        "anion": np.full(int(keep.sum()), anions.elements[anion], dtype=object),
    }


def _formation_energy_ev(
    geometry: Geometry, cations: Ions, anions: Ions, anion: int, charges: tuple, rows: Array, bonds: Array
) -> Array:
    """Return dE_f of Eq. (1), [rows] in eV/atom."""
    prototype = geometry.prototype
    six_bonds = cations.radii[rows, 6] + anions.radii[anion, 6]
    gas = _weighted_sum(cations.gas_ev[rows], [float(site.count) for site in prototype.cations])
    gas = gas + prototype.anion_count * anions.gas_ev[anion]
    return (gas - lattice_energy_ev(geometry, charges, bonds, six_bonds)) / prototype.atoms_per_formula


def _crystals_of_prototype(geometry: Geometry) -> Columns:
    """Return all crystals of one prototype, one row per composition: the charges of lowest energy win."""
    cations, anions = load_ions()
    blocks = []
    for anion in np.flatnonzero(np.isin(anions.elements, geometry.prototype.anions)).tolist():
        options = [_fits(geometry.prototype, site, cations, anions, anion) for site in geometry.prototype.cations]
        for charges in _neutral_charges(geometry.prototype, options, cations, int(anions.charges[anion])):
            rows = _combinations(options, cations, charges)
            blocks.append(_crystals(geometry, cations, anions, anion, charges, rows))
    found = _joined(blocks)
    formulas = found["formula"].astype(str)
    order = np.lexsort((found["target"], formulas))
    is_first = np.append(True, formulas[order][1:] != formulas[order][:-1])[: len(order)]
    return {name: column[order[is_first]] for name, column in found.items()}


def _joined(blocks: list[Columns]) -> Columns:
    """Blocks stay plain arrays up to the end: a data frame for each of 500 takes longer than all the physics."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _with_cells(crystals: Columns, prototype: Prototype) -> Columns:
    """Add the lattice parameters, the volume in Å³ and the labels of the prototype."""
    # The sine of 60 degrees is written out: numpy's differs in the last bit between machines.
    sine = 3**0.5 / 2 if prototype.gamma == 120.0 else 1.0
    a = crystals["a"]
    return crystals | {
        "b": np.round(a * prototype.b_over_a, DECIMALS),
        "c": np.round(a * prototype.c_over_a, DECIMALS),
        "alpha": np.full(len(a), 90.0),
        "beta": np.full(len(a), 90.0),
        "gamma": np.full(len(a), prototype.gamma),
        "volume": np.round(a * a * a * (prototype.b_over_a * prototype.c_over_a * sine), DECIMALS),
        "spacegroup_number": np.full(len(a), float(prototype.space_group)),
        "prototype": np.full(len(a), prototype.name, dtype=object),
    }


@cache
def enumerate_model_crystals() -> pd.DataFrame:
    """Return every crystal of the model in a fixed order; treat the frame as read-only."""
    parts = [_with_cells(_crystals_of_prototype(geometry), geometry.prototype) for geometry in load_geometries()]
    crystals = _joined(parts)
    composition = pd.factorize(crystals["formula"])[0]
    ground_state = np.full(composition.max() + 1, np.inf)
    np.minimum.at(ground_state, composition, crystals["target"])
    near = crystals["target"] - ground_state[composition] <= MAX_ABOVE_GROUND_STATE
    ids = [f"model-{i:06d}" for i in range(1, int(near.sum()) + 1)]
    frame = pd.DataFrame({name: column[near] for name, column in crystals.items()})
    return frame.assign(id=ids, reason="").astype({"formula": str})


def _draw(crystals: pd.DataFrame, num_rows: int, seed: int) -> Array:
    """Return the row numbers of a balanced random draw.

    Rows of a family (prototype and anion) get ranks; the lowest (rank + 1) / sqrt(size of the family) are drawn, so a
    family ten times larger gives about three times the rows. Ranks follow a random number of the *composition*: the
    polymorphs of one formula tend to be drawn together, as a database holds them together.
    """
    family = pd.factorize(crystals["prototype"] + " " + crystals["anion"])[0]
    formula = pd.factorize(crystals["formula"])[0]
    priority = generator(seed, "model crystals: priority").random(formula.max() + 1)[formula]
    order = np.lexsort((priority, family))
    sizes = np.bincount(family)
    rank = np.empty(len(crystals))
    rank[order] = np.arange(len(crystals)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = np.argsort((rank + 1) / np.sqrt(sizes[family]), kind="stable")[:num_rows]
    return drawn[np.argsort(generator(seed, "model crystals: order").random(num_rows), kind="stable")]


COLUMNS = [
    "id", "formula", "a", "b", "c", "alpha", "beta", "gamma", "volume", "spacegroup_number", "target", "reason",
    "prototype", "anion",
]  # fmt: skip


def make_model_crystals(num_rows: int = 12_897, seed: int = 0) -> pd.DataFrame:
    """Return a crystal frame of `num_rows` model crystals plus the columns `prototype` and `anion`.

    Model data, not DFT (`PROVENANCE`). Lengths in Å, angles in degrees, `volume` of the conventional cell in Å³,
    `target` the formation energy in eV/atom. The same arguments give the same frame on every machine.

    Raises ConfigError when `num_rows` is below 1 or above the number of crystals the model has.
    """
    crystals = enumerate_model_crystals()
    if not 1 <= num_rows <= len(crystals):
        raise ConfigError(
            f"num_rows={num_rows} is not available: the embedded model has {len(crystals)} crystals; "
            f"ask for 1 to {len(crystals)} rows"
        )
    return crystals.iloc[_draw(crystals, num_rows, seed)][COLUMNS].reset_index(drop=True)
