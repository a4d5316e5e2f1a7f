"""Guesses of one who knows how records are distributed: which columns go together, and how far they spread.

A guess is a record and an error of the same size in every column. With records that are normal with mean mu and
covariance S, and an error of variance s^2, the record to expect behind a guess g is (Wiener 1949)

    mu + S (S + s^2 I)^-1 (g - mu)

s is the one under which the guess itself is likeliest. Elements decide most columns of a crystal, so a few directions
carry nearly all of S, and an error in the others is taken off.
"""

from dataclasses import dataclass

import numpy as np

ERRORS = 10.0 ** np.arange(-4, 2, 0.25)
"""Standard deviations of a guess's error that are tried, in those of the features."""
SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Marginals:
    """Mean and covariance of records as the network sees them."""

    mean: np.ndarray
    """[num_features]"""
    variances: np.ndarray
    """[num_features]: along the columns of `directions`."""
    directions: np.ndarray
    """[num_features, num_features]"""

    @classmethod
    def of(cls, rows: np.ndarray) -> "Marginals":
        """Return those of public records [num_rows, num_features], two at least."""
        variances, directions = np.linalg.eigh(np.cov(np.asarray(rows, np.float64).T))
        return cls(rows.mean(0), np.clip(variances, 0, None) + SMALLEST_VARIANCE, directions)

    def likeliest(self, guesses: np.ndarray) -> np.ndarray:
        """Return the records to expect behind guesses [guesses, num_features], of the same shape; guesses that are not
        finite are left out."""
        apart = (guesses[np.isfinite(guesses).all(1)] - self.mean) @ self.directions
        spread = self.variances + np.square(ERRORS)[:, None]
        fit = -0.5 * (np.square(apart) @ (1 / spread).T + np.log(spread).sum(1))
        error = np.square(ERRORS)[fit.argmax(1)][:, None] if len(apart) else np.zeros((0, 1))
        return self.mean + (apart * (self.variances / (self.variances + error))) @ self.directions.T
