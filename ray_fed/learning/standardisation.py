"""Federated standardisation: one mean and one standard deviation per column for everybody, from moments alone.

Local scalers would make the same number mean different things at different silos. Each silo sends n, the sum and the
sum of squares of each column, as exact whole numbers: a sum of such sums is the same whoever adds it in which order,
also under the masks of secure aggregation, and nothing cancels in n sum(x^2) - sum(x)^2.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ray_fed.errors import DataError

POINT = 96
"""Values are whole multiples of 2^-96 (1.3e-29): exact from 2^-44 on, rounded below."""
LARGEST = 2.0**96
SUM_DIGITS, SQUARE_DIGITS = 8, 14
"""Digits to the base 2^32 of a column's sum (2^-96 is 1) and of its sum of squares (2^-192 is 1)."""
DIGIT = np.uint64(0xFFFFFFFF)
WORD = np.uint64(32)
HALF = np.uint64(27)
ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class ColumnMoments:
    """Count, and the exact sums of each column and of its squares.

    Law: moments(A ++ B) == moments(A).merge(moments(B)), to the last bit.
    """

    num_examples: int
    digits: np.ndarray
    """int64 [num_columns, SUM_DIGITS + SQUARE_DIGITS]: two whole numbers to the base 2^32, lowest digit first; all
    digits from 0 to 2^32 - 1 but the highest of each number, which has its sign."""

    def __repr__(self) -> str:
        return f"ColumnMoments({self.num_examples} rows of {len(self.digits)} columns)"

    @classmethod
    def of(cls, values: np.ndarray) -> "ColumnMoments":
        """Return the moments of `values` [rows, num_columns]; rows must be finite. DataError for values above 2^96."""
        values = np.asarray(values, np.float64)
        largest = np.abs(values).max(initial=0)
        if not largest < LARGEST:
            raise DataError(f"a column has values above {LARGEST:.3g}, or that are not finite; leave it out or rescale")
        digits = np.zeros((values.shape[1], SUM_DIGITS + SQUARE_DIGITS))
        parts = [_digit_sums(values[start : start + ROWS_AT_ONCE]) for start in range(0, len(values), ROWS_AT_ONCE)]
        return cls(len(values), carried(sum(parts, digits.astype(np.int64))))

    def merge(self, other: "ColumnMoments") -> "ColumnMoments":
        return ColumnMoments(self.num_examples + other.num_examples, carried(self.digits + other.digits))

    @property
    def mean(self) -> np.ndarray:
        """float64 [num_columns], each the nearest to the exact mean; 0 without rows."""
        unit = max(1, self.num_examples) << POINT
        return np.array([_whole(row[:SUM_DIGITS]) / unit for row in self.digits])

    @property
    def m2(self) -> np.ndarray:
        """Sum of squared deviations from the mean, float64 [num_columns], each the nearest to the exact one."""
        n = max(1, self.num_examples)
        sums = ((_whole(row[:SUM_DIGITS]), _whole(row[SUM_DIGITS:])) for row in self.digits)
        return np.array([(n * squares - total * total) / (n << 2 * POINT) for total, squares in sums])

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation, float64 [num_columns], as scikit-learn's StandardScaler has it."""
        return np.sqrt(self.m2 / max(1, self.num_examples))

    @property
    def is_constant(self) -> np.ndarray:
        """Whether a column's numbers are equal, bool [num_columns]: their variance is then one of rounding errors, not
        of data; they add up with the rows."""
        rounding = max(10, self.num_examples) * np.finfo(np.float64).eps
        return self.std <= rounding * np.abs(self.mean)


def without_rare(values: np.ndarray, fewest: int) -> np.ndarray:
    """Return `values` [rows, num_columns] without what a few rows alone have: in a column in which fewer than `fewest`
    rows differ from the value of all others, all have that value. Sums over it say nothing of those rows."""
    if len(values) == 0:
        return values
    middle = np.partition(values, len(values) // 2, axis=0)[len(values) // 2]  # the value of more than half, if any
    num_others = (values != middle).sum(axis=0)
    is_rare = (num_others > 0) & (num_others < fewest) & (len(values) - num_others >= fewest)
    return np.where(is_rare, middle, values) if is_rare.any() else values


def carried(digits: np.ndarray) -> np.ndarray:
    """Return numbers [num_columns, SUM_DIGITS + SQUARE_DIGITS] in their one canonical form: other digits for the same
    sums would tell more than the sums."""
    digits = digits.copy()
    for first, last in ((0, SUM_DIGITS - 1), (SUM_DIGITS, SUM_DIGITS + SQUARE_DIGITS - 1)):
        for place in range(first, last):
            digits[:, place + 1] += digits[:, place] >> 32
            digits[:, place] &= 0xFFFFFFFF
    return digits


def _digit_sums(values: np.ndarray) -> np.ndarray:
    """Return the sums of values [rows, columns] and of their squares, int64, not carried."""
    sizes = np.abs(values)
    fraction, exponent = np.frexp(sizes)
    shift = exponent.astype(np.int64) - 53 + POINT
    whole = np.where(shift < 0, np.rint(np.ldexp(sizes, POINT)), fraction * 2.0**53).astype(np.uint64)
    shift = np.maximum(shift, 0)
    high, low = whole >> HALF, whole & np.uint64((1 << 27) - 1)
    sums = _placed(whole, shift, np.sign(values), SUM_DIGITS)
    squares = [(high * high, 54), (np.uint64(2) * high * low, 27), (low * low, 0)]
    placed = sum(_placed(part, 2 * shift + place, np.ones_like(values), SQUARE_DIGITS) for part, place in squares)
    return np.hstack([sums, placed])


def _placed(wholes: np.ndarray, shift: np.ndarray, sign: np.ndarray, num_digits: int) -> np.ndarray:
    """Return the digits of sum(sign * wholes * 2^shift) for each column; wholes uint64 [rows, columns] below 2^55."""
    place, bits = shift >> 5, (shift & 31).astype(np.uint64)
    low, high = (wholes & DIGIT) << bits, (wholes >> WORD) << bits
    found = np.zeros((wholes.shape[1], num_digits))
    columns = np.arange(wholes.shape[1]) * num_digits
    for offset, part in enumerate((low & DIGIT, (low >> WORD) + (high & DIGIT), high >> WORD)):
        at = np.minimum(place + offset, num_digits - 1) + columns  # beyond the last digit there are zeros only
        weights = sign * part.astype(np.float64)  # below 2^34 each, so sums over a chunk are exact
        found += np.bincount(at.ravel(), weights.ravel(), found.size).reshape(found.shape)
    return found.astype(np.int64)


def _whole(digits: np.ndarray) -> int:
    return sum(int(digit) << 32 * place for place, digit in enumerate(digits))


@dataclass(frozen=True)
class Standardizer:
    """x -> (x - mean) / scale per column; a constant column becomes 0.

    Rows that come later, of a silo that joins or a test set, may have other values where all training rows were equal.
    Such a column is scaled by its size, so that they become numbers of order one and not of 1e12.
    """

    mean: np.ndarray
    scale: np.ndarray

    def __repr__(self) -> str:
        return f"Standardizer({len(self.mean)} columns)"

    @classmethod
    def from_moments(cls, moments: ColumnMoments) -> "Standardizer":
        size = np.maximum(1.0, np.abs(moments.mean))
        return cls(moments.mean, np.where(moments.is_constant, size, moments.std))

    def beside(self, other: "Standardizer") -> "Standardizer":
        """Return the scaler of these columns and, after them, of the other's."""
        return Standardizer(np.concatenate([self.mean, other.mean]), np.concatenate([self.scale, other.scale]))

    def split(self, place: int) -> tuple["Standardizer", "Standardizer"]:
        """Return the scaler of the columns before a place, and that of those from it on."""
        first, second = slice(place), slice(place, None)
        return Standardizer(self.mean[first], self.scale[first]), Standardizer(self.mean[second], self.scale[second])

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return float32 [rows, num_columns]."""
        return ((np.asarray(values, np.float64) - self.mean) / self.scale).astype(np.float32)


def merge_moments(parts: Iterable[ColumnMoments]) -> ColumnMoments:
    """Merge in the order given; callers sort by silo name so that arrival order cannot matter."""
    return reduce(ColumnMoments.merge, parts)
