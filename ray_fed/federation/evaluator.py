"""The common test set of a study. Its owner publishes it, so, unlike a silo, an evaluator shows single predictions."""

from collections.abc import Mapping

import numpy as np
import torch

from ray_fed.federation.messages import Vector
from ray_fed.federation.silo import feature_tensor
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.layout import load_vector
from ray_fed.learning.scores import Scores
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import portions


class Evaluator:
    """Holds test samples and marks models on them; takes no part in training or standardisation."""

    def __init__(self, spec: SiloSpec, task: Task):
        self.spec, self.task = spec, task

    def open(self) -> dict[str, object]:
        """Read the test samples; returns their fingerprint with `num_examples`."""
        self.rows = self.task.load(self.spec)
        self.module = self.task.model(0).eval()
        return {**self.rows.fingerprint, "num_examples": len(self.rows.targets)}

    def prepare(self, standardizer: Standardizer | None) -> None:
        self.features = feature_tensor(self.rows.features, standardizer, "cpu")

    def evaluate(self, models: Mapping[str, Vector]) -> dict[str, Scores]:
        """Return the scores of each model on the test samples."""
        return {name: self.task.score(self.rows.targets, self._outputs(vector)) for name, vector in models.items()}

    def predict(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (true values [rows], model -> predictions [rows]) for parity plots, in the target's unit."""
        return self.rows.targets, {name: self._outputs(vector)[:, 0] for name, vector in models.items()}

    @torch.no_grad()
    def _outputs(self, vector: Vector) -> np.ndarray:
        """Return the outputs [rows, ...] of the model at `vector`."""
        load_vector(self.module, vector)
        return torch.cat([self.module(part) for part in portions(self.features)]).numpy()
