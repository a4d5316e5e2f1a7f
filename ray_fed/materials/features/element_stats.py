"""Statistics of element properties over compositions: one sparse kernel for every table and every set of statistics.

Rows are taken in order of falling number of elements, a block at a time. Then the j-th elements of a block's rows form
a dense array, and all statistics come from one pass over j of plain array operations that stay in the cache: several
times the rate of `numpy.ufunc.reduceat` on the same rows (benchmarks/featurize.md).

    symbol   code                  meaning
    w_j      amounts               atoms of element j in the formula
    x_j      values[Z_j]           its property
    W        total                 sum of w
    m        mean                  sum of w x / W
    S        scatter               sum of w (x - m)²
    P        pairs                 sum over i < j of w_i w_j = (W² - sum of w²) / 2

Mean and scatter are updated element by element (West 1979, Commun. ACM 22, 532), from differences to the running mean:
equal values give exactly zero, and values of 1e13 (a resistivity) cost no digits. P and S are sums of positive terms:
W² - sum of w² would cancel for a dopant.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.errors import ConfigError
from ray_fed.materials.features.composition import CompositionRows

BLOCK_VALUES = 13 * 1024
"""Rows times properties handled together: about eight such arrays of float64 stay in a core's second-level cache."""


@dataclass(frozen=True)
class Moments:
    """What a block of m rows is reduced to; arrays [m, num_properties], `total` and `pairs` [m, 1]."""

    minimum: np.ndarray
    maximum: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray
    total: np.ndarray
    pairs: np.ndarray


def _mean(moments: Moments) -> np.ndarray:
    # Rounding may carry the mean a bit past the largest value.
    return np.clip(moments.mean, moments.minimum, moments.maximum)


def _variance(moments: Moments) -> np.ndarray:
    """Reliability-weighted unbiased variance S W / (W² - sum of w²); 0 for a single element, as matminer has it."""
    several = moments.pairs > 0
    factor = np.divide(moments.total, 2.0 * moments.pairs, out=np.zeros_like(moments.pairs), where=several)
    return moments.scatter * factor


STATISTICS: Mapping[str, Callable[[Moments], np.ndarray]] = {
    "minimum": lambda moments: moments.minimum,
    "maximum": lambda moments: moments.maximum,
    "range": lambda moments: moments.maximum - moments.minimum,
    "mean": _mean,
    "std_dev": lambda moments: np.sqrt(_variance(moments)),
    "variance": _variance,
    "sum": lambda moments: moments.mean * moments.total,
    "population_variance": lambda moments: moments.scatter / moments.total,
}
"""Statistics by name. `sum` is weighted by atoms of the formula as written; all others are the same for 2 (Fe2O3)."""


def element_stats(rows: CompositionRows, values: np.ndarray, statistics: Sequence[str]) -> np.ndarray:
    """Return the statistics of element properties, float64 [num_rows, num_properties, num_statistics].

    rows        compositions
    values      float64 [119, num_properties], row = atomic number; NaN spreads to the statistics that use it
    statistics  names from STATISTICS; ConfigError on any other

    Rows without elements are NaN.
    """
    unknown = [name for name in statistics if name not in STATISTICS]
    if unknown:
        raise ConfigError(f"statistic {unknown[0]!r} is not known; choose from {', '.join(STATISTICS)}")
    values = np.ascontiguousarray(values, dtype=np.float64)
    result = np.empty((len(rows), values.shape[1], len(statistics)))
    result[rows.num_elements == 0] = np.nan
    for block in _blocks(rows.num_elements, max(1, BLOCK_VALUES // values.shape[1])):
        moments = _moments(rows, block, values)
        columns = np.empty((len(block), *result.shape[1:]))
        for position, name in enumerate(statistics):
            columns[:, :, position] = STATISTICS[name](moments)
        result[block] = columns
    return result


def _blocks(num_elements: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield row positions in order of falling number of elements; rows without any are left out."""
    order = np.argsort(-num_elements, kind="stable")[: np.count_nonzero(num_elements)]
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _moments(rows: CompositionRows, block: np.ndarray, values: np.ndarray) -> Moments:
    """Reduce the rows `block`, sorted by falling number of elements, in one pass over their elements."""
    first, num_elements = rows.indptr[block], rows.num_elements[block]
    mean = values.take(rows.atomic_numbers[first], axis=0)
    minimum, maximum, scatter = mean.copy(), mean.copy(), np.zeros_like(mean)
    total = rows.amounts[first][:, None]
    pairs = np.zeros_like(total)
    for place in range(1, num_elements[0]):
        count = int(np.count_nonzero(num_elements > place))  # rows that have a further element come first
        entries = first[:count] + place
        value, amount = values.take(rows.atomic_numbers[entries], axis=0), rows.amounts[entries][:, None]
        np.minimum(minimum[:count], value, out=minimum[:count])
        np.maximum(maximum[:count], value, out=maximum[:count])
        new_pairs = amount * total[:count]
        pairs[:count] += new_pairs
        total[:count] += amount
        difference = value - mean[:count]
        mean[:count] += difference * (amount / total[:count])
        difference *= difference
        difference *= new_pairs / total[:count]
        scatter[:count] += difference
    return Moments(minimum, maximum, mean, scatter, total, pairs)
