"""The coordinator's half: from the sums of all silos to the next question, as a function of a state of plain arrays.

    COUNT (some rounds)   cells of all features; where the forest starts; the first scales
    then per iteration
      ROOT                histograms of all rows
      LEVEL 1, 2, ...     of the smaller child of each split; the other one's by subtraction
      LEAF                exact sums in each leaf: its value; and the scale of the next iteration's residuals

The scale of an iteration is that of the residuals before the last one, which saves an exchange; a residual beyond it
counts as the scale in a histogram, and as it is in a leaf's value. A silo that comes or goes within an iteration
changes the number of rows behind a sum, and the iteration begins again: the same rows are behind all its sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, partial
from math import sqrt

import numpy as np

from ray_fed.privacy.secure_sum.packed import PackedForm, PackedPart
from ray_fed.trees.bins import LARGEST, Cells, edges_of, to_refine
from ray_fed.trees.forest import Forest, block_size, tree_block
from ray_fed.trees.losses import of_classes, quantile_of, start_of, step_factors
from ray_fed.trees.member import STOPPING_EXPONENT, features_of_tree
from ray_fed.trees.numbers import EXACT, FRACTION_BITS, NUM_EXPONENTS, SUM_DIGITS, agreed_exponent, of_digits, of_planes
from ray_fed.trees.quantiles import NUM_BUCKETS, quantiles
from ray_fed.trees.question import (
    CountedChild,
    Step,
    TreeQuestion,
    cells_as_numbers,
    count_parts,
    groups_of_leaves,
    histogram_parts,
    leaf_parts,
    root_parts,
    rows_part,
)
from ray_fed.trees.settings import TreeSettings

START_ROUNDS = 3
"""Counting rounds that a forest's start needs: sizes of targets, their sums, sizes of residuals."""
MOST_COUNT_ROUNDS = 8
NUMBERS_AT_ONCE = 1 << 14
"""Of histograms that are looked through together: more do not fit into a core's own memory."""
LEAST_CURVATURE = 1e-12
DEVIATIONS = 4.0
"""What noise alone hardly ever exceeds, in standard deviations."""
PARTS_TO_STAND_OUT = 4
GROUPS_OF_COUNTS = 3
"""Most groups of numbers in a counting round, among which its noise is divided (noise.py)."""
LARGEST_STEP = 4.0
"""Of a class's score in one tree with noise, in scales."""
KEY_BITS = 20
"""Of a place in a level: more than any tree has."""
OUTPUT, LEVEL, PLACE, FEATURE, BIN, MISSING_LEFT, ASK, ROWS = range(8)
"""Columns of a split: those of `TreeQuestion.splits`, and the rows of the child that is counted."""
SPLIT_COLUMNS = 8
NO_LONGS, NO_FLOATS, NO_DOUBLES = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0)


@dataclass(frozen=True)
class Growth:
    """How far a forest has come; every field is an array, so it is a strategy's state as it is."""

    step: np.ndarray
    """int64 [5]: Step, number, iteration, rows behind the sums of the iteration (-1: not known), ended by patience."""
    forest: np.ndarray
    """float32: trees so far, one after another."""
    start: np.ndarray = field(default_factory=NO_FLOATS.copy)
    """[outputs]."""
    scales: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[outputs]: exponents."""
    cells: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[4, num_cells]: feature, first key, bits, rows; while counting."""
    missing: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[features]: rows in which the feature is missing."""
    edges: np.ndarray = field(default_factory=NO_FLOATS.copy)
    """Of all features, one after another."""
    bins: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[features, 2]: number of edges, whether values are missing."""
    splits: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[num_splits, 8] of the trees being grown: see `TreeQuestion.splits`, and the rows of the counted child."""
    nodes: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[num_nodes, 2]: output and place of the nodes of the level whose histograms are known, ascending."""
    histograms: np.ndarray = field(default_factory=partial(np.zeros, 0))
    """[num_nodes, 2, bins]: residuals in levels, rows; whole numbers."""
    best: np.ndarray = field(default_factory=partial(np.zeros, 0))
    """[num_nodes, 6]: their best splits."""
    values: np.ndarray = field(default_factory=NO_FLOATS.copy)
    """[outputs * leaves]: of the last iteration, in its own place in the next question."""
    losses: np.ndarray = field(default_factory=partial(np.zeros, 0))
    """[iterations]: mean loss of the rows to stop by."""

    @classmethod
    def begin(cls, num_features: int) -> "Growth":
        """Return the state before the first question."""
        step = np.array([Step.COUNT, 0, 0, -1, 0])
        return cls(step, NO_FLOATS, cells=_as_array(Cells.first(num_features)))

    @classmethod
    def of(cls, state: Mapping[str, np.ndarray]) -> "Growth":
        return cls(**{each.name: state[each.name] for each in fields(cls)})

    def state(self) -> dict[str, np.ndarray]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def at(self) -> Step:
        return Step(int(self.step[0]))

    @property
    def number(self) -> int:
        return int(self.step[1])

    @property
    def iteration(self) -> int:
        return int(self.step[2])

    @property
    def rows(self) -> int:
        return int(self.step[3])

    @property
    def is_stopped(self) -> bool:
        """Whether patience was at an end, or all iterations done with a patience."""
        return bool(self.step[4])

    def moved(self, step: Step, number: int, **changes: np.ndarray) -> "Growth":
        return replace(self, step=np.array([step, number, *self.step[2:]]), **changes)


NOTHING_GROWN = {"splits": NO_LONGS, "nodes": NO_LONGS, "histograms": NO_DOUBLES, "best": NO_DOUBLES}
"""Of a `Growth` between two trees."""


@dataclass(frozen=True)
class Grower:
    """Grows a forest by the settings: `question`, then `after` the silos' sums."""

    settings: TreeSettings
    num_features: int
    noise: float = 0.0
    """Standard deviation of the noise in a sum that one row moves by 1; 0: there is none."""

    @property
    def is_noised(self) -> bool:
        """Numbers of rows may then come out below 0."""
        return self.noise > 0

    def question(self, growth: Growth, whole: bool = False) -> TreeQuestion:
        """Return what is asked next; a whole question brings along what was asked before."""
        form = self.form(growth)
        base = TreeQuestion(growth.at, growth.number, growth.iteration, self._digits(growth), form)
        if growth.at is Step.DONE:
            return base
        scales = growth.scales.astype(np.float32)
        if growth.at is Step.COUNT:
            cells = cells_as_numbers(self._cells_to_count(growth))
            return replace(base, cells=cells, start=growth.start, scales=scales)
        of_level = growth.splits[:, 1] == growth.number - 1 if len(growth.splits) else np.zeros(0, bool)
        splits = growth.splits if whole else growth.splits[of_level]
        asked = splits[:, :ROWS].astype(np.float32).ravel() if len(splits) else NO_FLOATS
        question = replace(base, scales=scales, splits=asked, values=growth.values)
        is_first = growth.at is Step.ROOT and growth.iteration == 0
        if not (whole or is_first):
            return question
        bins = growth.bins.astype(np.float32).ravel()
        return replace(question, is_whole=True, start=growth.start, edges=growth.edges, bins=bins, forest=growth.forest)

    def form(self, growth: Growth) -> PackedForm:
        """Return what the answers to the next question, added up, are made of."""
        return PackedForm.joined([rows_part(), *self._parts(growth)])

    def _parts(self, growth: Growth) -> tuple[PackedPart, ...]:
        settings, outputs, rows = self.settings, self.settings.outputs, growth.rows
        if growth.at is Step.COUNT:
            of_start = [outputs * NUM_EXPONENTS, outputs * 2 * SUM_DIGITS, outputs * NUM_EXPONENTS, 0]
            missing = self.num_features if growth.number == 0 else 0
            return count_parts(self._cells_to_count(growth).num_parts(), missing + of_start[min(growth.number, 3)])
        if growth.at is Step.LEAF:
            return leaf_parts(settings, rows, self.is_noised)
        if growth.at is Step.DONE:
            return ()
        slots, digits = self._num_slots(growth), self._digits(growth)
        if growth.at is Step.ROOT:
            kept = 2 * SUM_DIGITS if settings.patience else 0
            return root_parts(settings, slots, digits, rows, kept, self.is_noised)
        sizes = self._asked(growth)[:, ROWS].tolist()
        return tuple(part for size in sizes for part in self._histogram_parts(slots, digits, size))

    def _histogram_parts(self, num_slots: int, digits: int, rows: int) -> tuple[PackedPart, ...]:
        return histogram_parts(num_slots, digits, max(1, rows), self.settings.levels, self.is_noised)

    @staticmethod
    def _asked(growth: Growth) -> np.ndarray:
        """Return the splits of which a child is asked for next."""
        splits = growth.splits
        return splits[(splits[:, LEVEL] == growth.number - 1) & (splits[:, ASK] != CountedChild.NEITHER)]

    def largest_answer(self) -> int:
        """Return more values than any answer of this forest has."""
        settings = self.settings
        nodes = settings.outputs * max(1, min(settings.leaves, settings.num_leaf_places) // 2)
        cells = self.num_features * (settings.bins * 8 + 2) * 16 * 2
        return max(self._most_slots() * nodes, cells) + self._most_of_leaves() + 4 * SUM_DIGITS

    def all_answers(self) -> int:
        """Return more values than all answers of this forest have together while no silo comes or goes."""
        settings = self.settings
        of_tree = settings.outputs * settings.leaves * self._most_slots() + self._most_of_leaves()
        rows = self.most_rounds() * 4 * SUM_DIGITS
        return settings.trees * of_tree + rows + MOST_COUNT_ROUNDS * self.largest_answer()

    def _most_slots(self) -> int:
        """Values of one histogram at most."""
        chosen = max(1, round(self.settings.feature_fraction * self.num_features))
        return chosen * (self.settings.bins + 1) * 3

    def _most_of_leaves(self) -> int:
        settings = self.settings
        return settings.outputs * (settings.num_leaf_places * (2 * SUM_DIGITS + 1 + NUM_BUCKETS) + 2 * NUM_EXPONENTS)

    def most_rounds(self) -> int:
        """Return how many rounds a forest takes at most while no silo comes or goes."""
        return MOST_COUNT_ROUNDS + self.settings.trees * (self.settings.depth + 1) + bool(self.settings.patience)

    def after(self, growth: Growth, sums: np.ndarray) -> Growth:
        """Return the state after the answer, the sums of all silos: int64 [answer_size]."""
        rows, sums = int(of_digits(sums[:SUM_DIGITS])), sums[SUM_DIGITS:]
        if growth.at is Step.DONE:
            return growth
        if growth.rows != rows:
            is_first = growth.at is Step.COUNT and growth.number == 0
            fits = growth.at is Step.ROOT and rows < growth.rows  # the bounds of its sums are those of more rows
            growth = replace(growth, step=np.array([*growth.step[:3], rows, 0]))
            if not (is_first or fits):
                return self._again(growth)
        if growth.at is Step.COUNT:
            return self._after_count(growth, sums)
        if growth.at is Step.ROOT:
            return self._after_root(growth, sums)
        return self._after_level(growth, sums) if growth.at is Step.LEVEL else self._after_leaf(growth, sums)

    def forest(self, growth: Growth) -> Forest:
        """Return the forest so far; ended by patience, up to its best iteration. A finished one has its full length."""
        blocks = growth.forest.reshape(-1, block_size(self.settings))
        if growth.is_stopped:
            blocks = blocks[: self.settings.outputs * int(growth.losses.argmin())]
        start = growth.start if len(growth.start) else np.zeros(self.settings.outputs, np.float32)
        forest = Forest(self.settings, start.astype(np.float32), blocks)
        return forest.filled() if growth.at is Step.DONE else forest

    def _again(self, growth: Growth) -> Growth:
        """Begin the iteration, or the counting, once more: other silos than before were behind a sum."""
        if growth.at is Step.COUNT:
            return Growth.begin(self.num_features)
        return growth.moved(Step.ROOT, 0, **NOTHING_GROWN)

    def _digits(self, growth: Growth) -> int:
        """Return how many digits a sum in a histogram needs."""
        return 1 if max(growth.rows, 0) * self.settings.levels < EXACT else 2

    # ---- before the first tree

    def _cells_to_count(self, growth: Growth) -> Cells:
        cells = Cells(*growth.cells)
        return cells if growth.number == 0 else cells.taken(self._is_large(growth, cells))

    def _is_large(self, growth: Growth, cells: Cells) -> np.ndarray:
        present = np.maximum(growth.rows - growth.missing, 0)
        # With noise a cell must have enough rows for its parts to stand out.
        fewest = max(self.settings.min_rows_in_bin, int(PARTS_TO_STAND_OUT * self._least_count(self.num_features)))
        return to_refine(cells, present, self.settings.bins, fewest)

    def _least_count(self, num_features: int) -> float:
        """Return how large a count of rows in cells of so many features must be to be no noise alone."""
        return DEVIATIONS * self.noise * sqrt(GROUPS_OF_COUNTS * num_features)

    def _after_count(self, growth: Growth, sums: np.ndarray) -> Growth:
        asked, number = self._cells_to_count(growth), growth.number
        counts, rest = np.split(sums, [asked.num_parts()])
        missing, rest = np.split(rest, [self.num_features]) if number == 0 else (growth.missing, rest)
        growth = self._with_start(replace(growth, missing=missing), rest)
        counts = np.where(counts < self._least_count(len(np.unique(asked.feature))), 0, counts)
        cells = Cells(*growth.cells)
        large = np.ones(len(cells.low), bool) if number == 0 else self._is_large(growth, cells)
        cells = cells.taken(~large).merged(asked.children(counts))
        growth = growth.moved(Step.COUNT, number + 1, cells=_as_array(cells))
        if number + 1 < START_ROUNDS or self._is_large(growth, cells).any():
            return growth
        return self._with_edges(growth, cells)

    def _with_start(self, growth: Growth, answer: np.ndarray) -> Growth:
        settings = self.settings
        if growth.number in (0, 2):
            return replace(growth, scales=self._scales_of(answer, GROUPS_OF_COUNTS))
        if growth.number > 2:
            return growth
        numbers = of_digits(answer.reshape(settings.outputs, 2, SUM_DIGITS))
        scales = np.where(of_classes(settings), 0, growth.scales)
        units = 2.0 ** (scales - FRACTION_BITS)
        return replace(growth, start=start_of(numbers[:, 1] * units / np.maximum(1, numbers[:, 0]), settings))

    def _scales_of(self, sizes: np.ndarray, num_groups: int) -> np.ndarray:
        """num_groups: of the answer, among which its noise is divided."""
        counts = sizes.reshape(self.settings.outputs, NUM_EXPONENTS)
        deviation = self.noise * sqrt(num_groups * self.settings.outputs)
        fewest = self.settings.min_rows_in_bin + DEVIATIONS * deviation * np.sqrt(np.arange(NUM_EXPONENTS, 0, -1))
        return np.array([agreed_exponent(each, fewest) for each in counts])

    def _with_edges(self, growth: Growth, cells: Cells) -> Growth:
        settings = self.settings
        edges = edges_of(cells, self.num_features, settings.bins, settings.min_rows_in_bin)
        bins = np.stack([np.array([len(each) for each in edges]), (growth.missing > 0).astype(np.int64)], 1)
        return growth.moved(Step.ROOT, 0, cells=NO_LONGS, edges=np.concatenate(edges), bins=bins)

    # ---- levels

    def _slots(self, growth: Growth) -> "_Slots":
        return _slots_of_tree(self.settings, growth.iteration, growth.bins.tobytes())

    def _num_slots(self, growth: Growth) -> int:
        return int(self._slots(growth).offsets[-1])

    def _after_root(self, growth: Growth, sums: np.ndarray) -> Growth:
        if self.settings.patience:
            sums, kept = np.split(sums, [-2 * SUM_DIGITS])
            count, total = of_digits(kept.reshape(2, SUM_DIGITS))
            loss = total * 2.0 ** (STOPPING_EXPONENT - FRACTION_BITS) / max(1, count)
            growth = replace(growth, losses=np.append(growth.losses[: growth.iteration], loss))
            is_late = len(growth.losses) - 1 - int(growth.losses.argmin()) >= self.settings.patience
            if is_late or growth.iteration == self.settings.trees:
                growth.step[4] = 1
                return growth.moved(Step.DONE, 0, values=NO_FLOATS)
        nodes = np.stack([np.arange(self.settings.outputs), np.zeros(self.settings.outputs, np.int64)], 1)
        growth = replace(growth, splits=np.zeros((0, SPLIT_COLUMNS), np.int64), values=NO_FLOATS)
        histograms = self._histograms(growth, sums)
        return self._split(growth, 0, nodes, histograms, self._best_splits(growth, histograms))

    def _histograms(self, growth: Growth, sums: np.ndarray) -> np.ndarray:
        """Return whole numbers in digits as float64 [nodes, 2, slots], which holds them exactly."""
        planes = sums.reshape(-1, self._digits(growth) + 1, self._num_slots(growth))
        found = np.empty((len(planes), 2, planes.shape[2]))
        found[:, 0] = of_planes(planes[:, :-1])
        found[:, 1] = planes[:, -1]
        return found

    def _after_level(self, growth: Growth, sums: np.ndarray) -> Growth:
        """Both children of each split from the smaller one's histogram and the parent's."""
        found, splits = self._histograms(growth, sums), self._asked(growth)
        parents = np.searchsorted(_keys(growth.nodes), _keys(splits[:, [OUTPUT, PLACE]]))
        is_waiting = np.ones(len(growth.nodes), bool)
        is_waiting[parents] = False
        asked = 2 * splits[:, PLACE] + (splits[:, ASK] == CountedChild.RIGHT)
        # An open node is at the left below itself.
        nodes = np.concatenate([
            np.stack([splits[:, OUTPUT], asked], 1), np.stack([splits[:, OUTPUT], asked ^ 1], 1),
            growth.nodes[is_waiting] * [1, 2],
        ])  # fmt: skip
        order, first, last = np.argsort(_keys(nodes)), len(splits), 2 * len(splits)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        histograms, best = np.empty((len(nodes), *found.shape[1:])), np.empty((len(nodes), 6))
        others = growth.histograms[parents]
        others -= found
        histograms[place[:first]], histograms[place[first:last]] = found, others
        histograms[place[last:]], best[place[last:]] = growth.histograms[is_waiting], growth.best[is_waiting]
        best[place[:first]], best[place[first:last]] = (self._best_splits(growth, each) for each in (found, others))
        return self._split(growth, growth.number, nodes[order], histograms, best)

    def _split(self, growth: Growth, level: int, nodes: np.ndarray, histograms: np.ndarray, best: np.ndarray) -> Growth:
        """Split the open nodes that gain most; ask for the next level, or for leaves where nothing more is to be split.

        So many at a level that those still allowed are dealt over the levels still to come: what is left waits, and
        competes with its betters' children, as in growth leaf by leaf. Nodes come in the order of output and place.
        """
        room = self._room(growth)
        is_last = level + 1 == self.settings.depth
        paced = [-(-most // (self.settings.depth - level)) for most in room]
        chosen = _chosen(nodes[:, 0], best[:, 0], paced)
        table = self._table(nodes, level, best, chosen, room, is_last)
        if not (is_last or (table[:, ASK] != CountedChild.NEITHER).any()):  # no later level would ask for anything
            chosen = _chosen(nodes[:, 0], best[:, 0], room)
            table = self._table(nodes, level, best, chosen, room, is_last)
        asked = table[:, ASK] != CountedChild.NEITHER
        waits = (best[:, 0] > 0) & asked.any()
        waits[chosen] = asked
        return growth.moved(
            Step.LEVEL if asked.any() else Step.LEAF,
            level + 1 if len(table) else level,
            splits=np.concatenate([growth.splits, table]),
            nodes=nodes[waits],
            histograms=histograms[waits],
            best=best[waits],
        )

    def _room(self, growth: Growth) -> list[int]:
        """Return how many more splits the tree of each output may have."""
        made = np.bincount(growth.splits[:, OUTPUT], minlength=self.settings.outputs)
        return [self.settings.leaves - 1 - count for count in made.tolist()]

    def _table(
        self, nodes: np.ndarray, level: int, best: np.ndarray, chosen: np.ndarray, room: list[int], is_last: bool
    ) -> np.ndarray:
        """Return the chosen splits as they are asked, int64 [splits, 8]."""
        outputs = nodes[chosen, 0]
        table = np.empty((len(chosen), SPLIT_COLUMNS), np.int64)
        table[:, OUTPUT], table[:, LEVEL], table[:, PLACE] = outputs, level, nodes[chosen, 1]
        table[:, FEATURE:ASK] = best[chosen, 1:4]
        left, right = best[chosen, 4], best[chosen, 5]
        table[:, ASK] = np.where(left <= right, CountedChild.LEFT, CountedChild.RIGHT)
        table[:, ROWS] = np.minimum(left, right)
        is_full = np.array(room) == np.bincount(outputs, minlength=len(room))
        table[is_last | is_full[outputs] | (np.maximum(left, right) < 2 * self.settings.min_rows), ASK] = 0
        return table

    def _best_splits(self, growth: Growth, histograms: np.ndarray) -> np.ndarray:
        """Return per node gain, feature, bin, missing_left, rows to the left, to the right; float64 [nodes, 6]."""
        slots = self._slots(growth)
        if not len(histograms) or not len(slots.features):
            return np.zeros((len(histograms), 6))
        at_once = max(1, NUMBERS_AT_ONCE // histograms[0].size)
        parts = range(0, len(histograms), at_once)
        return np.concatenate([self._best(slots, histograms[first : first + at_once]) for first in parts])

    def _best(self, slots: "_Slots", histograms: np.ndarray) -> np.ndarray:
        """The gain is that of least squares: s_l^2 / (n_l + l2) + s_r^2 / (n_r + l2) - s^2 / (n + l2)."""
        # Of all slots, one feature after the other; what came before the feature is taken off again.
        running = np.zeros((len(histograms), 2, histograms.shape[2] + 1))
        np.cumsum(histograms, axis=2, out=running[..., 1:])
        before = running.take(slots.offsets[:-1], axis=2)
        total = running[..., slots.offsets[1]]
        left = running[..., 1:]
        left -= np.repeat(before, slots.sizes, axis=2)
        gains = self._gains(left, total)
        gains[:, slots.is_no_split] = -np.inf
        if len(slots.without):
            without = left[..., slots.without] - histograms[..., slots.missing_of_without]
            left, gains = np.concatenate([left, without], 2), np.concatenate([gains, self._gains(without, total)], 1)
        rows, best = np.arange(len(histograms)), gains.argmax(axis=1)
        slot = slots.slot_of_candidate[best]
        counts = left[rows, 1, best]
        rest = total[:, 1] - counts
        missing_left = np.where(slots.has_missing[slot], best < slots.offsets[-1], counts >= rest)
        found = [gains[rows, best], slots.features[slots.number[slot]], slots.within[slot], missing_left, counts, rest]
        return np.stack(found, 1)

    def _gains(self, left: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Return gains [nodes, candidates]; minus infinity where a side has fewer than `min_rows`."""
        l2, fewest = self.settings.l2, self.settings.min_rows
        sums, rows = left[:, 0], left[:, 1]
        rows_right = total[:, 1, None] - rows
        unfit = np.minimum(rows, rows_right) < fewest
        parent = total[:, 0] ** 2 / (np.maximum(total[:, 1], 1) + l2)
        gains = sums * sums
        gains /= np.maximum(rows + l2 if l2 else rows, 1)
        sums_right = total[:, 0, None] - sums
        sums_right *= sums_right
        if l2:
            rows_right += l2
        sums_right /= np.maximum(rows_right, 1, out=rows_right)
        gains += sums_right
        gains -= parent[:, None]
        gains[unfit] = -np.inf
        return gains

    # ---- leaves

    def _after_leaf(self, growth: Growth, sums: np.ndarray) -> Growth:
        settings, outputs = self.settings, self.settings.outputs
        exact, sizes = np.split(sums, [len(sums) - outputs * NUM_EXPONENTS])
        values = self._values(growth, exact)
        blocks = [self._block(growth, output, value) for output, value in enumerate(values)]
        iteration = growth.iteration + 1
        is_done = iteration == settings.trees and not settings.patience
        step = np.array([Step.DONE if is_done else Step.ROOT, 0, iteration, growth.rows, 0])
        return replace(
            growth, step=step, forest=np.concatenate([growth.forest, *blocks]),
            scales=self._scales_of(sizes, groups_of_leaves(settings)),
            values=np.concatenate(values), **NOTHING_GROWN,
        )  # fmt: skip

    def _values(self, growth: Growth, answer: np.ndarray) -> list[np.ndarray]:
        """Return the values of each output's leaves, float32 [places]: the learning rate times a step."""
        settings, places, values = self.settings, self.settings.num_leaf_places, []
        factors, of_class = settings.learning_rate * step_factors(settings), of_classes(settings)
        shares, scales = quantile_of(settings), growth.scales.tolist()
        for factor, share, is_class, scale in zip(factors, shares, of_class, scales, strict=True):
            planes, answer = np.split(answer.reshape(-1), [places * (SUM_DIGITS + 1)])
            planes = planes.reshape(SUM_DIGITS + 1, places)
            weights = planes[-1].astype(np.float64)
            if is_class:
                digits, answer = np.split(answer, [places * SUM_DIGITS])
                weights = of_planes(digits.reshape(SUM_DIGITS, places)) * 2.0**-FRACTION_BITS
            steps = self._newton(of_planes(planes[:-1]), weights, scale)
            if self.is_noised:  # no mean of residuals exceeds the scale; a class takes few of them
                steps = np.clip(steps, -(most := 2.0**scale * (LARGEST_STEP if is_class else 1)), most)
            if share:
                counts, answer = np.split(answer, [places * NUM_BUCKETS])
                steps = quantiles(counts.reshape(places, NUM_BUCKETS), share, scale)
            values.append((factor * steps).astype(np.float32))
        return values

    def _newton(self, sums: np.ndarray, weights: np.ndarray, scale: int) -> np.ndarray:
        """Return residuals over weights, float64 [places]; 0 where no row is."""
        total, weight = sums * 2.0 ** (scale - FRACTION_BITS), weights + self.settings.l2
        return np.where(weight > LEAST_CURVATURE, total / np.maximum(weight, LEAST_CURVATURE), 0.0)

    def _block(self, growth: Growth, output: int, values: np.ndarray) -> np.ndarray:
        splits = growth.splits[growth.splits[:, 0] == output]
        return tree_block(self.settings, splits[:, [1, 2, 3, 5]], self._thresholds(growth, splits), values)

    @staticmethod
    def _thresholds(growth: Growth, splits: np.ndarray) -> np.ndarray:
        """Return the edge at which each split divides; beyond the last bin, the largest number: all but missing."""
        first = np.concatenate([[0], np.cumsum(growth.bins[:, 0])])
        feature, bin_number = splits[:, 3], splits[:, 4] - growth.bins[splits[:, 3], 1]
        is_last = bin_number == growth.bins[feature, 0]
        edges = np.append(growth.edges, LARGEST)
        return edges[np.where(is_last, len(edges) - 1, first[feature] + bin_number)]


def _chosen(outputs: np.ndarray, gains: np.ndarray, most: list[int]) -> np.ndarray:
    """Return the places of the nodes with the largest gains above 0, at most so many of each output, ascending."""
    left, chosen = list(most), []
    for number in np.lexsort((np.arange(len(gains)), -gains)):
        if gains[number] > 0 and left[outputs[number]] > 0:
            left[outputs[number]] -= 1
            chosen.append(number)
    return np.sort(np.array(chosen, np.int64))


def _keys(nodes: np.ndarray) -> np.ndarray:
    """Return one number of output and place of each node, in their order."""
    return (nodes[:, 0] << KEY_BITS) | nodes[:, 1]


def _as_array(cells: Cells) -> np.ndarray:
    return np.stack([cells.feature, cells.low, cells.bits, cells.count])


@dataclass(frozen=True)
class _Slots:
    """Where the bins of the features that a tree may split on stand in a histogram: feature after feature."""

    features: np.ndarray
    offsets: np.ndarray
    """[features + 1]: first slot of each."""
    number: np.ndarray
    """[slots]: place of the slot's feature in `features`."""
    within: np.ndarray
    """[slots]: bin."""
    has_missing: np.ndarray
    """[slots]: whether values of the slot's feature are missing."""
    is_no_split: np.ndarray
    """[slots]: after the last bin nothing is left, and what is missing alone is split by its own candidate."""
    without: np.ndarray
    """Slots that are candidates with the missing values to the right, too."""

    @classmethod
    def of(cls, features: np.ndarray, bins: np.ndarray) -> "_Slots":
        sizes = bins[features].sum(axis=1) + 1
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        number = np.repeat(np.arange(len(features)), sizes)
        within, has_missing = np.arange(offsets[-1]) - offsets[number], bins[features, 1][number] == 1
        is_missing = has_missing & (within == 0)
        is_no_split = is_missing | (within == sizes[number] - 1)
        return cls(
            features, offsets, number, within, has_missing, is_no_split, np.flatnonzero(has_missing & ~is_missing)
        )

    @cached_property
    def sizes(self) -> np.ndarray:
        """Slots of each feature."""
        return np.diff(self.offsets)

    @cached_property
    def missing_of_without(self) -> np.ndarray:
        """Slots of the missing values of the features in `without`."""
        return self.offsets[self.number[self.without]]

    @cached_property
    def slot_of_candidate(self) -> np.ndarray:
        return np.concatenate([np.arange(self.offsets[-1]), self.without])


@lru_cache(maxsize=4)
def _slots_of_tree(settings: TreeSettings, iteration: int, bins: bytes) -> _Slots:
    table = np.frombuffer(bins, np.int64).reshape(-1, 2)
    chosen = features_of_tree(settings, iteration, len(table))
    return _Slots.of(chosen[table[chosen].sum(axis=1) > 0], table)
