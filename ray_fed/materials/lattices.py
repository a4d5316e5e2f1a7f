"""Cells of crystals: six parameters and a volume, or three vectors, for many crystals at once.

A *cell* is float64 [7]: a, b, c in Å, alpha, beta, gamma in degrees, volume in Å³. Vectors are float64 [3, 3] in Å, one
per row. Numbers of no sense give NaN or infinity without a warning: `cell_problems` finds them.
"""

from collections.abc import Sequence

import numpy as np

from ray_fed.errors import DataError

CELL_COLUMNS = ("a", "b", "c", "alpha", "beta", "gamma", "volume")
MAX_LENGTH = 10_000.0
"""Å. The longest known polytypes stay below 2,000; beyond this a number is a mistake."""
MIN_LENGTH = 0.1
"""Å, below any distance between atoms."""
MIN_RELATIVE_VOLUME = 1e-6
"""Volume over a*b*c; below it the vectors lie in one plane, up to rounding."""


def cells_of_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return cells [n, 7] of lattice vectors [n, 3, 3]."""
    following, last = np.roll(vectors, -1, axis=1), np.roll(vectors, -2, axis=1)
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(vectors, axis=2)
        cosines = (following * last).sum(2) / (np.roll(lengths, -1, axis=1) * np.roll(lengths, -2, axis=1))
        angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        return np.column_stack((lengths, angles, np.abs(np.linalg.det(vectors))))


def vectors_of_cells(cells: np.ndarray) -> np.ndarray:
    """Return lattice vectors [n, 3, 3] of cells [n, 6 or 7]: a along x, b in the xy plane."""
    a, b, c = cells[:, 0], cells[:, 1], cells[:, 2]
    vectors = np.zeros((len(cells), 3, 3))
    with np.errstate(all="ignore"):
        cos_alpha, cos_beta, cos_gamma = np.cos(np.radians(cells[:, 3:6])).T
        sin_gamma = np.sin(np.radians(cells[:, 5]))
        vectors[:, 0, 0] = a
        vectors[:, 1, 0], vectors[:, 1, 1] = b * cos_gamma, b * sin_gamma
        vectors[:, 2, 0] = c * cos_beta
        vectors[:, 2, 1] = c * (cos_alpha - cos_beta * cos_gamma) / sin_gamma
        vectors[:, 2, 2] = c * relative_volumes(cells) / sin_gamma
    return vectors


def images_within(vectors: np.ndarray, cutoff: float) -> np.ndarray:
    """Return the cells that may hold a neighbour within `cutoff`, int [cells, 3]."""
    heights = 1 / np.linalg.norm(np.linalg.inv(vectors), axis=0)
    # One cell more: two sites of a cell may be apart by nearly a whole height.
    reach = np.ceil(cutoff / heights).astype(int) + 1
    axes = [np.arange(-n, n + 1) for n in reach]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def near_pairs(vectors: np.ndarray, positions: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (first, second, distance in Å) of the pairs of sites [n, 3] nearer than `cutoff`, with those between a
    site and its own image; `cutoff` must be small beside the cell.

    first, second  int [pairs]; a pair across the cell's border may be there twice
    """
    from scipy.spatial import KDTree

    inside = positions % 1.0
    # Images on the far side of each axis, of sites within the cutoff of the near side.
    margins = np.minimum(cutoff * np.linalg.norm(np.linalg.inv(vectors), axis=0), 1.0)
    sites, owners = inside, np.arange(len(inside))
    for axis, margin in enumerate(margins.tolist()):
        near = sites[:, axis] < margin
        shifted = sites[near] + np.eye(3)[axis]
        below = sites[:, axis] >= 1.0 - margin
        sites = np.concatenate((sites, shifted, sites[below] - np.eye(3)[axis]))
        owners = np.concatenate((owners, owners[near], owners[below]))
    cartesian = sites @ vectors
    pairs = KDTree(cartesian).query_pairs(cutoff, output_type="ndarray")
    pairs = pairs[pairs[:, 0] < len(inside)]
    distances = np.linalg.norm(cartesian[pairs[:, 0]] - cartesian[pairs[:, 1]], axis=1)
    return owners[pairs[:, 0]], owners[pairs[:, 1]], distances


def relative_volumes(cells: np.ndarray) -> np.ndarray:
    """Return volume / (a b c) from the angles of cells [n, 6 or 7]; NaN where three such angles close no cell."""
    with np.errstate(all="ignore"):
        x, y, z = np.cos(np.radians(cells[:, 3:6])).T
        return np.sqrt(1 - x * x - y * y - z * z + 2 * x * y * z)


def volumes_of_cells(cells: np.ndarray) -> np.ndarray:
    """Return volumes [n] in Å³ of cells [n, 6 or 7], from lengths and angles."""
    with np.errstate(all="ignore"):
        return cells[:, 0] * cells[:, 1] * cells[:, 2] * relative_volumes(cells)


def cell_problems(cells: np.ndarray) -> dict[int, str]:
    """Return row -> why cells [n, 7] describe no crystal. A row of NaN only has no structure, and no problem."""
    given = ~np.isnan(cells)
    problems: dict[int, str] = {}
    wrong = given & ~_within_bounds(cells)
    for row in np.flatnonzero(wrong.any(axis=1)).tolist():
        problems[row] = _out_of_bounds(cells[row], wrong[row])
    whole = given[:, :6].all(axis=1)
    for row in np.flatnonzero(given[:, :6].any(axis=1) & ~whole).tolist():
        problems.setdefault(row, f"{CELL_COLUMNS[int(np.argmin(given[row, :6]))]} is missing")
    closed = relative_volumes(cells) > MIN_RELATIVE_VOLUME
    for row in np.flatnonzero(whole & ~closed).tolist():
        angles = ", ".join(f"{angle:g}" for angle in cells[row, 3:6])
        problems.setdefault(row, f"angles '{angles}' close no cell")
    return problems


def _within_bounds(cells: np.ndarray) -> np.ndarray:
    """Return bool [n, 7]; NaN is outside."""
    lengths, angles, volumes = cells[:, :3], cells[:, 3:6], cells[:, 6:]
    return np.hstack((
        (lengths >= MIN_LENGTH) & (lengths <= MAX_LENGTH),
        (angles > 0) & (angles < 180),
        (volumes > 0) & (volumes <= MAX_LENGTH**3),
    ))  # fmt: skip


def _out_of_bounds(cell: np.ndarray, wrong: np.ndarray) -> str:
    column = int(np.argmax(wrong))
    allowed = f"{MIN_LENGTH:g} to {MAX_LENGTH:g} Å" if column < 3 else "0 to 180 degrees" if column < 6 else "a volume"
    return f"{CELL_COLUMNS[column]} '{cell[column]:g}' is not {allowed}"


NIGGLI_TOLERANCE = 1e-5
"""Of V^(2/3): squares of lengths that differ by less are equal."""
_ROUNDS = 10_000


def niggli_basis(vectors: np.ndarray) -> np.ndarray:
    """Return T, int [3, 3] of determinant 1 or -1: `T @ vectors` is right-handed and the Niggli-reduced basis.

    The parameters of that basis are the same for every basis of one lattice. Krivy & Gruber, Acta Cryst. A32 (1976)
    297, with the tolerances of Grosse-Kunstleve et al., Acta Cryst. A60 (2004) 1.

        paper            code
        A, B, C          a, b, c         squared lengths, Å²
        xi, eta, zeta    x, y, z         twice the scalar products, Å²
    """
    basis = np.eye(3, dtype=np.int64)
    tolerance = NIGGLI_TOLERANCE * abs(np.linalg.det(vectors)) ** (2 / 3)
    for _ in range(_ROUNDS):
        step = _niggli_step(_metric(basis @ vectors), tolerance)
        if step is None:
            return basis if np.linalg.det(basis @ vectors) > 0 else -basis
        basis = np.array(step, np.int64) @ basis
    raise DataError("structure has a lattice without a reduced cell")


def _metric(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def _niggli_step(metric: np.ndarray, tolerance: float) -> Sequence | np.ndarray | None:
    """Return the next change of basis, int [3, 3], None where the basis is reduced."""
    a, b, c = np.diag(metric).tolist()
    x, y, z = 2 * metric[1, 2], 2 * metric[0, 2], 2 * metric[0, 1]

    def equal(p: float, q: float) -> bool:
        return abs(p - q) <= tolerance

    def above(p: float, q: float) -> bool:
        return p > q + tolerance

    if above(a, b) or (equal(a, b) and above(abs(x), abs(y))):
        return ((0, -1, 0), (-1, 0, 0), (0, 0, -1))
    if above(b, c) or (equal(b, c) and above(abs(y), abs(z))):
        return ((-1, 0, 0), (0, 0, -1), (0, -1, 0))
    signs = _changed_signs((x, y, z), tolerance)
    if signs != (1, 1, 1):
        return np.diag(signs)
    if above(abs(x), b) or (equal(x, b) and above(z, 2 * y)) or (equal(x, -b) and above(0, z)):
        return ((1, 0, 0), (0, 1, 0), (0, -1 if x > 0 else 1, 1))
    if above(abs(y), a) or (equal(y, a) and above(z, 2 * x)) or (equal(y, -a) and above(0, z)):
        return ((1, 0, 0), (0, 1, 0), (-1 if y > 0 else 1, 0, 1))
    if above(abs(z), a) or (equal(z, a) and above(y, 2 * x)) or (equal(z, -a) and above(0, y)):
        return ((1, 0, 0), (-1 if z > 0 else 1, 1, 0), (0, 0, 1))
    total = x + y + z + a + b
    if above(0, total) or (equal(total, 0) and above(2 * (a + y) + z, 0)):
        return ((1, 0, 0), (0, 1, 0), (1, 1, 1))
    return None


def _changed_signs(products: Sequence[float], tolerance: float) -> tuple[int, ...]:
    """Return the signs of the three vectors that make all products positive, or else none of them."""
    signs = [0 if abs(value) <= tolerance else 1 if value > 0 else -1 for value in products]
    if np.prod(signs) > 0:
        return tuple(signs)
    changed = [-1 if sign > 0 else 1 for sign in signs]
    if np.prod(changed) < 0:
        changed[max(at for at, sign in enumerate(signs) if sign == 0)] *= -1
    return tuple(changed)
