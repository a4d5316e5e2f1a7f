"""The coordinator: agrees with the silos on what is trained, then runs rounds (Guo et al. 2022, Algorithm 1).

A plain class on a `Cohort`; it never holds a row. Everything it reports about a round is either deterministic
(`RoundRecord.metrics`) or a time (`RoundRecord.seconds`), never both in one field.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_fed.errors import SiloRefused
from ray_fed.federation.cohort import Cohort, busy_seconds, now
from ray_fed.federation.messages import Metrics, SessionSpec, SiloDescription, Update, Vector
from ray_fed.federation.strategies import FedAvg, LocalOnly, Models, State, Strategy
from ray_fed.federation.task import Task
from ray_fed.learning.layout import Layout
from ray_fed.learning.regression import RegressionSums, merged
from ray_fed.learning.standardisation import Standardizer, merge_moments
from ray_fed.learning.trainer import TrainingPlan


@dataclass(frozen=True)
class Job:
    """One training run over some silos of the cohort."""

    name: str
    """Name of the session; unique among the jobs of a run."""
    silos: tuple[str, ...]
    plans: Mapping[str, TrainingPlan]
    """Silo -> what it does; all have the same num_rounds."""
    model_seed: int
    strategy: Strategy = field(default_factory=FedAvg)
    evaluate_every: int = 1
    """Rounds between evaluations; round 0 and the last are always evaluated."""
    evaluate_silos: bool = True
    """Also evaluate the models on every silo's own rows."""

    @property
    def num_rounds(self) -> int:
        return next(iter(self.plans.values())).num_rounds

    def evaluates(self, server_round: int) -> bool:
        return server_round % self.evaluate_every == 0 or server_round == self.num_rounds


@dataclass(frozen=True)
class RoundRecord:
    """What happened in one round; round 0 is the evaluation of the initial parameters."""

    job: str
    server_round: int
    num_rounds: int
    metrics: Mapping[str, float]
    """Flat: `<model>.mae`, `silo.<name>.loss`, ...; depends on seed and data alone."""
    participants: tuple[str, ...]
    bytes_sent: int
    """Bytes of parameters that crossed the silos' walls in this round, both directions."""
    seconds: Mapping[str, float] = field(compare=False)
    """`total`, `compute`, `communicate`, `evaluate` and `silo.<name>` (computing)."""
    models: Models | None = field(default=None, repr=False, compare=False)
    """The models, in the last record of a job."""


@dataclass(frozen=True)
class Agreement:
    """The outcome of the round before training."""

    silos: Mapping[str, SiloDescription]
    standardizer: Standardizer
    layout: Layout
    test: Mapping[str, object] | None
    """Fingerprint of the common test set."""


class Coordinator:
    """Runs jobs on a cohort. `training` names the silos whose rows define the scaler (a pooled baseline does not)."""

    def __init__(self, cohort: Cohort, task: Task, training: Sequence[str]):
        self.cohort, self.task, self.training = cohort, task, tuple(training)
        self.layout = Layout.of(task.model(0))

    def agree(self) -> Agreement:
        """Open all silos, refuse those that disagree, standardise together."""
        silos = self.cohort.open()
        expected = self.task.agreement()
        for name, description in silos.items():
            check_agreement(name, description.agreement, expected)
        moments = self.cohort.moments(self.training)
        standardizer = Standardizer.from_moments(merge_moments(moments[name] for name in sorted(moments)))
        self.cohort.prepare(standardizer)
        return Agreement(silos, standardizer, self.layout, self.cohort.examiner_fingerprint())

    def run(self, job: Job) -> Iterator[RoundRecord]:
        """Yield a record per round, from 0 to `job.num_rounds`."""
        self.cohort.open_session(
            {silo: SessionSpec(job.name, job.plans[silo], job.model_seed, self.layout.digest) for silo in job.silos}
        )
        try:
            yield from self._rounds(job)
        finally:
            self.cohort.close_session(job.name, job.silos)

    def parity(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        """Return (true, model -> predicted) on the common test set, None without one."""
        return self.cohort.parity(models)

    def close(self) -> None:
        """Nothing to release; the counterpart of the remote coordinator's."""

    def _rounds(self, job: Job) -> Iterator[RoundRecord]:
        state = job.strategy.start(self._initial_vector(job), job.silos)
        yield self._record(job, 0, state, [], 0, now(), now())
        for server_round in range(1, job.num_rounds + 1):
            start = now()
            vectors = job.strategy.dispatch(state, job.silos)
            arrivals = Arrivals(self.cohort.fit(job.name, server_round, vectors))
            state = job.strategy.aggregate(state, arrivals)
            sent = sum(vector.nbytes for vector in vectors.values()) + arrivals.num_bytes
            yield self._record(job, server_round, state, arrivals.seen, sent, start, now())

    def _initial_vector(self, job: Job) -> Vector:
        parameters = [p.detach().numpy().ravel() for p in self.task.model(job.model_seed).parameters()]
        vector = np.concatenate(parameters).astype(np.float32)
        averaged = any(plan.optimizer_state == "average" for plan in job.plans.values())
        return np.concatenate([vector, np.zeros(2 * len(vector), np.float32)]) if averaged else vector

    def _record(
        self,
        job: Job,
        server_round: int,
        state: State,
        seen: "list[tuple[float, Update]]",
        num_bytes: int,
        start: float,
        end: float,
    ) -> RoundRecord:
        metrics = _losses(sorted((update for _, update in seen), key=lambda update: update.silo))
        if job.evaluates(server_round):
            metrics |= self._evaluation(job, job.strategy.models(state))
        compute = busy_seconds(start, [(at, update.seconds) for at, update in seen])
        seconds = {
            "total": end - start,
            "compute": compute,
            "communicate": end - start - compute,
            "evaluate": now() - end,
            **{f"silo.{update.silo}": update.seconds for _, update in seen},
        }
        return RoundRecord(
            job.name,
            server_round,
            job.num_rounds,
            metrics,
            tuple(sorted(update.silo for _, update in seen)),
            num_bytes,
            seconds,
            job.strategy.models(state) if server_round == job.num_rounds else None,
        )

    def _evaluation(self, job: Job, models: Models) -> dict[str, float]:
        """Errors of each model on the common test set (else on all held-out rows) and on each silo's rows."""
        metrics: dict[str, float] = {}
        test = self.cohort.examine(models)
        if test is None or job.evaluate_silos:
            by_silo = self.cohort.evaluate(job.name, job.silos, models)
            for silo in sorted(by_silo):
                metrics |= _named(f"silo.{silo}", _own(by_silo[silo], silo))
            if test is None:
                test = {model: merged(by_silo[silo][model].held_out for silo in sorted(by_silo)) for model in models}
        for model in sorted(test):
            metrics |= _named(model, test[model])
        return metrics


class Arrivals(Iterable[Update]):
    """Passes updates on as they arrive and remembers when, without keeping their vectors."""

    def __init__(self, updates: Iterable[Update]):
        self._updates = updates
        self.seen: list[tuple[float, Update]] = []
        self.num_bytes = 0

    def __iter__(self) -> Iterator[Update]:
        for update in self._updates:
            self.num_bytes += update.vector.nbytes
            self.seen.append((now(), _without_vector(update)))
            yield update


def check_agreement(silo: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise SiloRefused at the first field in which a silo differs from the federation."""
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise SiloRefused(silo, key, repr(theirs.get(key)), repr(value))


def local_job(job: Job, plans: Mapping[str, TrainingPlan], name: str) -> Job:
    """Return the no-exchange counterpart of a job over the silos of `plans`."""
    return Job(name, tuple(plans), plans, job.model_seed, LocalOnly(), job.evaluate_every, evaluate_silos=False)


def _losses(updates: Sequence[Update]) -> dict[str, float]:
    """Training loss of each silo, and over all silos by the rows they saw."""
    if not updates:
        return {}
    examples = sum(update.num_examples for update in updates)
    mean = sum(update.loss * update.num_examples for update in updates) / examples
    return {"loss": mean, **{f"silo.{update.silo}.loss": update.loss for update in updates}}


def _own(metrics: Mapping[str, Metrics], silo: str) -> RegressionSums:
    """The silo's errors under its own model, or else the global one; on held-out rows where it has some."""
    shown = metrics.get(silo) or next(iter(metrics.values()))
    return shown.held_out if shown.held_out.num_examples else shown.train


def _named(prefix: str, sums: RegressionSums) -> dict[str, float]:
    if sums.num_examples == 0:
        return {}
    return {f"{prefix}.mae": sums.mae, f"{prefix}.r2": sums.r2, f"{prefix}.mse": sums.mse}


def _without_vector(update: Update) -> Update:
    return Update(
        update.silo,
        update.session,
        update.server_round,
        np.empty(0, np.float32),
        update.num_examples,
        update.num_steps,
        update.loss,
        update.seconds,
    )
