"""What an evaluation of a model comes to: metrics, and sums over samples that add up across silos."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol, TypeVar

import numpy as np

from ray_fed.config import require

Own = TypeVar("Own", bound="Scores")

METRIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,63}")
TRAIN_LOSS = "train_loss"
"""Key of a round's mean training loss, and last part of a silo's: never that of an evaluation."""
RESERVED = (
    TRAIN_LOSS, "server_round", "num_examples", "bytes_sent", "participants", "failures", "epsilon", "seconds_compute",
    "seconds_communicate",
)  # fmt: skip
"""What tables and curves hold besides metrics."""


@dataclass(frozen=True)
class Metric:
    """One number that an evaluation tells of a model. All that terminal, history, report, figures, TensorBoard, sweep
    and gate know of it. ConfigError for a name that is none, or is taken."""

    name: str
    """Its key: 1 to 64 letters, digits, spaces, "_", "." and "-", beginning with a letter."""
    unit: str
    """Unit of its values; "" for a pure number."""
    higher_is_better: bool
    """Whether more of it is better."""
    digits: int
    """Decimals in tables."""
    label: str = ""
    """What people call it; its name if empty."""
    is_detail: bool = False
    """Kept in history and TensorBoard only, not in summary, tables and figures."""

    def __post_init__(self) -> None:
        wanted = "must be 1 to 64 letters, digits, '_', ' ', '.' or '-' after a letter"
        require(METRIC_NAME.fullmatch(self.name) is not None, f"metric name {self.name!r} {wanted}")
        require(self.name not in RESERVED, f"metric name {self.name!r} is taken; {', '.join(RESERVED)} are no metrics")
        require(self.digits >= 0, f"metric {self.name!r}: digits={self.digits} must be 0 or more")

    @property
    def title(self) -> str:
        """How it is called: "MAE"."""
        return self.label or self.name

    @property
    def heading(self) -> str:
        """How a column of it is called: "MAE (eV/atom)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def few_digits(self) -> int:
        """Decimals where there is little room: in figures and on the line of progress."""
        return max(0, self.digits - 1)

    @property
    def worst(self) -> float:
        """The value that no model is below."""
        return -math.inf if self.higher_is_better else math.inf

    def gain(self, value: float, other: float) -> float:
        """Return by how much `value` is better than `other`; negative where it is worse."""
        return value - other if self.higher_is_better else other - value

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of the values that are numbers, None without any."""
        known = [value for value in values if math.isfinite(value)]
        return (max if self.higher_is_better else min)(known) if known else None


LOSS = Metric("loss", "", False, 4)


def reported(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
    """Return those that are shown in tables and figures, in their order; the first one where all are details."""
    known = tuple(metrics)
    return tuple(metric for metric in known if not metric.is_detail) or known[:1]


def in_one_line(values: Mapping[str, float], most: int = 6) -> str:
    """Return "mae 0.1802, r2 0.9368" for a repr: four digits each, the first `most` of the values."""
    shown = [f"{name} {value:.4g}" for name, value in list(values.items())[:most]]
    return ", ".join([*shown, f"{len(values) - most} more"] if len(values) > most else shown)


class Scores(Protocol):
    """Law: of(A ++ B) == of(A) + of(B) up to rounding, for any split of the samples."""

    @property
    def num_examples(self) -> int: ...

    def values(self) -> dict[str, float]:
        """Return the metrics by name."""
        ...

    def __add__(self: Own, other: Own, /) -> Own: ...


@dataclass(frozen=True)
class MeanScores:
    """Metrics that are means over samples: loss, accuracy, intersection over union per image."""

    num_examples: int
    """Samples behind the sums."""
    sums: Mapping[str, float]
    """Metric -> sum of its values over the samples, in the metric's unit."""

    def __repr__(self) -> str:
        return f"MeanScores({self.num_examples} samples: {in_one_line(self.values())})"

    @classmethod
    def of(cls, per_sample: Mapping[str, np.ndarray]) -> "MeanScores":
        """Add up arrays [samples]; ValueError unless all have the same length."""
        lengths = {name: len(values) for name, values in per_sample.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"scores must have one value per sample, got {lengths}")
        sums = {name: float(np.asarray(values, np.float64).sum()) for name, values in per_sample.items()}
        return cls(next(iter(lengths.values()), 0), sums)

    def values(self) -> dict[str, float]:
        """Return metric -> mean over the samples; NaN without any."""
        n = self.num_examples
        return {name: total / n if n else float("nan") for name, total in self.sums.items()}

    def __add__(self, other: "MeanScores") -> "MeanScores":
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return MeanScores(self.num_examples + other.num_examples, sums)


def merged(parts: Iterable[Own]) -> Own:
    """Return the scores of the union, merged in the order given; ValueError without any."""
    found = list(parts)
    if not found:
        raise ValueError("no scores to merge")
    return reduce(add, found)


# ---- regression


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
    """Rows behind the sums."""
    sum_absolute_error: float
    """In the target's unit."""
    sum_squared_error: float
    """In the square of the target's unit."""
    mean_target: float
    """In the target's unit."""
    m2_target: float
    """Sum of (y_true - mean_target)^2, in the square of the target's unit."""

    def __repr__(self) -> str:
        return f"RegressionSums({self.num_examples} rows: {in_one_line(self.values())})"

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
        """Return "mae" in the target's unit, "r2" without unit, "mse" in the unit's square; NaN without rows."""
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
