"""A silo's half: its rows in bins, where each stands in the trees being grown, and the sums it is asked for.

What it keeps between rounds is a cache: any whole question brings a fresh silo to the same place, and a question of the
current trees may be asked again.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import numpy as np
from scipy.sparse import _sparsetools

from ray_fed.config import require
from ray_fed.privacy.secure_sum.packed import PackedForm, PackedPart
from ray_fed.randomness import derived_seed, generator
from ray_fed.trees.bins import as_float32, codes_of, counted, keys_of
from ray_fed.trees.forest import Forest, ForestPredictor, block_size
from ray_fed.trees.losses import of_classes, quantile_of, residuals, row_losses, sized, target_table
from ray_fed.trees.noise import MOST_OF_ONE_DIGIT, Group, SumNoise, without_noise
from ray_fed.trees.numbers import (
    FRACTION_BITS,
    NUM_EXPONENTS,
    SUM_DIGITS,
    digits_of,
    exponents,
    fixed_point,
    planes_of,
)
from ray_fed.trees.quantiles import NUM_BUCKETS, buckets
from ray_fed.trees.question import (
    CountedChild,
    Step,
    TreeQuestion,
    cells_of_numbers,
    count_parts,
    edges_of_numbers,
    histogram_parts,
    leaf_parts,
    root_parts,
    rows_part,
)
from ray_fed.trees.settings import TreeSettings

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

    groups: of each row, what is not cut between the rows that are fitted and those to stop by. noise: what every
    answer gets; none without.
    """

    def __init__(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        settings: TreeSettings,
        groups: Sequence[str] = (),
        noise: SumNoise | None = None,
    ):
        most = f"{len(features)} rows are more than the {MOST_ROWS} of which sums are exact; divide them among silos"
        require(len(features) <= MOST_ROWS, most)
        stops = "patience needs the loss of rows to stop by, which has no noise; leave it out"
        require(noise is None or not settings.patience, stops)
        self.settings, self.noise = settings, noise
        self._noised = noise.added if noise else without_noise
        self.features = as_float32(features)
        self.targets = target_table(targets, settings)
        self.is_kept = stopping_rows(self.features, settings, groups)
        self.is_fitted = ~np.isnan(self.targets) & ~self.is_kept
        """[outputs, rows]: whether trees are fitted to a row's target."""
        self.iteration, self.level = NEW, 0
        self.mean_loss = 0.0
        """Of the rows that trees are fitted to, under the forest before the trees being grown."""
        self._answers = {
            Step.COUNT: self._count, Step.ROOT: self._root, Step.LEVEL: self._level, Step.LEAF: self._leaf,
        }  # fmt: skip
        self._bins_told = b""
        self._ones, self._memory = np.zeros(0), np.zeros((2, 0), np.int32)

    @property
    def num_rows(self) -> int:
        """Rows of this silo, as it tells them."""
        return self.noise.public_rows if self.noise else len(self.features)

    def answer(self, question: TreeQuestion) -> np.ndarray:
        """Return the sums asked for, whole numbers, int64 [question.answer]. LostRounds when the question builds on
        rounds that this member has not seen."""
        if question.step not in (Step.COUNT, Step.DONE):
            self._come_to(question)
        self._require_form(question)
        parts = self._answers[question.step](question) if question.step in self._answers else []
        return np.concatenate([digits_of(np.array([self.num_rows]), SUM_DIGITS).ravel(), *parts])

    def _require_form(self, question: TreeQuestion) -> None:
        """ValueError where the form that is asked for has counts of rows in other places than the answer has them: the
        gate looks for them there."""
        wanted = PackedForm.joined([rows_part(), *self._parts(question)])
        if wanted.shape != question.form.shape:
            raise ValueError("sums of another form are asked for than these rows make")

    def _parts(self, question: TreeQuestion) -> tuple[PackedPart, ...]:
        settings, is_noised = self.settings, self.noise is not None
        if question.step is Step.COUNT:
            cells, outputs = cells_of_numbers(question.cells), settings.outputs
            of_start = [outputs * NUM_EXPONENTS, outputs * 2 * SUM_DIGITS, outputs * NUM_EXPONENTS, 0]
            missing = self.features.shape[1] if question.number == 0 else 0
            return count_parts(cells.num_parts(), missing + of_start[min(question.number, 3)])
        if question.step is Step.LEAF:
            return leaf_parts(settings, 1, is_noised)
        if question.step is Step.DONE:
            return ()
        slots, digits = int(self._offsets[-1]), question.digits
        if question.step is Step.ROOT:
            return root_parts(settings, slots, digits, 1, 2 * SUM_DIGITS if settings.patience else 0, is_noised)
        asked = int((self._splits_above(question)[:, 6] != CountedChild.NEITHER).sum())
        return histogram_parts(slots, digits, 1, settings.levels, is_noised) * asked

    # ---- before the first tree

    def _count(self, question: TreeQuestion) -> list[np.ndarray]:
        if not hasattr(self, "_sorted_keys"):
            columns = (column[~np.isnan(column)] for column in self.features.T)
            self._sorted_keys = [np.sort(keys_of(column)) for column in columns]
        cells = cells_of_numbers(question.cells)
        missing = np.isnan(self.features).sum(axis=0) if question.number == 0 else np.zeros(0, np.int64)
        of_cells = np.concatenate([counted(self._sorted_keys, cells), missing])  # a row is in one place of each feature
        groups = [(of_cells, sqrt(len(np.unique(cells.feature))))]
        if question.number == 1:
            groups += self._counts_and_sums(np.where(of_classes(self.settings), 0, question.scales))
        elif question.number < 3:
            groups.append(self._first_sizes(question))
        cells_noised, *others = self._noised(groups)
        if question.number == 1:
            others = [digits_of(np.stack(others, 1), SUM_DIGITS).ravel()]
        return [cells_noised, *others]

    def _first_sizes(self, question: TreeQuestion) -> Group:
        """Return the sizes of the targets, then those of the first residuals."""
        if question.number == 0:
            return self._sizes(self.targets)
        scores = np.repeat(question.start.astype(np.float64)[:, None], len(self.features), 1)
        found, _ = residuals(self.targets, scores, self.settings)
        return self._sizes(sized(self.targets, scores, found, self.settings))

    def _sizes(self, table: np.ndarray) -> Group:
        """Return how many values of each output have which exponent, [outputs * NUM_EXPONENTS]."""
        counts = [
            np.bincount(exponents(row[has]), minlength=NUM_EXPONENTS)
            for row, has in zip(table, self.is_fitted, strict=True)
        ]
        return np.concatenate(counts), sqrt(self.settings.outputs)

    def _counts_and_sums(self, scales: np.ndarray) -> list[Group]:
        """Return number and sum of each output's targets, each [outputs]."""
        each = list(zip(self.targets, self.is_fitted, scales.tolist(), strict=True))
        sums = [int(self._fixed_point(row[has], int(scale)).sum()) for row, has, scale in each]
        of_one = sqrt(self.settings.outputs)
        counts = np.array([int(has.sum()) for _, has, _ in each])
        return [(counts, of_one), (np.array(sums, np.int64), of_one * (1 << FRACTION_BITS))]

    def _fixed_point(self, values: np.ndarray, exponent: int) -> np.ndarray:
        """With noise what is beyond the scale counts as the scale: that bounds what a row can change."""
        numbers = fixed_point(values, exponent)
        return np.clip(numbers, -(1 << FRACTION_BITS), 1 << FRACTION_BITS) if self.noise else numbers

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
        self._first_codes = np.arange(len(self.features)) * self._codes.shape[1]
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
        self.places = np.zeros((self.settings.outputs, len(self.features)), np.int64)
        losses = row_losses(self.targets, self.scores, self.settings)[~self.is_kept]
        self.mean_loss = float(losses.mean()) if len(losses) and not self.noise else 0.0
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
        self._pointers = np.arange(len(codes) + 1, dtype=np.int32) * np.int32(codes.shape[1])

    def _num_bins(self, feature: int) -> int:
        return len(self._edges[feature]) + 1 + int(self._has_missing[feature])

    def _row_weights(self, output: int, scale: int) -> np.ndarray:
        """Return ROW_WEIGHT plus each row's residual in whole levels; residuals of a quantile are between -1 and 1."""
        scale = scale if quantile_of(self.settings)[output] is None else 0
        steps = np.rint(self._residuals[output] * self.settings.levels * 2.0**-scale)
        return ROW_WEIGHT + np.clip(steps, -self.settings.levels, self.settings.levels)

    def _to_level(self, level: int) -> None:
        """Go back to a level that was passed already: a question may be asked again."""
        if level < self.level:
            self.places >>= self.level - level
            self.level = level

    def _split(self, splits: np.ndarray, level: int) -> None:
        """Send the rows of split places to the left or right; those of others go left."""
        for output in range(self.settings.outputs):
            mine = splits[(splits[:, 0] == output) & (splits[:, 1] == level)]
            goes_right = self._goes_right(mine, self.places[output], level)
            self.places[output] *= 2
            self.places[output] += goes_right
        self.level = level + 1

    def _goes_right(self, splits: np.ndarray, places: np.ndarray, level: int) -> np.ndarray:
        """Return which rows go right, bool [rows]; where nothing is split, no code is above the bin."""
        feature, bin_number = np.zeros(1 << level, np.int64), np.full(1 << level, MOST_CODES, np.uint8)
        feature[splits[:, 2]], bin_number[splits[:, 2]] = splits[:, 3], splits[:, 4]
        of_row = feature.take(places)
        code = self._codes.take(of_row + self._first_codes)
        right = code > bin_number.take(places)
        if self._has_gaps:
            missing_right = np.zeros(1 << level, bool)
            missing_right[splits[:, 2]] = splits[:, 5] == 0
            is_missing = (code == 0) & (self._has_missing[of_row] == 1)
            right = np.where(is_missing, missing_right.take(places), right)
        return right

    def _bottom(self) -> np.ndarray:
        return self.places << (self.settings.depth - self.level)

    # ---- sums

    def _root(self, question: TreeQuestion) -> list[np.ndarray]:
        found = [self._histograms(output, None, 1) for output in range(self.settings.outputs)]
        return [self._in_digits(np.concatenate(found), question.digits), *self._stopping()]

    def _level(self, question: TreeQuestion) -> list[np.ndarray]:
        splits = self._splits_above(question)
        splits = splits[splits[:, 6] != CountedChild.NEITHER]
        asked, found = 2 * splits[:, 2] + (splits[:, 6] == CountedChild.RIGHT), []
        for output in range(self.settings.outputs):
            mine = asked[splits[:, 0] == output]
            slot_of_place = np.full(1 << question.number, -1, np.int32)
            slot_of_place[mine] = np.arange(len(mine))
            found.append(self._histograms(output, slot_of_place.take(self.places[output]), len(mine)))
        return [self._in_digits(np.concatenate(found), question.digits)]

    @staticmethod
    def _splits_above(question: TreeQuestion) -> np.ndarray:
        """Return the splits of which a child is asked for now, and those beside them."""
        splits = question.split_table()
        return splits[splits[:, 1] == question.number - 1]

    def _histograms(self, output: int, slots: np.ndarray | None, num_slots: int) -> np.ndarray:
        """Return (sums of residuals, numbers of rows) of each slot's bins, int64 [num_slots, 2, bins]. slots: of each
        row, -1 for none; None where all rows are in slot 0.

        It is np.bincount in a quarter of the time: the product of a sparse matrix, a one in each row's bins, with the
        rows' weights. These are whole numbers, so the order of the sums changes no bit.
        """
        size, is_fitted = int(self._offsets[-1]), self.is_fitted[output]
        if num_slots == 0 or size == 0:
            return np.zeros((num_slots, 2, size), np.int64)
        rows = np.flatnonzero(is_fitted if slots is None else (slots >= 0) & is_fitted)
        bins, weights, is_moved = self._bins, self._weights[output], num_slots > 1 and slots is not None
        if len(rows) < len(bins) or is_moved:  # what is moved is a copy, even where all rows are
            bins, weights = self._taken[: len(rows)], weights[rows]
            np.take(self._bins, rows, axis=0, out=bins, mode="clip")
        if slots is not None and is_moved:
            bins += (slots[rows] * np.int32(size))[:, None]
        sums = np.zeros(num_slots * size)
        # The matrix itself would be looked through each time, which takes as long as the sums. What it is looked
        # through for, places outside the sums, would be written to memory of others.
        if bins.size and not 0 <= int(bins.min()) <= int(bins.max()) < len(sums):
            raise IndexError("a row has a place outside the histograms that are asked for")
        _sparsetools.csc_matvec(
            len(sums), len(rows), self._pointers, bins.reshape(-1), self._ones, weights, sums
        )  # fmt: skip
        counts = np.rint(sums * (1 / ROW_WEIGHT))
        found = np.empty((num_slots, 2, size), np.int64)
        found[:, 1] = counts.reshape(num_slots, size)
        found[:, 0] = (sums - counts * ROW_WEIGHT).reshape(num_slots, size)
        return found

    def _in_digits(self, found: np.ndarray, digits: int) -> np.ndarray:
        """Return histograms [n, 2, bins] as they are told: sums digit by digit, then rows, of each node."""
        if self.noise:
            of_row = sqrt(len(self._chosen) * self.settings.outputs)  # one place of each feature, for each output
            sums, rows = self._noised([(found[:, 0], of_row * self.settings.levels), (found[:, 1], of_row)])
            most = MOST_OF_ONE_DIGIT
            found = np.stack([np.clip(sums, -most, most) if digits == 1 else sums, np.clip(rows, -most, most)], 1)
        if digits == 1:
            return found.reshape(-1)
        planes = np.moveaxis(planes_of(found[:, 0], digits), 0, 1)
        return np.concatenate([planes, found[:, 1:]], 1).reshape(-1)

    def _leaf(self, question: TreeQuestion) -> list[np.ndarray]:
        """Return, of each output, the exact sum of residuals in each place at the bottom and the number of rows; of a
        class, the weight that the sum is divided by; of a quantile, the counts of distances, too. And what the next
        scales are taken from."""
        gaps = sized(self.targets, self.scores, self._residuals, self.settings)
        parts = self._leaf_groups(question, gaps)
        numbers = self._noised([group for _, group in parts])
        return [
            planes_of(each, SUM_DIGITS).reshape(-1) if in_digits else each
            for (in_digits, _), each in zip(parts, numbers, strict=True)
        ]

    def _leaf_groups(self, question: TreeQuestion, gaps: np.ndarray) -> list[tuple[bool, Group]]:
        """Return (whether it travels in digits, numbers and what a row can change) of each part."""
        parts, quantiles, of_class = [], quantile_of(self.settings), of_classes(self.settings)
        count, whole = self.settings.num_leaf_places, float(1 << FRACTION_BITS)
        for output, places in enumerate(self._bottom()):
            has, scale = self.is_fitted[output], int(question.scales[output])
            places = places[has]
            numbers = self._fixed_point(self._residuals[output][has], 0 if quantiles[output] else scale)
            parts.append((True, (_added(places, numbers, count), whole)))
            parts.append((False, (np.bincount(places, minlength=count), 1.0)))
            if of_class[output]:
                weights = fixed_point(self._leaf_weights[output][has], 0)
                parts.append((True, (_added(places, weights, count), whole / 4)))
            if quantiles[output]:
                slots = places * NUM_BUCKETS + buckets(gaps[output][has], scale)
                parts.append((False, (np.bincount(slots, minlength=NUM_BUCKETS * count), 1.0)))
        return [*parts, (False, self._sizes(gaps))]

    def _stopping(self) -> list[np.ndarray]:
        """Return the number of rows to stop by and the sum of their losses, in digits; nothing without a patience."""
        if not self.settings.patience:
            return []
        losses = row_losses(self.targets[:, self.is_kept], self.scores[:, self.is_kept], self.settings)
        total = int(fixed_point(losses, STOPPING_EXPONENT).sum())
        return [digits_of(np.array([int(self.is_kept.sum()), total]), SUM_DIGITS).ravel()]


def _added(places: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Return the sums of whole numbers in each place, int64 [count]; halves are added up apart, each exactly."""
    high, low = numbers >> 20, numbers & ((1 << 20) - 1)
    sums = [np.bincount(places, part, count).astype(np.int64) for part in (high, low)]
    return (sums[0] << 20) + sums[1]
