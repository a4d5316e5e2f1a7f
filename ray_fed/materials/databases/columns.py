"""Which column of a stranger's table is the formula, the cell, the space group, the target; and cells to numbers."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError, DataError, Trouble, quoted
from ray_fed.materials.units import UNKNOWN_UNIT, checked_unit

ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "material_id", "jid", "mp_id", "mpid", "entry_id", "identifier"),
    "formula": ("formula", "composition", "reduced_formula", "formula_pretty", "pretty_formula", "chemical_formula",
                "full_formula", "formula_reduced"),
    "a": ("a", "lattice_a", "cell_length_a", "cell_a"),
    "b": ("b", "lattice_b", "cell_length_b", "cell_b"),
    "c": ("c", "lattice_c", "cell_length_c", "cell_c"),
    "alpha": ("alpha", "lattice_alpha", "cell_angle_alpha", "cell_alpha"),
    "beta": ("beta", "lattice_beta", "cell_angle_beta", "cell_beta"),
    "gamma": ("gamma", "lattice_gamma", "cell_angle_gamma", "cell_gamma"),
    "volume": ("volume", "cell_volume", "lattice_volume"),
    "spacegroup_number": ("spacegroup_number", "spacegroup.number", "space_group_number", "sg_number", "spg_number",
                          "spacegroup", "space_group", "sgnum", "spg", "sg"),
    "num_atoms": ("n_sites", "nsites", "num_sites", "num_atoms", "natoms"),
    "numbers": ("numbers", "atomic_numbers"),
    "frac_coords": ("frac_coords", "fractional_coordinates"),
    "structure": ("structure", "atoms", "cif", "poscar"),
}  # fmt: skip
"""Role -> column names, the likeliest first."""

LATTICE_ROLES = ("a", "b", "c", "alpha", "beta", "gamma")

QUANTITIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "formation_energy_per_atom": (
        "eV/atom",
        ("formation_energy_peratom", "formation_energy_ev_per_atom", "e_form_per_atom", "e_form", "delta_e"),
    ),
    "band_gap": ("eV", ("bandgap",)),
    "band_gap_pbe": ("eV", ("gap pbe",)),
    "gap expt": ("eV", ("band_gap_expt",)),
    "dir_gap": ("eV", ()),
    "ind_gap": ("eV", ()),
    "mbj_bandgap": ("eV", ()),
    "optb88vdw_bandgap": ("eV", ()),
    "energy_per_atom": ("eV/atom", ()),
    "volume_per_atom": ("Å³/atom", ()),
    "ehull": ("eV/atom", ("energy_above_hull", "e_above_hull")),
    "exfoliation_en": ("meV/atom", ("exfoliation_energy",)),
    "bulk_modulus_kv": ("GPa", ()),
    "shear_modulus_gv": ("GPa", ()),
    "bulk_modulus": ("GPa", ("K_VRH", "bulk_modulus_vrh")),
    "shear_modulus": ("GPa", ("G_VRH", "shear_modulus_vrh")),
    "youngs_modulus": ("GPa", ()),
    "log10(K_VRH)": ("log10(GPa)", ("log10_bulk_modulus",)),
    "log10(G_VRH)": ("log10(GPa)", ("log10_shear_modulus",)),
    "last phdos peak": ("1/cm", ()),
    "density": ("g/cm³", ()),
    "melting_point": ("K", ()),
    "debye_temperature": ("K", ()),
    "thermal_conductivity": ("W/(m K)", ()),
    "poisson_ratio": ("dimensionless", ()),
    "Tc_supercon": ("K", ()),
    "kappa_dft_300K": ("W/(m K)", ()),
    "n": ("dimensionless", ()),
    "eps_electronic": ("dimensionless", ()),
    "eps_total": ("dimensionless", ()),
    "eij_max": ("C/m²", ()),
}
"""Target name -> (unit, other names of the same quantity in the same unit)."""

MINUS = "\u2212"
"""What typesetting puts in place of a hyphen before a number."""
_DECIMAL_COMMA = re.compile(r"[-+\u2212]?\d*,\d+(?:[eE][-+]?\d+)?")
FEWEST_LABELS = 3
"""Rows of text, without a number among them, that are taken for classes."""
MISSING_TEXTS = frozenset({"", "nan", "na", "n/a", "none", "null", "-"})


def canonical_target(name: str) -> str:
    """Return the one name by which silos agree on a target: "e_form" -> "formation_energy_per_atom"."""
    return next((quantity for quantity, (_, names) in QUANTITIES.items() if name in names), name)


def unit_of_target(name: str) -> str:
    """Return the unit of a known target, else "unknown unit"."""
    return QUANTITIES.get(canonical_target(name), (UNKNOWN_UNIT, ()))[0]


def find_roles(names: Sequence[str]) -> dict[str, str]:
    """Return role -> column for the columns that are there.

    The six lattice columns count only together: alone, "b" and "c" may be anything. Names of more than one letter may
    be written in any case ("B" is often the cation of a perovskite, not a lattice parameter).
    """
    roles = {role: column for role in ALIASES if (column := _first_of(ALIASES[role], names)) is not None}
    if not all(role in roles for role in LATTICE_ROLES):
        roles = {role: column for role, column in roles.items() if role not in LATTICE_ROLES}
    return roles


def _first_of(aliases: Sequence[str], names: Sequence[str]) -> str | None:
    for alias in aliases:
        if alias in names:
            return alias
    folded = {name.casefold(): name for name in names if len(name) > 1}
    return next((folded[alias] for alias in aliases if alias in folded), None)


def target_column(names: Sequence[str], target: str, source: str) -> str:
    """Return the column that holds `target`, by its own or another of its names; DataError lists the columns."""
    if target in names:
        return target
    quantity = canonical_target(target)
    candidates = (quantity, *QUANTITIES.get(quantity, ("", ()))[1])
    return next((name for name in candidates if name in names), None) or require_column(names, target, source)


def require_column(names: Sequence[str], wanted: str, source: str) -> str:
    """Return `wanted` if it is among `names`; DataError lists them and the nearest."""
    if wanted in names:
        return wanted
    raise DataError(f"{source} has no column {wanted!r}; {_there(names, wanted)}", failure=Trouble.COLUMN_MISSING)


def _there(names: Sequence[str], wanted: str) -> str:
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"it has: {_listed(names)}{hint}"


def _listed(names: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def to_numbers(column: pd.Series, what: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return a column as float64 [n], NaN where empty or unreadable, and row -> reason where it is unreadable."""
    if column.dtype.kind in "fiub":
        return column.to_numpy(np.float64, copy=True), {}
    values, reasons = np.full(len(column), np.nan), {}
    for row, value in enumerate(column.tolist()):
        try:
            values[row] = _number(value)
        except (TypeError, ValueError, OverflowError):
            reasons[row] = f"{what} {quoted(value)} {_why_no_number(value, row)}"
    return values, reasons


def require_numbers(column: pd.Series, values: np.ndarray, unreadable: Mapping[int, str], target: str) -> None:
    """Refuse a column that holds classes where numbers are asked for: DataError with the option that learns them."""
    texts = [str(column.iloc[row]).strip().casefold() for row in unreadable]
    is_truth = column.dtype.kind == "b" or (bool(texts) and set(texts) <= {"true", "false", "yes", "no"})
    has_labels = len(texts) >= FEWEST_LABELS and not any(digit.isdecimal() for text in texts for digit in text)
    if is_truth or (has_labels and np.isnan(values).all()):
        raise DataError(
            f"the target {target!r} holds {'true and false' if is_truth else 'text'}, no numbers; give --task "
            "classification for true and false, --classes LABEL,LABEL for other labels, and with several targets a "
            "list each: --classes='-,false|true' (- for numbers)",
            failure=Trouble.CLASSES,
        )


def _why_no_number(value: Any, row: int) -> str:
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
        return "is not a number; write a decimal point"
    is_unit = row == 0 and isinstance(value, str) and any(letter.isalpha() for letter in value) and _is_unit(value)
    return "is a unit, not a number" if is_unit else "is not a number"


def _is_unit(text: str) -> bool:
    try:
        return checked_unit(text) not in ("dimensionless", UNKNOWN_UNIT)
    except ConfigError:
        return False


def _number(value: Any) -> float:
    if value is None or value is pd.NA or (isinstance(value, str) and value.strip().casefold() in MISSING_TEXTS):
        return math.nan
    if isinstance(value, np.ndarray):
        raise TypeError("an array, even of one number, is not a number")
    number = float(value.replace(MINUS, "-") if isinstance(value, str) else value)
    if isinstance(value, str) and ("_" in value or (number == 0 and _is_above_nothing(value))):
        raise ValueError("Python reads it, and it means another number")
    return number


def _is_above_nothing(text: str) -> bool:
    """Whether a number's text has a digit that counts: "1e-400" has, and is 0 as a float64."""
    return any(digit in "123456789" for digit in text.casefold().partition("e")[0])


def to_space_groups(column: pd.Series) -> tuple[np.ndarray, dict[int, str]]:
    """Return space-group numbers as float64 [n], NaN where empty, and row -> reason where there is no such group.

    A symbol such as "Fm-3m" is as good as its number. 0 and -1 are what tables of whole numbers write for "unknown".
    """
    numbers, problems = to_numbers(column, "space group")
    symbols = {row: str(column.iloc[row]).strip() for row in problems}
    known = {symbol: _number_of_symbol(symbol) for symbol in set(symbols.values())}
    for row, symbol in symbols.items():
        numbers[row] = known[symbol]
    numbers[(numbers == 0) | (numbers == -1)] = np.nan
    wrong = ~(np.isnan(numbers) | ((numbers >= 1) & (numbers <= 230) & (numbers == np.floor(numbers))))
    reasons = {row: problem for row, problem in problems.items() if np.isnan(numbers[row])}
    reasons |= {row: f"space group '{numbers[row]:g}' is not 1 to 230" for row in np.flatnonzero(wrong).tolist()}
    numbers[wrong] = np.nan
    return numbers, reasons


def _number_of_symbol(symbol: str) -> float:
    from pymatgen.symmetry.groups import SpaceGroup

    try:
        return SpaceGroup(symbol).int_number
    except ValueError:
        return math.nan


def matches(column: pd.Series, value: object) -> np.ndarray:
    """Return bool [n]: the entry equals `value`, as a number where the column holds numbers, as text otherwise."""
    if column.dtype.kind == "b" or isinstance(value, bool) or str(value).casefold() in ("true", "false"):
        return (column.astype(str).str.casefold() == str(value).casefold()).to_numpy(bool)
    if column.dtype.kind in "fiu":
        try:
            return (column == float(str(value))).to_numpy(bool)
        except ValueError:
            return np.zeros(len(column), bool)
    return (column.astype(str) == str(value)).to_numpy(bool)


def counted_values(column: pd.Series, most: int = 8) -> str:
    """Return the commonest values of a column with their counts, for a message."""
    counts = column.astype(str).value_counts()
    shown = ", ".join(f"{value} ({count:,} rows)" for value, count in counts.head(most).items())
    return f"{shown} and {len(counts) - most} more" if len(counts) > most else shown
