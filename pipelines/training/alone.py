"""What each member would do without the federation: asked of the silos, which choose by their own cross-validation.

network, random forest or gradient boosting, whichever is best in the silo's own folds (ray_fed/materials/
best_alone.py), on rows that took no part in the choice: the published test set of a study, else the silo's own
held-out rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from pipelines.launching import CoordinatorLike
from pipelines.training.setup import Setup
from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.messages import Metrics
from ray_fed.materials.property_silo import BEST, LEARNERS, OF_LEARNERS
from ray_fed.metrics import Metric

SAME = 1e-12


@dataclass(frozen=True)
class AloneResult:
    """What one silo told of its learners, of one seed."""

    learner: str
    """The one that its folds chose."""
    folds: Mapping[str, Mapping[str, float]]
    """Learner -> metrics over its folds."""
    unseen: Mapping[str, float]
    """Metrics of the chosen one on rows that it was not chosen by; empty of the network, which a job of its own trains
    on all rows."""

    @classmethod
    def of(cls, told: Mapping[str, Metrics]) -> "AloneResult":
        """Read an answer: the best is the one whose folds it repeats."""
        folds = {name: dict(told[name].train.values()) for name in LEARNERS if name in told}
        best = dict(told[BEST].train.values())
        chosen = next((name for name in LEARNERS if _are_equal(folds.get(name, {}), best)), LEARNERS[0])
        held_out = told[BEST].held_out
        return cls(chosen, folds, dict(held_out.values()) if held_out.num_examples else {})


def _are_equal(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        abs(one[name] - other[name]) <= SAME for name in one if one[name] == one[name] and other[name] == other[name]
    )


def ask_alone(coordinator: CoordinatorLike, setup: Setup, silos: Sequence[str], seed: int) -> "AloneAnswers":
    """Let silos find out what each could do alone."""
    config = setup.config
    given = (seed, config.epochs, config.batch_size, config.learning_rate, config.optimizer)
    learners = LEARNERS[1:] if isinstance(setup.task, BoostedTask) else LEARNERS  # trees have no network
    told, silent = coordinator.ask_metrics(OF_LEARNERS, silos, (*learners, BEST), given)
    return AloneAnswers({silo: AloneResult.of(answer) for silo, answer in told.items()}, silent)


@dataclass(frozen=True)
class AloneAnswers:
    """What all silos told, of one seed."""

    results: Mapping[str, AloneResult] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    """Silo -> why it told nothing."""

    @property
    def unseen_nowhere(self) -> dict[str, str]:
        """Silo -> the learner that it chose, where there are no rows to compare it on: a test set that its owner keeps,
        and none held out."""
        return {
            silo: result.learner
            for silo, result in self.results.items()
            if result.learner != LEARNERS[0] and not result.unseen
        }


def summary_of(
    answers: Sequence[AloneAnswers], networks: Mapping[str, Mapping[str, Sequence[float]]], metrics: Sequence[Metric],
    prefix: str,
) -> dict[str, object]:  # fmt: skip
    """Return `<prefix>.<silo>.learner`, `.<metric>`, with `_std` of several seeds, and `.cv.<learner>` for each silo.

    answers: of each seed. networks: metric -> silo -> value of the same network alone, seed by seed.
    """
    found: dict[str, object] = {}
    headline = metrics[0].name
    for silo in dict.fromkeys(silo for one in answers for silo in one.results):
        known = [(at, one.results[silo]) for at, one in enumerate(answers) if silo in one.results]
        found[f"{prefix}.{silo}.learner"] = _most([result.learner for _, result in known])
        for metric in metrics:
            network = networks.get(metric.name, {}).get(silo, [])
            values = [value for at, result in known if (value := _value(result, metric, network, at)) is not None]
            found |= _mean(f"{prefix}.{silo}.{metric.name}", values)
        for learner in known[0][1].folds:
            found |= _mean(f"{prefix}.{silo}.cv.{learner}", [result.folds[learner][headline] for _, result in known])
    return found


def _value(result: AloneResult, metric: Metric, network: Sequence[float], at: int) -> float | None:
    if result.learner != LEARNERS[0]:
        return result.unseen.get(metric.name)
    return network[at] if at < len(network) else None


def _most(learners: Sequence[str]) -> str:
    """Return the one that was chosen for most seeds."""
    return Counter(learners).most_common(1)[0][0]


def _mean(key: str, values: Sequence[float]) -> dict[str, object]:
    if not values:
        return {}
    return {key: mean(values), **({f"{key}_std": stdev(values)} if len(values) > 1 else {})}
