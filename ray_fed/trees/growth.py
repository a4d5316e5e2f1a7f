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

import numpy as np

from ray_fed.trees.bins import LARGEST, Cells, edges_of, to_refine
from ray_fed.trees.forest import Forest, block_size, tree_block
from ray_fed.trees.losses import of_classes, quantile_of, start_of, step_factors
from ray_fed.trees.member import STOPPING_EXPONENT, SUM_DIGITS, features_of_tree
from ray_fed.trees.numbers import EXACT, FRACTION_BITS, NUM_EXPONENTS, agreed_exponent, of_digits
from ray_fed.trees.quantiles import NUM_BUCKETS, quantiles
from ray_fed.trees.question import CountedChild, Step, TreeQuestion, cells_as_numbers
from ray_fed.trees.settings import TreeSettings

START_ROUNDS = 3
"""Counting rounds that a forest's start needs: sizes of targets, their sums, sizes of residuals."""
MOST_COUNT_ROUNDS = 8
NUMBERS_AT_ONCE = 1 << 14
"""Of histograms that are looked through together: more do not fit into a core's own memory."""
LEAST_CURVATURE = 1e-12
SPLIT_COLUMNS = 7
NO_LONGS, NO_FLOATS = np.zeros(0, np.int64), np.zeros(0, np.float32)


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
    """[num_splits, 7] of the trees being grown: see `TreeQuestion.splits`."""
    nodes: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[num_nodes, 2]: output and place of the nodes of the level whose histograms are known."""
    histograms: np.ndarray = field(default_factory=NO_LONGS.copy)
    """[num_nodes, 2, bins]: residuals in levels, rows."""
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


@dataclass(frozen=True)
class Grower:
    """Grows a forest by the settings: `question`, then `after` the silos' sums."""

    settings: TreeSettings
    num_features: int

    def question(self, growth: Growth, whole: bool = False) -> TreeQuestion:
        """Return what is asked next; a whole question brings along what was asked before."""
        answer = self.answer_size(growth)
        base = TreeQuestion(growth.at, growth.number, growth.iteration, self._digits(growth), answer)
        if growth.at is Step.DONE:
            return base
        scales = growth.scales.astype(np.float32)
        if growth.at is Step.COUNT:
            cells = cells_as_numbers(self._cells_to_count(growth))
            return replace(base, cells=cells, start=growth.start, scales=scales)
        of_level = growth.splits[:, 1] == growth.number - 1 if len(growth.splits) else np.zeros(0, bool)
        splits = growth.splits if whole else growth.splits[of_level]
        question = replace(base, scales=scales, splits=splits.astype(np.float32).ravel(), values=growth.values)
        is_first = growth.at is Step.ROOT and growth.iteration == 0
        if not (whole or is_first):
            return question
        bins = growth.bins.astype(np.float32).ravel()
        return replace(question, is_whole=True, start=growth.start, edges=growth.edges, bins=bins, forest=growth.forest)

    def answer_size(self, growth: Growth) -> int:
        """Return how many values the answer to the next question has."""
        outputs, rows = self.settings.outputs, SUM_DIGITS
        if growth.at is Step.COUNT:
            of_start = [outputs * NUM_EXPONENTS, outputs * 2 * SUM_DIGITS, outputs * NUM_EXPONENTS, 0]
            missing = self.num_features if growth.number == 0 else 0
            return rows + self._cells_to_count(growth).num_parts() + missing + of_start[min(growth.number, 3)]
        if growth.at is Step.LEAF:
            places, num_quantiles = self.settings.num_leaf_places, sum(map(bool, quantile_of(self.settings)))
            return rows + outputs * (2 * places * SUM_DIGITS + NUM_EXPONENTS) + num_quantiles * places * NUM_BUCKETS
        if growth.at is Step.DONE:
            return rows
        size = 2 * self._digits(growth) * self._num_slots(growth)
        if growth.at is Step.ROOT:
            return rows + outputs * size + (2 * SUM_DIGITS if self.settings.patience else 0)
        asked = (growth.splits[:, 1] == growth.number - 1) & (growth.splits[:, 6] != CountedChild.NEITHER)
        return rows + int(asked.sum()) * size

    def largest_answer(self) -> int:
        """Return more values than any answer of this forest has."""
        settings = self.settings
        bins = self.num_features * (settings.bins + 1) * 4
        nodes = settings.outputs * max(1, min(settings.leaves, settings.num_leaf_places) // 2)
        cells = self.num_features * (settings.bins * 8 + 2) * 16 * 2
        leaves = settings.outputs * (settings.num_leaf_places * (2 * SUM_DIGITS + NUM_BUCKETS) + 2 * NUM_EXPONENTS)
        return max(bins * nodes, cells) + leaves + 4 * SUM_DIGITS

    def most_rounds(self) -> int:
        """Return how many rounds a forest takes at most while no silo comes or goes."""
        return MOST_COUNT_ROUNDS + self.settings.trees * (self.settings.depth + 1) + bool(self.settings.patience)

    def after(self, growth: Growth, sums: np.ndarray) -> Growth:
        """Return the state after the answer, the sums of all silos: int64 [answer_size]."""
        rows, sums = int(of_digits(sums[:SUM_DIGITS])), sums[SUM_DIGITS:]
        if growth.at is Step.DONE:
            return growth
        if growth.rows != rows and growth.at is not Step.ROOT:
            if growth.at is Step.COUNT and growth.number == 0:
                growth = replace(growth, step=np.array([*growth.step[:3], rows, 0]))
            else:
                return self._again(growth)
        if growth.at is Step.COUNT:
            return self._after_count(growth, sums)
        if growth.at is Step.ROOT:
            growth = replace(growth, step=np.array([*growth.step[:3], rows, 0]))
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
        return growth.moved(Step.ROOT, 0, splits=NO_LONGS, nodes=NO_LONGS, histograms=NO_LONGS)

    def _digits(self, growth: Growth) -> int:
        """Return how many digits a sum in a histogram needs."""
        return 1 if max(growth.rows, 0) * self.settings.levels < EXACT else 2

    # ---- before the first tree

    def _cells_to_count(self, growth: Growth) -> Cells:
        cells = Cells(*growth.cells)
        return cells if growth.number == 0 else cells.taken(self._is_large(growth, cells))

    def _is_large(self, growth: Growth, cells: Cells) -> np.ndarray:
        present = growth.rows - growth.missing
        return to_refine(cells, present, self.settings.bins, self.settings.min_rows_in_bin)

    def _after_count(self, growth: Growth, sums: np.ndarray) -> Growth:
        asked, number = self._cells_to_count(growth), growth.number
        counts, rest = np.split(sums, [asked.num_parts()])
        missing, rest = np.split(rest, [self.num_features]) if number == 0 else (growth.missing, rest)
        growth = self._with_start(replace(growth, missing=missing), rest)
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
            return replace(growth, scales=self._scales_of(answer))
        if growth.number > 2:
            return growth
        numbers = of_digits(answer.reshape(settings.outputs, 2, SUM_DIGITS))
        scales = np.where(of_classes(settings), 0, growth.scales)
        units = 2.0 ** (scales - FRACTION_BITS)
        return replace(growth, start=start_of(numbers[:, 1] * units / np.maximum(1, numbers[:, 0]), settings))

    def _scales_of(self, sizes: np.ndarray) -> np.ndarray:
        counts = sizes.reshape(self.settings.outputs, NUM_EXPONENTS)
        return np.array([agreed_exponent(each, self.settings.min_rows_in_bin) for each in counts])

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
        size = self._num_slots(growth)
        histograms = of_digits(sums.reshape(self.settings.outputs, 2, size, self._digits(growth)))
        nodes = np.stack([np.arange(self.settings.outputs), np.zeros(self.settings.outputs, np.int64)], 1)
        growth = replace(growth, splits=np.zeros((0, SPLIT_COLUMNS), np.int64), values=NO_FLOATS)
        return self._split(growth, 0, nodes, histograms)

    def _after_level(self, growth: Growth, sums: np.ndarray) -> Growth:
        """Both children of each split from the smaller one's histogram and the parent's."""
        size = self._num_slots(growth)
        found = of_digits(sums.reshape(-1, 2, size, self._digits(growth)))
        splits = growth.splits[
            (growth.splits[:, 1] == growth.number - 1) & (growth.splits[:, 6] != CountedChild.NEITHER)
        ]
        known = {(output, place): number for number, (output, place) in enumerate(growth.nodes.tolist())}
        parents = [known.pop((output, place)) for output, place in splits[:, [0, 2]].tolist()]
        is_right = (splits[:, 6] == CountedChild.RIGHT).astype(np.int64)
        histograms = np.stack([found, growth.histograms[parents] - found], 1).reshape(-1, 2, size)
        asked = 2 * splits[:, 2] + is_right
        nodes = np.stack([np.repeat(splits[:, 0], 2), np.stack([asked, asked ^ 1], 1).ravel()], 1)
        waiting = list(known.values())  # an open node is at the left below itself
        nodes = np.concatenate([nodes, growth.nodes[waiting] * [1, 2]])
        return self._split(growth, growth.number, nodes, np.concatenate([histograms, growth.histograms[waiting]]))

    def _split(self, growth: Growth, level: int, nodes: np.ndarray, histograms: np.ndarray) -> Growth:
        """Split the open nodes that gain most; ask for the next level, or for leaves where nothing more is to be split.

        So many at a level that those still allowed are dealt over the levels still to come: what is left waits, and
        competes with its betters' children, as in growth leaf by leaf.
        """
        order = np.lexsort((nodes[:, 1], nodes[:, 0]))
        nodes, histograms = nodes[order], histograms[order]
        best, room = self._best_splits(growth, histograms), self._room(growth)
        is_last = level + 1 == self.settings.depth
        paced = [-(-most // (self.settings.depth - level)) for most in room]
        chosen = _chosen(nodes[:, 0], best[:, 0], paced)
        table = self._table(nodes, level, best, chosen, room, is_last)
        if not (is_last or (table[:, 6] != CountedChild.NEITHER).any()):  # no later level would ask for anything
            chosen = _chosen(nodes[:, 0], best[:, 0], room)
            table = self._table(nodes, level, best, chosen, room, is_last)
        asked = table[:, 6] != CountedChild.NEITHER
        waits = (best[:, 0] > 0) & asked.any()
        waits[chosen] = asked
        return growth.moved(
            Step.LEVEL if asked.any() else Step.LEAF,
            level + 1 if len(table) else level,
            splits=np.concatenate([growth.splits, table]),
            nodes=nodes[waits],
            histograms=histograms[waits],
        )

    def _room(self, growth: Growth) -> list[int]:
        """Return how many more splits the tree of each output may have."""
        made = np.bincount(growth.splits[:, 0], minlength=self.settings.outputs)
        return [self.settings.leaves - 1 - int(count) for count in made]

    def _table(
        self, nodes: np.ndarray, level: int, best: np.ndarray, chosen: np.ndarray, room: list[int], is_last: bool
    ) -> np.ndarray:
        """Return the chosen splits as they are asked, int64 [splits, 7]."""
        left = np.array(room) - np.bincount(nodes[chosen, 0], minlength=len(room))
        rows = [
            self._split_row(nodes[number], level, best[number], is_last or left[nodes[number, 0]] == 0)
            for number in chosen
        ]
        return np.array(rows, np.int64).reshape(-1, SPLIT_COLUMNS)

    def _split_row(self, node: np.ndarray, level: int, best: np.ndarray, is_last: bool) -> list[int]:
        feature, bin_number, missing_left, left, right = (int(value) for value in best[1:])
        ask = CountedChild.LEFT if left <= right else CountedChild.RIGHT
        if is_last or max(left, right) < 2 * self.settings.min_rows:
            ask = CountedChild.NEITHER
        return [int(node[0]), level, int(node[1]), feature, bin_number, missing_left, ask]

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
        running = np.cumsum(histograms, axis=2)
        before = np.concatenate([np.zeros_like(running[..., :1]), running], 2)[..., slots.offsets[:-1]]
        total = running[..., slots.offsets[1] - 1]
        left = running - before[..., slots.number]
        gains = self._gains(left, total)
        gains[:, slots.is_no_split] = -np.inf
        without = left[..., slots.without] - histograms[..., slots.missing_of_without]
        if len(slots.without):
            left, gains = np.concatenate([left, without], 2), np.concatenate([gains, self._gains(without, total)], 1)
        rows, best = np.arange(len(histograms)), gains.argmax(axis=1)
        slot = slots.slot_of_candidate[best]
        counts = left[rows, 1, best]
        rest = total[:, 1] - counts
        missing_left = np.where(slots.has_missing[slot], best < slots.offsets[-1], counts >= rest)
        found = [gains[rows, best], slots.features[slots.number[slot]], slots.within[slot], missing_left, counts, rest]
        return np.stack([np.asarray(each, np.float64) for each in found], 1)

    def _gains(self, left: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Return gains [nodes, candidates]; minus infinity where a side has fewer than `min_rows`."""
        l2, fewest = self.settings.l2, self.settings.min_rows
        whole = total.astype(np.float64)[..., None]
        sums, rows = left[:, 0].astype(np.float64), left[:, 1].astype(np.float64)
        sums_right, rows_right = whole[:, 0] - sums, whole[:, 1] - rows
        fits = (rows >= fewest) & (rows_right >= fewest)
        parent = whole[:, 0] ** 2 / (np.maximum(whole[:, 1], 1) + l2)
        gains = sums * sums / np.maximum(rows + l2, 1) + sums_right * sums_right / np.maximum(rows_right + l2, 1)
        return np.where(fits, gains - parent, -np.inf)

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
            growth, step=step, forest=np.concatenate([growth.forest, *blocks]), scales=self._scales_of(sizes),
            splits=NO_LONGS, nodes=NO_LONGS, histograms=NO_LONGS, values=np.concatenate(values),
        )  # fmt: skip

    def _values(self, growth: Growth, answer: np.ndarray) -> list[np.ndarray]:
        """Return the values of each output's leaves, float32 [places]: the learning rate times a step."""
        settings, places, values = self.settings, self.settings.num_leaf_places, []
        factors, shares = settings.learning_rate * step_factors(settings), quantile_of(settings)
        for factor, share, scale in zip(factors, shares, growth.scales.tolist(), strict=True):
            exact, answer = np.split(answer, [2 * places * SUM_DIGITS])
            steps = self._newton(of_digits(exact.reshape(2, places, SUM_DIGITS)), scale)
            if share:
                counts, answer = np.split(answer, [places * NUM_BUCKETS])
                steps = quantiles(counts.reshape(places, NUM_BUCKETS), share, scale)
            values.append((factor * steps).astype(np.float32))
        return values

    def _newton(self, sums: np.ndarray, scale: int) -> np.ndarray:
        """Return residuals over weights, float64 [places]; 0 where no row is."""
        total, weight = sums[0] * 2.0 ** (scale - FRACTION_BITS), sums[1] * 2.0**-FRACTION_BITS + self.settings.l2
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
