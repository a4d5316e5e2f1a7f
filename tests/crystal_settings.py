"""Other writings of a crystal, for tests and the benchmark: the same atoms in the same places, in other words."""

import numpy as np

from ray_fed.materials.crystal import Crystal


def rewritten(crystal: Crystal, rng: np.random.Generator, most_copies: int = 4) -> Crystal:
    """Return the crystal in a random supercell of up to `most_copies`, with another origin, order of sites and
    orientation."""
    basis = _random_basis(rng, most_copies)
    inverse = np.linalg.inv(basis)
    reach = np.arange(-8, 9)
    shifts = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(-1, 3) @ inverse
    shifts = shifts[((shifts > -1e-9) & (shifts < 1 - 1e-9)).all(axis=1)]
    positions = ((crystal.positions @ inverse)[:, None] + shifts[None]).reshape(-1, 3) + rng.random(3)
    copies = len(shifts)
    order = rng.permutation(len(positions))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation[0] *= np.sign(np.linalg.det(rotation))
    amounts = {symbol: amount * copies for symbol, amount in crystal.amounts.items()}
    return Crystal(
        crystal.formula, basis @ crystal.vectors @ rotation, positions[order], np.repeat(crystal.kinds, copies)[order],
        None, amounts, numbers=None if crystal.numbers is None else np.repeat(crystal.numbers, copies)[order],
    )  # fmt: skip


def _random_basis(rng: np.random.Generator, most_copies: int) -> np.ndarray:
    """Return a right-handed basis of small whole numbers, float64 [3, 3]."""
    while True:
        basis = rng.integers(-2, 3, (3, 3)).astype(float)
        copies = round(float(np.linalg.det(basis)))
        if 1 <= abs(copies) <= most_copies:
            basis[0] *= np.sign(copies)
            return basis
