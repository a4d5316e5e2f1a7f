"""What the coordinator asks the silos in a round, as one float32 vector that silos understand without having kept more
than the current tree; a whole question has all that a silo needs which was started again.

    answer length, length of its form, form, number of parts, length of each part, parts

All numbers are exact in float32: whole ones below 2^24, thresholds and values as the forest holds them. A silo's answer
is as long as the first number says; its form, three numbers for each `PackedPart`, bounds what the sum can be.
"""

from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np

from ray_fed.privacy.secure_sum.packed import PackedForm, PackedPart, form_of
from ray_fed.trees.bins import Cells
from ray_fed.trees.numbers import DIGIT_BITS, NUM_EXPONENTS, SUM_DIGITS
from ray_fed.trees.quantiles import NUM_BUCKETS
from ray_fed.trees.settings import TreeSettings

HALF_KEY = 16


class Step(IntEnum):
    """What is asked for."""

    COUNT = 0
    """Rows in cells, and what the start of the forest depends on."""
    ROOT = 1
    """The last tree is done: histograms of all rows for the next one."""
    LEVEL = 2
    """Histograms of the smaller child of each split."""
    LEAF = 3
    """Exact sums of the residuals in each leaf."""
    DONE = 4
    """Nothing more."""


class CountedChild(IntEnum):
    """Which child of a split is to be counted: what the other holds is known by subtraction."""

    NEITHER = 0
    LEFT = 1
    RIGHT = 2


def _no_floats() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class TreeQuestion:
    """One round's question; arrays are float32, empty where it has no such part."""

    step: Step
    number: int
    """Of the counting round, or the level of the nodes whose splits come with it plus 1."""
    iteration: int
    """Of the trees that are being grown, from 0."""
    digits: int
    """Digits of a sum in a histogram."""
    form: PackedForm
    """What the sum of the answers is made of."""
    is_whole: bool = False
    """Whether `forest`, and all splits of the current trees, are in it."""
    cells: np.ndarray = field(default_factory=_no_floats)
    """[num_cells * 4]: feature, upper and lower half of the first key, bits."""
    start: np.ndarray = field(default_factory=_no_floats)
    """[outputs]: first prediction, once it is known."""
    scales: np.ndarray = field(default_factory=_no_floats)
    """[outputs]: exponents of the scales of the residuals, once they are known."""
    edges: np.ndarray = field(default_factory=_no_floats)
    """Edges of all features, one after another."""
    bins: np.ndarray = field(default_factory=_no_floats)
    """[features * 2]: number of edges, whether values are missing."""
    forest: np.ndarray = field(default_factory=_no_floats)
    """Vector of the forest so far."""
    splits: np.ndarray = field(default_factory=_no_floats)
    """[num_splits * 7]: output, level, place, feature, bin, missing_left, ask."""
    values: np.ndarray = field(default_factory=_no_floats)
    """[outputs * leaves]: values of the last iteration's leaves."""

    def vector(self) -> np.ndarray:
        """Return the question as it travels."""
        head = [self.step, self.number, self.iteration, self.digits, self.is_whole]
        parts = [np.array(head, np.float32), *(getattr(self, name) for name in PARTS)]
        form = self.form.numbers()
        sizes = [self.form.num_values, len(form), *form, len(parts), *(len(part) for part in parts)]
        return np.concatenate([np.array(sizes, np.float32), *parts]).astype(np.float32)

    @classmethod
    def of(cls, vector: np.ndarray) -> "TreeQuestion":
        """Return the question behind a vector; ValueError for one that is none."""
        form, count, first = form_of(vector), len(PARTS) + 1, 3 + int(vector[1])
        sizes = [int(size) for size in vector[first : first + count].tolist()]
        ends = list(accumulate(sizes, initial=first + count))
        if len(sizes) < count or vector[first - 1] != count or min(sizes) < 0 or ends[-1] != len(vector):
            raise ValueError("it is no question about trees")
        head, *parts = (vector[start:end] for start, end in pairwise(ends))
        step, number, iteration, digits, is_whole = (int(value) for value in head.tolist())
        named = dict(zip(PARTS, parts, strict=True))
        return cls(Step(step), number, iteration, digits, form, bool(is_whole), **named)

    def split_table(self) -> np.ndarray:
        """Return the splits as whole numbers, int64 [num_splits, 7]."""
        return self.splits.reshape(-1, 7).astype(np.int64)


# ---- what an answer is made of

DIGIT = 2 + DIGIT_BITS + 10
"""Bits of a digit in a sum of up to a thousand silos, with its sign."""


def rows_part() -> PackedPart:
    """Each answer begins with the number of rows behind it, in digits."""
    return PackedPart(SUM_DIGITS, DIGIT)


@lru_cache(maxsize=1024)
def histogram_parts(
    num_slots: int, digits: int, rows: int, levels: int, is_noised: bool = False
) -> tuple[PackedPart, ...]:
    """Return the parts of one node's histogram: residuals in levels, digit by digit, and rows; of `rows` rows at most.
    With noise, rows may come out below 0, so they are numbers with a sign."""
    bits = (rows * levels).bit_length() + 1 if digits == 1 else DIGIT
    if is_noised:
        return (PackedPart(num_slots, DIGIT),) * (digits + 1)
    together = PackedPart(num_slots, bits, max(1, rows.bit_length()))
    apart = PackedPart(num_slots, bits), PackedPart(num_slots, 0, together.count_bits)
    fewer = apart if sum(part.num_bytes for part in apart) < together.num_bytes else (together,)
    return (*[PackedPart(num_slots, DIGIT)] * (digits - 1), *fewer)


def count_parts(num_cells: int, num_others: int) -> tuple[PackedPart, ...]:
    """Return the parts of a counting round: rows in cells, and what the start of the forest depends on."""
    return PackedPart(num_cells, DIGIT), PackedPart(num_others, DIGIT)


@lru_cache(maxsize=64)
def root_parts(
    settings: TreeSettings, num_slots: int, digits: int, rows: int, num_kept: int, is_noised: bool = False
) -> tuple[PackedPart, ...]:
    """Return the parts of the histograms of all rows, and of what is told of the rows to stop by."""
    one = histogram_parts(num_slots, digits, rows, settings.levels, is_noised)
    return (*one * settings.outputs, PackedPart(num_kept, DIGIT))


def groups_of_leaves(settings: TreeSettings) -> int:
    """Return among how many groups of numbers the noise of the sums in leaves is divided."""
    extra = sum(group.size for group in settings.groups if group.of_classes or group.kind == "quantile")
    return 2 * settings.outputs + extra + 1


@lru_cache(maxsize=64)
def leaf_parts(settings: TreeSettings, rows: int, is_noised: bool = False) -> tuple[PackedPart, ...]:
    """Return the parts of the sums in the leaves: of each output the residuals in digits and the number of rows, of a
    class the weights they are divided by, of a quantile the rows in each bucket; and the sizes of the residuals."""
    parts, places, count_bits = [], settings.num_leaf_places, max(1, rows.bit_length())
    for group in settings.groups:
        one = [PackedPart(places * (SUM_DIGITS - 1), DIGIT)]
        one += [PackedPart(places, DIGIT)] * 2 if is_noised else [PackedPart(places, DIGIT, count_bits)]
        one += [PackedPart(places * SUM_DIGITS, DIGIT)] if group.of_classes else []
        if group.kind == "quantile":
            one += [PackedPart(places * NUM_BUCKETS, *((DIGIT, 0) if is_noised else (0, count_bits)))]
        parts += one * group.size
    return (*parts, PackedPart(settings.outputs * NUM_EXPONENTS, DIGIT))


PARTS = tuple(each.name for each in fields(TreeQuestion) if each.default_factory is _no_floats)


def cells_as_numbers(cells: Cells) -> np.ndarray:
    columns = [cells.feature, cells.low >> HALF_KEY, cells.low & ((1 << HALF_KEY) - 1), cells.bits]
    return np.stack(columns, 1).astype(np.float32).ravel()


def cells_of_numbers(numbers: np.ndarray) -> Cells:
    feature, high, low, bits = numbers.reshape(-1, 4).astype(np.int64).T
    return Cells(feature, (high << HALF_KEY) | low, bits, np.zeros(len(feature), np.int64))


def edges_of_numbers(edges: np.ndarray, bins: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the edges of each feature, and which features have missing values."""
    counts, has_missing = bins.reshape(-1, 2).astype(np.int64).T
    return np.split(edges, np.cumsum(counts)[:-1]), has_missing
