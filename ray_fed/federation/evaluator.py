"""The common test set of a study. Its owner publishes it, so, unlike a silo, an evaluator shows single predictions."""

from collections.abc import Mapping

import numpy as np

from ray_fed.federation.messages import Vector
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.scores import Scores
from ray_fed.learning.standardisation import Standardizer


class Evaluator:
    """Holds test samples and scores models on them; takes no part in training or standardisation."""

    def __init__(self, spec: SiloSpec, task: Task):
        self.spec, self.task = spec, task

    def open(self) -> dict[str, object]:
        """Read the test samples; returns their fingerprint with `num_examples`."""
        self.rows, self._predict = self.task.load(self.spec), self.task.predictor()
        return {**self.rows.fingerprint, "num_examples": len(self.rows.targets)}

    def prepare(self, standardizer: Standardizer | None) -> None:
        self.features = self.task.prepare(self.rows, standardizer, "cpu").features

    def evaluate(self, models: Mapping[str, Vector]) -> dict[str, Scores]:
        """Return the scores of each model on the test samples."""
        found = {name: self._predict(vector, self.features) for name, vector in models.items()}
        return {name: self.task.score(self.rows.targets, outputs) for name, outputs in found.items()}

    def predict(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (true values [rows], model -> predictions [rows]) for parity plots, in the target's unit."""
        return self.rows.targets, {name: self._predict(vector, self.features)[:, 0] for name, vector in models.items()}
