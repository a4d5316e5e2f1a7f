"""Regression metrics from sums that add up exactly across silos: no row is needed to know MAE and R2 of a union."""

from dataclasses import dataclass

import numpy as np

from ray_fed.learning.scores import Metric


def regression_metrics(unit: str = "") -> tuple[Metric, ...]:
    """Return what `RegressionSums` tells, for a target in `unit`."""
    return (
        Metric("mae", unit, False, 4, "MAE"),
        Metric("r2", "", True, 4, "R²"),
        Metric("mse", f"({unit})²" if unit else "", False, 4, "MSE", is_detail=True),
    )


@dataclass(frozen=True)
class RegressionSums:
    """Sufficient statistics of (y_true, y_pred) pairs.

    Law: sums(A ++ B) == sums(A) + sums(B) up to rounding, for any split of the rows.
    `mean_target` and `m2_target` (sum of squared deviations) are merged pairwise (Chan et al. 1979), not from
    E[y^2] - E[y]^2, which cancels.
    """

    num_examples: int
    sum_absolute_error: float
    sum_squared_error: float
    mean_target: float
    m2_target: float

    @classmethod
    def of(cls, y_true: np.ndarray, y_pred: np.ndarray) -> "RegressionSums":
        """Count pairs; both arrays [rows], in the target's unit."""
        truth, error = np.asarray(y_true, np.float64), np.asarray(y_pred, np.float64) - y_true
        mean = float(truth.mean()) if len(truth) else 0.0
        return cls(
            len(truth),
            float(np.abs(error).sum()),
            float(np.square(error).sum()),
            mean,
            float(np.square(truth - mean).sum()),
        )

    def __add__(self, other: "RegressionSums") -> "RegressionSums":
        n = self.num_examples + other.num_examples
        if n == 0:
            return self
        shift = other.mean_target - self.mean_target
        weight = other.num_examples / n
        return RegressionSums(
            n,
            self.sum_absolute_error + other.sum_absolute_error,
            self.sum_squared_error + other.sum_squared_error,
            self.mean_target + shift * weight,
            self.m2_target + other.m2_target + shift * shift * weight * self.num_examples,
        )

    def values(self) -> dict[str, float]:
        return {"mae": self.mae, "r2": self.r2, "mse": self.mse}

    @property
    def mae(self) -> float:
        """Mean absolute error, in the target's unit; NaN without rows."""
        return self.sum_absolute_error / self.num_examples if self.num_examples else float("nan")

    @property
    def mse(self) -> float:
        """Mean squared error; NaN without rows."""
        return self.sum_squared_error / self.num_examples if self.num_examples else float("nan")

    @property
    def r2(self) -> float:
        """Coefficient of determination; NaN when the targets do not vary."""
        return 1.0 - self.sum_squared_error / self.m2_target if self.m2_target > 0 else float("nan")
