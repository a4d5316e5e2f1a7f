"""Radial distribution function of crystals, on XenonPy's grid.

g(r) = N(r, r + dr) / (4 pi r² dr rho)      N: mean number of neighbours of an atom between r and r + dr
                                            rho: atoms per Å³
"""

import numpy as np
import pandas as pd

from ray_fed.materials.databases.lattices import vectors_of_cells

CUTOFF, STEP = 20.0, 0.1
GRID = np.round(np.arange(0.0, CUTOFF + STEP / 2, STEP), 10)
"""Left edges of 201 shells, Å."""
MAX_SITES = 200
"""Larger cells have a reason instead of a descriptor: N² distances to 20 Å."""


def radial_distributions(frame: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Return g(r), float64 [rows, 201], and a reason per row.

    The table has a, b, c [Å], alpha, beta, gamma [degrees], `numbers` and flat `frac_coords` per row.
    """
    cells = frame[["a", "b", "c", "alpha", "beta", "gamma"]].to_numpy(float)
    vectors = vectors_of_cells(cells)
    values = np.full((len(frame), len(GRID)), np.nan)
    reasons = [""] * len(frame)
    for row, coordinates in enumerate(frame["frac_coords"]):
        fractional = np.asarray(coordinates, float).reshape(-1, 3)
        if not 0 < len(fractional) <= MAX_SITES:
            reasons[row] = f"{len(fractional)} atoms in the cell; the rdf takes 1 to {MAX_SITES}"
        else:
            values[row] = radial_distribution(vectors[row], fractional)
    return values, reasons


def radial_distribution(vectors: np.ndarray, fractional: np.ndarray) -> np.ndarray:
    """Return g(r) [201] of one crystal: lattice vectors [3, 3] in Å as rows, sites [atoms, 3]."""
    edges = np.append(GRID, GRID[-1] + STEP)
    counts = np.zeros(len(GRID))
    images = images_within(vectors, edges[-1]) @ vectors
    for site in fractional:
        apart = (fractional - site) @ vectors
        distances = np.linalg.norm(apart[:, None, :] + images[None, :, :], axis=2)
        counts += np.histogram(distances[distances > 1e-8], edges)[0]
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    density = len(fractional) / abs(np.linalg.det(vectors))
    return counts / len(fractional) / (shells * density)


def images_within(vectors: np.ndarray, cutoff: float) -> np.ndarray:
    """Return the cells that may hold a neighbour within `cutoff`, int [cells, 3]."""
    heights = 1 / np.linalg.norm(np.linalg.inv(vectors), axis=0)
    # One cell more: two sites of a cell may be apart by nearly a whole height.
    reach = np.ceil(cutoff / heights).astype(int) + 1
    axes = [np.arange(-n, n + 1) for n in reach]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
