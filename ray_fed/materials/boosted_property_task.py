"""Properties learned by boosted trees: the rows, targets and scores of a property task, and a forest of trees."""

from dataclasses import dataclass, replace

import numpy as np

from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.learning.standardisation import Standardizer
from ray_fed.materials.property_task import JointPropertyTask
from ray_fed.materials.targets import Target, learned_values


@dataclass(frozen=True)
class BoostedPropertyTask(BoostedTask, JointPropertyTask):
    """Predict properties per crystal with boosted trees. Targets keep their unit: no scale matters to a tree."""

    def agreement(self) -> dict[str, str]:
        return {**JointPropertyTask.agreement(self), **self.agreed_trees()}

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = JointPropertyTask.load(self, spec)
        return replace(rows, agreement={**rows.agreement, **self.agreed_trees()})

    def learned(self, rows: LocalRows) -> np.ndarray:
        return learned_values(self._table(rows.targets), self.targets, None)

    def predicted(self, outputs: np.ndarray, standardizer: Standardizer | None) -> np.ndarray:  # noqa: ARG002
        return JointPropertyTask.predicted(self, outputs, None)


def losses_of(targets: tuple[Target, ...]) -> tuple[str, ...]:
    """Return the loss of each target: squares of numbers, log loss of classes."""
    return tuple(_loss(target) for target in targets)


def _loss(target: Target) -> str:
    if not target.classes:
        return "squared"
    return "log" if len(target.classes) == 2 else f"softmax:{len(target.classes)}"
