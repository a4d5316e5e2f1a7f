"""What one owner could learn from its own rows without any federation: a network, a random forest, boosted trees.

Each learner is shown at several lengths (epochs, or trees); cross-validation inside the silo chooses one. None is tuned
beyond that: one setting each, and the network's is the federation's own.

    network              the federation's network, loss and optimiser, `TrainingPlan` of a silo that trains alone
    random_forest        100 trees, a third of the columns a split
    gradient_boosting    histogram boosting at rate 0.1, 20 to 400 trees
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch

from ray_fed.federation.task import Samples, Task
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.randomness import derived_seed

NUM_TREES = 100
"""Of the forest."""
BOOSTED_TREES = tuple(range(20, 401, 20))
"""Lengths of the boosting that are compared."""
NUM_LOOKS = 20
"""Lengths of a network's training that are compared."""
NETWORK = "network"
PATIENCE = 5
"""Looks without a better loss after which a network's training is given up."""
LEAST_CHANCE = 1e-6
"""A forest's chances may be 0, whose logarithm no score can take."""


Judge = Callable[[np.ndarray], float]
"""What is predicted of new rows [m, W] -> how bad that is; less is better."""


class Learner(Protocol):
    """One way to learn from rows; a row is meant by its number among the silo's."""

    @property
    def name(self) -> str: ...

    @property
    def lengths(self) -> Sequence[int]:
        """How long it may learn; what is looked at, in this order."""
        ...

    def learn(self, inside: np.ndarray, new: Any, longest: int, judge: Judge | None = None) -> Iterator[np.ndarray]:
        """Learn from rows `inside` [n]; yield what is predicted of new rows [m, W], as `Task.predicted` gives it, at
        each length up to `longest`. It may end early where a judge says that more does not help."""
        ...

    def of_rows(self, rows: np.ndarray) -> Any:
        """Return the inputs of rows [m], as `learn` takes new ones."""
        ...


# ---- trees


@dataclass(frozen=True)
class Columns:
    """What trees learn from."""

    features: np.ndarray
    """float64 [rows, d], as they were read: trees need no scaler."""
    learned: np.ndarray
    """float64 [rows, T]: transformed numbers, numbers of classes; NaN where there is no label."""
    num_classes: tuple[int, ...]
    """Of each target; 0 for a number."""
    seed: int = 0


@dataclass(frozen=True)
class TreeLearner:
    """Trees of one kind, target by target."""

    task: Task
    columns: Columns = field(repr=False)
    name: str = "random_forest"
    lengths: Sequence[int] = (NUM_TREES,)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        return self.columns.features[rows]

    def learn(
        self,
        inside: np.ndarray,
        new: np.ndarray,
        longest: int,
        judge: Judge | None = None,  # noqa: ARG002 (trees are all grown before one looks at them)
    ) -> Iterator[np.ndarray]:
        shorter = replace(self, lengths=[length for length in self.lengths if length <= longest])
        staged = [shorter._outputs(at, inside, new) for at in range(len(self.columns.num_classes))]
        for parts in zip(*staged, strict=True):
            yield self.task.predicted(np.hstack(parts), None)

    def _outputs(self, target: int, inside: np.ndarray, new: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the outputs [m, 1 or K] for one target, as a network has them, at each length."""
        labels, num_classes = self.columns.learned[:, target], self.columns.num_classes[target]
        known = inside[~np.isnan(labels[inside])]
        if len(np.unique(labels[known])) < 2:
            yield from (_constant(labels[known], num_classes, len(new)) for _ in self.lengths)
            return
        model = self._model(num_classes, target).fit(self.columns.features[known], labels[known])
        yield from self._staged(model, num_classes, new)

    def _model(self, num_classes: int, target: int) -> Any:
        from sklearn.ensemble import (
            HistGradientBoostingClassifier,
            HistGradientBoostingRegressor,
            RandomForestClassifier,
            RandomForestRegressor,
        )

        seed = derived_seed(self.columns.seed, self.name, target) % 2**32
        if self.name == "random_forest":
            forest: Any = RandomForestClassifier if num_classes else RandomForestRegressor
            return forest(self.lengths[-1], max_features=1 / 3, random_state=seed)
        boosting: Any = HistGradientBoostingClassifier if num_classes else HistGradientBoostingRegressor
        return boosting(max_iter=self.lengths[-1], early_stopping=False, random_state=seed)

    def _staged(self, model: Any, num_classes: int, new: np.ndarray) -> Iterator[np.ndarray]:
        if self.name == "random_forest":
            yield (
                _of_classes(model, _log_chances(model, new), num_classes)
                if num_classes
                else model.predict(new)[:, None]
            )
            return
        staged = model.staged_decision_function(new) if num_classes else model.staged_predict(new)
        for number, outputs in enumerate(staged, start=1):
            if number in self.lengths:
                columns = outputs.reshape(len(new), -1)
                yield _of_classes(model, columns, num_classes) if num_classes else columns


def _log_chances(model: Any, new: np.ndarray) -> np.ndarray:
    return np.log(np.clip(model.predict_proba(new), LEAST_CHANCE, 1.0))


def _of_classes(model: Any, scores: np.ndarray, num_classes: int) -> np.ndarray:
    """Return outputs of a network, [m, 1] for two classes and [m, num_classes] for more, from scores of the classes
    that a model has seen, [m, classes seen], or of the second of two, [m, 1]."""
    if scores.shape[1] == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    if num_classes == 2:
        return scores[:, 1:] - scores[:, :1]
    filled = np.repeat(scores.min(axis=1, keepdims=True) + np.log(LEAST_CHANCE), num_classes, axis=1)
    filled[:, model.classes_.astype(int)] = scores
    return filled


def _constant(labels: np.ndarray, num_classes: int, num_rows: int) -> np.ndarray:
    """Return outputs where all labels are the same, or none is there."""
    value = labels[0] if len(labels) else 0.0
    if not num_classes:
        return np.full((num_rows, 1), value)
    outputs = np.full(num_classes, np.log(LEAST_CHANCE))
    outputs[int(value)] = 0.0
    return np.tile(outputs if num_classes > 2 else outputs[1:] - outputs[:1], (num_rows, 1))


# ---- the network


@dataclass(frozen=True)
class NetworkLearner:
    """The federation's network on rows of one silo."""

    task: Task
    samples: Samples = field(repr=False)
    plan: TrainingPlan
    """Of a silo that trains alone on all of its rows."""
    name: str = NETWORK

    @property
    def lengths(self) -> Sequence[int]:
        """Epochs."""
        return sorted({max(1, self.plan.epochs * look // NUM_LOOKS) for look in range(1, NUM_LOOKS + 1)})

    def of_rows(self, rows: np.ndarray) -> torch.Tensor:
        return self.samples.features[torch.from_numpy(rows)]

    def learn(
        self, inside: np.ndarray, new: torch.Tensor, longest: int, judge: Judge | None = None
    ) -> Iterator[np.ndarray]:
        samples, rows = self.samples, torch.from_numpy(inside)
        steps = ceil(self.plan.steps_per_epoch * len(inside) / len(samples.features))
        module, plan = self.task.model(self.plan.seed), replace(self.plan, steps_per_epoch=steps)
        vector = initial_vector(module, "average")
        trainer = LocalTrainer(module, self.task.loss, samples.features[rows], samples.targets[rows], plan, self.name)
        done, badness = 0, list[float]()
        for length in self.lengths:
            if length > longest or (badness and len(badness) - int(np.argmin(badness)) > PATIENCE):
                return
            vector, _ = trainer.fit(vector, range(done * steps, length * steps))
            done = length
            predicted = self.task.predicted(trainer.predict(new, vector).cpu().numpy(), samples.standardizer)
            yield predicted
            badness += [judge(predicted)] if judge else []
