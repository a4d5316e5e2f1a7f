"""A forest as arrays, and what it predicts.

Each tree is a full one of `depth` levels: inner node i has the children 2i + 1 and 2i + 2, and a node that was not split
sends every row to the left. As one float32 vector:

    start [outputs]   then for each tree   feature [splits]  threshold [splits]  missing_left [splits]  value [leaves]

Trees stand iteration by iteration, in each one for every output. A value at or below the threshold goes left.
"""

from dataclasses import dataclass

import numpy as np

from ray_fed.trees.settings import TreeSettings

NO_SPLIT = -1.0


@dataclass(frozen=True)
class Forest:
    """A view of a forest's vector; what is not grown yet splits nothing and adds 0."""

    vector: np.ndarray
    """float32 [outputs + trees * outputs * block]."""
    settings: TreeSettings

    @classmethod
    def empty(cls, settings: TreeSettings) -> "Forest":
        block = np.concatenate([
            np.full(settings.num_splits, NO_SPLIT), np.zeros(settings.num_splits), np.ones(settings.num_splits),
            np.zeros(settings.num_leaf_places),
        ])  # fmt: skip
        blocks = np.tile(block, settings.trees * settings.outputs)
        return cls(np.concatenate([np.zeros(settings.outputs), blocks]).astype(np.float32), settings)

    @property
    def start(self) -> np.ndarray:
        """What is predicted before the first tree, [outputs]."""
        return self.vector[: self.settings.outputs]

    @property
    def blocks(self) -> np.ndarray:
        """The trees one after another, [trees, block]."""
        return self.vector[self.settings.outputs :].reshape(-1, block_size(self.settings))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what goes into a file: start, feature, threshold, missing_left and value, of each tree a row."""
        splits = self.settings.num_splits
        parts = np.split(self.blocks, [splits, 2 * splits, 3 * splits], axis=1)
        feature, threshold, missing_left, value = (part.copy() for part in parts)
        return {
            "start": self.start.copy(),
            "feature": feature.astype(np.int32),
            "threshold": threshold,
            "missing_left": missing_left.astype(np.uint8),
            "value": value,
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], settings: TreeSettings) -> "Forest":
        """Return the forest that `arrays` gave."""
        parts = [arrays[name].astype(np.float32) for name in ("feature", "threshold", "missing_left", "value")]
        blocks = np.concatenate(parts, axis=1)
        return cls(np.concatenate([arrays["start"].astype(np.float32), blocks.ravel()]), settings)


def block_size(settings: TreeSettings) -> int:
    """Return how many numbers a tree has."""
    return 3 * settings.num_splits + settings.num_leaf_places


def tree_block(settings: TreeSettings, splits: np.ndarray, thresholds: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return one tree's numbers; splits [n, 4]: level, place in the level, feature, missing_left."""
    feature, threshold = np.full(settings.num_splits, NO_SPLIT, np.float32), np.zeros(settings.num_splits, np.float32)
    missing_left = np.ones(settings.num_splits, np.float32)
    node = (1 << splits[:, 0]) - 1 + splits[:, 1]
    feature[node], threshold[node], missing_left[node] = splits[:, 2], thresholds, splits[:, 3]
    return np.concatenate([feature, threshold, missing_left, values.astype(np.float32)])


def places(block: np.ndarray, features: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return at which leaf of a tree each row comes out, int64 [rows]; features float32 [rows, columns]."""
    splits, rows = settings.num_splits, np.arange(len(features))
    feature, threshold, missing_left = block[:splits].astype(np.int64), block[splits : 2 * splits], block[2 * splits :]
    place = np.zeros(len(features), np.int64)
    for level in range(settings.depth):
        node = (1 << level) - 1 + place
        column = feature[node]
        value = features[rows, np.maximum(column, 0)]
        with np.errstate(invalid="ignore"):
            right = np.where(np.isnan(value), missing_left[node] == 0, value > threshold[node])
        place = 2 * place + (right & (column >= 0))
    return place


class ForestPredictor:
    """Predicts with forests that grow: of the inputs last seen it remembers the sums so far."""

    def __init__(self, settings: TreeSettings):
        self.settings = settings
        self._inputs: np.ndarray | None = None
        self._seen = np.zeros(0, np.float32)
        self._sums = np.zeros(0)

    def scores(self, vector: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return start + values of all trees, added in their order, float64 [outputs, rows]."""
        forest = Forest(vector, self.settings)
        blocks, size = forest.blocks, block_size(self.settings)
        grown = _num_grown(blocks, self.settings)
        known = len(self._seen) // size
        is_longer = self._inputs is features and known <= grown and np.array_equal(self._start, forest.start)
        if not (is_longer and np.array_equal(self._seen, blocks[:known].ravel())):
            known, self._sums = 0, np.repeat(forest.start.astype(np.float64)[:, None], len(features), 1)
        sums = self._sums.copy()
        for number in range(known, grown):
            place = places(blocks[number], features, self.settings)
            sums[number % self.settings.outputs] += blocks[number, 3 * self.settings.num_splits :][place]
        self._inputs, self._start, self._sums = features, forest.start.copy(), sums
        self._seen = blocks[:grown].ravel().copy()
        return sums.copy()


def _num_grown(blocks: np.ndarray, settings: TreeSettings) -> int:
    """Return after which tree nothing more is added."""
    adds = (blocks[:, 3 * settings.num_splits :] != 0).any(axis=1)
    return int(np.flatnonzero(adds).max(initial=-1)) + 1
