"""Intervals around predictions, calibrated on rows that no model was trained on, by counts alone.

Split conformal prediction with a scale of its own for each prediction (Papadopoulos et al. 2002; Lei et al. 2018):

    s(x)   = (floor + d(x)) g(x)          how large an error is usual at x
    q      = quantile of |y - f(x)| / s(x) over the calibration rows of all silos
    bounds = f(x) - q s(x), f(x) + q s(x)

    d(x)   how far the silos' own models are from the model f: root mean square; nothing where there are no such models
    floor  twice the median of d over the calibration rows, so that models that happen to agree promise nothing
    g(x)   the median of |y - f| / (floor + d) over the calibration rows of the chemistry of x

All of it in the space of the network's outputs (transformed and standardised targets): a target that is learned as a
logarithm gets bounds that stay positive. Why this scale and no other: benchmarks/uncertainty.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_fed.learning.counted_quantiles import NUM_BINS, histogram, mean, median, quantile, share_up_to

LEVELS = (0.5, 0.9)
"""Shares of the true values that the intervals are to cover."""
FLOOR = 2.0
"""Medians of the models' spread that are added to it."""
FEWEST_OF_GROUP = 20
"""Calibration rows without which a chemistry has no scale of its own and takes that of all."""
ALL = "all"


@dataclass(frozen=True)
class IntervalScale:
    """How large an error is usual: the s(x) of one model and one target, in the space of the network's outputs."""

    floor: float = 1.0
    by_group: Mapping[str, float] = field(default_factory=dict)
    """Chemistry -> g; one that is not there has that of `ALL`, 1 before any is known."""

    def of(self, spread: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        """Return s [rows] of rows with a `spread` d [rows] of the silos' models and a chemistry each."""
        usual = self.by_group.get(ALL, 1.0)
        found = {group: self.by_group.get(group, usual) for group in set(groups)}
        return (self.floor + spread) * np.array([found[group] for group in groups], np.float64)


@dataclass(frozen=True)
class Intervals:
    """All that is needed to put bounds around predictions of one target by one model, as it stands in its card."""

    scale: IntervalScale
    quantiles: Mapping[str, float]
    """Level, as "0.9" -> q; infinity where the calibration rows are too few for it."""
    num_rows: int
    """Calibration rows behind it, of all silos."""
    coverage: Mapping[str, "Coverage"] = field(default_factory=dict)
    """Chemistry, or `ALL` -> what the intervals cover of rows that were used neither for training nor here."""

    def bounds(self, outputs: np.ndarray, spread: np.ndarray, groups: Sequence[str]) -> dict[str, np.ndarray]:
        """Return level -> (lower, upper), float64 [2, rows], around outputs [rows]."""
        scale = self.scale.of(spread, groups)
        return {level: np.stack([outputs - q * scale, outputs + q * scale]) for level, q in self.quantiles.items()}


@dataclass(frozen=True)
class Coverage:
    """Of rows that were used neither for training nor for calibration."""

    num_rows: int
    shares: Mapping[str, float]
    """Level -> share of the true values between the bounds."""
    widths: Mapping[str, float]
    """Level -> mean width, in the space of the network's outputs."""


# ---- what a silo counts


def spread_of(own: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Return d [rows]: how far the silos' own models' outputs [models, rows] are from the model's [rows]."""
    return np.sqrt(np.mean((np.asarray(own, np.float64) - model) ** 2, axis=0)) if len(own) else np.zeros(len(model))


def counted_errors(
    errors: np.ndarray, scales: np.ndarray, groups: Sequence[str], names: Sequence[str], fewest: int
) -> np.ndarray:
    """Return counts of |error| / scale and of the scales, int64 [2, 1 + len(names), NUM_BINS]: of all rows, and of each
    group. Rows without a label, whose error is NaN, count nowhere."""
    known = np.isfinite(errors)
    of_row, counts = np.asarray(groups), np.zeros((2, 1 + len(names), NUM_BINS), np.int64)
    for place, rows in enumerate([known, *(known & (of_row == name) for name in names)]):
        counts[0, place] = histogram(np.abs(errors[rows]) / scales[rows], fewest)
        counts[1, place] = histogram(scales[rows], fewest)
    return counts


# ---- what is made of the sum of all silos' counts


def scale_of(counts: np.ndarray, names: Sequence[str], floor: float) -> IntervalScale:
    """Return the scale with a median for each group that has enough rows; counts: `counted_errors` with g = 1."""
    named = dict(zip([ALL, *names], counts[0], strict=True))
    enough = {name: found for name, found in named.items() if name == ALL or found.sum() >= FEWEST_OF_GROUP}
    medians = {name: median(found) for name, found in enough.items()}
    return IntervalScale(floor, {name: one for name, one in medians.items() if math.isfinite(one) and one > 0})


def intervals_of(counts: np.ndarray, scale: IntervalScale) -> Intervals:
    """Return the intervals; counts: `counted_errors` with this scale over the calibration rows."""
    return Intervals(scale, {str(level): quantile(counts[0, 0], level) for level in LEVELS}, int(counts[0, 0].sum()))


def coverage_of(counts: np.ndarray, names: Sequence[str], quantiles: Mapping[str, float]) -> dict[str, Coverage]:
    """Return what intervals cover, of all and of each group with rows; counts: `counted_errors` of other rows."""
    return {
        name: Coverage(
            int(errors.sum()),
            {level: share_up_to(errors, q) for level, q in quantiles.items()},
            {level: 2 * q * mean(scales) for level, q in quantiles.items()},
        )
        for name, errors, scales in zip([ALL, *names], *counts, strict=True)
        if errors.sum()
    }
