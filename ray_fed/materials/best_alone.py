"""What a member would do without the federation: the best of three learners on its own rows, chosen by its own
cross-validation, in which no formula is on both sides of a split.

The choice sees the silo's training rows alone. All learners are given the same: one setting, and as many lengths as
they like to be looked at, of which the folds choose one. The errors of the folds are a little too good for that, the
same for all; what is compared with the federation are errors on rows that took no part in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_fed.federation.task import Task
from ray_fed.materials.learners import Learner
from ray_fed.materials.partitions import grouped_folds
from ray_fed.metrics import Scores, merged, reported

NUM_FOLDS = 3
FAR_BEHIND = 1.1
"""A learner so many times as bad as the best after the first fold takes part in no further one."""


@dataclass(frozen=True)
class Candidate:
    """One learner, cross-validated."""

    learner: Learner
    length: int
    """Epochs or trees that the folds chose."""
    scores: Scores
    """Over all rows of the folds it took part in, each predicted by a model that has not seen its formula."""
    is_complete: bool
    """Whether it took part in all folds."""
    badness: float


@dataclass(frozen=True)
class Questions:
    """What is asked of the learners: which rows belong together, and how predictions are judged."""

    task: Task
    targets: np.ndarray = field(repr=False)
    """[rows, ...]: those of the rows learned from."""
    groups: Sequence[str] = field(repr=False)
    """Of each row: rows of one group are on one side of every split."""
    seed: int = 0

    def folds(self) -> list[np.ndarray]:
        """Return row numbers of up to NUM_FOLDS folds; together all rows, once."""
        return grouped_folds(self.groups, NUM_FOLDS, self.seed)

    def judge(self, rows: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda predicted: badness(self.task, self.task.score(self.targets[rows], predicted))


def badness(task: Task, scores: Scores) -> float:
    """Return how bad scores are by the task's headline metric, less is better; infinity for what is no number. Of a
    metric of which more is better, and 1 is all, what is missing to it."""
    metric = reported(task.metrics)[0]
    value = scores.values().get(metric.name, float("nan"))
    found = 1.0 - value if metric.higher_is_better else value
    return found if np.isfinite(found) else np.inf


def candidates(learners: Sequence[Learner], asked: Questions) -> list[Candidate]:
    """Cross-validate learners; those far behind after the first fold are spared the others."""
    folds = asked.folds()
    first = {learner.name: _of_fold(learner, asked, folds, 0) for learner in learners}
    leading = min(min(badness(asked.task, scores) for scores in looks) for looks in first.values())
    found = []
    for learner in learners:
        looks = [first[learner.name]]
        if min(badness(asked.task, scores) for scores in looks[0]) <= FAR_BEHIND * leading:
            looks += [_of_fold(learner, asked, folds, number) for number in range(1, len(folds))]
        found.append(_chosen(learner, asked.task, looks, len(looks) == len(folds)))
    return found


def best(found: Sequence[Candidate]) -> Candidate:
    """Return the best of those that took part in all folds; of two as good, the first."""
    return min((one for one in found if one.is_complete), key=lambda one: one.badness)


def predictions(candidate: Candidate, num_rows: int, new: Any) -> np.ndarray:
    """Learn from all rows for as long as the folds chose; return what is predicted of new ones, [m, W]."""
    *_, last = candidate.learner.learn(np.arange(num_rows), new, candidate.length)
    return last


def _of_fold(learner: Learner, asked: Questions, folds: Sequence[np.ndarray], number: int) -> list[Scores]:
    """Return the scores on one fold after each length."""
    held = folds[number]
    inside = np.sort(np.concatenate([fold for at, fold in enumerate(folds) if at != number]))
    staged = learner.learn(inside, learner.of_rows(held), learner.lengths[-1], asked.judge(held))
    return [asked.task.score(asked.targets[held], predicted) for predicted in staged]


def _chosen(learner: Learner, task: Task, looks: Sequence[Sequence[Scores]], is_complete: bool) -> Candidate:
    """Return the learner at the length that is best over all folds; those that a fold did not come to do not count."""
    together = [merged(scores) for scores in zip(*looks, strict=False)]
    found = [badness(task, scores) for scores in together]
    at = int(np.argmin(found))
    return Candidate(learner, learner.lengths[at], together[at], is_complete, found[at])


def by_name(found: Sequence[Candidate]) -> Mapping[str, Candidate]:
    return {one.learner.name: one for one in found}
