"""A silo of crystals, and what it tells besides training: what it could do alone, where a model errs, on what it rests.

All answers are metrics by name, and leave as metrics do: sums over enough rows with few digits, each name counted as
one more model that was marked. Worst rows stay here: they are written into the owner's log.

    metrics of learners    (names, seed, epochs, batch size, learning rate, optimiser)   LEARNERS and BEST
    metrics of members     (names, method, seed, ..., optimiser, model, own network)   MEMBERS: its personal model
    metrics of curves      (names, method, shares, draws, seed, ..., model of the others)   what joining would bring
    metrics of unseen rows (names, model)   `model`: its errors on rows that took no part in training
    metrics of groups      (names, model)   `anion.oxide`, `element.Fe`: the rows with that anion class or element
    metrics of shuffles    (names, model)   `all`, and the name of a property whose columns are shuffled among the rows
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch

from ray_fed.errors import SiloFailed, Trouble
from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.messages import Metrics, Vector, unmarked
from ray_fed.federation.silo import Silo, names_asked
from ray_fed.federation.task import LocalRows
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.best_alone import Candidate, Questions, best, candidates, predictions
from ray_fed.materials.breakdown import group_masks, shuffled_rows, worst_rows
from ray_fed.materials.learners import BOOSTED_TREES, NETWORK, Columns, NetworkLearner, TreeLearner
from ray_fed.materials.learning_curve import curve, points
from ray_fed.materials.member_answers import PERSONAL, kept, member_scores, unseen_rows, workshop_of
from ray_fed.metrics import Scores, coin_of, secret_of

OF_LEARNERS, OF_MEMBERS = "metrics of learners", "metrics of members"
OF_CURVES, OF_UNSEEN = "metrics of curves", "metrics of unseen rows"
OF_GROUPS, OF_SHUFFLES = "metrics of groups", "metrics of shuffles"
LEARNERS = (NETWORK, "random_forest", "gradient_boosting")
BEST = "best"
"""The learner with the best folds: its scores are those of one of the others."""
ALL = "all"
"""Nothing is shuffled."""


class PropertySilo(Silo):
    """See `Silo`; its task is a `PropertyTask`."""

    task: Any

    def queries(self) -> Mapping[str, Callable[..., Any]]:
        return {
            OF_LEARNERS: self.of_learners,
            OF_MEMBERS: self.of_members,
            OF_CURVES: self.of_curves,
            OF_UNSEEN: self.of_unseen,
            OF_GROUPS: self.of_groups,
            OF_SHUFFLES: self.of_shuffles,
        }

    # ---- what it could do alone

    def of_learners(
        self, names: np.ndarray, seed: int, epochs: int, batch_size: int, learning_rate: float, optimizer: str
    ) -> dict[str, Metrics]:
        """Return learner -> scores of its folds on the training rows, and on rows that it was not chosen by: those held
        out, or in a study the published test set. The network's second part is empty: a job trains it on all rows."""
        asked = names_asked(OF_LEARNERS, (names,))
        rows, new = self.rows, self._unseen()
        plan = TrainingPlan(seed, epochs, ceil(len(rows.features) / batch_size), 1, learning_rate, optimizer)
        questions = Questions(self.task, rows.targets, rows.groups, seed)
        if len(set(rows.groups)) < 2:
            reason = "its training rows have one formula only, so that nothing can be chosen by cross-validation"
            raise SiloFailed(self.spec.name, "learning alone", reason, failure=Trouble.TOO_FEW_ROWS)
        found = candidates(self._learners(plan), questions)
        told = {one.learner.name: self._told(one, new) for one in found}
        told[BEST] = told[best(found).learner.name]
        return {name: told[name] for name in asked if name in told}

    def _learners(self, plan: TrainingPlan) -> list[NetworkLearner | TreeLearner]:
        learned, num_classes = self.task.tree_targets(self.rows.targets)
        columns = Columns(self.task.described(self.rows.features), learned, num_classes, plan.seed)
        forest, boosting = TreeLearner(self.task, columns), TreeLearner(self.task, columns, LEARNERS[2], BOOSTED_TREES)
        if isinstance(self.task, BoostedTask):  # the federation's own kind of model is no network
            return [forest, boosting]
        return [NetworkLearner(self.task, self.samples, plan), forest, boosting]

    def _unseen(self) -> tuple[np.ndarray, np.ndarray]:
        """Return features and targets of rows that the silo does not train on; none where it has no such rows."""
        published: LocalRows | None = self.task.published_test(self.spec)
        if published is not None:
            return published.features, published.targets
        return self.rows.held_out_features, self.rows.held_out_targets

    def _told(self, candidate: Candidate, unseen: tuple[np.ndarray, np.ndarray]) -> Metrics:
        features, targets = unseen
        name = candidate.learner.name
        if name == NETWORK or not candidate.is_complete or not len(targets):
            features, targets = features[:0], targets[:0]
        new = self.task.described(features)
        predicted = predictions(candidate, len(self.rows.features), new) if len(targets) else None
        found = self.task.score(targets, self.task.nothing_predicted() if predicted is None else predicted)
        return self._released(name, np.empty(0), candidate.scores, found)

    # ---- what it makes of the federation's model for itself

    def of_members(
        self, names: np.ndarray, method: str, seed: int, epochs: int, batch_size: int, learning_rate: float,
        optimizer: str, model: Vector, own: Vector | None = None,
    ) -> dict[str, Metrics]:  # fmt: skip
        """Make the silo's personal model from the federation's and its own rows (personal.py), keep it in the owner's
        folder, and return name -> scores on the rows by which it was chosen, and on rows that took no part in it.

        own: the silo's own network, where it has trained one.
        """
        rows = self.rows
        plan = TrainingPlan(seed, epochs, ceil(len(rows.features) / batch_size), 1, learning_rate, optimizer)
        workshop, unseen = workshop_of(self, plan), unseen_rows(self)
        found = workshop.personal(method, model, own)
        scores = member_scores(self.task, found, workshop.calibration, unseen)
        self.owner_notes += kept(self.spec, self.task, found, plan, scores)
        outputs = [self._outputs(model, part.features) for part in (workshop.training, unseen)]
        asked = names_asked(OF_MEMBERS, (names,))
        return self._marked({name: scores[name] for name in asked}, outputs, model)

    def of_curves(
        self, names: np.ndarray, method: str, shares: np.ndarray, draws: int, seed: int, epochs: int, batch_size: int,
        learning_rate: float, optimizer: str, others: Vector,
    ) -> dict[str, Metrics]:  # fmt: skip
        """Return what the model of the others would bring to so many of the silo's rows (learning_curve.py)."""
        asked, plan = names_asked(OF_CURVES, (names,)), TrainingPlan(seed, epochs, 1, 1, learning_rate, optimizer)
        wanted = [point for point in points(shares.tolist(), draws) if f"{PERSONAL}.{point.name}" in asked]
        scores = curve(self, wanted, method, plan, batch_size, others)
        outputs = [self._outputs(others, part) for part in (self.rows.features, unseen_rows(self).features)]
        none = [self.task.score(self.rows.targets[:0], self.task.nothing_predicted())] * 2  # where rows are too few
        return self._marked({name: scores.get(name, none) for name in asked}, outputs, others)

    def of_unseen(self, names: np.ndarray, model: Vector) -> dict[str, Metrics]:
        """Return the scores of a model on the training rows, and on rows that took no part in training."""
        parts = ((self.rows.features, self.rows.targets), self._unseen())
        outputs = [self._outputs(model, features) for features, _ in parts]
        said = [self.task.predicted(each, self.samples.standardizer) for each in outputs]
        scores = [self.task.score(targets, each) for (_, targets), each in zip(parts, said, strict=True)]
        return self._marked(dict.fromkeys(names_asked(OF_UNSEEN, (names,)), scores), outputs, model)

    # ---- where a model errs, and on what it rests

    def of_groups(self, names: np.ndarray, model: Vector) -> dict[str, Metrics]:
        """Return group -> the model's scores on the silo's training and held-out rows of that group."""
        asked, rows = names_asked(OF_GROUPS, (names,)), self.rows
        parts = ((rows.features, rows.targets, rows.groups), (rows.held_out_features, rows.held_out_targets,
                                                              rows.held_out_groups))  # fmt: skip
        outputs = [self._outputs(model, features) for features, _, _ in parts]
        predicted = [self.task.predicted(each, self.samples.standardizer) for each in outputs]
        self._note_worst(predicted[1] if len(predicted[1]) else predicted[0])
        masks = [group_masks(groups, asked) for _, _, groups in parts]
        found = {
            name: [
                self.task.score(parts[at][1][mask[name]], predicted[at][mask[name]]) for at, mask in enumerate(masks)
            ]
            for name in asked
        }
        return self._marked(found, outputs, model)

    def of_shuffles(self, names: np.ndarray, model: Vector) -> dict[str, Metrics]:
        """Return property -> the model's scores with its columns shuffled among the rows."""
        asked, rows = names_asked(OF_SHUFFLES, (names,)), self.rows
        columns = {ALL: [], **self.task.featurizer().properties()}
        unknown = [name for name in asked if name not in columns]
        if unknown:
            reason = "it has no feature of a name that it was asked for"
            raise SiloFailed(self.spec.name, "shuffling features", reason, failure=Trouble.UNKNOWN_QUERY)
        parts = ((rows.features, rows.targets), (rows.held_out_features, rows.held_out_targets))
        plain = [self._outputs(model, features) for features, _ in parts]
        found: dict[str, list[Scores]] = {}
        for name in asked:
            shuffled = [shuffled_rows(self.task, features, columns[name], name) for features, _ in parts]
            predicted = [
                self.task.predicted(self._outputs(model, features), self.samples.standardizer) for features in shuffled
            ]
            found[name] = [self.task.score(targets, each) for (_, targets), each in zip(parts, predicted, strict=True)]
        return self._marked(found, plain, model)

    def _outputs(self, model: Vector, features: Any) -> np.ndarray:
        return self.task.predictor()(model, self.task.inputs(features, self.samples.standardizer))

    def _marked(
        self, found: Mapping[str, Sequence[Scores]], outputs: Sequence[np.ndarray], model: Vector
    ) -> dict[str, Metrics]:
        """Return scores as they may be told: those of a probe, and of too few rows, have no number."""
        is_marked = self.scoring.marks([torch.from_numpy(each) for each in outputs])
        if not is_marked:
            return {name: Metrics(self.spec.name, *map(unmarked, scores)) for name, scores in found.items()}
        return {name: self._released(name, model, *self._enough(scores)) for name, scores in found.items()}

    def _enough(self, scores: Sequence[Scores]) -> list[Scores]:
        few, none = self.resolution.fewest_rows, self.task.score(self.rows.targets[:0], self.task.nothing_predicted())
        return [each if each.num_examples >= few else none for each in scores]

    def _released(self, name: str, model: Vector, train: Scores, held_out: Scores) -> Metrics:
        secret = secret_of([self.rows.targets, self.rows.held_out_targets], name)
        parts = zip(("train", "held out"), (train, held_out), strict=True)
        return Metrics(
            self.spec.name, *(self.resolution.released(each, coin_of(secret, model, part)) for part, each in parts)
        )

    def _note_worst(self, predicted: np.ndarray) -> None:
        """Note the rows with the largest errors where their owner alone looks."""
        rows = self.rows
        held = len(rows.held_out_targets) > 0
        targets = rows.held_out_targets if held else rows.targets
        names = rows.held_out_names if held else rows.names
        lines = worst_rows(self.task, names, targets, predicted) if len(names) else []
        self.owner_notes += ["rows that the model is farthest from: " + "; ".join(lines)] if lines else []
