"""A forest as arrays, and what it predicts.

Each tree is a full one of `depth` levels: inner node i has the children 2i + 1 and 2i + 2, and a node that was not
split sends every row to the left. As one float32 vector, for n trees:

    start [outputs]  feature [n, splits]  threshold [n, splits]  missing_left [n, splits]  value [n, places]

Trees stand iteration by iteration, in each one for every output. A value at or below the threshold goes left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_fed.trees.settings import TreeSettings

NO_SPLIT = -1.0
PARTS = ("feature", "threshold", "missing_left", "value")


@dataclass(frozen=True)
class Forest:
    """Trees as they were grown, each a row of numbers: feature, threshold, missing_left, value."""

    settings: TreeSettings
    start: np.ndarray
    """float32 [outputs]: what is predicted before the first tree."""
    blocks: np.ndarray
    """float32 [trees, block_size]."""

    @classmethod
    def of(cls, vector: np.ndarray, settings: TreeSettings) -> "Forest":
        """Return the forest of a vector, of as many trees as it has."""
        start, rest = np.split(np.asarray(vector, np.float32), [settings.outputs])
        count = len(rest) // block_size(settings)
        widths = [settings.num_splits] * 3 + [settings.num_leaf_places]
        parts = np.split(rest, np.cumsum(widths)[:-1] * count)
        table = [part.reshape(count, width) for part, width in zip(parts, widths, strict=True)]
        return cls(settings, start, np.concatenate(table, axis=1))

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], settings: TreeSettings) -> "Forest":
        """Return the forest of a model file; KeyError or ValueError where it holds another one."""
        blocks = np.concatenate([arrays[name] for name in PARTS], axis=1)
        if blocks.shape[1] != block_size(settings) or arrays["start"].shape != (settings.outputs,):
            raise ValueError("the arrays are of trees of another depth")
        return cls(settings, arrays["start"], blocks)

    @property
    def vector(self) -> np.ndarray:
        return np.concatenate([self.start, *(part.ravel() for part in self.parts().values())])

    def parts(self) -> dict[str, np.ndarray]:
        """Return feature, threshold, missing_left [trees, splits] and value [trees, places], float32."""
        splits = self.settings.num_splits
        parts = np.split(self.blocks, [splits, 2 * splits, 3 * splits], axis=1)
        return dict(zip(PARTS, parts, strict=True))

    def filled(self) -> "Forest":
        """Return the forest with as many trees as its settings allow; those that were not grown add 0."""
        wanted = self.settings.trees * self.settings.outputs - len(self.blocks)
        return Forest(self.settings, self.start, np.concatenate([self.blocks, no_trees(self.settings, wanted)]))


def no_trees(settings: TreeSettings, count: int) -> np.ndarray:
    """Return trees that add 0, [count, block_size]."""
    block = np.zeros(block_size(settings), np.float32)
    block[: settings.num_splits] = NO_SPLIT
    block[2 * settings.num_splits : 3 * settings.num_splits] = 1
    return np.tile(block, (count, 1))


def block_size(settings: TreeSettings) -> int:
    """Return how many numbers a tree has."""
    return 3 * settings.num_splits + settings.num_leaf_places


def tree_block(settings: TreeSettings, splits: np.ndarray, thresholds: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return one tree's numbers; splits [n, 4]: level, place in the level, feature, missing_left."""
    block = no_trees(settings, 1)[0]
    feature, threshold, missing_left, value = np.split(block, settings.num_splits * np.arange(1, 4))
    node = (1 << splits[:, 0]) - 1 + splits[:, 1]
    feature[node], threshold[node], missing_left[node], value[:] = splits[:, 2], thresholds, splits[:, 3], values
    return block


def places(block: np.ndarray, features: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return at which leaf of a tree each row comes out, int64 [rows]; features float32 [rows, columns]."""
    splits, first = settings.num_splits, np.arange(len(features)) * features.shape[1]
    flat = features.ravel()
    feature, threshold, missing_left = block[:splits].astype(np.int64), block[splits : 2 * splits], block[2 * splits :]
    place = np.zeros(len(features), np.int64)
    for level in range(settings.depth):
        node = (1 << level) - 1 + place
        column = feature[node]
        value = flat[first + np.maximum(column, 0)]
        right = value > threshold[node]  # false for what is missing
        right |= np.isnan(value) & (missing_left[node] == 0)
        place = 2 * place + (right & (column >= 0))
    return place


class ForestPredictor:
    """Predicts with forests that grow: of the inputs last seen it remembers the sums so far."""

    def __init__(self, settings: TreeSettings):
        self.settings = settings
        self._inputs: np.ndarray | None = None
        self._seen = Forest(settings, np.zeros(settings.outputs, np.float32), no_trees(settings, 0))
        self._sums = np.zeros((settings.outputs, 0))

    def scores(self, forest: Forest, features: np.ndarray) -> np.ndarray:
        """Return start + values of all trees, added in their order, float64 [outputs, rows]; features float32."""
        known = len(self._seen.blocks)
        if not (self._inputs is features and self._goes_on(forest)):
            known, self._sums = 0, np.repeat(forest.start.astype(np.float64)[:, None], len(features), 1)
        sums = self._sums.copy()
        for number in range(known, len(forest.blocks)):
            value = forest.blocks[number, 3 * self.settings.num_splits :]
            if value.any():
                place = places(forest.blocks[number], features, self.settings)
                sums[number % self.settings.outputs] += value[place]
        self._inputs, self._seen, self._sums = features, forest, sums
        return sums.copy()

    def _goes_on(self, forest: Forest) -> bool:
        known = len(self._seen.blocks)
        same_start = np.array_equal(self._seen.start, forest.start)
        return same_start and np.array_equal(self._seen.blocks, forest.blocks[:known])
