"""A weighted sum of float32 vectors whose bits do not depend on the order of the summands.

Floating-point addition is not associative, so a plain running sum depends on which silo answers first. Here each
product n * w is written as a fixed-point number in two 64-bit integers, and integer addition is associative:

    n * w  =  high * 2^-16  +  low * 2^-66            |low| <= 2^49

`high` holds |sum| < 2^46 (7e13), `low` resolves 2^-67 (7e-21), so parameters and Adam's second moments (1e-12 and
below) both fit. The one rounding (to 2^-66) happens per summand, before anything is added. The memory of the
sum is 16 bytes per parameter, whatever the number of silos.
"""

from dataclasses import dataclass, field

import numpy as np

HIGH_UNIT = 2.0**-16
LOW_PER_HIGH = 2.0**50
LIMIT = 2.0**46
UPDATE_LIMIT = 2.0**36
"""Largest |n * w| of one update. A thousand such updates stay below LIMIT, so which one is refused never depends on who
came first."""
NORMALISE_EVERY = 4096
CHUNK = 1 << 15


@dataclass
class ExactWeightedSum:
    """Accumulates sum_i n_i w_i and sum_i n_i; `mean` is Eq. (1) of Guo et al. 2022.

    paper     code                  shape, unit
    w_i       vector                float32 [num_parameters]
    alpha_i   weight / total        dimensionless
    """

    num_parameters: int
    total_weight: int = 0
    num_summands: int = 0
    high: np.ndarray = field(init=False, repr=False)
    low: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.high = np.zeros(self.num_parameters, np.int64)
        self.low = np.zeros(self.num_parameters, np.int64)

    def add(self, vector: np.ndarray, weight: int) -> None:
        """Add weight * vector. ValueError (nothing added) for a wrong shape, NaN, infinity or an overflow."""
        self._check(vector, weight)
        for start in range(0, self.num_parameters, CHUNK):  # chunks stay in the cache: 4x faster at 25 M parameters
            part = slice(start, start + CHUNK)
            scaled = vector[part].astype(np.float64)  # 24 + 29 bits: the product with a weight < 2^29 is exact
            scaled *= weight / HIGH_UNIT
            high = np.rint(scaled)
            self.high[part] += high.astype(np.int64)
            np.subtract(scaled, high, out=scaled)
            scaled *= LOW_PER_HIGH
            self.low[part] += np.rint(scaled, out=scaled).astype(np.int64)
        self.total_weight += weight
        self.num_summands += 1
        if self.num_summands % NORMALISE_EVERY == 0:
            self._carry()

    def mean(self) -> np.ndarray:
        """Return float32 [num_parameters], the weighted mean rounded once from float64."""
        if self.total_weight == 0:
            raise ValueError("no summands")
        self._carry()
        total = self.high * HIGH_UNIT + self.low * (HIGH_UNIT / LOW_PER_HIGH)
        return (total / self.total_weight).astype(np.float32)

    def _check(self, vector: np.ndarray, weight: int) -> None:
        if vector.shape != (self.num_parameters,):
            raise ValueError(f"shape {vector.shape} instead of ({self.num_parameters},)")
        if not 0 < weight < 2**29:
            raise ValueError(f"weight {weight} is not between 1 and 2^29")
        peak = max(float(vector.max(initial=0)), -float(vector.min(initial=0)))  # NaN compares false below
        if not (peak * weight < UPDATE_LIMIT and peak * (self.total_weight + weight) < LIMIT):
            bad = np.flatnonzero(~np.isfinite(vector))
            what = (
                f"{len(bad)} values are not finite (first at {bad[0]})" if len(bad) else f"|value| {peak:.3g} too large"
            )
            raise ValueError(what)

    def _carry(self) -> None:
        """Move whole high units out of `low`, towards minus infinity: one canonical form for one exact value."""
        carry = self.low >> 50
        self.high += carry
        self.low -= carry << 50
