"""The coordinator: agrees with the silos on what is trained, then runs rounds (Guo et al. 2022, Algorithm 1).

A plain class on a `Cohort`; it never holds a row. Everything it reports about a round is either deterministic
(`RoundRecord.metrics`) or a time (`RoundRecord.seconds`), never both in one field.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ray_fed.config import require
from ray_fed.errors import ConfigError, SiloRefused
from ray_fed.federation.cohort import Cohort, busy_seconds, now
from ray_fed.federation.guard import Guard
from ray_fed.federation.messages import Metrics, SessionSpec, SiloDescription, Vector
from ray_fed.federation.rounds.asynchronous_driver import AsyncRoundDriver
from ray_fed.federation.rounds.asynchronous_machine import AsyncRoundMachine
from ray_fed.federation.rounds.driver import RoundDriver
from ray_fed.federation.rounds.machine import RoundMachine, RoundRules
from ray_fed.federation.rounds.secure_driver import SecureRoundDriver, require_sums_only
from ray_fed.federation.silo_state import num_slots_for, rounds_apart
from ray_fed.federation.strategies import FedAvg, FedBuff, LocalOnly, Models, State, Strategy, local_plan
from ray_fed.federation.strategies.buffered import TURNS
from ray_fed.federation.task import Task
from ray_fed.learning.layout import Layout, floating_buffers, initial_vector
from ray_fed.learning.scores import Scores, merged
from ray_fed.learning.standardisation import Standardizer, merge_moments
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.handing_over import CollectedLedgers
from ray_fed.privacy.accounting import PrivacyAccount
from ray_fed.randomness import generator

EPSILON = "privacy.epsilon"
"""Name of the metric: epsilon after the round."""
STATE_BYTES_PER_VALUE = 12
"""Adam's two moments and, in SCAFFOLD, a control variate: float32 each."""


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
    rules: RoundRules = field(default_factory=RoundRules)
    max_norm: float | None = None
    """Longest move of an update that is accepted, in the unit of the parameters."""
    evaluate_every: int = 1
    """Rounds between evaluations; round 0 and the last are always evaluated."""
    evaluate_silos: bool = True
    """Also evaluate the models on every silo's own rows."""
    account: PrivacyAccount | None = None
    """What the noise in the silos or in the strategy promises; none where there is no noise."""
    secure_threshold: int = 0
    """Secure aggregation: silos without whose updates no sum is shown; 0 sends updates without masks."""
    last_round: int | None = None
    """Round after which the job is complete, where a privacy budget ends it before its plan."""

    @property
    def any_plan(self) -> TrainingPlan:
        """One of the plans: they agree on the number of rounds and on what travels."""
        return next(iter(self.plans.values()))

    @property
    def num_rounds(self) -> int:
        return self.any_plan.num_rounds if self.last_round is None else self.last_round

    def noised_steps(self, server_round: int) -> int:
        """Return how many noised releases of the account's level rounds 1 to `server_round` make."""
        by_example = self.account is not None and self.account.level == "example"
        return self.any_plan.steps_of_round(server_round).stop if by_example else server_round

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
    failures: tuple[tuple[str, str], ...]
    """(silo, why it did not take part), sorted."""
    bytes_sent: int
    """Bytes of parameters that crossed the silos' boundaries in this round, both directions."""
    seconds: Mapping[str, float] = field(compare=False)
    """`total`, `compute`, `communicate`, `evaluate` and `silo.<name>` (computing)."""
    models: Models | None = field(default=None, repr=False, compare=False)
    """The models, in the last record of a job."""
    state: State | None = field(default=None, repr=False, compare=False)
    """The strategy's state after the round: with `server_round`, all that is needed to go on from here."""
    joined: tuple[SiloDescription, ...] = ()
    """Silos that were absent at the start and came in this round: they take part from the next one on."""
    restarts: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(silo, why) of those that died and were started again; one that redid its round leaves no other trace."""
    notes: tuple[Mapping[str, object], ...] = field(default=(), repr=False, compare=False)
    """For the coordinator's ledger: what was received, and the digest of each model."""


def state_bytes(record: RoundRecord) -> int:
    """Return about how much a silo keeps on its disk after the round of a record."""
    largest = max((value.size for value in (record.state or {}).values()), default=0)
    return STATE_BYTES_PER_VALUE * largest


@dataclass(frozen=True)
class Agreement:
    """The outcome of the round before training."""

    silos: Mapping[str, SiloDescription]
    """Those that were there."""
    standardizer: Standardizer | None
    """The scaler of the features; None where the task has none."""
    layout: Layout
    test: Mapping[str, object] | None
    """Fingerprint of the common test set."""
    joined: Mapping[str, str] = field(default_factory=dict)
    """Silo that was not there at the start -> when it came."""


class Coordinator:
    """Runs jobs on a cohort. `training` names the silos whose rows define the scaler (a pooled baseline does not)."""

    def __init__(self, cohort: Cohort, task: Task, training: Sequence[str]):
        self.cohort, self.task, self.training = cohort, task, tuple(training)
        module = task.model(0)
        self.layout = Layout.of(module)
        self._has_buffers = bool(floating_buffers(module))

    def agree(self) -> Agreement:
        """Open all silos, refuse those that disagree, standardise together."""
        silos = self.cohort.open()
        expected = self.task.agreement()
        for name, description in silos.items():
            check_agreement(name, description.agreement, expected)
        standardizer = self._standardizer([name for name in self.training if name in silos])
        self.cohort.prepare(standardizer)
        return Agreement(silos, standardizer, self.layout, self.cohort.test_fingerprint())

    def _standardizer(self, silos: Sequence[str]) -> Standardizer | None:
        if not self.task.standardises:
            return None
        moments = self.cohort.moments(silos)
        return Standardizer.from_moments(merge_moments(moments[name] for name in sorted(moments)))

    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Iterator[RoundRecord]:
        """Yield a record per round, from 0 to `job.num_rounds`.

        With `state`, that of a record of round `after_round`, the run goes on with the next round, and comes out bit
        for bit as if it had not been broken off.
        """
        if job.secure_threshold:
            require_sums_only(job.strategy, job.max_norm)
        module = self.task.model(job.model_seed)
        plans = {silo: local_plan(job.strategy, plan, module) for silo, plan in job.plans.items()}
        job = replace(job, plans=plans)
        layout = Layout.of(module, job.any_plan.buffers)
        digest, kept = layout.digest, num_slots_for(rounds_apart(STATE_BYTES_PER_VALUE * layout.size))
        self.cohort.open_session(
            {
                silo: SessionSpec(job.name, plans[silo], job.model_seed, digest, kept, job.secure_threshold)
                for silo in job.silos
            }
        )
        try:
            yield from self._rounds(job, after_round, state)
        finally:
            self.cohort.close_session(job.name, job.silos)

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        """Return (true, model -> predicted) on the common test set, None without one."""
        return self.cohort.predict_test(models)

    def collect_ledgers(self) -> CollectedLedgers:
        """Return the silos' ledgers: none here, only silos behind boundaries of their own keep some (actors/)."""
        return CollectedLedgers()

    def _rounds(self, job: Job, after_round: int, state: State | None) -> Iterator[RoundRecord]:
        initial = self._initial_vector(job)
        first = job.strategy.start(initial, job.silos)
        work = self._work(job, after_round, state or first)
        if state is None:
            state = first
            yield self._record(job, 0, state, work, now(), now())
        elif {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in first.items()}:
            raise ConfigError(f"the checkpoint of job '{job.name}' is of another network or strategy; start a new run")
        for server_round in range(after_round + 1, job.num_rounds + 1):
            start = now()
            vectors = job.strategy.dispatch(state, job.silos)
            updates = work.updates(server_round, vectors, self._ranking(job, server_round))
            state = work.remembered(job.strategy.aggregate(state, updates))
            yield self._record(job, server_round, state, work, start, now())

    def _work(self, job: Job, after_round: int, state: State) -> RoundDriver:
        guard, strategy = Guard(job.max_norm), job.strategy
        absent = self.cohort.absent()
        if isinstance(strategy, FedBuff):
            require(not absent, f"silos {sorted(absent)} are not there yet: with FedBuff all must be from the start")
            turns = dict(zip(job.silos, state[TURNS].tolist(), strict=True))
            buffered = AsyncRoundMachine(job.rules, job.silos, strategy.buffer_size, after_round, turns)
            return AsyncRoundDriver(
                cohort=self.cohort, machine=buffered, guard=guard, session=job.name, strategy=strategy
            )
        machine = RoundMachine(job.rules, job.silos, server_round=after_round, absent=absent)
        if job.secure_threshold:
            return SecureRoundDriver(
                cohort=self.cohort, machine=machine, guard=guard, session=job.name, threshold=job.secure_threshold
            )
        return RoundDriver(self.cohort, machine, guard, job.name)

    @staticmethod
    def _ranking(job: Job, server_round: int) -> list[str]:
        """The order in which silos are asked; with fraction_fit below 1 it decides who takes part."""
        order = generator(job.model_seed, "ranking", server_round).permutation(len(job.silos))
        return [job.silos[number] for number in order] if job.rules.fraction_fit < 1 else list(job.silos)

    def _initial_vector(self, job: Job) -> Vector:
        module, plan = self.task.model(job.model_seed), job.any_plan
        vector = initial_vector(module, plan.buffers)
        num_moments = 2 * Layout.of(module).num_parameters if plan.optimizer_state == "average" else 0
        return np.concatenate([vector, np.zeros(num_moments, np.float32)])

    def _record(
        self, job: Job, server_round: int, state: State, work: RoundDriver, start: float, end: float
    ) -> RoundRecord:
        updates = sorted((update for _, update in work.seen), key=lambda update: update.silo)
        metrics = {} if job.any_plan.private else work.losses()  # private steps tell no loss
        models = job.strategy.models(state)
        if job.evaluates(server_round):
            metrics |= self._evaluation(job, models, work.idle())
            if job.account:
                metrics[EPSILON] = job.account.epsilon(job.noised_steps(server_round))
        compute = busy_seconds(start, [(at, update.seconds) for at, update in work.seen])
        seconds = {
            "total": end - start,
            "compute": compute,
            "communicate": end - start - compute,
            "evaluate": now() - end,
            **{f"silo.{update.silo}": update.seconds for update in updates},
        }
        return RoundRecord(
            job.name,
            server_round,
            job.num_rounds,
            metrics,
            tuple(dict.fromkeys(update.silo for update in updates)),
            work.failures,
            work.num_bytes,
            seconds,
            models if server_round == job.num_rounds else None,
            state,
            tuple(work.joined),
            tuple(work.restarts),
        )

    def _evaluation(self, job: Job, models: Models, silos: Sequence[str]) -> dict[str, float]:
        """Errors of each model on the common test set (else on all held-out rows) and on each silo's rows."""
        metrics: dict[str, float] = {}
        # Statistics that stay with the silos leave the global model without any: only silos can evaluate it.
        is_whole = job.any_plan.buffers == "average" or not self._has_buffers
        test = self.cohort.evaluate_test(models) if is_whole else None
        # Silos that never pause would have to stop for it; the evaluator disturbs nobody.
        asks_silos = job.evaluate_silos and not isinstance(job.strategy, FedBuff)
        if test is None or asks_silos:
            by_silo = self.cohort.evaluate(job.name, silos, models)
            for silo in sorted(by_silo):
                metrics |= _named(f"silo.{silo}", _own(by_silo[silo], silo))
            if test is None and by_silo:
                test = {model: merged(by_silo[silo][model].held_out for silo in sorted(by_silo)) for model in models}
        for model, scores in sorted((test or {}).items()):
            metrics |= _named(model, scores)
        return metrics


def check_agreement(silo: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise SiloRefused at the first field in which a silo differs from the federation."""
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise SiloRefused(silo, key, repr(theirs.get(key)), repr(value))


def local_job(job: Job, plans: Mapping[str, TrainingPlan], name: str) -> Job:
    """Return the no-exchange counterpart of a job over the silos of `plans`."""
    # Nothing is averaged, so nothing is selected, refused or cut short: only restarts are as in the federation.
    rules = RoundRules(max_restarts=job.rules.max_restarts)
    return replace(
        job, name=name, silos=tuple(plans), plans=plans, strategy=LocalOnly(), rules=rules, max_norm=None,
        evaluate_silos=False, secure_threshold=0, account=None, last_round=None,
    )  # fmt: skip


def _own(metrics: Mapping[str, Metrics], silo: str) -> Scores:
    """The silo's errors under its own model, or else the global one; on held-out rows where it has some."""
    shown = metrics.get(silo) or next(iter(metrics.values()))
    return shown.held_out if shown.held_out.num_examples else shown.train


def _named(prefix: str, scores: Scores) -> dict[str, float]:
    return {f"{prefix}.{name}": value for name, value in scores.values().items()} if scores.num_examples else {}
