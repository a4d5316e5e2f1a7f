"""The unit-cell part of a feature vector: eight numbers as a source gives them, or scaled so that cells compare.

as_given     a, b, c, alpha, beta, gamma, volume, space-group number (Guo et al. 2022). They depend on the choice of
             cell, and the space-group number is a label used as a quantity; kept for fidelity.
normalised   volume per atom, b/a, c/a, the angles, and the crystal system as seven zeros and ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.features.composition import is_missing

CELL_UNITS: Mapping[str, str] = {
    "a": "Å", "b": "Å", "c": "Å", "alpha": "°", "beta": "°", "gamma": "°", "volume": "Å³", "spacegroup_number": "1",
}  # fmt: skip
"""Columns of a crystal frame that describe the cell."""

LIMITS: Mapping[str, tuple[float, float, str]] = {
    **dict.fromkeys(("a", "b", "c", "volume", "num_atoms"), (0.0, np.inf, "positive and finite")),
    **dict.fromkeys(("alpha", "beta", "gamma"), (0.0, 180.0, "between 0 and 180")),
    "spacegroup_number": (0.0, 231.0, "a whole number from 1 to 230"),
}
"""A value lies between its limits, limits excluded; and the words for that."""

NUM_ATOMS_COLUMNS = ("num_atoms", "n_sites")
"""Names under which a table may give the number of atoms in the cell."""

LAST_SPACE_GROUP: Mapping[str, int] = {
    "triclinic": 2, "monoclinic": 15, "orthorhombic": 74, "tetragonal": 142, "trigonal": 167, "hexagonal": 194,
    "cubic": 230,
}  # fmt: skip
"""Crystal systems with the number of their last space group (International Tables A)."""


def cell_feature_units(form: str) -> dict[str, str]:
    """Return name -> unit of the cell features in order; `form` is "as_given" or "normalised"."""
    if form == "as_given":
        return dict(CELL_UNITS)
    angles = {name: CELL_UNITS[name] for name in ("alpha", "beta", "gamma")}
    systems = {f"crystal_system_{name}": "1" for name in LAST_SPACE_GROUP}
    return {"volume_per_atom": "Å³/atom", "b/a": "1", "c/a": "1", **angles, **systems}


def cell_features(frame: pd.DataFrame, form: str) -> tuple[np.ndarray, list[str]]:
    """Return the cell features float64 [num_rows, num_features] and a reason per row, "" where the cell is usable.

    DataError names columns that the table lacks.
    """
    names = _columns_needed(frame, form)
    columns = {name: _numbers(frame, given) for name, given in names.items()}
    reasons = [""] * len(frame)
    for name, given in names.items():
        for row in np.flatnonzero(~_allowed(name, columns[name])).tolist():
            reasons[row] = reasons[row] or _fault(given, frame[given].iloc[row], LIMITS[name][2])
    if form == "as_given":
        return np.stack([columns[name] for name in CELL_UNITS], axis=1), reasons
    return _normalised(columns, np.array([not reason for reason in reasons], bool)), reasons


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as float64, NaN where it holds nothing or no number."""
    numeric = pd.Series(pd.to_numeric(frame[name], errors="coerce"))
    return numeric.to_numpy(dtype=np.dtype(np.float64), na_value=np.nan)


def _columns_needed(frame: pd.DataFrame, form: str) -> dict[str, str]:
    """Return our name -> the table's name of every column needed."""
    num_atoms = next((name for name in NUM_ATOMS_COLUMNS if name in frame), "num_atoms")
    names = {name: name for name in CELL_UNITS} | ({"num_atoms": num_atoms} if form == "normalised" else {})
    missing = [given for given in names.values() if given not in frame]
    if missing:
        remedy = "give these columns, or choose a feature set without structure (guo65, rich)"
        if missing == ["num_atoms"]:
            remedy = "structure='normalised' needs the number of atoms in the cell; structure='as_given' does not"
        raise DataError(
            f"the table has no column {', '.join(map(quoted, missing))}; {remedy}", failure=Trouble.COLUMN_MISSING
        )
    return names


def _allowed(name: str, values: np.ndarray) -> np.ndarray:
    low, high, _ = LIMITS[name]
    inside = (values > low) & (values < high)
    return inside & (values == np.floor(values)) if name == "spacegroup_number" else inside


def _fault(name: str, value: Any, requirement: str) -> str:
    fault = "missing" if is_missing(value) else f"{quoted(value)}, must be {requirement}"
    return f"cell: {name} is {fault}"


def _normalised(columns: Mapping[str, np.ndarray], usable: np.ndarray) -> np.ndarray:
    """Return the scale-free cell features [num_rows, 13]; rows that are not usable are NaN."""
    safe = {name: np.where(usable, column, 1.0) for name, column in columns.items()}
    system = np.searchsorted(list(LAST_SPACE_GROUP.values()), safe["spacegroup_number"])
    features = np.column_stack((
        safe["volume"] / safe["num_atoms"], safe["b"] / safe["a"], safe["c"] / safe["a"],
        safe["alpha"], safe["beta"], safe["gamma"], np.eye(len(LAST_SPACE_GROUP))[system],
    ))  # fmt: skip
    features[~usable] = np.nan
    return features


def cells_of_structures(items: Sequence[Any], cell: str = "given") -> tuple[pd.DataFrame, list[str]]:
    """Return the cell columns and `num_atoms` of pymatgen Structures, and a reason for every item that has no cell.

    cell  "given", or "standard" for those of the standardised primitive cell

    The space group is searched as it is for databases without one. Pass a table when the source already knows it: a
    search takes milliseconds a crystal.
    """
    frame = pd.DataFrame(np.nan, index=pd.RangeIndex(len(items)), columns=pd.Index([*CELL_UNITS, "num_atoms"]))
    reasons = [_no_cell(item) for item in items]
    for row, reason in enumerate(reasons):
        if not reason:
            try:
                frame.iloc[row] = _numbers_of(items[row], cell)
            except DataError as error:
                reasons[row] = str(error)
    return frame, reasons


def _no_cell(item: Any) -> str:
    if hasattr(item, "lattice") and hasattr(item, "composition"):
        return ""
    return f"no cell: {quoted(item)} is of type {type(item).__name__}; pass Structures or a table with cell columns"


def _numbers_of(structure: Any, cell: str) -> np.ndarray:
    """Return the columns of CELL_UNITS and the number of atoms; DataError where there is no space group."""
    # Here, not above: readers of structures load pymatgen, which formulas do not need.
    from ray_fed.materials.finder_words import quiet_finders
    from ray_fed.materials.standard_cells import standard_cell
    from ray_fed.materials.structures import parse_structure
    from ray_fed.materials.symmetry import SymmetrySearch, space_groups

    search, crystal = SymmetrySearch(), parse_structure(structure.as_dict())
    if cell == "standard":
        with quiet_finders():
            standard = standard_cell(crystal, search.finder, search.symprec)
        return np.array([*standard.cell, standard.space_group, standard.num_atoms], np.float64)
    numbers, reasons = space_groups([crystal], search.finder, search.symprec)
    if reasons[0]:
        raise DataError(reasons[0])
    lattice = structure.lattice
    return np.array([
        *lattice.abc, *lattice.angles, lattice.volume, numbers[0], structure.composition.num_atoms
    ], np.float64)  # fmt: skip
