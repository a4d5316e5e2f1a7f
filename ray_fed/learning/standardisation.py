"""Federated standardisation: one mean and one standard deviation per column for everybody, from moments alone.

Local scalers would make the same number mean different things at different silos. Each silo sends (n, mean, M2) per
column; the coordinator merges them pairwise (Chan, Golub & LeVeque 1979, Eq. 2.1).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class ColumnMoments:
    """Count, mean and sum of squared deviations of each column; float64.

    Law: moments(A ++ B) == moments(A).merge(moments(B)) up to rounding.

        paper   code            shape
        m       num_examples    scalar
        T/m     mean            [num_columns]
        S       m2              [num_columns]
    """

    num_examples: int
    mean: np.ndarray
    m2: np.ndarray

    def __repr__(self) -> str:
        return f"ColumnMoments({self.num_examples} rows of {len(self.mean)} columns)"

    @classmethod
    def of(cls, values: np.ndarray) -> "ColumnMoments":
        """Return the moments of `values` [rows, num_columns]; rows must be finite."""
        values = np.asarray(values, np.float64)
        mean = values.mean(axis=0) if len(values) else np.zeros(values.shape[1])
        return cls(len(values), mean, np.square(values - mean).sum(axis=0))

    def merge(self, other: "ColumnMoments") -> "ColumnMoments":
        n = self.num_examples + other.num_examples
        if n == 0:
            return self
        shift, weight = other.mean - self.mean, other.num_examples / n
        return ColumnMoments(
            n, self.mean + shift * weight, self.m2 + other.m2 + np.square(shift) * (weight * self.num_examples)
        )


@dataclass(frozen=True)
class Standardizer:
    """x -> (x - mean) / scale per column; a constant column becomes 0.

    Rows that come later, of a silo that joins or a test set, may have other values where all training rows were equal.
    Such a column is scaled by its size, so that they become numbers of order one and not of 1e12.
    """

    mean: np.ndarray
    scale: np.ndarray

    def __repr__(self) -> str:
        return f"Standardizer({len(self.mean)} columns)"

    @classmethod
    def from_moments(cls, moments: ColumnMoments) -> "Standardizer":
        """Population standard deviation, as scikit-learn's StandardScaler."""
        std = np.sqrt(moments.m2 / max(1, moments.num_examples))
        # A column of equal numbers has a variance of rounding errors, not of data; they add up with the rows.
        size, rounding = np.abs(moments.mean), max(10, moments.num_examples) * np.finfo(np.float64).eps
        return cls(moments.mean, np.where(std <= rounding * size, np.maximum(1.0, size), std))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return float32 [rows, num_columns]."""
        return ((np.asarray(values, np.float64) - self.mean) / self.scale).astype(np.float32)


def merge_moments(parts: Iterable[ColumnMoments]) -> ColumnMoments:
    """Merge in the order given; callers sort by silo name so that arrival order cannot matter."""
    return reduce(ColumnMoments.merge, parts)
