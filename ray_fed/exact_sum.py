"""A weighted sum of float32 vectors whose bits do not depend on the order of the summands.

Floating-point addition is not associative, so a plain running sum depends on which silo answers first. Here each
product n * w is a whole number of units, and whole numbers are added up:

    n * w  =  high * 2^-16  +  low * 2^-66            |low| <= 2^49

`high` holds |sum| < 2^46 (7e13), `low` resolves 2^-67 (7e-21), so parameters and Adam's second moments (1e-12 and
below) both fit. The one rounding (to 2^-66) happens per summand, before anything is added.

Most products need no integers: multiples of one unit 2^-K add up exactly in float64 as long as the sum stays below
2^(53-K). So each part of the vector has one float64 per parameter, `fine`; products with digits below the unit, a few
in a thousand, are kept beside it as integers, and a part with many of them gets integers for all. What comes out is the
same in every case: the exact sum. The memory is 8 to 24 bytes per parameter, whatever the number of silos.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

HIGH_UNIT = 2.0**-16
LOW_PER_HIGH = 2.0**50
LIMIT = 2.0**46
UPDATE_LIMIT = 2.0**36
"""Largest |n * w| of one update. A thousand such updates stay below LIMIT, so which one is refused never depends on who
came first."""
NORMALISE_EVERY = 4096
PART = 1 << 18
"""Parameters of a part: what is computed on them stays in a cache, and threads seldom wait for each other's Python."""
ALIKE, MOST_ALIKE = 8, 1 << 12
"""Summands as large as the first for which there is room in `fine`: at least, and at most. More room has a coarser
unit, and more values with digits below it."""
FEW, LOOKED_AT = 1024, 1 << 14
"""One in so many values may have digits below the unit, for more room; judged by so many of the first summand's."""
LEAST_FINE, MOST_FINE = 17, 66
"""K: below, a float64 cannot be split into high and low; above, there is nothing to resolve."""
MANY = 32
"""One in so many values: where more have digits below the unit, a part gets integers for all."""
PER_THREAD = 1 << 20
"""Parameters that are worth a thread of their own."""
MOST_THREADS = 8


class _Scratch(threading.local):
    """Room for what is computed on a part, of each thread its own."""

    def __init__(self) -> None:
        self.products, self.magnitudes = np.empty(PART), np.empty(PART, np.float32)
        self.small = np.empty(PART, bool)


_scratch = _Scratch()
_spare: list[np.ndarray] = []
MOST_SPARE = 8_000_000
"""Parameters of a sum whose memory is kept for the next round's: the system takes as long to give pages anew as the sum
takes. Longer ones give it back, as it may be wanted for evaluations."""


def _room(size: int) -> np.ndarray:
    """Return float64 [size] of any values; what a sum before left, where that is as long."""
    try:
        spare = _spare.pop()  # no other thread gets the same one
    except IndexError:
        return np.empty(size)
    return spare if len(spare) == size else np.empty(size)


class _Part:
    """Sums of up to PART parameters."""

    def __init__(self, fine: np.ndarray):
        self.size = len(fine)
        self.fine = fine
        """Sum of the products that are multiples of the unit; anything, as long as there is none."""
        self.has_fine = False
        self.few: list[tuple[np.ndarray, np.ndarray]] = []
        """(where, products) of others, per summand."""
        self.num_few = 0
        self.integers: tuple[np.ndarray, np.ndarray] | None = None
        """(high, low), int64 [size], once there are many others."""

    def add(self, vector: np.ndarray, weight: int, least: float) -> None:
        """Add weight * vector; values of at least `least` give multiples of the unit. 0: none does."""
        others = self._others(vector, least)
        is_first, is_fine = not self.has_fine, least > 0 and len(others) <= self.size // MANY
        products = self.fine if is_first and is_fine else _scratch.products[: self.size]
        np.copyto(products, vector)
        products *= weight
        if not is_fine:
            self._add_integers(*_split(products))
            return
        if len(others):
            self.few.append((others, products[others]))
            products[others] = 0.0
            self.num_few += len(others)
        if is_first:
            products += 0.0  # of -0.0, as from a sum
        else:
            self.fine += products
        self.has_fine = True
        if self.num_few > self.size:
            self.fold()

    def _others(self, vector: np.ndarray, least: float) -> np.ndarray:
        """Return where values may give no multiples of the unit."""
        magnitudes, small = _scratch.magnitudes[: self.size], _scratch.small[: self.size]
        np.less(np.abs(vector, out=magnitudes), np.float32(least), out=small)
        if np.count_nonzero(small) > self.size // MANY:  # zeros, perhaps, which are multiples of everything
            small &= vector != 0
        return np.flatnonzero(small)

    def _add_integers(self, high: np.ndarray, low: np.ndarray) -> None:
        if self.integers is None:
            self.integers = np.zeros(self.size, np.int64), np.zeros(self.size, np.int64)
        for mine, more in zip(self.integers, (high, low), strict=True):
            mine += more

    def fold(self) -> tuple[np.ndarray, np.ndarray]:
        """Move everything into integers, in their one canonical form: 0 <= low < 2^50. Return them."""
        if self.has_fine:
            self._add_integers(*_split(self.fine))
        elif self.integers is None:
            self.integers = np.zeros(self.size, np.int64), np.zeros(self.size, np.int64)
        assert self.integers is not None
        high, low = self.integers
        for where, products in self.few:
            for mine, more in zip((high, low), _split(products), strict=True):
                mine[where] += more  # no place is there twice in one summand
        self.has_fine, self.few, self.num_few = False, [], 0
        _carry(high, low)
        return high, low

    def mean(self, total_weight: int, out: np.ndarray) -> None:
        """Write the mean, rounded once from float64."""
        if self.integers is not None:
            total = _joined(*self.fold())
        else:
            total = self.fine
            if self.few:
                total = _scratch.products[: self.size]
                np.copyto(total, self.fine)
                where, sums = self._sums_of_few()
                total[where] = sums
        np.divide(total, total_weight, out=out, casting="same_kind")  # in float64; rounded as it is written

    def _sums_of_few(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where products had digits below the unit, and the sums there."""
        places, products = (np.concatenate(parts) for parts in zip(*self.few, strict=True))
        where, at = np.unique(places, return_inverse=True)
        high, low = _split(self.fine[where])
        for mine, more in zip((high, low), _split(products), strict=True):
            np.add.at(mine, at, more)
        _carry(high, low)
        return where, _joined(high, low)


def _split(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (high, low), int64, of float64 values; rounded to 2^-66."""
    scaled = products * (1 / HIGH_UNIT)
    high = np.rint(scaled)
    scaled -= high
    scaled *= LOW_PER_HIGH
    return high.astype(np.int64), np.rint(scaled, out=scaled).astype(np.int64)


def _carry(high: np.ndarray, low: np.ndarray) -> None:
    """Move whole high units out of `low`, towards minus infinity: one canonical form for one exact value."""
    carry = low >> 50
    high += carry
    low -= carry << 50


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high * HIGH_UNIT + low * (HIGH_UNIT / LOW_PER_HIGH)


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
    bound: float = 0.0
    """No |sum| is larger than that of the largest |n * w| of each summand."""
    _places: list[slice] = field(init=False, repr=False)
    _parts: list[_Part] = field(init=False, repr=False)
    _fine: np.ndarray = field(init=False, repr=False)
    _room: float = 0.0
    """Sum of the largest |n * w| for which there is still room in `fine`."""
    _least: float = 0.0
    """Values as large as that give multiples of the unit of `fine`."""

    def __post_init__(self) -> None:
        fine = self._fine = _room(self.num_parameters)
        starts = range(0, self.num_parameters, PART)
        self._places = [slice(start, min(start + PART, self.num_parameters)) for start in starts]
        self._parts = [_Part(fine[place]) for place in self._places]

    def __del__(self) -> None:
        if PER_THREAD <= self.num_parameters <= MOST_SPARE and not _spare and hasattr(self, "_fine"):
            _spare.append(self._fine)

    def add(self, vector: np.ndarray, weight: int) -> None:
        """Add weight * vector. ValueError (nothing added) for a wrong shape, NaN, infinity or an overflow."""
        peak = self._check(vector, weight) * weight
        if peak > self._room:
            self._make_room(peak, vector)
        self._room -= peak
        least = self._least

        def added(place: slice, part: _Part) -> None:
            part.add(vector[place], weight, least)

        self._in_each(added)
        self.bound += peak
        self.total_weight += weight
        self.num_summands += 1
        if self.num_summands % NORMALISE_EVERY == 0:
            self._fold()

    def _make_room(self, peak: float, vector: np.ndarray) -> None:
        """Choose the unit of `fine` anew, for sums of several summands like this one; what is there is folded."""
        if self.num_summands:
            self._fold()
        finest = 53 - math.ceil(math.log2(peak * ALIKE)) if peak else MOST_FINE
        coarsest = finest - int(math.log2(MOST_ALIKE / ALIKE))
        digits = min(max(coarsest, min(finest, 23 - _exponent_of_few(vector))), MOST_FINE)
        if digits < LEAST_FINE:
            self._room, self._least = peak, 0.0
        else:
            self._room, self._least = 2.0 ** (53 - digits), 2.0 ** (23 - digits)

    def _fold(self) -> None:
        self._in_each(lambda _, part: part.fold())

    def mean(self) -> np.ndarray:
        """Return float32 [num_parameters], the weighted mean rounded once from float64."""
        if self.total_weight == 0:
            raise ValueError("no summands")
        found = np.empty(self.num_parameters, np.float32)
        self._in_each(lambda place, part: part.mean(self.total_weight, found[place]))
        return found

    def _in_each(self, work: Callable[[slice, _Part], object]) -> None:
        """Do something to all parts, of a long vector by several threads: NumPy lets them compute side by side."""
        both = list(zip(self._places, self._parts, strict=True))
        num_threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), self.num_parameters // PER_THREAD)
        if num_threads < 2:
            _done(work, both)
            return
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(lambda first: _done(work, both[first::num_threads]), range(num_threads)))

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (high, low), int64 [num_parameters], in the one canonical form: 0 <= low < 2^50."""
        both = np.zeros(self.num_parameters, np.int64), np.zeros(self.num_parameters, np.int64)
        for place, part in zip(self._places, self._parts, strict=True):
            for whole, found in zip(both, part.fold(), strict=True):
                whole[place] = found
        return both

    @classmethod
    def of_parts(cls, high: np.ndarray, low: np.ndarray, total_weight: int, num_summands: int) -> "ExactWeightedSum":
        """Return the sum whose `parts` these are."""
        total = cls(len(high), total_weight, num_summands)
        for place, part in zip(total._places, total._parts, strict=True):
            part._add_integers(high[place], low[place])
        total.bound = float(np.abs(high).max(initial=0)) * HIGH_UNIT
        return total

    def merge(self, other: "ExactWeightedSum") -> None:
        """Add the summands of another sum of the same length."""
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            mine._add_integers(*theirs.fold())
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


def _exponent_of_few(vector: np.ndarray) -> int:
    """Return the largest k for which about one in FEW values lies below 2^k; zeros do not count."""
    seen = np.abs(vector[:: max(1, len(vector) // LOOKED_AT)])
    seen = seen[seen > 0]
    if not len(seen):
        return 0
    return math.frexp(float(np.partition(seen, len(seen) // FEW)[len(seen) // FEW]))[1] - 1


def _done(work: Callable[[slice, _Part], object], both: Iterable[tuple[slice, _Part]]) -> None:
    for place, part in both:
        work(place, part)
