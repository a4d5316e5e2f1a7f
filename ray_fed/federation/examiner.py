"""The common test set of a study. Its owner publishes it, so, unlike a silo, an examiner shows single predictions."""

from collections.abc import Mapping

import numpy as np
import torch

from ray_fed.federation.messages import Vector
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.layout import bind
from ray_fed.learning.regression import RegressionSums
from ray_fed.learning.standardisation import Standardizer


class Examiner:
    """Holds test rows and marks models on them; takes no part in training or standardisation."""

    def __init__(self, spec: SiloSpec, task: Task):
        self.spec, self.task = spec, task

    def open(self) -> dict[str, object]:
        """Read the test rows; returns their fingerprint with `num_examples`."""
        self.rows = self.task.load(self.spec)
        self.module = self.task.model(0)
        self.flat, _ = bind(self.module)
        return {**self.rows.fingerprint, "num_examples": len(self.rows.targets)}

    def prepare(self, standardizer: Standardizer) -> None:
        self.features = torch.from_numpy(standardizer(self.rows.features))

    def examine(self, models: Mapping[str, Vector]) -> dict[str, RegressionSums]:
        """Return the errors of each model on the test rows."""
        return {name: RegressionSums.of(self.rows.targets, self.predict(vector)) for name, vector in models.items()}

    def parity(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (true values [rows], model -> predictions [rows]) for parity plots, in the target's unit."""
        return self.rows.targets, {name: self.predict(vector) for name, vector in models.items()}

    @torch.no_grad()
    def predict(self, vector: Vector) -> np.ndarray:
        np.copyto(self.flat.numpy(), vector[: len(self.flat)])
        return self.module(self.features).squeeze(1).numpy().copy()
