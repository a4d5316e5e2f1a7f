"""One crystal structure from what files hold: CIF, POSCAR, `Structure.as_dict`, JARVIS atoms, or lists of numbers.

    parse_structure(value) -> Crystal      DataError, in one line, for anything else

Cells are taken as given here; `standard_cells` finds the one that does not depend on how a crystal is written. What is
odd about a structure that can be used all the same is a note: of the same make as a reason, values in '...'.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_fed.errors import DataError, quoted
from ray_fed.materials.cif_files import crystal_of_cif
from ray_fed.materials.crystal import (
    MAX_REASON,
    Crystal,
    crystal_of_pymatgen,
    number_on_site,
    numbered,
    reduced_formula,
    warnings_as_notes,
)
from ray_fed.materials.lattices import near_pairs, vectors_of_cells

MAX_SITES = 100_000
_IS_CIF = re.compile(r"^\s*(?:data_|_cell_length_a)", re.IGNORECASE | re.MULTILINE)
_FALSE_NAMES = "Elements in POSCAR cannot be determined"
MIN_DISTANCE = 0.4
"""Å. Atoms nearer than this are a mistake: the shortest bond, H-H, has 0.74."""
FULL_OCCUPANCY = 1.01
"""Sites with less than this together may be near each other: they are the split places of one atom."""


def parse_structure(value: Any) -> Crystal:
    """Return the crystal of one value: CIF, POSCAR or JSON text, or a dict. DataError says why it is none."""
    try:
        crystal = _parse(value)
    except DataError:
        raise
    except Exception as error:
        # pymatgen's parsers fail on broken files with any exception there is, IndexError to ZeroDivisionError. The row
        # keeps the text as its reason, so nothing is lost here.
        what = quoted(f"{type(error).__name__}: {error}", MAX_REASON)
        raise DataError(f"unreadable structure {what}") from error
    return _checked(crystal)


def _parse(value: Any) -> Crystal:
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if not isinstance(value, str):
        missing = value is None or value != value
        raise DataError("structure is missing" if missing else f"structure {quoted(value)} is neither text nor object")
    if value.lstrip().startswith("{"):
        return _from_mapping(json.loads(value))
    if not value.strip():
        raise DataError("structure is empty")
    if value.lstrip().startswith("<"):
        raise DataError("structure is a web page or XML")
    return crystal_of_cif(value) if _IS_CIF.search(value) else _from_poscar(value)


def _checked(crystal: Crystal) -> Crystal:
    """Refuse what would crash the symmetry finders: a NaN coordinate ends the process in spglib."""
    if not 0 < len(crystal.kinds) <= MAX_SITES:
        raise DataError(f"structure has '{len(crystal.kinds)}' sites; 1 to {MAX_SITES:,} can be read")
    if crystal.vectors.shape != (3, 3) or crystal.positions.shape != (len(crystal.kinds), 3):
        raise DataError("structure has a lattice or coordinates of the wrong shape")
    if not (np.isfinite(crystal.vectors).all() and np.isfinite(crystal.positions).all()):
        raise DataError("structure has a lattice vector or coordinate that is not finite")
    _check_distances(crystal)
    return crystal


def _check_distances(crystal: Crystal) -> None:
    """DataError for two atoms on nearly the same place, unless together they are no more than one."""
    if abs(np.linalg.det(crystal.vectors)) < MIN_DISTANCE**3:
        return  # no crystal at all: the check of cells has the words for it
    first, second, distances = near_pairs(crystal.vectors, crystal.positions, MIN_DISTANCE)
    occupancies = np.ones(len(crystal.kinds)) if crystal.occupancies is None else crystal.occupancies
    wrong = np.flatnonzero(occupancies[first] + occupancies[second] > FULL_OCCUPANCY)
    if len(wrong):
        nearest = distances[wrong].min()
        raise DataError(f"atoms are too close '{nearest:.3f} Å'; under {MIN_DISTANCE:g} Å none can be")


def _from_poscar(text: str) -> Crystal:
    from pymatgen.io.vasp import Poscar

    _check_atom_counts(text.splitlines())
    with warnings_as_notes() as notes:
        structure = Poscar.from_str(text, read_velocities=False).structure
    if any(_FALSE_NAMES in note for note in notes):
        raise DataError("POSCAR names no elements (VASP 4 format); write the symbols above their counts")
    return crystal_of_pymatgen(structure, notes=tuple(notes))


def _check_atom_counts(lines: Sequence[str]) -> None:
    """Refuse a POSCAR that announces more atoms than it has lines: pymatgen would first make a list of them all."""
    for line in lines[5:7]:
        counts = line.split()
        if all(count.isdigit() for count in counts) and sum(map(int, counts)) > len(lines):
            raise DataError(f"POSCAR has '{len(lines)}' lines and announces more atoms: {quoted(line)}")


def _from_mapping(value: Mapping) -> Crystal:
    """Read `Structure.as_dict` or JARVIS atoms without building pymatgen objects, which would take 10 times as long."""
    if "sites" in value:
        if "lattice" not in value:
            raise DataError("structure has no lattice; molecules cannot be used")
        return _from_sites(_vectors(value["lattice"]), value["sites"])
    if "lattice_mat" in value and "elements" in value:
        return _from_atoms(value)
    keys = quoted(", ".join(map(str, value)))
    raise DataError(f"structure is a dict with neither sites nor lattice_mat; it has: {keys}")


def _vectors(lattice: Mapping) -> np.ndarray:
    if "matrix" in lattice:
        return np.array(lattice["matrix"], np.float64)
    cell = [[float(lattice[name]) for name in ("a", "b", "c", "alpha", "beta", "gamma")]]
    return vectors_of_cells(np.array(cell))[0]


def _from_sites(vectors: np.ndarray, sites: Sequence[Mapping]) -> Crystal:
    amounts: dict[str, float] = {}
    for site in sites:
        for species in site["species"]:
            amounts[species["element"]] = amounts.get(species["element"], 0.0) + float(species["occu"])
    kinds = numbered([_label(site["species"]) for site in sites])
    occupancies = np.array([sum(float(one["occu"]) for one in site["species"]) for site in sites])
    if all("abc" in site for site in sites):
        positions = np.array([site["abc"] for site in sites], np.float64)
    else:
        positions = _fractions(np.array([site["xyz"] for site in sites], np.float64), vectors)
    numbers = [number_on_site({one["element"]: float(one["occu"]) for one in site["species"]}) for site in sites]
    whole = np.array(numbers, np.int64)
    return Crystal(reduced_formula(amounts), vectors, positions, kinds, None, amounts, occupancies, numbers=whole)


def _label(species: Sequence[Mapping]) -> str:
    """Return what distinguishes a site: elements, occupations, oxidation states."""
    return ",".join(sorted(f"{one['element']}{one.get('oxidation_state')}:{one['occu']}" for one in species))


def _from_atoms(atoms: Mapping) -> Crystal:
    vectors = np.array(atoms["lattice_mat"], np.float64)
    positions = np.array(atoms["coords"], np.float64)
    elements = [str(element).strip() for element in atoms["elements"]]
    if atoms.get("cartesian"):
        positions = _fractions(positions, vectors)
    amounts = {element: float(elements.count(element)) for element in dict.fromkeys(elements)}
    numbers = np.array([number_on_site({element: 1.0}) for element in elements], np.int64)
    return Crystal(reduced_formula(amounts), vectors, positions, numbered(elements), None, amounts, numbers=numbers)


def _fractions(cartesian: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return cartesian @ np.linalg.inv(vectors)


def crystal_of_lists(vectors: np.ndarray, numbers: Any, coordinates: Any) -> Crystal:
    """Return the crystal of `numbers` [n] (atomic numbers) and flat `coordinates` [3 n]; DataError if they do not fit.

    Both may be sequences, or text such as "[11, 17]" from a CSV.
    """
    from pymatgen.core import Element

    kinds, flat = _number_list(numbers, "numbers"), _number_list(coordinates, "frac_coords")
    if len(flat) != 3 * len(kinds):
        raise DataError(f"frac_coords has '{len(flat)}' values for '{len(kinds)}' sites; three for each are needed")
    amounts = amounts_of_numbers(kinds)
    positions = flat.reshape(-1, 3)
    symbols = [Element.from_Z(int(number)).symbol for number in kinds]
    whole = kinds.astype(np.int64)
    formula = reduced_formula(amounts)
    return _checked(Crystal(formula, vectors, positions, numbered(symbols), None, amounts, numbers=whole))


def formula_of_lists(numbers: Any) -> str:
    """Return the reduced formula of a list of atomic numbers; DataError if there is no such element."""
    return reduced_formula(amounts_of_numbers(_number_list(numbers, "numbers")))


def amounts_of_numbers(numbers: np.ndarray) -> dict[str, float]:
    """Return {symbol: atoms} of atomic numbers [n], float64; DataError if one is no element."""
    from pymatgen.core import Element

    found, counts = np.unique(numbers, return_counts=True)
    wrong = found[~((found >= 1) & (found <= 118) & (found == np.floor(found)))]
    if len(wrong) or not len(found):
        raise DataError(f"unknown atomic number '{wrong[0]:g}'" if len(wrong) else "numbers is empty")
    symbols = [Element.from_Z(int(number)).symbol for number in found]
    return dict(zip(symbols, counts.astype(float).tolist(), strict=True))


def _number_list(values: Any, column: str) -> np.ndarray:
    """Return a list of numbers as float64 [n]."""
    if isinstance(values, str):
        values = values.strip().strip("[]()").replace(",", " ").split()
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{column} {quoted(values)} is not a list of numbers") from error
    if array.ndim == 0:
        raise DataError(f"{column} is missing")
    if array.size and not np.isfinite(array).all():
        raise DataError(f"{column} has a value that is not finite")
    return array.reshape(-1)
