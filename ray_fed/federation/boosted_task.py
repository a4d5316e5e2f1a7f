"""Boosted trees instead of a network, for any task whose features are columns of a table.

@dataclass(frozen=True)
class MyForest(BoostedTask, MyTask): ...
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import nn

from ray_fed.federation.messages import SessionSpec, Vector
from ray_fed.federation.task import LocalRows, Predictor, Samples, SiloSpec, Task
from ray_fed.learning.layout import Layout
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import Trainer, TrainingPlan
from ray_fed.metrics import Scores
from ray_fed.privacy.noise import NoiseSource
from ray_fed.trees.bins import as_float32
from ray_fed.trees.forest import Forest, ForestPredictor, no_trees
from ray_fed.trees.member import Member
from ray_fed.trees.noise import SumNoise
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.trainer import TreeTrainer, outputs_of


@dataclass(frozen=True)
class BoostedTask(Task):
    """A task with a forest in the place of its network; load, agreement and score come from another class."""

    trees: TreeSettings = field(default_factory=TreeSettings)
    """What the forest is to be; its losses, one for each target."""
    standardises: bool = False  # type: ignore[assignment]  (a split does not depend on a column's scale)

    def agreed_trees(self) -> Mapping[str, str]:
        """Return all settings as one text: silos with others would add up sums of other things."""
        told = {name: value for name, value in asdict(self.trees).items() if name != "seed"}
        return {"trees": ", ".join(f"{name}={value}" for name, value in told.items())}

    def learned(self, rows: LocalRows) -> np.ndarray:
        """Return what is learned, [rows] or [rows, targets]; NaN where there is no label."""
        return rows.targets

    def model(self, seed: int) -> nn.Module:  # noqa: ARG002
        """Return a module that holds the forest's arrays."""
        start = np.zeros(self.trees.outputs, np.float32)
        forest = Forest(self.trees, start, no_trees(self.trees, 0)).filled()
        module = nn.Module()
        for name, part in {"start": forest.start, **forest.parts()}.items():
            module.register_parameter(name, nn.Parameter(torch.from_numpy(np.array(part))))
        return module

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> Samples:  # noqa: ARG002
        return Samples(rows, as_float32(rows.features), self.learned(rows), as_float32(rows.held_out_features))

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> Trainer:
        trees, private = replace(self.trees, seed=session.model_seed), session.plan.private
        noise = None
        if private is not None:
            noise = SumNoise(private.noise_multiplier, private.num_examples, NoiseSource.of_process(silo.name))
        member = Member(samples.features, samples.targets, trees, samples.rows.groups, noise)
        return TreeTrainer(member, session.plan, Layout.of(self.model(0)))

    def most_examples(self, num_examples: int, plan: TrainingPlan) -> int:  # noqa: ARG002
        """Every row once in each round."""
        return max(1, num_examples)

    def evaluate(self, trainer: Trainer, samples: Samples, vector: Vector) -> tuple[Scores, Scores]:
        def scored(targets: np.ndarray, features: np.ndarray) -> Scores:
            return self.score(targets, samples.said(trainer.predict(features, vector).numpy()))

        rows = samples.rows
        return scored(rows.targets, samples.features), scored(rows.held_out_targets, samples.held_out_features)

    def predictor(self) -> Predictor:
        predictor = ForestPredictor(self.trees)

        def predict(vector: Vector, inputs: np.ndarray) -> np.ndarray:
            return outputs_of(predictor, vector, inputs)

        return predict
