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
SHIFT = 1.5 * 2.0**52
SHIFT_BITS = int(np.array(SHIFT).view(np.uint64))
SHIFT_LIMIT = 2.0**34
"""|n * w| below which both parts fit beside SHIFT (|n * w| / HIGH_UNIT < 2^51)."""
CHUNK = 1 << 14


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
    num_shifts: int = 0
    """How often SHIFT is in the integers."""
    bound: float = 0.0
    """No |sum| is larger than that of the largest |n * w| of each summand."""
    high: np.ndarray = field(init=False, repr=False)
    low: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.high = np.zeros(self.num_parameters, np.int64)
        self.low = np.zeros(self.num_parameters, np.int64)

    def add(self, vector: np.ndarray, weight: int) -> None:
        """Add weight * vector. ValueError (nothing added) for a wrong shape, NaN, infinity or an overflow."""
        peak = self._check(vector, weight)
        add = self._add_shifted if peak * weight < SHIFT_LIMIT else self._add_rounded
        for start in range(0, self.num_parameters, CHUNK):  # chunks stay in the cache: 4x faster at 25 M parameters
            part = slice(start, start + CHUNK)
            # 24 + 29 bits: the product with a weight < 2^29 is exact
            add(part, np.multiply(vector[part], weight / HIGH_UNIT, dtype=np.float64))
        self.num_shifts += add == self._add_shifted
        self.bound += peak * weight
        self.total_weight += weight
        self.num_summands += 1
        if self.num_summands % NORMALISE_EVERY == 0:
            self._carry()

    def _add_rounded(self, part: slice, scaled: np.ndarray) -> None:
        high = np.rint(scaled)
        self.high[part] += high.astype(np.int64)
        np.subtract(scaled, high, out=scaled)
        scaled *= LOW_PER_HIGH
        self.low[part] += np.rint(scaled, out=scaled).astype(np.int64)

    def _add_shifted(self, part: slice, scaled: np.ndarray) -> None:
        """The same in half the time: x + 1.5 * 2^52 has round(x) in its last bits, so its bits are added as they are.
        Integers wrap around, and `_carry` takes the constant out again."""
        shifted = scaled + SHIFT
        self.high.view(np.uint64)[part] += shifted.view(np.uint64)
        shifted -= SHIFT
        scaled -= shifted
        scaled *= LOW_PER_HIGH
        scaled += SHIFT
        self.low.view(np.uint64)[part] += scaled.view(np.uint64)

    def mean(self) -> np.ndarray:
        """Return float32 [num_parameters], the weighted mean rounded once from float64."""
        if self.total_weight == 0:
            raise ValueError("no summands")
        self._carry()
        total = self.high * HIGH_UNIT + self.low * (HIGH_UNIT / LOW_PER_HIGH)
        return (total / self.total_weight).astype(np.float32)

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (high, low), int64 [num_parameters], in the one canonical form: 0 <= low < 2^50."""
        self._carry()
        return self.high, self.low

    @classmethod
    def of_parts(cls, high: np.ndarray, low: np.ndarray, total_weight: int, num_summands: int) -> "ExactWeightedSum":
        """Return the sum whose `parts` these are."""
        total = cls(len(high), total_weight, num_summands)
        total.high, total.low = high, low
        total.bound = float(np.abs(high).max(initial=0)) * HIGH_UNIT
        return total

    def merge(self, other: "ExactWeightedSum") -> None:
        """Add the summands of another sum of the same length."""
        for mine, theirs in zip(self.parts(), other.parts(), strict=True):
            mine += theirs
        self.bound += other.bound
        self.total_weight += other.total_weight
        self.num_summands += other.num_summands

    def _check(self, vector: np.ndarray, weight: int) -> float:
        """Return the largest |value|."""
        if vector.shape != (self.num_parameters,):
            raise ValueError(f"shape {vector.shape} instead of ({self.num_parameters},)")
        if not 0 < weight < 2**29:
            raise ValueError(f"weight {weight} is not between 1 and 2^29")
        peak = max(float(vector.max(initial=0)), -float(vector.min(initial=0)))  # NaN compares false below
        if not (peak * weight < UPDATE_LIMIT and self.bound + peak * weight < LIMIT):
            bad = np.flatnonzero(~np.isfinite(vector))
            what = (
                f"{len(bad)} values are not finite (first at {bad[0]})" if len(bad) else f"|value| {peak:.3g} too large"
            )
            raise ValueError(what)
        return peak

    def _carry(self) -> None:
        """Move whole high units out of `low`, towards minus infinity: one canonical form for one exact value."""
        constant = np.uint64(self.num_shifts * SHIFT_BITS % 2**64)
        for integers in (self.high, self.low):
            np.subtract(integers.view(np.uint64), constant, out=integers.view(np.uint64))
        self.num_shifts = 0
        carry = self.low >> 50
        self.high += carry
        self.low -= carry << 50
