"""Periodic neighbours of the atoms of a crystal, so chosen that no order of atoms or choice of cell matters.

Of each atom the NEAREST nearest others, and with falling weight those up to a share EDGE farther away; none beyond
CUTOFF. A sharp end at the twelfth would have to choose among neighbours at one distance, by the order of the atoms, and
would jump when two of them change places; with the weights a graph changes as smoothly as the crystal does.

    symbol   code              unit
    d_12     distances         Å, of the NEAREST-th neighbour
    r        reach             Å, min(CUTOFF, (1 + EDGE) d_12)
    w(d)     weights           1 up to r / (1 + EDGE), then half a cosine, 0 at r
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from ray_fed.errors import DataError
from ray_fed.materials.crystal import CrystalSites

NEAREST, CUTOFF, EDGE = 12, 8.0, 0.05
"""Twelve within 8 Å is the usual choice (Xie & Grossman 2018)."""
FIRST_REACH, FARTHER = 1.3, 1.3
"""Of the radius that holds NEAREST atoms at even density; and by how much it grows where an atom has fewer."""
SAME_PLACE = 1e-3
"""Å. An atom is no neighbour of itself."""
MOST_SITES, MOST_IMAGES = 500, 2_000_000
"""Of one primitive cell; beyond it training takes too long. Images of sites that a search looks at; only cells that are
thinner than an atom need more."""
GRAPH_VERSION = f"crystal graph 2, {NEAREST} nearest, {CUTOFF} A, edge {EDGE}"
"""Goes up when the same sites give another graph."""


@dataclass(frozen=True)
class Neighbours:
    """The directed edges of one crystal, sorted by the atom that they end at.

    degrees   int64 [atoms]        edges that end at each atom
    sources   int64 [edges]        the atom that each comes from
    vectors   float32 [edges, 3]   Å, from the atom it ends at to (an image of) the one it comes from
    weights   float32 [edges]      (0, 1]
    """

    degrees: np.ndarray
    sources: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray


def neighbours(sites: CrystalSites) -> Neighbours:
    """Return the neighbours of a crystal's atoms; none of an atom that has none within CUTOFF.

    DataError for a crystal that is too large, or holds a site that is not one whole atom.
    """
    require_whole_atoms(sites, MOST_SITES)
    count = len(sites.numbers)
    volume = abs(float(np.linalg.det(sites.vectors)))
    radius = min(CUTOFF, FIRST_REACH * (3 * NEAREST * volume / (4 * np.pi * count)) ** (1 / 3))
    while True:
        found = _within(sites, radius)
        reach = _reach(found, count)
        if radius >= reach.max():
            return _weighted(found, reach, count)
        radius = min(CUTOFF, FARTHER * radius)


def require_whole_atoms(sites: CrystalSites, most: int) -> None:
    """Raise DataError unless there are 1 to `most` sites with a whole atom on each."""
    count = len(sites.numbers)
    if not 0 < count <= most:
        raise DataError(f"'{count}' atoms in the primitive cell; a crystal graph takes 1 to {most}")
    if not sites.numbers.all():
        raise DataError("a site holds several elements or is partly empty; a crystal graph takes whole atoms")


def _within(sites: CrystalSites, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (to, from, vector, distance) of all pairs within a radius, sorted by `to`, then by distance."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    heights = 1 / np.linalg.norm(np.linalg.inv(sites.vectors), axis=0)
    images = prod(2 * int(np.ceil(radius / height)) + 1 for height in heights.tolist())
    if images * len(sites.numbers) > MOST_IMAGES:
        raise DataError(f"cell is only '{heights.min():.3g} Å' thin; no atoms fit into it")
    places = np.ascontiguousarray((sites.positions % 1.0) @ sites.vectors)
    to, source, offsets, distances = find_points_in_spheres(
        places, places, radius, np.ones(3, np.int64), np.ascontiguousarray(sites.vectors)
    )
    apart = distances > SAME_PLACE
    to, source, offsets, distances = to[apart], source[apart], offsets[apart], distances[apart]
    # Symmetry makes many distances equal up to rounding: rounded, their order depends on it as little as possible.
    order = np.lexsort((sites.numbers[source], distances.round(5), to))
    to, source, distances = to[order], source[order], distances[order]
    vectors = places[source] + offsets[order] @ sites.vectors - places[to]
    return to, source, vectors, distances


def _reach(found: tuple[np.ndarray, ...], count: int) -> np.ndarray:
    """Return how far each atom's neighbours go, float64 [atoms]."""
    to, _, _, distances = found
    degrees = np.bincount(to, minlength=count)
    has_all = degrees >= NEAREST
    reach = np.full(count, CUTOFF)
    last = np.concatenate(([0], np.cumsum(degrees)[:-1]))[has_all] + NEAREST - 1
    reach[has_all] = np.minimum(CUTOFF, (1 + EDGE) * distances[last])
    return reach


def _weighted(found: tuple[np.ndarray, ...], reach: np.ndarray, count: int) -> Neighbours:
    to, source, vectors, distances = found
    inner = reach[to] / (1 + EDGE)
    outside = np.clip((distances - inner) / (reach[to] - inner), 0.0, 1.0)
    weights = ((1 + np.cos(np.pi * outside)) / 2).astype(np.float32)
    kept = weights > 0
    degrees = np.bincount(to[kept], minlength=count)
    return Neighbours(degrees, source[kept], vectors[kept].astype(np.float32), weights[kept])
