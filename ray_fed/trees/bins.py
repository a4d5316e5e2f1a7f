"""Bin edges that all silos agree on by counting: they depend on the values of all rows together, on nothing else.

Every float32 has a key, a whole number of 32 bits in the order of the values. A cell is a range of keys that share
their first bits. Silos count their rows in cells; a cell with many rows is cut into 16 and counted again, until no cell
holds a quarter of a bin's rows or it is a single value. Edges lie between cells: an edge is a place of this grid, no
row's value, and at least `min_rows_in_bin` rows stand behind a bin.
"""

from dataclasses import dataclass, replace

import numpy as np

KEY_BITS = 32
FIRST_BITS, NEXT_BITS = 8, 4
"""Bits by which a cell is cut: at first sign and most of the exponent."""
CELLS_PER_BIN = 4
LARGEST = np.float32(np.finfo(np.float32).max)


def as_float32(values: np.ndarray) -> np.ndarray:
    """Return values as finite float32 with one zero; NaN, which is a missing value, stays."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    return np.clip(values, -LARGEST, LARGEST) + np.float32(0)


def keys_of(values: np.ndarray) -> np.ndarray:
    """Return the keys of finite float32 values, int64 in [0, 2^32), in the same order."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def values_of(keys: np.ndarray) -> np.ndarray:
    """Return the float32 values that have these keys."""
    keys = np.asarray(keys, np.int64).astype(np.uint32)
    return np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class Cells:
    """Cells of all features, in order of feature and key; each array [num_cells]."""

    feature: np.ndarray
    low: np.ndarray
    """First key, int64."""
    bits: np.ndarray
    """Bits by which keys within differ; 0 is a single value."""
    count: np.ndarray
    """Rows of all silos in it; 0 before they were counted."""

    @classmethod
    def first(cls, num_features: int) -> "Cells":
        """Return one cell for each feature, with every key in it."""
        zeros = np.zeros(num_features, np.int64)
        return cls(np.arange(num_features), zeros, zeros + KEY_BITS, zeros)

    def taken(self, chosen: np.ndarray) -> "Cells":
        return Cells(self.feature[chosen], self.low[chosen], self.bits[chosen], self.count[chosen])

    def children(self, counts: np.ndarray) -> "Cells":
        """Return the parts of all cells in which rows were counted; counts in the order of `starts`."""
        return replace(self.parts(), count=counts).taken(counts > 0)

    def parts(self) -> "Cells":
        """Return the parts of all cells, in order, not counted yet."""
        widths = np.where(self.bits == KEY_BITS, KEY_BITS - FIRST_BITS, self.bits - NEXT_BITS)
        numbers = 1 << (self.bits - widths)
        first = np.cumsum(numbers) - numbers
        bits = np.repeat(widths, numbers)
        place = np.arange(len(bits)) - np.repeat(first, numbers)
        low = np.repeat(self.low, numbers) + (place << bits)
        return Cells(np.repeat(self.feature, numbers), low, bits, np.zeros(len(bits), np.int64))

    def num_parts(self) -> int:
        return int(np.where(self.bits == KEY_BITS, 1 << FIRST_BITS, 1 << NEXT_BITS).sum())

    def merged(self, other: "Cells") -> "Cells":
        """Return the cells of both, in order."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        both = Cells(*(np.concatenate(pair) for pair in pairs))
        return both.taken(np.lexsort((both.low, both.feature)))


def counted(sorted_keys: list[np.ndarray], cells: Cells) -> np.ndarray:
    """Return how many rows of one silo lie in each part of the cells, int64; keys of each feature ascending. Cells are
    in the order of their features."""
    parts, counts = cells.parts(), [np.zeros(0, np.int64)]
    ends = parts.low + (np.int64(1) << parts.bits)
    for feature in np.unique(parts.feature).tolist():
        mine = slice(*np.searchsorted(parts.feature, [feature, feature + 1]))
        below = [np.searchsorted(sorted_keys[feature], keys[mine]) for keys in (parts.low, ends)]
        counts.append(below[1] - below[0])
    return np.concatenate(counts)


def to_refine(cells: Cells, num_rows: np.ndarray, num_bins: int, min_rows: int) -> np.ndarray:
    """Return which cells hold too many rows for one place between edges; num_rows: of each feature, without missing."""
    most = np.maximum(num_rows // (num_bins * CELLS_PER_BIN), min_rows)
    return (cells.bits > 0) & (cells.count > most[cells.feature])


def edges_of(cells: Cells, num_features: int, num_bins: int, min_rows: int) -> list[np.ndarray]:
    """Return the edges of each feature, float32 ascending: bin b holds values <= edges[b] and > edges[b - 1]."""
    return [_edges(cells.taken(cells.feature == feature), num_bins, min_rows) for feature in range(num_features)]


def _edges(cells: Cells, num_bins: int, min_rows: int) -> np.ndarray:
    """Fill bin after bin up to an even share of the rows that are left; a cell with more than that has a bin alone."""
    counts = cells.count.tolist()
    left, bins_left, held, ends = sum(counts), num_bins, 0, []
    for place, count in enumerate(counts[:-1]):
        held, left = held + count, left - count
        share = max(min_rows, (held + left) / bins_left)
        next_is_large = counts[place + 1] >= share
        if held >= min_rows and left >= min_rows and (held >= share or next_is_large) and bins_left > 1:
            ends.append(place)
            held, bins_left = 0, bins_left - 1
    last = cells.low + (np.int64(1) << cells.bits) - 1
    return np.unique([_between(int(last[end]), int(cells.low[end + 1])) for end in ends]).astype(np.float32)


def _between(last: int, following: int) -> np.float32:
    """Return the float32 in the middle between two keys' values: at least the first, below the second."""
    ends = values_of(np.array([last, following]))
    low, high = (float(end) if np.isfinite(end) else np.copysign(float(LARGEST), end) for end in ends)
    middle = np.float32(low + (high - low) / 2)
    return middle if middle < ends[1] else np.float32(low)


def codes_of(values: np.ndarray, edges: list[np.ndarray], has_missing: np.ndarray) -> np.ndarray:
    """Return the bin of each value, uint8 [rows, features]: of a feature with missing values they come first, as 0."""
    codes = np.empty(values.shape, np.uint8)
    for feature, ends in enumerate(edges):
        column = values[:, feature]
        codes[:, feature] = np.searchsorted(ends, column, "left") + has_missing[feature]
        codes[np.isnan(column), feature] = 0
    return codes
