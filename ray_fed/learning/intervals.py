"""Intervals around predictions, calibrated on rows that no model was trained on, by counts alone.

Split conformal prediction with a scale of its own for each prediction (Papadopoulos et al. 2002; Lei et al. 2018):

    bounds = f(x) - h(x), f(x) + h(x)     h(x) = (floor + d(x)) m(x)

    d(x)   how far the silos' own models are from the model f: root mean square; nothing where there are no such models
    floor  twice the median of d over the calibration rows, so that models that happen to agree promise nothing
    m(x)   quantile of |y - f| / (floor + d) over the calibration rows of the chemistry of x, of all silos

A chemistry whose calibration rows are too few for a quantile of its own (Vovk 2012 calls the others Mondrian) takes
that of all rows in units of what is usual in each: m(x) = q g(x), where g is the median of |y - f| / (floor + d) in the
chemistry of x, and q the quantile of |y - f| / ((floor + d) g) over all rows.

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
FEWEST_OF_QUANTILE = 50
"""Calibration rows without which a chemistry has a scale of its own, but no quantile."""
COUNTS_OF_GROUP = 4
"""So many counts of rows a silo must have of a chemistry to tell any: with fewer, all of them lie near the median."""
ALL = "all"
"""Nothing is known of the chemistry."""
_WIDEST = 2.0**24
"""Stands for an infinite interval in a question."""


@dataclass(frozen=True)
class IntervalScale:
    """How large an error is usual, (floor + d) g, of one model and one target; in the space of the outputs."""

    floor: float = 1.0
    by_group: Mapping[str, float] = field(default_factory=dict)
    """Chemistry -> g; one that is not there has that of `ALL`, 1 before any is known."""

    def of(self, spread: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        """Return the size [rows] of rows with a `spread` d [rows] of the silos' models and a chemistry each."""
        found = {group: self.of_group(group) for group in set(groups)}
        return (self.floor + spread) * np.array([found[group] for group in groups], np.float64)

    def of_group(self, group: str) -> float:
        return self.by_group.get(group, self.by_group.get(ALL, 1.0))

    def numbers(self, names: Sequence[str]) -> list[float]:
        """Return the scale as it goes with a question: the floor, then what is usual for all and in each chemistry."""
        return [self.floor, *(min(self.of_group(name), _WIDEST) for name in (ALL, *names))]


@dataclass(frozen=True)
class Intervals:
    """All that is needed to put bounds around predictions of one target by one model, as it stands in its card."""

    halves: Mapping[str, IntervalScale]
    """Level, as "0.9" -> half the width of its intervals; infinity where the calibration rows are too few for it."""
    num_rows: int
    """Calibration rows behind it, of all silos."""
    coverage: Mapping[str, "Coverage"] = field(default_factory=dict)
    """Chemistry, or `ALL` -> what the intervals cover of rows that were used neither for training nor here."""
    own: tuple[str, ...] = ()
    """Chemistries with quantiles of their own."""

    def bounds(self, outputs: np.ndarray, spread: np.ndarray, groups: Sequence[str]) -> dict[str, np.ndarray]:
        """Return level -> (lower, upper), float64 [2, rows], around outputs [rows]."""
        halves = {level: half.of(spread, groups) for level, half in self.halves.items()}
        return {level: np.stack([outputs - half, outputs + half]) for level, half in halves.items()}


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
    group, of which there must be COUNTS_OF_GROUP counts. Rows without a label, whose error is NaN, count nowhere."""
    known = np.isfinite(errors)
    of_row, counts = np.asarray(groups), np.zeros((2, 1 + len(names), NUM_BINS), np.int64)
    for place, rows in enumerate([known, *(known & (of_row == name) for name in names)]):
        if place and rows.sum() < COUNTS_OF_GROUP * fewest:
            continue
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


def intervals_of(plain: np.ndarray, scaled: np.ndarray, names: Sequence[str], scale: IntervalScale) -> Intervals:
    """Return the intervals from counts of the calibration rows: `counted_errors` with g = 1, and with this scale."""
    own = tuple(name for name, found in zip(names, plain[0, 1:], strict=True) if found.sum() >= FEWEST_OF_QUANTILE)
    halves = {}
    for level in LEVELS:
        q = quantile(scaled[0, 0], level)
        shared = {name: q * scale.of_group(name) for name in (ALL, *scale.by_group)}
        quantiles = {name: quantile(plain[0, 1 + names.index(name)], level) for name in own}
        halves[str(level)] = IntervalScale(scale.floor, shared | quantiles)
    return Intervals(halves, int(scaled[0, 0].sum()), own=own)


def coverage_of(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Coverage]:
    """Return what intervals cover, of all and of each group with rows; counts: level -> `counted_errors` of other rows
    in units of half the width of the level's intervals."""
    found = {}
    for place, name in enumerate([ALL, *names]):
        errors, halves = ({level: one[part, place] for level, one in counts.items()} for part in (0, 1))
        num_rows = max(int(one.sum()) for one in errors.values())
        if num_rows:
            shares = {level: share_up_to(one, 1.0) for level, one in errors.items()}
            found[name] = Coverage(num_rows, shares, {level: 2 * _mean_half(one) for level, one in halves.items()})
    return found


def _mean_half(counts: np.ndarray) -> float:
    return math.inf if counts[-1] else mean(counts)
