"""Properties learned by boosted trees: the rows, targets and scores of a property task, and a forest of trees."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.task import LocalRows, Samples, SiloSpec
from ray_fed.learning.standardisation import Standardizer
from ray_fed.materials.own_trees import loss_of
from ray_fed.materials.property_task import JointPropertyTask, PropertyTask
from ray_fed.materials.targets import learned_values
from ray_fed.trees.bins import as_float32
from ray_fed.trees.settings import TreeSettings


@dataclass(frozen=True)
class BoostedPropertyTask(BoostedTask, PropertyTask):
    """Predict one property per crystal with boosted trees. It keeps its unit: no scale matters to a tree."""

    @property
    def has_network(self) -> bool:
        return False

    def agreement(self) -> dict[str, str]:
        """What a property task agrees on, and all settings of the trees."""
        return {**super().agreement(), **self.agreed_trees()}

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = super().load(spec)
        return replace(rows, agreement={**rows.agreement, **self.agreed_trees()})

    def learned(self, rows: LocalRows) -> np.ndarray:
        return learned_values(self._table(rows.targets), self.targets, None)

    def inputs(self, features: np.ndarray, standardizer: Standardizer | None, device: str = "cpu") -> np.ndarray:  # noqa: ARG002
        """Return features [rows, d] as the forest takes them."""
        return as_float32(features)

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> Samples:
        samples = super().prepare(rows, standardizer, device)
        return replace(samples, undo=partial(self.predicted, standardizer=None))


@dataclass(frozen=True)
class BoostedJointTask(BoostedPropertyTask, JointPropertyTask):
    """Predict several properties, or classes, with one forest."""


def boosted(task: PropertyTask, trees: TreeSettings) -> BoostedPropertyTask:
    """Return the task with trees instead of its network."""
    kind = BoostedJointTask if isinstance(task, JointPropertyTask) else BoostedPropertyTask
    losses = tuple(loss_of(len(target.classes)) if target.classes else trees.loss for target in task.targets)
    trees = replace(trees, losses=losses)
    return kind(task.features, task.feature_options, task.hidden, task.targets, trees=trees)
