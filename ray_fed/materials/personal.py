"""What one silo makes of the federation's model for itself: a mixture of that model, of what it learned alone, and of
models that build on both; all of it fitted, weighed and kept inside the silo.

    federated   the federation's model as it is
    offsets     the same, with this silo's element-reference offsets (element_offsets.py)
    tuned       the federation's network, trained further on the silo's own rows
    network     the silo's own network, which nobody else took part in
    boosted     boosted trees on the silo's own rows
    stacked     the same trees, with what the federation's model predicts as one more feature

The weights are chosen on rows that no model was trained on, the silo's calibration rows; then the trees are grown again
on these and the training rows. `own` is the same mixture without the federation: what joining has to beat, and what the
silo uses where its calibration rows do not show that joining helps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ray_fed.federation.messages import Vector
from ray_fed.federation.task import Samples
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.mixture import mixed, mixture_weights
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.materials.best_alone import badness
from ray_fed.materials.element_offsets import ElementOffsets, fitted_offsets
from ray_fed.materials.own_trees import OwnTrees, grown_alone
from ray_fed.randomness import derived_seed

FEDERATED, OFFSETS, TUNED, NETWORK, BOOSTED, STACKED = PARTS = (
    "federated", "offsets", "tuned", "network", "boosted", "stacked",
)  # fmt: skip
OWN_PARTS = (NETWORK, BOOSTED)
"""Those that need no federation."""
METHODS: Mapping[str, tuple[str, ...]] = {
    "offsets": (FEDERATED, OFFSETS),
    "tuned": (FEDERATED, TUNED),
    "stacked": (FEDERATED, STACKED),
    "mixture": PARTS,
}
"""Method -> parts that are mixed."""
FEWEST_ROWS = 20
"""Calibration rows without which nothing can be chosen."""
OWN_LOOKS = 20
"""Lengths of the training of a network of the silo's own that are compared."""
TUNING_LOOKS, TUNING_EPOCHS, TUNING_RATE = 5, 4, 0.3
"""A network is trained further for so many stretches of so many epochs, of which the best counts, at this share of the
federation's learning rate."""


@dataclass(frozen=True)
class Rows:
    """Rows of a silo."""

    features: Any = field(repr=False)
    """float64 [rows, d], or GraphRows of them"""
    targets: np.ndarray = field(repr=False)
    """[rows] or [rows, T]"""
    formulas: Sequence[str] = field(repr=False)
    groups: Sequence[str] = field(repr=False)
    """Of each row what no split may cut."""

    def __len__(self) -> int:
        return len(self.features)

    def taken(self, rows: np.ndarray) -> "Rows":
        """Return the rows of these numbers."""
        numbers: list[int] = rows.tolist()
        formulas, groups = [self.formulas[at] for at in numbers], [self.groups[at] for at in numbers]
        return Rows(self.features[rows], self.targets[rows], formulas, groups)


class MixturePart(Protocol):
    """One model of a mixture."""

    def values(self, features: Any, formulas: Sequence[str]) -> np.ndarray:
        """Return what it says of rows, [rows, W]: numbers in the targets' units, chances of classes."""
        ...


@dataclass(frozen=True)
class ByVector:
    """A model of the task, at a vector."""

    task: Any
    standardizer: Any
    vector: Vector = field(repr=False)

    def values(self, features: Any, formulas: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        outputs = self.task.predictor()(self.vector, self.task.inputs(features, self.standardizer))
        return np.asarray(self.task.predicted(outputs, self.standardizer), np.float64)


@dataclass(frozen=True)
class WithOffsets:
    """A model with element-reference offsets."""

    model: MixturePart
    offsets: ElementOffsets

    def values(self, features: Any, formulas: Sequence[str]) -> np.ndarray:
        return self.model.values(features, formulas) + self.offsets.of(formulas)[:, None]


@dataclass(frozen=True)
class Trees:
    """The silo's own trees; on features alone, or also on what another model says."""

    task: Any
    trees: OwnTrees
    model: MixturePart | None = None

    def values(self, features: Any, formulas: Sequence[str]) -> np.ndarray:
        columns = columns_of(self.task, features, formulas, self.model)
        return np.asarray(self.task.predicted(self.trees.outputs(columns), None), np.float64)


def columns_of(task: Any, features: Any, formulas: Sequence[str], model: MixturePart | None) -> np.ndarray:
    """Return what trees see, [rows, d] or [rows, d + W]."""
    table = task.described(features)
    return table if model is None else np.hstack([table, model.values(features, formulas)])


@dataclass(frozen=True)
class Found:
    """A part as it was judged, and how it becomes final."""

    judged: np.ndarray
    """What it says of the calibration rows, on which nothing of it was fitted, [rows, W]."""
    final: Callable[[], MixturePart]


@dataclass(frozen=True)
class Mixture:
    """Parts with their weights."""

    weights: Mapping[str, float]
    """Part -> weight, of those that have one; they add up to 1."""
    parts: Mapping[str, MixturePart] = field(repr=False)
    judged: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))
    """What it says of the rows by which the weights were chosen."""

    def values(self, features: Any, formulas: Sequence[str]) -> np.ndarray:
        said = [self.parts[name].values(features, formulas) for name in self.weights]
        return mixed(said, np.array(list(self.weights.values())))


@dataclass(frozen=True)
class Personal:
    """What came out for one silo."""

    joined: Mixture
    """With the federation."""
    own: Mixture
    """Without it."""
    federated: ByVector
    joining_helps: bool = True
    """Whether the rows that chose show it: by more than a standard error."""

    @property
    def chosen(self) -> Mixture:
        """What the silo uses: where nothing shows that the federation helps, what it has without it."""
        return self.joined if self.joining_helps else self.own


@dataclass(frozen=True)
class Workshop:
    """A silo's rows and its settings, from which parts are made."""

    task: Any
    samples: Samples = field(repr=False)
    training: Rows
    """Those that the federation's model was trained on."""
    calibration: Rows
    """Those that no model was trained on."""
    plan: TrainingPlan
    """How the federation trains a network."""
    silo: str

    def personal(self, method: str, federated: Vector, own: Vector | None) -> Personal:
        """Return the mixtures of a method (METHODS), with the federation's model and the silo's own network, if it has
        one."""
        joined, alone = METHODS[method], OWN_PARTS
        found = self._found(dict.fromkeys((*joined, *alone)), federated, own)
        finals: dict[str, MixturePart] = {}
        mixtures = [self._mixture({name: found[name] for name in names if name in found}, finals)
                    for names in (joined, alone)]  # fmt: skip
        with_it, without = mixtures
        return Personal(with_it, without, self._by(federated), self._is_better(with_it.judged, without.judged))

    def _is_better(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether predictions of the calibration rows are better than others, beyond what their number can tell."""
        if not self._is_one_number:
            return self._judge(one) < self._judge(other)
        targets = self.calibration.targets
        better = np.abs(targets - other[:, 0]) - np.abs(targets - one[:, 0])
        return bool(better.mean() > better.std() / np.sqrt(len(better)))

    def _mixture(self, found: Mapping[str, Found], finals: dict[str, MixturePart]) -> Mixture:
        said = [one.judged for one in found.values()]
        weights = mixture_weights(said, self._judge)
        chosen = {name: float(weight) for name, weight in zip(found, weights, strict=True) if weight}
        for name in chosen:
            finals[name] = finals.get(name) or found[name].final()
        return Mixture(chosen, {name: finals[name] for name in chosen}, mixed(said, weights))

    def _judge(self, said: np.ndarray) -> float:
        return badness(self.task, self.task.score(self.calibration.targets, said))

    def _by(self, vector: Vector) -> ByVector:
        return ByVector(self.task, self.samples.standardizer, vector)

    def _found(self, names: Mapping[str, None], federated: Vector, own: Vector | None) -> dict[str, Found]:
        """Return the parts that this task can have."""
        model, makers = self._by(federated), dict[str, Callable[[], Found]]()
        makers[FEDERATED] = partial(self._as_it_is, model)
        if self._is_one_number:
            makers[OFFSETS] = partial(self._offsets, model)
        if self.task.has_network:
            makers[TUNED] = partial(self._tuned, federated)
            makers |= {} if own is None else {NETWORK: partial(self._as_it_is, self._by(own))}
        makers |= {BOOSTED: partial(self._trees, None), STACKED: partial(self._trees, model)}
        return {name: makers[name]() for name in names if name in makers}

    @property
    def _is_one_number(self) -> bool:
        return bool(self.task.is_one_number)

    # ---- parts

    def _said(self, model: MixturePart) -> np.ndarray:
        return model.values(self.calibration.features, self.calibration.formulas)

    def _as_it_is(self, model: MixturePart) -> Found:
        return Found(self._said(model), lambda: model)

    def _offsets(self, model: MixturePart) -> Found:
        rows, said = self.calibration, self._said(model)
        offsets, unseen = fitted_offsets(rows.formulas, rows.targets - said[:, 0], rows.groups)
        return Found(said + unseen[:, None], lambda: WithOffsets(model, offsets))

    def _tuned(self, federated: Vector) -> Found:
        """Train the network further."""
        plan = replace(
            self.plan, epochs=TUNING_LOOKS * TUNING_EPOCHS, num_rounds=TUNING_LOOKS,
            learning_rate=TUNING_RATE * self.plan.learning_rate, seed=derived_seed(self.plan.seed, "tuning") % 2**32,
        )  # fmt: skip
        return self._as_it_is(self._by(self._trained(federated, plan)))

    def own_network(self) -> Vector | None:
        """Return a network of the silo's own, trained for as long as the calibration rows say; None where the task has
        no network."""
        if not self.task.has_network:
            return None
        plan = replace(self.plan, num_rounds=min(self.plan.total_steps, OWN_LOOKS))
        return self._trained(initial_vector(self.task.model(plan.seed), plan.buffers), plan)

    def _trained(self, vector: Vector, plan: TrainingPlan) -> Vector:
        """Train on from a vector; of the stretches the best one counts, by the calibration rows."""
        trainer, looks = self.task_trainer(plan), list[tuple[float, Vector]]()
        for stretch in range(1, plan.num_rounds + 1):
            vector, _ = trainer.fit_round(vector, stretch)
            looks.append((self._judge(self._said(self._by(vector))), vector))
        return min(looks, key=lambda look: look[0])[1]

    def task_trainer(self, plan: TrainingPlan) -> LocalTrainer:
        """Return what trains the task's network on the training rows by a plan."""
        features, targets = self.samples.features, self.samples.targets
        return LocalTrainer(self.task.model(0), self.task.loss, features, targets, plan, self.silo)

    def _trees(self, model: MixturePart | None) -> Found:
        """Grow trees on the training rows for as long as the calibration rows say; in the end on both."""

        def grown(parts: Sequence[Rows], trees: int | None = None) -> OwnTrees:
            targets = np.concatenate([part.targets for part in parts])
            learned, num_classes = self.task.tree_targets(targets)
            columns = [columns_of(self.task, part.features, part.formulas, model) for part in parts]
            return grown_alone(np.vstack(columns), learned, num_classes, self.plan.seed, trees)

        whole, rows = grown([self.training]), self.calibration
        columns = columns_of(self.task, rows.features, rows.formulas, model)
        looks = [np.asarray(self.task.predicted(outputs, None)) for outputs in whole.staged(columns)]
        at = int(np.argmin([self._judge(look) for look in looks]))
        length = whole.lengths[at]
        return Found(looks[at], lambda: Trees(self.task, grown([self.training, rows], length), model))
