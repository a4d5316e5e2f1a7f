"""Quantiles of numbers that stay where they are: each silo counts its rows in agreed bins, and the counts are added up.

    counts   int64 [..., NUM_BINS]   rows per bin; bins are equally wide on a logarithmic scale
    fewest   rows that a count must have, else it is not told

Laws: shown(a, n) has the number of rows of `a`, or none where `a` has fewer than n; every count of it is 0 or at
least n; quantile(histogram(v), p) lies within one bin of the conformal quantile of v.
"""

import math

import numpy as np

PER_OCTAVE = 8
"""Bins per factor of 2: each is 9 % wide, about as many digits as an owner lets out of an error anyway."""
LOWEST, HIGHEST = -12, 12
"""Powers of 2 between which numbers are told apart: 0.0002 to 4,096, of residuals in units of their usual size."""
NUM_BINS = (HIGHEST - LOWEST) * PER_OCTAVE + 2
"""The first bin has all smaller numbers, the last one all larger ones."""


def bins_of(values: np.ndarray) -> np.ndarray:
    """Return the bin of each number >= 0, int64; of one that is not finite, the last."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.floor(PER_OCTAVE * (np.log2(values) - LOWEST)) + 1
    return np.clip(np.where(np.isfinite(values), place, NUM_BINS - 1), 0, NUM_BINS - 1).astype(np.int64)


def edge(position: float) -> float:
    """Return the number at a position among the bins: `position` 3.5 is in the middle of the bin 3."""
    return 2.0 ** ((position - 1) / PER_OCTAVE + LOWEST)


def histogram(values: np.ndarray, fewest: int = 1) -> np.ndarray:
    """Return the counts of numbers [rows], int64 [NUM_BINS], in which no group of rows is smaller than `fewest`.

    Neighbours are put together, `fewest` and `fewest`, from the largest number down, and each group counts where its
    middle row is; the smallest numbers make one group of up to 2 fewest - 1. Fewer rows than that are not told at all.
    Groups that all counted at their largest row would widen intervals: with 400 rows in five silos, a nominal 90 %
    covered 94 % (benchmarks/uncertainty.md).
    """
    placed = np.sort(bins_of(np.asarray(values, np.float64)))
    counts = np.zeros(NUM_BINS, np.int64)
    num_groups = len(placed) // max(1, fewest)
    if num_groups == 0:
        return counts
    first = len(placed) - fewest * (num_groups - 1)
    counts[placed[first // 2]] += first
    np.add.at(counts, placed[first + fewest // 2 :: fewest][: num_groups - 1], fewest)
    return counts


def quantile(counts: np.ndarray, level: float) -> float:
    """Return the conformal quantile of counted numbers: that of rank ceil((n + 1) level) among n (Lei et al. 2018).

    A further number from where these came from is not larger with a probability of at least `level`. Infinity where
    there are too few numbers, or that one lies in the last bin: then no bound is known.
    """
    num_rows = int(counts.sum())
    rank = math.ceil((num_rows + 1) * level)
    if num_rows == 0 or rank > num_rows:
        return math.inf
    upto = np.cumsum(counts)
    place = int(np.searchsorted(upto, rank))
    if place == NUM_BINS - 1:
        return math.inf
    inside = (rank - (upto[place] - counts[place])) / counts[place]
    return edge(place + inside)


def median(counts: np.ndarray) -> float:
    """Return the middle of counted numbers; NaN where there are none, infinity where it lies in the last bin."""
    return quantile(counts, 0.5) if counts.sum() > 1 else math.nan


def share_up_to(counts: np.ndarray, bound: float) -> float:
    """Return the share of counted numbers that are at most `bound`, in its own bin in proportion; NaN without any."""
    num_rows = int(counts.sum())
    if num_rows == 0:
        return math.nan
    if not math.isfinite(bound):
        return 1.0
    position = PER_OCTAVE * (math.log2(bound) - LOWEST) + 1 if bound > 0 else 0.0
    position = min(max(position, 0.0), float(NUM_BINS))
    whole = int(position)
    below = int(counts[:whole].sum())
    inside = (position - whole) * int(counts[whole]) if whole < NUM_BINS - 1 else 0.0
    return (below + inside) / num_rows


def mean(counts: np.ndarray) -> float:
    """Return the mean of counted numbers, each taken in the middle of its bin; NaN without any."""
    middles = np.array([edge(place + 0.5) for place in range(NUM_BINS)])
    return float((counts * middles).sum() / counts.sum()) if counts.sum() else math.nan
