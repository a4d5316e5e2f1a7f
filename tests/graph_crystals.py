"""Small crystals with the places of their atoms, for tests of networks on graphs."""

from pathlib import Path

import numpy as np
import pandas as pd

PROTOTYPES = {
    "rocksalt": ([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], [[0, 0, 0], [0.5, 0.5, 0.5]], "AX", 4.6),
    "caesium chloride": (np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], "AX", 3.2),
    "perovskite": (np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]], "ABXXX", 3.9),
}
IONS = {"A": (11, 19, 20, 37, 38, 55, 56), "B": (22, 23, 25, 26, 40, 41), "X": (8, 9, 16, 17)}


def crystals(count: int = 80, seed: int = 0) -> pd.DataFrame:
    """Return crystals of three prototypes with an energy that bonds and prototype decide."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        vectors, positions, kinds, length = list(PROTOTYPES.values())[random.integers(len(PROTOTYPES))]
        drawn = {kind: int(random.choice(IONS[kind])) for kind in sorted(set(kinds))}
        numbers = [drawn[kind] for kind in kinds]
        scale = length * (0.8 + 0.01 * drawn["A"] ** 0.5 * random.uniform(0.95, 1.05) + 0.005 * drawn["X"])
        rows.append(
            (np.array(vectors) * scale, numbers, positions, -3.0 + 0.02 * drawn["X"] + 0.2 * scale / len(numbers))
        )
    lattice = np.array([row[0] for row in rows])
    lengths = np.linalg.norm(lattice, axis=2)
    angles = [
        np.degrees(np.arccos((lattice[:, i] * lattice[:, j]).sum(1) / lengths[:, i] / lengths[:, j]))
        for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    return pd.DataFrame({
        **dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), [*lengths.T, *angles], strict=True)),
        "numbers": [row[1] for row in rows], "frac_coords": [np.ravel(row[2]).tolist() for row in rows],
        "formation_energy_per_atom": [row[3] for row in rows],
    })  # fmt: skip


def written(folder: Path, count: int = 80, seed: int = 0) -> Path:
    """Write crystals into a file and return its path."""
    path = folder / "crystals.parquet"
    crystals(count, seed).to_parquet(path)
    return path
