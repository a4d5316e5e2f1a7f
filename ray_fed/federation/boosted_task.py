"""Boosted trees instead of a network, on the rows of any task whose features are columns of a table."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.federation.messages import SessionSpec, Vector
from ray_fed.federation.task import LocalRows, Predictor, Samples, SiloSpec, Task
from ray_fed.learning.layout import Layout
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import Trainer, TrainingPlan
from ray_fed.metrics import Metric, Scores
from ray_fed.trees.bins import as_float32
from ray_fed.trees.forest import Forest, ForestPredictor, no_trees
from ray_fed.trees.member import Member
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.trainer import TreeTrainer, outputs_of


@dataclass(frozen=True)
class BoostedTask(Task):
    """The rows, metrics and agreement of another task, with a forest in the place of its network."""

    rows_of: Task
    """Whose rows it learns; its features are a table [rows, columns]."""
    settings: TreeSettings
    standardises: bool = False  # type: ignore[assignment]  (splits do not depend on a column's scale)

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.rows_of.unit

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return self.rows_of.metrics

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> Scores:
        return self.rows_of.score(targets, outputs)

    def possession(self, source: object) -> str:
        return self.rows_of.possession(source)

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = self.rows_of.load(spec)
        return replace(rows, agreement={**rows.agreement, "trees": self._agreed})

    def agreement(self) -> Mapping[str, str]:
        """What the rows' task agrees on, and every setting of the trees."""
        return {**self.rows_of.agreement(), "trees": self._agreed}

    @property
    def _agreed(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self.settings).items())

    def model(self, seed: int) -> nn.Module:  # noqa: ARG002
        """Return a module that holds the forest's arrays."""
        start = np.zeros(self.settings.outputs, np.float32)
        forest = Forest(self.settings, start, no_trees(self.settings, 0)).filled()
        module = nn.Module()
        for name, part in {"start": forest.start, **forest.parts()}.items():
            module.register_parameter(name, nn.Parameter(torch.from_numpy(np.array(part))))
        return module

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> Samples:  # noqa: ARG002
        return Samples(rows, as_float32(rows.features), rows.targets, as_float32(rows.held_out_features))

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> Trainer:  # noqa: ARG002
        reason = "single steps get noise, and trees take none; choose --model mlp, or secure aggregation"
        require(session.plan.private is None, f"differential privacy: {reason}")
        member = Member(samples.features, samples.targets, self.settings)
        return TreeTrainer(member, session.plan, Layout.of(self.model(0)))

    def most_examples(self, num_examples: int, plan: TrainingPlan) -> int:  # noqa: ARG002
        """Every row once in each round."""
        return max(1, num_examples)

    def evaluate(self, trainer: Trainer, samples: Samples, vector: Vector) -> tuple[Scores, Scores]:
        train, held_out = (
            self.score(targets, trainer.predict(features, vector).numpy())
            for targets, features in (
                (samples.rows.targets, samples.features),
                (samples.rows.held_out_targets, samples.held_out_features),
            )
        )
        return train, held_out

    def predictor(self) -> Predictor:
        predictor = ForestPredictor(self.settings)

        def predict(vector: Vector, inputs: np.ndarray) -> np.ndarray:
            return outputs_of(predictor, vector, inputs)

        return predict
