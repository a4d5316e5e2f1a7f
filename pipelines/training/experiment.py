"""Runs the jobs of a setup on a cohort and keeps what they say, record by record."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines import launching
from pipelines.fingerprints import fingerprints
from pipelines.launching import CoordinatorLike, FederationSpec
from pipelines.training.alone import AloneAnswers, ask_alone
from pipelines.training.analysis import Analysis, analyse
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.measured_limits import measure
from pipelines.training.members import MemberAnswers, ask_members
from pipelines.training.membership import admitted, start_rules
from pipelines.training.recorded_jobs import TrainingListener, recorded
from pipelines.training.setup import Setup, jobs
from ray_fed.errors import PerimeterRefused
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.messages import Vector
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.strategies import Models
from ray_fed.materials.limits import ModelLimits
from ray_fed.metrics import Metric, Scores, reported
from ray_fed.reporting.results import words


@contextlib.contextmanager
def launched(setup: Setup) -> Iterator[tuple[CoordinatorLike, list[str]]]:
    """Yield the coordinator of the setup's cohort, and notices for the user."""
    config = setup.config
    founders = setup.founders or setup.training
    members = FederationSpec(setup.members, setup.task, setup.test, founders, setup.sites, setup.hub, setup.run)
    unused = config.cohort == "local" and config.num_gpus
    start = start_rules(setup)
    with launching.launched(members, config.cohort, config.address, config.round_timeout, start) as (
        coordinator,
        notices,
    ):
        yield coordinator, [*notices, *(["--num-gpus has no effect on a local cohort"] if unused else [])]


@dataclass
class TrainingExperiment:
    """All repeats of the federated run and of the baselines, and what came out so far."""

    setup: Setup
    agreement: Agreement
    listener: TrainingListener
    checkpoint: Checkpoint
    records: list[tuple[int, RoundRecord]] = field(default_factory=list)
    """(seed, record) in the order heard."""
    models: dict[str, Vector] = field(default_factory=dict)
    """Final models of the first seed."""
    later_models: dict[int, dict[str, Vector]] = field(default_factory=dict)
    """Those of the further seeds, by seed."""
    true: np.ndarray | None = None
    """Targets of the common test set, for parity plots."""
    predicted: dict[str, np.ndarray] = field(default_factory=dict)
    limits: dict[str, ModelLimits] = field(default_factory=dict)
    """Model -> how far its predictions can be trusted."""
    alone: list[AloneAnswers] = field(default_factory=list)
    """What each silo could do alone with the best of several learners, seed by seed."""
    members: list[MemberAnswers] = field(default_factory=list)
    """What each silo made of the federation's model for itself, seed by seed."""
    analysis: Analysis | None = None
    """Where the federated model errs, and on what it rests."""
    scores: dict[str, Scores] = field(default_factory=dict)
    """What was told of the first seed's final models on the common test set, or on all held-out rows."""
    started: float = field(default_factory=time.perf_counter)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What summary, tables and figures show, the headline first."""
        return reported(self.setup.task.metrics)

    @property
    def seeds(self) -> range:
        return range(self.setup.config.seed, self.setup.config.seed + self.setup.config.repeats)

    def train(self, coordinator: CoordinatorLike) -> None:
        """Run every job of every seed, then let the first seed's models predict the test set."""
        for seed in self.seeds:
            for job in jobs(self.setup, dict(self.agreement.silos), seed):
                self._run(coordinator, job, seed)
        self._ask_alone(coordinator)
        self._ask_members(coordinator)
        self.limits = measure(coordinator, self.setup, self.agreement, self.models)
        try:
            shown = coordinator.predict_test(self.models)
        except PerimeterRefused as refusal:  # its owner shows scores alone
            print(f"note: no parity plots: {refusal}", file=sys.stderr)
            shown = None
        if shown is not None:
            self.true, self.predicted = shown
            self._score_predicted(self.true)
        if self.setup.config.analysis:
            self.analysis = analyse(coordinator, self.setup, self.agreement, self.models["federated"], self.predicted)

    def _ask_alone(self, coordinator: CoordinatorLike) -> None:
        """Ask what each silo could do alone; once per seed."""
        config = self.setup.config
        if not config.baselines or config.alone != "best":
            return
        silos = [name for name in self.setup.models if name in self.agreement.silos]
        for seed in self.seeds:
            print(f"each silo alone chooses among network, forest and boosted trees, seed {seed}", file=sys.stderr)
            answers = ask_alone(coordinator, self.setup, silos, seed)
            self.alone.append(answers)
            for silo, learner in answers.unseen_nowhere.items():
                told = f"silo '{silo}' would take {words(learner)} alone, by its folds"
                print(f"note: {told}; how that does is not known: it has no rows of its own held out", file=sys.stderr)
            for silo, why in answers.silent.items():
                print(f"note: silo '{silo}': what it could do alone is not known: {why}", file=sys.stderr)

    def _ask_members(self, coordinator: CoordinatorLike) -> None:
        """Let each silo make its personal model; once per seed."""
        if not self.setup.config.makes_personal:
            return
        silos = [name for name in self.setup.training if name in self.agreement.silos]
        size = self.agreement.layout.size
        for seed in self.seeds:
            print(f"each silo makes its personal model ({self.setup.config.personal}), seed {seed}", file=sys.stderr)
            answers = ask_members(coordinator, self.setup, silos, seed, self.models_of(seed), size)
            self.members.append(answers)
            for silo, why in answers.silent.items():
                said = why.removeprefix(f"silo '{silo}' ")
                print(f"note: silo '{silo}': it has no personal model: {said}", file=sys.stderr)

    def models_of(self, seed: int) -> Models:
        """Return the final models of one seed, by name."""
        return self.models if seed == self.setup.config.seed else self.later_models.get(seed, {})

    def _score_predicted(self, true: np.ndarray) -> None:
        """Score the models of jobs that were finished before a run went on: their last records are gone."""
        for model in self.predicted.keys() - self.scores.keys():
            self.scores[model] = self.setup.task.score(true, self.predicted[model].reshape(len(true), -1))

    def _run(self, coordinator: CoordinatorLike, job: Job, seed: int) -> None:
        finished = self.checkpoint.models_of(job.name)
        if finished is not None:
            self._keep(finished, seed)
            return
        for _ in recorded(coordinator, job, seed, self.checkpoint, self):
            pass

    def on_job_start(self, job: Job, seed: int) -> None:
        self.listener.on_job_start(job, seed)

    def on_round_end(self, record: RoundRecord, seed: int) -> None:
        """Keep what a round says before it is written down."""
        if record.models is not None:
            self._keep(record.models, seed)
        if seed == self.setup.config.seed:
            self.scores.update(record.scores)
        if record.joined:
            self.agreement = admitted(self.agreement, record)
            self.checkpoint.directory.write_data(fingerprints(self.agreement))
        self.records.append((seed, replace(record, state=None, notes=(), scores={})))
        self.listener.on_round_end(record, seed)

    def _keep(self, models: Models, seed: int) -> None:
        kept = self.models if seed == self.setup.config.seed else self.later_models.setdefault(seed, {})
        kept.update({name: np.array(vector) for name, vector in models.items()})

    def finals(self, metric: Metric) -> dict[str, list[float]]:
        """Return model -> final value per seed of a metric; only models that finished."""
        found: dict[str, list[float]] = {}
        for _, record in self.records:
            if record.models is None:
                continue
            for model in record.models:
                if f"{model}.{metric.name}" in record.metrics:
                    found.setdefault(model, []).append(record.metrics[f"{model}.{metric.name}"])
        return found

    def federated_records(self) -> list[RoundRecord]:
        """Return the records of the federated jobs that finished a round."""
        return [record for _, record in self.records if record.kind == "federated" and record.server_round]

    def curve(self, model: str, metric: Metric) -> tuple[list[float], list[float]]:
        """Return (epochs or iterations, values) of a model in the first seed's run, wherever it was evaluated."""
        key, last = f"{model}.{metric.name}", self.setup.passes
        found = [
            record
            for seed, record in self.records
            if seed == self.setup.config.seed and key in record.metrics and _owns(record, model)
        ]
        ends = {record.job: record.num_rounds for record in found}  # a forest says only at the end how many it took
        points = [(last * record.server_round / ends[record.job], record.metrics[key]) for record in found]
        return [x for x, _ in points], [y for _, y in points]


def _owns(record: RoundRecord, model: str) -> bool:
    return (record.kind == "federated") == (model == "federated")
