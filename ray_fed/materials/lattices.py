"""Cells of crystals: six parameters and a volume, or three vectors, for many crystals at once.

A *cell* is float64 [7]: a, b, c in Å, alpha, beta, gamma in degrees, volume in Å³. Vectors are float64 [3, 3] in Å, one
per row. Numbers of no sense give NaN or infinity without a warning: `cell_problems` finds them.
"""

import numpy as np

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
