"""Trains on all silos, and once without each; lets every silo measure what the model of the others is worth to it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.launching import CoordinatorLike
from pipelines.training.members import standard_error
from pipelines.training.setup import Setup, jobs
from pipelines.value.config import ValueConfig
from pipelines.value.findings import CurvePoint, SiloContribution, ValueFindings
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.messages import Metrics, Vector
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.strategies.leave_out import WITHOUT, LeftOut
from ray_fed.materials.learning_curve import Point, names_of, points
from ray_fed.materials.member_answers import GAINED, LOST, OWN, PERSONAL
from ray_fed.materials.property_silo import OF_CURVES, OF_UNSEEN
from ray_fed.metrics import Metric, Scores, merged

METHOD = "mixture"
NEVER = 10**9
"""Rounds between evaluations of the models in training: what counts is asked at the end."""
MODEL = "model"
LAST = 0.25
"""Share of the exchanges in which a silo's updates are left out."""


@dataclass(frozen=True)
class ValueStudy:
    """One study: what it looks at, and who answers."""

    config: ValueConfig
    setup: Setup
    coordinator: CoordinatorLike
    agreement: Agreement

    def run(self) -> ValueFindings:
        """Train, ask, and return what was found."""
        silos = self.setup.training
        whole = self._trained(silos, "all") if self.config.contributions else {}
        curves, silent, without = dict[str, list[CurvePoint]](), dict[str, str](), dict[str, Vector]()
        for silo in silos:
            others = tuple(name for name in silos if name != silo)
            without[silo] = self._trained(others, f"without-{silo}")["federated"]
            _say(f"{silo} measures what the model of the others is worth to it")
            curves[silo], why = self._curve(silo, without[silo])
            silent |= {silo: why} if why else {}
        told = {silo: curve for silo, curve in curves.items() if silo not in silent}
        found = ValueFindings(self.metric, told, silent=silent)
        if not self.config.contributions:
            return found
        left_out = {name.removeprefix(WITHOUT): vector for name, vector in whole.items() if name.startswith(WITHOUT)}
        return self._with_contributions(found, whole["federated"], without, left_out)

    @property
    def metric(self) -> Metric:
        return self.setup.task.metrics[0]

    # ---- training

    def _trained(self, silos: Sequence[str], name: str) -> Mapping[str, Vector]:
        """Return the models of a federation of these silos, under a name for the job."""
        _say(f"training on {', '.join(silos)}")
        job = self._job(silos, name)
        *_, last = self.coordinator.run(job)
        assert last.models is not None
        size = self.agreement.layout.size
        return {name: np.array(vector[:size]) for name, vector in last.models.items()}

    def _job(self, silos: Sequence[str], name: str) -> Job:
        """Return the federated job of these silos; of all of them with the models that leave one out."""
        part = replace(self.setup, order=tuple(silos), founders=())
        federated = jobs(part, dict(self.agreement.silos), self.setup.config.seed)[0]
        job = replace(federated, evaluate_every=NEVER, evaluate_silos=False, name=name)
        if len(silos) < len(self.setup.training) or not self.setup.task.has_network:
            return job
        after = job.num_rounds - max(1, round(LAST * job.num_rounds))
        return replace(job, strategy=LeftOut(job.strategy, self.agreement.layout.size, after))

    # ---- curves

    def _curve(self, silo: str, others: Vector) -> tuple[list[CurvePoint], str]:
        """Return the points of a silo's curve, or why there are none."""
        config, asked = self.setup.config, points(self.config.shares, self.config.draws)
        given = (
            METHOD, np.array(self.config.shares), self.config.draws, config.seed, config.epochs, config.batch_size,
            config.learning_rate, config.optimizer, others,
        )  # fmt: skip
        told, silent = self.coordinator.ask_metrics(OF_CURVES, (silo,), self._names(asked), given)
        if silo not in told:
            return [], silent.get(silo, "it gave no answer")
        num_rows = self.agreement.silos[silo].num_examples
        found = [self._point(silo, share, round(share * num_rows), told[silo]) for share in self.config.shares]
        return [point for point in found if point], ""

    def _names(self, asked: Sequence[Point]) -> list[str]:
        names = names_of(asked)
        return names if self.setup.task.is_one_number else [n for n in names if n.startswith((PERSONAL, OWN))]

    def _point(self, silo: str, share: float, num_rows: int, told: Mapping[str, Metrics]) -> CurvePoint | None:
        own, joined, errors = list[float](), list[float](), list[float]()
        for draw in range(self.config.draws):
            name = Point(share, draw).name
            scores = told[f"{OWN}.{name}"].held_out
            if not scores.num_examples:
                continue
            own.append(scores.values()[self.metric.name])
            joined.append(told[f"{PERSONAL}.{name}"].held_out.values()[self.metric.name])
            errors.append(standard_error(told, (f"{GAINED}.{name}", f"{LOST}.{name}")))
        return CurvePoint(silo, num_rows, tuple(own), tuple(joined), tuple(errors)) if own else None

    # ---- contributions

    def _with_contributions(
        self, found: ValueFindings, whole: Vector, without: Mapping[str, Vector], left_out: Mapping[str, Vector]
    ) -> ValueFindings:
        """Mark the models on the unseen rows of all silos."""
        of_all = self._marked(whole)
        if of_all is None:
            return found
        contributions = []
        for silo in without:
            values = [self._marked(models[silo]) if silo in models else None for models in (without, left_out)]
            worse = [None if value is None else self._worse(value, of_all) for value in values]
            contributions.append(SiloContribution(silo, self.agreement.silos[silo].num_examples, *worse))
        return replace(found, contributions=tuple(contributions), whole=of_all)

    def _worse(self, value: float, of_all: float) -> float:
        return of_all - value if self.metric.higher_is_better else value - of_all

    def _marked(self, vector: Vector) -> float | None:
        """Return the metric of a model on the unseen rows of all silos together; None where no silo tells."""
        told, _ = self.coordinator.ask_metrics(OF_UNSEEN, self.setup.training, (MODEL,), (vector,))
        scores: list[Scores] = [answer[MODEL].held_out for _, answer in sorted(told.items())]
        parts = [each for each in scores if each.num_examples]
        return merged(parts).values()[self.metric.name] if parts else None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
