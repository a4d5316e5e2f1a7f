"""Boosted trees that a silo grows on its own rows for itself: one forest for all targets, in the format of the
federation's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ray_fed.trees.bins import as_float32
from ray_fed.trees.forest import Forest, ForestPredictor
from ray_fed.trees.growth import Grower
from ray_fed.trees.member import Member
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.together import grown

SETTINGS = TreeSettings(trees=300, learning_rate=0.08, depth=6, leaves=24, feature_fraction=0.4)
"""As many trees as gain anything on a few thousand rows, at a quarter of the default's time."""
FEWEST_TREES, ROWS_PER_TREE = 60, 4
"""Few rows have learned what they can from fewer trees: one for so many rows, but at least so many."""
LOOK_EVERY = 20


@dataclass(frozen=True)
class OwnTrees:
    """A forest of one silo."""

    forest: Forest

    @property
    def lengths(self) -> list[int]:
        """Numbers of iterations that are compared."""
        count = len(self.forest.blocks) // self.forest.settings.outputs
        return sorted({*range(LOOK_EVERY, count + 1, LOOK_EVERY), count})

    @cached_property
    def _predictor(self) -> ForestPredictor:
        return ForestPredictor(self.forest.settings)

    def outputs(self, columns: np.ndarray) -> np.ndarray:
        """Return outputs for features, float64 [rows, outputs]."""
        return self._predictor.scores(self.forest, as_float32(columns)).T

    def staged(self, columns: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the outputs [rows, outputs] of the first trees, at each length."""
        predictor, features = ForestPredictor(self.forest.settings), as_float32(columns)
        for length in self.lengths:
            blocks = self.forest.blocks[: length * self.forest.settings.outputs]
            yield predictor.scores(replace(self.forest, blocks=blocks), features).T

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the forest's arrays as a model file has them, each name after a prefix."""
        return {
            f"{prefix}{name}": np.array(part)
            for name, part in {"start": self.forest.start, **self.forest.parts()}.items()
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str, losses: Sequence[str]) -> "OwnTrees":
        """Return the forest of a model file; KeyError or ValueError where it holds another one."""
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return cls(Forest.of_arrays(own, replace(SETTINGS, losses=tuple(losses))))


def loss_of(num_classes: int) -> str:
    """Return the loss of trees for a target of so many classes, 0 for a number."""
    return {0: "squared", 2: "log"}.get(num_classes, f"softmax:{num_classes}")


def grown_alone(
    columns: np.ndarray, learned: np.ndarray, num_classes: Sequence[int], seed: int, trees: int | None = None
) -> OwnTrees:
    """Grow a forest for targets as trees learn them, [rows, T]; a row without a label teaches the other targets.
    columns: features [rows, d]. trees: boosting iterations; as many as so many rows need if not given."""
    losses = tuple(loss_of(count) for count in num_classes)
    most = min(SETTINGS.trees, max(FEWEST_TREES, len(columns) // ROWS_PER_TREE))
    settings = replace(SETTINGS, losses=losses, seed=seed, trees=trees or most)
    grower = Grower(settings, columns.shape[1])
    return OwnTrees(grower.forest(grown(grower, [Member(columns, learned, settings)])))
