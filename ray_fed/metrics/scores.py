"""What an evaluation of a model comes to: sums over samples that add up across silos, and how exactly they are told."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from ray_fed.metrics.metric import Metric, in_one_line

MEAN_ABSOLUTE_ERROR = "mae"
"""Name of the metric, for who has to find it among a task's."""
Own = TypeVar("Own", bound="Scores")


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
        Metric(MEAN_ABSOLUTE_ERROR, unit, False, 4, "MAE"),
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
        return {MEAN_ABSOLUTE_ERROR: self.mae, "r2": self.r2, "mse": self.mse}

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


# ---- how exactly a silo tells what a model comes to on its rows
#
# Exact sums over rows are equations for the rows: from enough of them every target can be solved for. So a mean leaves
# with few binary digits, and whether the last one is rounded up or down is drawn; the chance is such that the mean of
# many draws is right. Plain rounding would not do: by moving a model a little at a time one finds the very place where
# a rounded number jumps, and that place is exact.
#
# The coin is a keyed hash of model and metric, and the key is made from the silo's targets: who knows the rows (every
# cohort, for the same rows) finds the same coin, who does not know them cannot foretell it. Asking again for the same
# model gives the same answer; asking for very many models nearly like it averages the coins, so their number is
# bounded by the silo's owner (`max_evaluations_per_run`, ray_fed/perimeter/policy.py).

FEWEST_ROWS = 5
"""Rows behind a statistic, and rows whose share is a step of a released mean, unless the owner says otherwise."""
LEAST_BITS = 7
"""Binary digits after the first that a mean has at least: steps of 0.4 to 0.8 per cent."""
LEAST_BITS_OF_NUMBERS = 3
"""The same where every row has one number as its target, which sums of errors can be solved for."""

ABOUT_TARGETS = ("mean_target", "m2_target", "class_total")
"""Last parts of the names of what depends on no model: one coin for all models."""

Coin = Callable[[str], float]
"""Name of a number -> where it is rounded, from 0 (down) to 1 (up)."""


@runtime_checkable
class Releasable(Protocol):
    """Scores that know themselves how they are told."""

    def released(self, resolution: "Resolution", coin: Coin) -> Scores: ...


@dataclass(frozen=True)
class Resolution:
    """The digits of what is released."""

    fewest_rows: int = FEWEST_ROWS
    least_bits: int = LEAST_BITS
    least_bits_of_numbers: int = LEAST_BITS_OF_NUMBERS

    def bits(self, num_rows: int, of_numbers: bool) -> int:
        """Return the binary digits after the first of a mean over so many rows: steps as large as the share of
        `fewest_rows` of them (below the mean's own sampling error from 25 rows on), but not coarser than the least."""
        least = self.least_bits_of_numbers if of_numbers else self.least_bits
        return max(least, (num_rows // self.fewest_rows).bit_length() - 1)

    def released(self, scores: Scores, coin: Coin | None = None, of_numbers: bool = False) -> Scores:
        """Return the scores with means of few digits; `of_numbers`: the target of a row is one number. Without a coin
        to the nearest step, which leaves what was released as it is. Scores of another class are refused at the gate,
        and returned here."""
        coin, n = coin or _nearest, scores.num_examples
        if n == 0:
            return scores
        bits = self.bits(n, of_numbers or type(scores) is RegressionSums)
        if type(scores) is MeanScores:
            means = {name: on_grid(total / n, bits, coin(name)) for name, total in scores.sums.items()}
            return MeanScores(n, {name: n * mean for name, mean in means.items()})
        if type(scores) is RegressionSums:
            return _regression(scores, bits, coin)
        return scores.released(self, coin) if isinstance(scores, Releasable) else scores


def on_grid(value: float, bits: int, up: float, like: float | None = None) -> float:
    """Return a multiple of 2^-bits of the largest power of two in `like` (in the value itself, if not given), the one
    below value + `up` steps. Exact: the step is a power of two."""
    size = abs(value if like is None else like)
    if size == 0 or not (math.isfinite(size) and math.isfinite(value)):
        return value
    step = math.ldexp(1.0, max(math.frexp(size)[1] - 1 - bits, -1022))
    return math.floor(value / step + up) * step if abs(value) < step * 2.0**52 else value


def secret_of(arrays: Sequence[object], *others: str) -> bytes:
    """Return a key made from a silo's own arrays, and from texts where it has none."""
    digest = hashlib.blake2b(repr(others).encode())
    for array in arrays:
        if isinstance(array, np.ndarray) and array.dtype != object:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def coin_of(secret: bytes, vector: np.ndarray, part: str) -> Coin:
    """Return the coins of one model on one part of the rows; what depends on no model has one coin for all."""
    model = hashlib.blake2b(np.ascontiguousarray(vector).data).digest()

    def coin(name: str) -> float:
        about = b"" if name.rpartition(".")[2] in ABOUT_TARGETS else model
        drawn = hashlib.blake2b(about + f"{part}.{name}".encode(), key=secret, digest_size=8).digest()
        return int.from_bytes(drawn, "little") / 2.0**64

    return coin


def _nearest(name: str) -> float:  # noqa: ARG001
    return 0.5


def _regression(scores: RegressionSums, bits: int, coin: Coin) -> RegressionSums:
    """The mean of the targets has steps of their standard deviation's size: targets far from zero are not all alike."""
    n = scores.num_examples
    absolute, squared, variance = (
        n * on_grid(getattr(scores, name) / n, bits, coin(name))
        for name in ("sum_absolute_error", "sum_squared_error", "m2_target")
    )
    spread = math.sqrt(max(0.0, variance) / n) or None
    mean = on_grid(scores.mean_target, bits, coin("mean_target"), spread)
    return RegressionSums(n, absolute, squared, mean, variance)
