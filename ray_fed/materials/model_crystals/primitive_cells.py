"""The model crystals with their standardised primitive cells, by the lattice of each prototype: without a search."""

import numpy as np
import pandas as pd

from ray_fed.materials.lattices import CELL_COLUMNS, cells_of_vectors, niggli_basis, vectors_of_cells
from ray_fed.materials.model_crystals.prototypes import PROTOTYPES, Prototype

_CENTRINGS = {
    "P": np.eye(3),
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "C": np.array([[1, -1, 0], [1, 1, 0], [0, 0, 2]]) / 2,
    "A": np.array([[2, 0, 0], [0, 1, -1], [0, 1, 1]]) / 2,
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}
"""First letter of a space group's symbol -> primitive basis in the conventional one (R: obverse, hexagonal axes)."""


def with_primitive_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the crystals with the cells that `standard_cell` would find, and with `num_atoms` in them."""
    of_unit_length = {prototype.name: _primitive(prototype) for prototype in PROTOTYPES}
    cells, counts = zip(*(of_unit_length[name] for name in frame["prototype"]), strict=True)
    scaled = np.array(cells)
    lengths = frame["a"].to_numpy(np.float64)
    scaled[:, :3] *= lengths[:, None]
    scaled[:, 6] *= lengths**3
    return frame.assign(**dict(zip(CELL_COLUMNS, scaled.T, strict=True)), num_atoms=np.array(counts, np.float64))


def _primitive(prototype: Prototype) -> tuple[np.ndarray, int]:
    """Return the primitive cell [7] of a conventional one with a = 1, and the number of its atoms."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    conventional = np.array([[1.0, prototype.b_over_a, prototype.c_over_a, 90.0, 90.0, prototype.gamma]])
    centring = _CENTRINGS[sg_symbol_from_int_number(prototype.space_group)[0]]
    vectors = centring @ vectors_of_cells(conventional)[0]
    atoms = prototype.atoms_per_formula * prototype.formula_units * np.linalg.det(centring)
    return cells_of_vectors((niggli_basis(vectors) @ vectors)[None])[0], round(float(atoms))
