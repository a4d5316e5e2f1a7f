"""The cell of a crystal that does not depend on how the crystal is written down: its standardised primitive cell.

Primitive, conventional or supercell, any origin, order of axes and atoms, R or H setting, any orientation give the same
numbers. Three steps, each of them free of the choice of a basis:

1. The translations that map the crystal onto itself make the cell primitive; sites that fall together are averaged.
2. The metric of its vectors is averaged over the rotations of the space group, so that what is equal by symmetry is
   equal in the numbers, too.
3. The Niggli basis of that lattice: one choice of parameters for each lattice.

Crystals whose atoms lie near the edge of the tolerance have one group or another, by the order of the finder's steps:
it is therefore asked about one writing of each crystal, the first in alphabetical order.

spglib's own standardised cell is not used as it is: its axes still depend on the input where the group leaves a choice
(which of three hexagonal axes, which of two in the monoclinic plane), by as much as the structure is distorted.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from ray_fed.errors import DataError
from ray_fed.materials.crystal import Crystal, CrystalSites, reduced_formula
from ray_fed.materials.lattices import cells_of_vectors, niggli_basis
from ray_fed.materials.symmetry import Finder, Operations, operations

EXACT = 1e-3
"""Å. Supercells are undone within this first: the search within `symprec` then starts from nearly the same numbers,
however the crystal was written."""
_MOST_FOLDS = 4
_SHORT = np.array([vector for vector in product((-1, 0, 1), repeat=3) if any(vector)])
"""Among these are all vectors of a lattice that are as long as one of its Niggli basis; int64 [26, 3]."""
_SAME_LENGTH = 1e-4
"""Relative difference below which squares of lengths and scalar products are the same."""
_STEPS, _OFFSET = 1000, 0.3716529
"""Coordinates are compared in thousandths; the offset keeps what people write (.2505) off the edge between two."""


@dataclass(frozen=True)
class StandardCell:
    """What the frame of crystals says of one crystal.

    cell         float64 [7], see `lattices`
    space_group  its number
    num_atoms    sites in the cell
    formula      reduced, of this cell
    sites        of this cell
    """

    cell: np.ndarray
    space_group: int
    num_atoms: int
    formula: str
    sites: CrystalSites


@dataclass(frozen=True)
class _Sites:
    """vectors float64 [3, 3] in Å; positions float64 [n, 3]; kinds int64 [n]"""

    vectors: np.ndarray
    positions: np.ndarray
    kinds: np.ndarray

    def symmetry(self, finder: Finder, symprec: float) -> Operations:
        return operations(self.vectors, self.positions, self.kinds, finder, symprec)


def standard_cell(crystal: Crystal, finder: Finder, symprec: float) -> StandardCell:
    """Return the standardised primitive cell; DataError where no symmetry is found.

    Call it under `quiet_finders`.
    """
    sites = _reduced(_Sites(crystal.vectors, crystal.positions, crystal.kinds))
    counts = np.unique(crystal.kinds, return_counts=True)[1]
    if np.gcd.reduce(counts) > 1:  # else no translation can map the sites onto each other
        sites = _folded(sites, sites.symmetry(finder, min(EXACT, symprec)).pure_translations)
    sites, found = _primitive(_first_writing(sites), finder, symprec)
    vectors = _symmetrised(sites.vectors, found.rotations)
    basis = niggli_basis(vectors)
    cell = cells_of_vectors((basis @ vectors)[None])[0]
    written = CrystalSites(basis @ vectors, sites.positions @ np.linalg.inv(basis), _numbers(crystal, sites.kinds))
    return StandardCell(cell, found.number, len(sites.kinds), _formula(crystal, len(sites.kinds)), written)


def _numbers(crystal: Crystal, kinds: np.ndarray) -> np.ndarray:
    """Return the atomic number of each site by its kind, int64 [n]; 0 where it is not known."""
    if crystal.numbers is None:
        return np.zeros(len(kinds), np.int64)
    by_kind = dict(zip(crystal.kinds.tolist(), crystal.numbers.tolist(), strict=True))
    return np.array([by_kind[kind] for kind in kinds.tolist()], np.int64)


def _primitive(sites: _Sites, finder: Finder, symprec: float) -> tuple[_Sites, Operations]:
    """Return the primitive cell within `symprec` and its operations."""
    for _ in range(_MOST_FOLDS):
        found = sites.symmetry(finder, symprec)
        translations = found.pure_translations
        if len(translations) == 1:
            return sites, found
        # Of a larger cell only the rotations that it shares with its lattice are known: they are searched again.
        sites = _folded(sites, translations)
    raise DataError(f"{finder} finds no primitive cell")


def _reduced(sites: _Sites) -> _Sites:
    basis = niggli_basis(sites.vectors)
    return _Sites(basis @ sites.vectors, sites.positions @ np.linalg.inv(basis), sites.kinds)


def _folded(sites: _Sites, translations: np.ndarray) -> _Sites:
    """Return the cell of the lattice with m further `translations` [m, 3], each of a place's m sites averaged."""
    copies = len(translations)
    if copies == 1:
        return sites
    if len(sites.kinds) % copies:
        raise DataError("structure has translations that do not map its atoms onto each other")
    # m times any translation of the m is one of the old lattice: the fractions are whole numbers of 1/m.
    whole = np.rint(translations * copies).astype(np.int64) % copies
    basis = _row_basis(np.vstack((whole, copies * np.eye(3, dtype=np.int64)))) / copies
    vectors, positions = basis @ sites.vectors, sites.positions @ np.linalg.inv(basis)
    left, averaged, kinds = np.ones(len(positions), bool), [], []
    for at in range(len(positions)):
        if not left[at]:
            continue
        apart = positions - positions[at]
        apart -= np.rint(apart)
        distances = np.where(left & (sites.kinds == sites.kinds[at]), np.linalg.norm(apart @ vectors, axis=1), np.inf)
        together = np.argpartition(distances, copies - 1)[:copies]
        left[together] = False
        averaged.append(positions[at] + apart[together].mean(axis=0))
        kinds.append(sites.kinds[at])
    return _reduced(_Sites(vectors, np.array(averaged), np.array(kinds)))


def _row_basis(rows: np.ndarray) -> np.ndarray:
    """Return an upper triangular basis, int64 [3, 3], of the lattice that integer rows [m, 3] generate."""
    left = [row.copy() for row in rows]
    basis = []
    for column in range(3):
        pivot = np.zeros(3, np.int64)
        others = []
        for row in left:
            while row[column]:  # Euclid's algorithm on whole rows
                pivot, row = row, pivot - (pivot[column] // row[column]) * row
            others.append(row)
        basis.append(pivot)
        left = others
    return np.array(basis)


def _first_writing(sites: _Sites) -> _Sites:
    """Return the sites of a Niggli basis in the writing that comes first, of all that share its metric: one of its
    equivalent bases, one atom of the rarest kind as origin, a fixed order of the sites."""
    kinds, counts = np.unique(sites.kinds, return_counts=True)
    origins = np.flatnonzero(sites.kinds == kinds[np.argmin(counts)])
    bases = _equivalent_bases(sites.vectors)
    # [bases, origins, n, 3]
    apart = sites.positions[None] - sites.positions[origins][:, None]
    written = (apart[None] @ np.linalg.inv(bases)[:, None]) % 1.0
    steps = np.floor(written * _STEPS + _OFFSET).astype(np.int64) % _STEPS
    codes = ((sites.kinds * _STEPS + steps[..., 0]) * _STEPS + steps[..., 1]) * _STEPS + steps[..., 2]
    codes = codes.reshape(-1, len(sites.kinds))
    ordered = np.sort(codes, axis=1)
    first = int(np.lexsort(ordered.T[::-1])[0])
    order = np.argsort(codes[first], kind="stable")
    positions = written.reshape(-1, *sites.positions.shape)[first]
    return _Sites(bases[first // len(origins)] @ sites.vectors, positions[order], sites.kinds[order])


def _equivalent_bases(vectors: np.ndarray) -> np.ndarray:
    """Return the right-handed bases of a Niggli basis's lattice with the same metric, int64 [m, 3, 3]."""
    metric = vectors @ vectors.T
    products = _SHORT @ metric @ _SHORT.T
    near = _SAME_LENGTH * np.diag(metric).max()
    rows = [np.flatnonzero(np.abs(np.diag(products) - metric[axis, axis]) < near) for axis in range(3)]

    def fits(first: int, second: int) -> np.ndarray:
        return np.abs(products[np.ix_(rows[first], rows[second])] - metric[first, second]) < near

    fitting = np.argwhere(fits(0, 1)[:, :, None] & fits(0, 2)[:, None, :] & fits(1, 2)[None])
    bases = np.stack([_SHORT[rows[axis][fitting[:, axis]]] for axis in range(3)], axis=1)
    return bases[np.rint(np.linalg.det(bases)) == 1]


def _symmetrised(vectors: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Return vectors [3, 3] whose metric is the mean over the rotations [k, 3, 3] of that of `vectors`."""
    metric = vectors @ vectors.T
    mean = np.mean(rotations.transpose(0, 2, 1) @ metric @ rotations, axis=0)
    return np.linalg.cholesky((mean + mean.T) / 2)


def _formula(crystal: Crystal, num_sites: int) -> str:
    """Return the reduced formula of the primitive cell: half an atom in a supercell is then half an atom, too."""
    if not crystal.amounts:
        return crystal.formula
    share = num_sites / len(crystal.kinds)
    return reduced_formula({symbol: round(amount * share, 6) for symbol, amount in crystal.amounts.items()})
