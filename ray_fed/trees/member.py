"""A silo's half: its rows in bins, where each stands in the trees being grown, and the sums it is asked for.

What it keeps between rounds is a cache: any whole question brings a fresh silo to the same place, and a question of the
current trees may be asked again.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.sparse import csc_array

from ray_fed.config import require
from ray_fed.randomness import derived_seed, generator
from ray_fed.trees.bins import as_float32, codes_of, counted, keys_of
from ray_fed.trees.forest import Forest, ForestPredictor, block_size
from ray_fed.trees.losses import of_classes, quantile_of, residuals, row_losses, sized, target_table
from ray_fed.trees.numbers import NUM_EXPONENTS, digits_of, exponents, fixed_point
from ray_fed.trees.quantiles import NUM_BUCKETS, buckets
from ray_fed.trees.question import CountedChild, Step, TreeQuestion, cells_of_numbers, edges_of_numbers
from ray_fed.trees.settings import TreeSettings

SUM_DIGITS = 3
"""Digits of an exact sum: 60 bits and the sign."""
ROW_WEIGHT = float(1 << 32)
"""A row's weight in a histogram is this and its residual: one pass adds up both, exactly below 2^53."""
MOST_ROWS = 1 << 21
STOPPING_EXPONENT = 20
"""Losses of rows to stop by are added up in units of 2^-10, up to 2^30."""
NEW = -1
MOST_CODES = 255


class LostRounds(Exception):
    """The member has not seen what a question builds on: it needs a whole one."""


@lru_cache(maxsize=64)
def features_of_tree(settings: TreeSettings, iteration: int, num_features: int) -> np.ndarray:
    """Return which features the trees of an iteration may split on, ascending; the same in all silos."""
    count = max(1, round(settings.feature_fraction * num_features))
    if count == num_features:
        return np.arange(num_features)
    return np.sort(generator(settings.seed, "features of a tree", iteration).permutation(num_features)[:count])


def stopping_rows(features: np.ndarray, settings: TreeSettings, groups: Sequence[str] = ()) -> np.ndarray:
    """Return which rows are kept to stop by: chosen by a hash of a row's group, or of its features, wherever it is."""
    if not settings.patience:
        return np.zeros(len(features), bool)
    texts = [str(group).encode() for group in groups] or [row.tobytes() for row in np.ascontiguousarray(features)]
    salt = derived_seed(settings.seed, "rows to stop by").to_bytes(8, "little")
    limit = int(settings.stopping_fraction * 2**64)
    hashed = (hashlib.sha256(salt + text).digest()[:8] for text in texts)
    return np.array([int.from_bytes(each, "little") < limit for each in hashed], bool)


class Member:
    """Answers questions about one silo's rows: features [rows, columns], targets [rows] or [rows, losses].

    groups: of each row, what is not cut between the rows that are fitted and those to stop by.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, settings: TreeSettings, groups: Sequence[str] = ()):
        most = f"{len(features)} rows are more than the {MOST_ROWS} of which sums are exact; divide them among silos"
        require(len(features) <= MOST_ROWS, most)
        self.settings = settings
        self.features = as_float32(features)
        self.targets = target_table(targets, settings)
        self.is_kept = stopping_rows(self.features, settings, groups)
        self.is_fitted = ~np.isnan(self.targets) & ~self.is_kept
        """[outputs, rows]: whether trees are fitted to a row's target."""
        self.iteration, self.level = NEW, 0
        self.mean_loss = 0.0
        """Of the rows that trees are fitted to, under the forest before the trees being grown."""
        self._bins_told = b""
        self._ones, self._memory = np.zeros(0), np.zeros((2, 0), np.int32)

    @property
    def num_rows(self) -> int:
        return len(self.features)

    def answer(self, question: TreeQuestion) -> np.ndarray:
        """Return the sums asked for, whole numbers, int64 [question.answer]. LostRounds when the question builds on
        rounds that this member has not seen."""
        if question.step is Step.COUNT:
            answer = self._count(question)
        elif question.step is Step.DONE:
            answer = np.array([self.num_rows])
        else:
            self._come_to(question)
            answer = {Step.ROOT: self._root, Step.LEVEL: self._level, Step.LEAF: self._leaf}[question.step](question)
        answer = np.concatenate([digits_of(np.array([self.num_rows]), SUM_DIGITS).ravel(), answer])
        if len(answer) != question.answer:
            raise ValueError(f"{question.answer} values are asked for, these rows make {len(answer)}")
        return answer

    # ---- before the first tree

    def _count(self, question: TreeQuestion) -> np.ndarray:
        if not hasattr(self, "_sorted_keys"):
            columns = (column[~np.isnan(column)] for column in self.features.T)
            self._sorted_keys = [np.sort(keys_of(column)) for column in columns]
        cells = cells_of_numbers(question.cells)
        missing = np.isnan(self.features).sum(axis=0) if question.number == 0 else np.zeros(0, np.int64)
        return np.concatenate([counted(self._sorted_keys, cells), missing, self._start(question)])

    def _start(self, question: TreeQuestion) -> np.ndarray:
        """Return, round by round: sizes of targets; their sums; sizes of the first residuals."""
        if question.number == 0:
            return self._sizes(self.targets)
        if question.number == 1:
            return self._exact_sums(self.targets, np.where(of_classes(self.settings), 0, question.scales))
        if question.number == 2:
            scores = np.repeat(question.start.astype(np.float64)[:, None], self.num_rows, 1)
            found, _ = residuals(self.targets, scores, self.settings)
            return self._sizes(sized(self.targets, scores, found, self.settings))
        return np.zeros(0, np.int64)

    def _sizes(self, table: np.ndarray) -> np.ndarray:
        """Return how many values of each output have which exponent, [outputs * NUM_EXPONENTS]."""
        counts = [
            np.bincount(exponents(row[has]), minlength=NUM_EXPONENTS)
            for row, has in zip(table, self.is_fitted, strict=True)
        ]
        return np.concatenate(counts)

    def _exact_sums(self, table: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Return number and sum of each output's values, in digits."""
        numbers = []
        for row, has, scale in zip(table, self.is_fitted, scales, strict=True):
            numbers += [int(has.sum()), int(fixed_point(row[has], int(scale)).sum())]
        return digits_of(np.array(numbers), SUM_DIGITS).ravel()

    # ---- to where a question stands

    def _come_to(self, question: TreeQuestion) -> None:
        if question.is_whole:
            self._restart(question)
        elif question.step is Step.ROOT:
            self._finish_trees(question)
        elif question.iteration != self.iteration or self.level < question.number - 1:
            raise LostRounds(f"level {question.number} of trees {question.iteration} builds on levels not seen here")
        if question.step is Step.ROOT:
            self._begin_trees(question)
            return
        self._to_level(max(0, question.number - 1))
        if question.number:
            self._split(question.split_table(), question.number - 1)

    def _restart(self, question: TreeQuestion) -> None:
        """Take over the forest and the splits of the current trees from a whole question."""
        self._take_bins(question)
        forest = Forest(self.settings, question.start, question.forest.reshape(-1, block_size(self.settings)))
        self.scores = ForestPredictor(self.settings).scores(forest, self.features)
        if question.step is Step.ROOT:
            return
        self._begin_trees(question)
        splits = question.split_table()
        for level in range(question.number - 1):
            self._split(splits, level)

    def _take_bins(self, question: TreeQuestion) -> None:
        told = question.edges.tobytes() + question.bins.tobytes()
        if told == self._bins_told:
            return
        self._edges, self._has_missing = edges_of_numbers(question.edges, question.bins)
        self._codes = codes_of(self.features, self._edges, self._has_missing)
        self._first_codes = np.arange(self.num_rows) * self._codes.shape[1]
        self._has_gaps = bool(self._has_missing.any())
        self._bins_told = told

    def _finish_trees(self, question: TreeQuestion) -> None:
        """Add the values of the trees that were grown, unless that was done when the question was asked before."""
        if self.iteration == question.iteration:
            return
        if self.iteration != question.iteration - 1 or len(question.values) == 0:
            raise LostRounds(f"trees {question.iteration} build on trees not seen here")
        values = question.values.reshape(self.settings.outputs, -1).astype(np.float64)
        for output, places in enumerate(self._bottom()):
            self.scores[output] += values[output][places]

    def _begin_trees(self, question: TreeQuestion) -> None:
        self.iteration, self.level = question.iteration, 0
        self.places = np.zeros((self.settings.outputs, self.num_rows), np.int64)
        losses = row_losses(self.targets, self.scores, self.settings)[~self.is_kept]
        self.mean_loss = float(losses.mean()) if len(losses) else 0.0
        self._residuals, self._leaf_weights = residuals(self.targets, self.scores, self.settings)
        chosen = features_of_tree(self.settings, question.iteration, len(self._edges))
        self._chosen = np.array([feature for feature in chosen if self._num_bins(feature) > 1], np.int64)
        sizes = np.array([self._num_bins(feature) for feature in self._chosen], np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._place_bins(self._codes[:, self._chosen])
        self._weights = [self._row_weights(output, int(scale)) for output, scale in enumerate(question.scales)]

    def _place_bins(self, codes: np.ndarray) -> None:
        """Write each row's places in a histogram into arrays that are made once: new ones cost more than the sums."""
        if len(self._ones) < codes.size:
            self._ones = np.ones(codes.size)
            self._memory = np.empty((2, codes.size), np.int32)
        self._bins, self._taken = (part[: codes.size].reshape(codes.shape) for part in self._memory)
        np.add(codes, self._offsets[:-1].astype(np.int32), out=self._bins)
        self._pointers = np.arange(self.num_rows + 1, dtype=np.int32) * np.int32(codes.shape[1])

    def _num_bins(self, feature: int) -> int:
        return len(self._edges[feature]) + 1 + int(self._has_missing[feature])

    def _row_weights(self, output: int, scale: int) -> np.ndarray:
        """Return ROW_WEIGHT plus each row's residual in whole levels; residuals of a quantile are between -1 and 1."""
        scale = scale if quantile_of(self.settings)[output] is None else 0
        steps = np.rint(self._residuals[output] * self.settings.levels * 2.0**-scale)
        return ROW_WEIGHT + np.clip(steps, -self.settings.levels, self.settings.levels)

    def _to_level(self, level: int) -> None:
        """Go back to a level that was passed already: a question may be asked again."""
        self.places >>= self.level - level
        self.level = level

    def _split(self, splits: np.ndarray, level: int) -> None:
        """Send the rows of split places to the left or right; those of others go left."""
        self.places *= 2
        for output in range(self.settings.outputs):
            mine = splits[(splits[:, 0] == output) & (splits[:, 1] == level)]
            self._split_output(mine, self.places[output], level)
        self.level = level + 1

    def _split_output(self, splits: np.ndarray, places: np.ndarray, level: int) -> None:
        """Add 1 to the places of rows that go right; where nothing is split, no code is above the bin."""
        feature, bin_number, missing_left = (np.full(1 << level, fill) for fill in (0, MOST_CODES, 1))
        parents = splits[:, 2]
        feature[parents], bin_number[parents], missing_left[parents] = splits[:, 3], splits[:, 4], splits[:, 5]
        parent = places >> 1
        of_row = feature[parent]
        code = self._codes.ravel()[of_row + self._first_codes]
        right = code > bin_number[parent]
        if self._has_gaps:
            right = np.where((code == 0) & (self._has_missing[of_row] == 1), missing_left[parent] == 0, right)
        places += right

    def _bottom(self) -> np.ndarray:
        return self.places << (self.settings.depth - self.level)

    # ---- sums

    def _root(self, question: TreeQuestion) -> np.ndarray:
        zeros = [np.zeros(self.num_rows, np.int64)] * self.settings.outputs
        sums = [self._histograms(output, slots, 1) for output, slots in enumerate(zeros)]
        return np.concatenate([*self._in_digits(sums, question.digits), self._stopping()])

    def _level(self, question: TreeQuestion) -> np.ndarray:
        splits, sums = question.split_table(), []
        splits = splits[splits[:, 1] == question.number - 1]
        for output in range(self.settings.outputs):
            mine = splits[(splits[:, 0] == output) & (splits[:, 6] != CountedChild.NEITHER)]
            asked = 2 * mine[:, 2] + (mine[:, 6] == CountedChild.RIGHT)
            slot_of_place = np.full(1 << question.number, -1, np.int64)
            slot_of_place[asked] = np.arange(len(asked))
            sums.append(self._histograms(output, slot_of_place[self.places[output]], len(asked)))
        return np.concatenate([np.zeros(0, np.int64), *self._in_digits(sums, question.digits)])

    def _histograms(self, output: int, slots: np.ndarray, num_slots: int) -> np.ndarray:
        """Return (sums of residuals, numbers of rows) of each slot's bins, int64 [slots, 2, bins]; slot -1: none.

        It is np.bincount in a quarter of the time: the product of a sparse matrix, a one in each row's bins, with the
        rows' weights. These are whole numbers, so the order of the sums changes no bit.
        """
        size = int(self._offsets[-1])
        if num_slots == 0 or size == 0:
            return np.zeros((num_slots, 2, size), np.int64)
        rows = np.flatnonzero((slots >= 0) & self.is_fitted[output])
        bins = self._taken[: len(rows)]
        np.take(self._bins, rows, axis=0, out=bins, mode="clip")
        if num_slots > 1:
            bins += (slots[rows] * size).astype(np.int32)[:, None]
        matrix = csc_array((num_slots * size, len(rows)))
        matrix.indices, matrix.data = bins.reshape(-1), self._ones[: bins.size]
        matrix.indptr = self._pointers[: len(rows) + 1]
        sums = matrix @ self._weights[output][rows]
        counts = np.rint(sums / ROW_WEIGHT)
        parts = (sums - counts * ROW_WEIGHT, counts)
        return np.stack([part.astype(np.int64).reshape(num_slots, size) for part in parts], 1)

    @staticmethod
    def _in_digits(sums: list[np.ndarray], digits: int) -> list[np.ndarray]:
        return [digits_of(each, digits).ravel() for each in sums]

    def _leaf(self, question: TreeQuestion) -> np.ndarray:
        """Return, of each output, the exact sum of residuals in each place at the bottom and the weight it is divided
        by; of a quantile, the counts of distances, too. And what the next scales are taken from."""
        parts, quantiles = [], quantile_of(self.settings)
        gaps = sized(self.targets, self.scores, self._residuals, self.settings)
        for output, places in enumerate(self._bottom()):
            has, scale = self.is_fitted[output], int(question.scales[output])
            numbers = fixed_point(self._residuals[output][has], 0 if quantiles[output] else scale)
            weights = fixed_point(self._leaf_weights[output][has], 0)
            parts += [self._added(places[has], numbers), self._added(places[has], weights)]
            if quantiles[output]:
                slots = places[has] * NUM_BUCKETS + buckets(gaps[output][has], scale)
                parts.append(np.bincount(slots, minlength=NUM_BUCKETS * self.settings.num_leaf_places))
        return np.concatenate([*parts, self._sizes(gaps)])

    def _added(self, places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return the sums of whole numbers in each place, in digits; halves are added up apart, each exactly."""
        count = self.settings.num_leaf_places
        high, low = numbers >> 20, numbers & ((1 << 20) - 1)
        sums = [np.bincount(places, part, count).astype(np.int64) for part in (high, low)]
        return digits_of((sums[0] << 20) + sums[1], SUM_DIGITS).ravel()

    def _stopping(self) -> np.ndarray:
        """Return the number of rows to stop by and the sum of their losses, in digits; nothing without a patience."""
        if not self.settings.patience:
            return np.zeros(0, np.int64)
        losses = row_losses(self.targets[:, self.is_kept], self.scores[:, self.is_kept], self.settings)
        total = int(fixed_point(losses, STOPPING_EXPONENT).sum())
        return digits_of(np.array([int(self.is_kept.sum()), total]), SUM_DIGITS).ravel()
