"""Element-reference offsets: what one database is above or below a model, linear in composition.

Databases of different functionals, and measurements, disagree most of all about the energies of the elements that a
formation energy is counted from: y_silo(x) = y(x) + sum over elements of share_e(x) * offset_e. The offsets are fitted
in the silo, by ridge regression on what the model gets wrong there, and stay in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.materials.features.composition import read_compositions

NUM_ELEMENTS = 118
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Strengths that the folds choose from: rows of a pure element that count as one row of offset 0."""
FOLDS = 5


@dataclass(frozen=True)
class ElementOffsets:
    """What to add to a model's prediction of a composition."""

    values: np.ndarray
    """float64 [118]: of a pure element, in the target's unit; 0 of elements that the silo does not have."""

    def of(self, formulas: Sequence[str]) -> np.ndarray:
        """Return what to add, [rows]; 0 for a formula that cannot be read."""
        return atom_shares(formulas) @ self.values


def atom_shares(formulas: Sequence[str]) -> np.ndarray:
    """Return the share of each element among the atoms, float64 [rows, 118]; zeros for what cannot be read."""
    rows, _ = read_compositions(formulas)
    row = np.repeat(np.arange(len(rows)), np.diff(rows.indptr))
    shares = np.zeros((len(rows), NUM_ELEMENTS))
    shares[row, rows.atomic_numbers - 1] = rows.amounts
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)


def fitted_offsets(
    formulas: Sequence[str], errors: np.ndarray, groups: Sequence[str]
) -> tuple[ElementOffsets, np.ndarray]:
    """Return the offsets that explain true minus predicted values [rows], and what those of the other folds, fitted
    without a row's fold, say of each row [rows]: an honest look at how much they help.

    groups: of each row; rows of one group are in one fold. The folds choose the strength of the ridge, and whether
    there are offsets at all: zeros where they would do harm.
    """
    shares, fold = atom_shares(formulas), _folds(groups)
    looks = [_unseen(shares, errors, fold, ridge) for ridge in RIDGES]
    harm = [np.abs(errors - look).mean() for look in looks]
    at = int(np.argmin(harm))
    if not harm[at] < np.abs(errors).mean():
        return ElementOffsets(np.zeros(NUM_ELEMENTS)), np.zeros(len(errors))
    return ElementOffsets(_ridge(shares, errors, RIDGES[at])), looks[at]


def _folds(groups: Sequence[str]) -> np.ndarray:
    """Return the fold of each row [rows]: groups in turn, in the order of their names."""
    number = {group: at % FOLDS for at, group in enumerate(sorted(set(groups)))}
    return np.array([number[group] for group in groups])


def _unseen(shares: np.ndarray, errors: np.ndarray, fold: np.ndarray, ridge: float) -> np.ndarray:
    found = np.zeros(len(errors))
    for number in range(FOLDS):
        held = fold == number
        found[held] = shares[held] @ _ridge(shares[~held], errors[~held], ridge)
    return found


def _ridge(shares: np.ndarray, errors: np.ndarray, ridge: float) -> np.ndarray:
    """Return argmin |errors - shares w|^2 + ridge |w|^2, float64 [118]."""
    return np.linalg.solve(shares.T @ shares + ridge * np.eye(NUM_ELEMENTS), shares.T @ errors)
