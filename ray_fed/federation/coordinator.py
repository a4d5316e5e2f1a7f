"""The coordinator: agrees with the silos on what is trained, then runs rounds (Guo et al. 2022, Algorithm 1).

A plain class on a `Cohort`; it never holds a row. Everything it reports about a round is either deterministic
(`RoundRecord.metrics`) or a time (`RoundRecord.seconds`), never both in one field.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import CallbackFailed, ConfigError, QuorumLost
from ray_fed.federation.cohort import Cohort, busy_seconds, check_agreement, now, said_by
from ray_fed.federation.counted_rows import CountedRows, counted_together
from ray_fed.federation.diversity import DIVERSITY, Diversity
from ray_fed.federation.messages import (
    MAX_EXAMPLES,
    Counts,
    Guard,
    Metrics,
    SessionSpec,
    SiloDescription,
    Vector,
    sound_metrics,
)
from ray_fed.federation.rounds.asynchronous_driver import AsyncRoundDriver
from ray_fed.federation.rounds.asynchronous_machine import AsyncRoundMachine
from ray_fed.federation.rounds.best_round import Standing, without_choice
from ray_fed.federation.rounds.driver import AskedStrategy, RoundDriver, chosen
from ray_fed.federation.rounds.job import CENTRAL, EPSILON, STATE_BYTES_PER_VALUE, Job, Observer, RoundRecord
from ray_fed.federation.rounds.kept_back import KEPT_BACK, KEPT_ROUND, KeptBack, asked
from ray_fed.federation.rounds.machine import RoundMachine
from ray_fed.federation.rounds.secure_driver import THROUGH_HUBS, SecureRoundDriver, require_sums_only
from ray_fed.federation.rounds.secure_tally import masked_counts, masked_metrics, masked_moments
from ray_fed.federation.silo import names_told
from ray_fed.federation.silo_state import num_slots_for, rounds_apart
from ray_fed.federation.strategies import FedBuff, LocalOnly, Models, State, Strategy, local_plan
from ray_fed.federation.strategies.buffered import TURNS
from ray_fed.federation.task import Task
from ray_fed.learning.layout import Layout, floating_buffers, initial_vector
from ray_fed.learning.standardisation import Standardizer, merge_moments
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import Scores, merged
from ray_fed.randomness import generator

Message = TypeVar("Message")


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
    outside_scaler: Mapping[str, str] = field(default_factory=dict)
    """Silo -> why its rows have no part in the scaler, though they should, or why what it did for it was wrong."""

    def __repr__(self) -> str:
        rows = sum(description.num_examples for description in self.silos.values())
        scaled, test = "" if self.standardizer is None else ", standardised", "a" if self.test else "no"
        silos = f"{len(self.silos)} silos, {rows:,} training rows{scaled}"
        return f"Agreement({silos}, {self.layout.size:,} parameters and buffers, {test} common test set)"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation of a round's models came to."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Flat names, as in a RoundRecord."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Silo -> why, of those that told nothing that can be used."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Model -> what its metrics are of."""
    pooled_over: tuple[str, ...] = ()
    """See RoundRecord."""
    by_nobody: bool = False
    """Whether every silo that was asked failed, and there is no common test set."""


class Coordinator:
    """Runs jobs on a cohort. `training` names the silos whose rows define the scaler (a pooled baseline does not)."""

    def __init__(self, cohort: Cohort, task: Task, training: Sequence[str], observers: Sequence[Observer] = ()):
        self.cohort, self.task, self.training = cohort, task, tuple(training)
        self.observers = tuple(observers)
        self._is_evaluated = False
        """Whether any model of the job has been evaluated."""
        self._untold: set[str] = set()
        """Silos whose owners keep their metrics."""
        module = task.model(0)
        self.layout = task.layout(module)
        self._is_partial = task.exchanged(module) is not None
        self._has_buffers = bool(floating_buffers(module))
        self._num_examples: dict[str, int] = {}
        """What the silos told when they opened their data."""

    def agree(self, secure_threshold: int = 0) -> Agreement:
        """Open all silos, refuse those that disagree, standardise together; above 0, with moments that are added up
        under masks of at least so many silos."""
        silos = self._observed(self.cohort.open())
        self.hear(silos.values())
        expected = self.task.agreement()
        for name, description in silos.items():
            check_agreement(name, description.agreement, expected)
        training = [name for name in self.training if name in silos and silos[name].num_examples]
        standardizer, outside = self._standardizer(training, secure_threshold)
        self.cohort.prepare(standardizer)
        return Agreement(silos, standardizer, self.layout, self.cohort.test_fingerprint(), outside_scaler=outside)

    def hear(self, descriptions: Iterable[SiloDescription]) -> None:
        """Remember how many rows silos told, and which of them tell no metrics: they are not asked for any."""
        for description in descriptions:
            self._num_examples[description.silo] = description.num_examples
            if not description.metrics:
                self._untold.add(description.silo)

    def _standardizer(
        self, silos: Sequence[str], secure_threshold: int
    ) -> tuple[Standardizer | None, Mapping[str, str]]:
        """Return the scaler, and silo -> why of those that have no part in it."""
        if not self.task.standardises:
            return None, {}
        if secure_threshold:
            moments, outside = masked_moments(self.cohort, silos, secure_threshold, self.observers)
            return self.task.standardizer(moments), outside
        told = self._observed(self.cohort.moments(silos))
        return self.task.standardizer(merge_moments(told[name] for name in sorted(told))), {}

    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Generator[RoundRecord, None, None]:
        """Yield a record per round, from 0 to `job.num_rounds`.

        With `state`, that of a record of round `after_round`, the run goes on with the next round, and comes out bit
        for bit as if it had not been broken off.
        """
        if job.secure_threshold:
            require_sums_only(job.strategy, job.max_norm)
        elif self.cohort.sums_updates():
            require_sums_only(job.strategy, job.max_norm, THROUGH_HUBS)
            summed = "hubs on the way weigh updates by their rows, and this strategy adds up sums as they are"
            require(not job.any_plan.sums, f"{summed}; let the sites dial this hub themselves")
        job = self._with_local_plans(job)
        if job.any_plan.num_beside:
            self._require_single_updates(job)
        self._metric_names = frozenset(metric.name for metric in self.task.metrics)
        self._is_evaluated = False
        plans, layout = job.plans, self._layout_of(job)
        digest, kept = layout.digest, num_slots_for(rounds_apart(STATE_BYTES_PER_VALUE * layout.size))
        self.cohort.open_session(
            {
                silo: SessionSpec(job.name, plans[silo], job.model_seed, digest, kept, job.secure_threshold)
                for silo in job.silos
            }
        )
        try:
            for record in self._rounds(job, after_round, state):
                yield self._shown(record, job)
        finally:
            self.cohort.close_session(job.name, job.silos)

    def _require_single_updates(self, job: Job) -> None:
        """Raise ConfigError where numbers of single silos would be lost in a sum, or come out of step."""
        named = f"strategy {type(job.strategy).__name__} gives or reads numbers of single silos"
        summed = bool(job.secure_threshold) or self.cohort.sums_updates()
        require(not summed, f"{named}; under masks, and through hubs that add updates up, there are none")
        in_step = not isinstance(job.strategy, FedBuff) and not hasattr(job.strategy, "catch_up")
        require(in_step, f"{named}; that does not go with FedBuff, or with silos that catch up")

    def _with_local_plans(self, job: Job) -> Job:
        """Return the job with what its strategy asks of the silos' training."""
        module = self.task.model(job.model_seed)
        plans = {silo: local_plan(job.strategy, plan, module) for silo, plan in job.plans.items()}
        return replace(job, plans={silo: self._with_public_count(silo, plan) for silo, plan in plans.items()})

    def _layout_of(self, job: Job) -> Layout:
        """Return the layout of what travels; the network that it is asked of is not kept."""
        return self.task.layout(self.task.model(job.model_seed), job.any_plan.buffers)

    def _with_public_count(self, silo: str, plan: TrainingPlan) -> TrainingPlan:
        """Return a private plan with the number of rows that the silo told; of a silo that is not there yet, with the
        mean of the others'."""
        if plan.private is None or plan.private.public_examples is not None or not self._num_examples:
            return plan
        mean = sum(self._num_examples.values()) // len(self._num_examples)
        public = max(1, self._num_examples.get(silo, mean))
        return replace(plan, private=replace(plan.private, public_examples=public))

    def count(self, question: str, given: tuple, silos: Sequence[str], secure_threshold: int = 0) -> CountedRows:
        """Return what silos together count in answer to one of the task's questions (`Task.countings`); above 0, added
        up under masks of at least so many silos."""
        if secure_threshold:
            asked = (self.cohort, silos, question, given, secure_threshold, self.observers)
            return CountedRows(*masked_counts(*asked))
        told = self.cohort.count(question, dict.fromkeys(silos, given))
        self._observed({silo: answer for silo, answer in told.items() if isinstance(answer, Counts)}, question)
        absent = {silo: "it gave no answer" for silo in silos if silo not in told}
        found = counted_together(question, told)
        return replace(found, missing={**absent, **found.missing})

    def count_test(self, question: str, given: tuple) -> CountedRows | None:
        """Return the same of the common test set, None without one."""
        found = self.cohort.count_test(question, given)
        return None if found is None else CountedRows(found.num_examples, found.counts)

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        """Return (true, model -> predicted) on the common test set, None without one."""
        return self.cohort.predict_test(models)

    def ask_metrics(
        self, query: str, silos: Sequence[str], names: Sequence[str], given: tuple = (),
        own: Mapping[str, tuple] | None = None,
    ) -> tuple[dict[str, Mapping[str, Metrics]], dict[str, str]]:  # fmt: skip
        """Put a question that is answered by metrics of some names (silo.METRICS_OF) to silos; return silo -> name ->
        metrics, and silo -> why of those without an answer that can be used. own: what one silo alone is given,
        too."""
        asked = [silo for silo in silos if silo not in self._untold]
        told = self.cohort.query(
            query, {silo: (names_told(names), *given, *(own or {}).get(silo, ())) for silo in asked}
        )
        metrics = frozenset(metric.name for metric in self.task.metrics)
        found, failed = sound_metrics(told, names, metrics)  # type: ignore[arg-type]
        silent = {silo: "it gave no answer" for silo in asked if silo not in told}
        kept = {silo: "its owner keeps its metrics" for silo in silos if silo not in asked}
        return self._observed(found, query), {**kept, **silent, **failed}

    def _observed(self, messages: dict[str, Message], session: str = "") -> dict[str, Message]:
        """Show what came from the silos, by silo, to the observers."""
        for observer in self.observers:
            for silo, message in messages.items():
                observer.message_received(silo, message, session)
        return messages

    def _shown(self, record: RoundRecord, job: Job) -> RoundRecord:
        """Return the record as the observers leave it; ConfigError names one that returns none."""
        for observer in self.observers:
            record = observer.round_ended(record, job)
            if not isinstance(record, RoundRecord):
                raise ConfigError(f"{type(observer).__name__}.round_ended must return its record, not {record!r}")
        return record

    def _rounds(self, job: Job, after_round: int, state: State | None) -> Iterator[RoundRecord]:
        layout, has_moments = self._layout_of(job), job.any_plan.optimizer_state == "average"
        beside = job.any_plan if job.any_plan.num_beside else None
        strategy = AskedStrategy(job.strategy, layout, job.silos, has_moments, beside)
        first = strategy.start(self._initial_vector(job))
        standing = job.best_round and Standing.of(job.best_round, state or {})
        state = None if state is None else without_choice(state)
        driver = self._driver(job, after_round, state or first, layout)
        if state is None:
            record = self._record(job, 0, first, driver, now(), now())
            record, state, standing = _observed(record, first, strategy, standing)
            yield record
        elif not _fits(job.strategy, state, first):
            raise ConfigError(f"the checkpoint of job '{job.name}' is of another network or strategy; start a new run")
        del first  # as large as the model
        for server_round in range(after_round + 1, job.num_rounds + 1):
            start = now()
            vectors = strategy.dispatch(state, server_round)
            driver.catch_up = _catch_up(job.strategy, state)
            ranking = _with_work(job, server_round, chosen(self._ranking(job, server_round), vectors))
            diversity = self._diversity(job, server_round, vectors)
            if ranking:
                updates = driver.updates(server_round, vectors, ranking)
                updates = diversity.noted(updates) if diversity else updates
                state = driver.remembered(strategy.aggregate(state, updates))
            else:
                driver.rest()
            ends = _is_done(job.strategy, state)
            job = replace(job, last_round=server_round) if ends else job
            record = _with_diversity(self._record(job, server_round, state, driver, start, now()), diversity)
            record, state, standing = _observed(record, state, strategy, standing)
            if record.models is not None and standing and job.kept_back:
                record = self._of_chosen(job, record, standing, driver)
            yield record
            if ends or (standing and standing.is_over):
                return
        _require_end(job, state)

    def _diversity(self, job: Job, server_round: int, vectors: Mapping[str, Vector]) -> Diversity | None:
        """Return what measures how unlike silos are, in a first round of an epoch or more: steps of few mini-batches
        are unlike by chance, and so are those with noise."""
        plan, is_no_mean = job.any_plan, isinstance(job.strategy, FedBuff | LocalOnly)
        is_first = server_round == 1 and len(plan.steps_of_round(1)) >= plan.steps_per_epoch
        if not is_first or is_no_mean or plan.sums or plan.private or len(job.silos) < 2:
            return None
        return Diversity(vectors, self.task.layout(self.task.model(job.model_seed), plan.buffers).num_parameters)

    def _of_chosen(self, job: Job, record: RoundRecord, standing: Standing, driver: RoundDriver) -> RoundRecord:
        """Return the last record with what is told of the models that were chosen, and of which round they are."""
        assert record.models is not None
        found = self._evaluation(job, record.models, driver.idle(), record.server_round)
        metrics = {**record.metrics, **found.metrics, KEPT_BACK: standing.best, KEPT_ROUND: float(standing.best_round)}
        return replace(record, metrics=metrics, scores=found.scores)

    def _kept_back(
        self, job: Job, rows: KeptBack, models: Models, driver: RoundDriver
    ) -> tuple[dict[str, float], dict[str, str]]:
        """See `kept_back.asked`."""
        silos, size = driver.idle(), self.layout.size
        return asked(rows, lambda what, given: self.count(what, given, silos, job.secure_threshold), models, size)

    def _driver(self, job: Job, after_round: int, state: State, layout: Layout) -> RoundDriver:
        strategy = job.strategy
        least, sums = getattr(strategy, "least_steps", 0), job.any_plan.sums
        guard = Guard(job.max_norm, least, partial(self._most_examples, job), sums)
        absent = self.cohort.absent()
        if isinstance(strategy, FedBuff):
            require(not absent, f"silos {sorted(absent)} are not there yet: with FedBuff all must be from the start")
            turns = dict(zip(job.silos, state[TURNS].tolist(), strict=True))
            buffered = AsyncRoundMachine(job.rules, job.silos, strategy.buffer_size, after_round, turns)
            return AsyncRoundDriver(
                cohort=self.cohort,
                machine=buffered,
                guard=guard,
                session=job.name,
                observers=self.observers,
                strategy=strategy,
                num_learned=layout.num_parameters,
            )
        machine = RoundMachine(job.rules, job.silos, server_round=after_round, absent=absent)
        if job.secure_threshold:
            return SecureRoundDriver(
                cohort=self.cohort,
                machine=machine,
                guard=guard,
                session=job.name,
                observers=self.observers,
                threshold=job.secure_threshold,
            )
        beside = job.any_plan if job.any_plan.num_beside else None
        return RoundDriver(self.cohort, machine, guard, job.name, self.observers, beside=beside)

    def _most_examples(self, job: Job, silo: str) -> int:
        """Return the most rows of the silo that a round of the job can have."""
        plan, told = job.plans[silo], self._num_examples.get(silo, MAX_EXAMPLES - 1)
        public = plan.private.public_examples if plan.private else None
        return self.task.most_examples(max(told, public or 0), plan)

    @staticmethod
    def _ranking(job: Job, server_round: int) -> list[str]:
        """The order in which silos are asked; with fraction_fit below 1 it decides who takes part."""
        order = generator(job.model_seed, "ranking", server_round).permutation(len(job.silos))
        return [job.silos[number] for number in order] if job.rules.fraction_fit < 1 else list(job.silos)

    def _initial_vector(self, job: Job) -> Vector:
        module, plan = self.task.model(job.model_seed), job.any_plan
        vector = self._part(initial_vector(module, plan.buffers), module, plan) if job.initial is None else job.initial
        num_moments = 2 * Layout.of(module).num_parameters if plan.optimizer_state == "average" else 0
        return np.concatenate([vector, np.zeros(num_moments, np.float32)])

    def _part(self, vector: Vector, module: nn.Module, plan: TrainingPlan) -> Vector:
        """Return what travels of a vector of the whole network."""
        if not self._is_partial:
            return vector
        return vector[Layout.of(module, plan.buffers).is_in_part(self.task.layout(module, plan.buffers).names)]

    def _record(
        self, job: Job, server_round: int, state: State, driver: RoundDriver, start: float, end: float
    ) -> RoundRecord:
        updates = sorted((update for _, update in driver.seen), key=lambda update: update.silo)
        self.hear(driver.joined)
        metrics = {} if job.any_plan.private else driver.losses()  # private steps tell no loss
        is_last, failures, found, models = server_round == job.num_rounds, driver.failures, Evaluation(), None
        if is_evaluated(job, server_round):
            models = job.strategy.models(state)
            found = self._evaluation(job, models, driver.idle(), server_round)
            self._require_evaluated(job, found, server_round)
            metrics |= found.metrics
            metrics |= self._central(job, models, server_round)
            if job.kept_back and server_round:
                told, untold = self._kept_back(job, job.kept_back, models, driver)
                metrics |= told
                failures = (*untold.items(), *failures)
            failures = tuple(sorted({**found.failed, **dict(failures)}.items()))
            if job.account:
                metrics[EPSILON] = job.account.epsilon(job.noised_steps(server_round))
        compute = busy_seconds(start, [(at, update.seconds) for at, update in driver.seen])
        seconds = {
            "total": end - start,
            "compute": compute,
            "communicate": end - start - compute,
            "evaluate": now() - end,
            **{f"silo.{update.silo}": update.seconds for update in updates},
        }
        return RoundRecord(
            job.name,
            job.kind,
            server_round,
            job.num_rounds,
            metrics,
            tuple(dict.fromkeys(update.silo for update in updates)),
            failures,
            driver.num_bytes,
            seconds,
            models if is_last else None,
            state,
            tuple(driver.joined),
            tuple(driver.restarts),
            unevaluated=tuple(sorted(found.failed.items())),
            pooled_over=found.pooled_over,
            scores=found.scores if is_last else {},
        )

    def _central(self, job: Job, models: Models, server_round: int) -> dict[str, float]:
        """Return what the job's own function says of the first model. CallbackFailed where it raises or says no
        numbers."""
        if job.evaluate_fn is None:
            return {}
        module = self.task.model(job.model_seed)
        module = self.task.layout(module, job.any_plan.buffers).load(module, next(iter(models.values()))).eval()
        try:
            with torch.no_grad():
                found = job.evaluate_fn(server_round, module)
        except Exception as error:
            raise CallbackFailed("evaluate_fn", server_round, said_by(error)) from error
        if not (isinstance(found, Mapping) and all(_is_number(value) for value in found.values())):
            said = f"it must return a dictionary of names and numbers, not {type(found).__name__}: {found!r}"[:200]
            raise CallbackFailed("evaluate_fn", server_round, said)
        return {f"{CENTRAL}{name}": float(value) for name, value in found.items()}

    def _require_evaluated(self, job: Job, found: "Evaluation", server_round: int) -> None:
        """Raise QuorumLost where the rules accept no failure, and where no silo could ever evaluate a model: that is a
        fault of what all of them run, and no later round would be better."""
        self._is_evaluated |= not found.by_nobody
        if found.failed and not (job.rules.accept_failures and self._is_evaluated):
            listed = "; ".join(f"silo '{silo}': {found.failed[silo]}" for silo in sorted(found.failed))
            raise QuorumLost(server_round, f"no silo evaluates the model: {listed}" if found.by_nobody else listed)

    def _evaluation(self, job: Job, models: Models, silos: Sequence[str], server_round: int) -> "Evaluation":
        """Return the errors of each model on the common test set (else on all held-out rows) and on each silo's rows,
        with masks none of single silos."""
        metrics: dict[str, float] = {}
        failed: Mapping[str, str] = {}
        told: Sequence[str] = ()
        # Statistics, or other parts, that stay with the silos leave the global model without any: only silos can
        # evaluate it.
        is_whole = not self._is_partial and (job.any_plan.buffers == "average" or not self._has_buffers)
        test = self.cohort.evaluate_test(models) if is_whole else None
        # Silos that never pause would have to stop for it; the evaluator disturbs nobody.
        asks_silos = job.evaluate_silos and not isinstance(job.strategy, FedBuff)
        asked = [silo for silo in silos if silo not in self._untold]
        if job.secure_threshold and not job.single_metrics:
            if not test:
                test, failed = self._on_held_out_rows(job, models, asked, server_round)
                told = [silo for silo in asked if silo not in failed]
        elif test is None or asks_silos:
            by_silo, failed = self._silos_metrics(job, models, asked)
            for silo in sorted(by_silo):
                metrics |= _named(f"silo.{silo}", _own(by_silo[silo], silo))
            if test is None and by_silo:
                test = {model: merged(by_silo[silo][model].held_out for silo in sorted(by_silo)) for model in models}
                told = sorted(by_silo)
        for model, scores in sorted((test or {}).items()):
            metrics |= _named(model, scores)
        is_whole = {*told} >= {*job.silos} - self._untold
        over = () if is_whole else tuple(sorted(told))
        return Evaluation(metrics, failed, test or {}, over, not test and bool(asked) and {*asked} <= {*failed})

    def _silos_metrics(
        self, job: Job, models: Models, silos: Sequence[str]
    ) -> tuple[dict[str, Mapping[str, Metrics]], Mapping[str, str]]:
        """Return what each silo told of the models, and silo -> why of those whose answer cannot be used."""
        told = self.cohort.evaluate(job.name, silos, models)
        by_silo, failed = sound_metrics(told, models, self._metric_names)
        return self._observed(by_silo, job.name), failed

    def _on_held_out_rows(
        self, job: Job, models: Models, silos: Sequence[str], server_round: int
    ) -> tuple[dict[str, Scores], Mapping[str, str]]:
        """Return each model's scores on the held-out rows of all silos together, added up under masks; and silo -> why
        of those left out."""
        found, left_out = masked_metrics(self.cohort, job, silos, models, server_round, self.observers)
        return {model: held_out for model, (_, held_out) in found.items()}, left_out


def is_evaluated(job: Job, server_round: int) -> bool:
    """Tell whether the models are evaluated after a round."""
    if server_round in (0, job.num_rounds):
        return True
    return server_round in job.evaluate_at if job.evaluate_at else server_round % job.evaluate_every == 0


def _with_work(job: Job, server_round: int, silos: Sequence[str]) -> list[str]:
    """Return the silos that have a step to take in the round; the others' models would be those they are sent."""
    if isinstance(job.strategy, FedBuff) or job.any_plan.sums or job.any_plan.private:
        return list(silos)
    return [silo for silo in silos if job.plans[silo].steps_of_round(server_round)]


def _observed(
    record: RoundRecord, state: State, strategy: AskedStrategy, standing: Standing | None
) -> tuple[RoundRecord, State, Standing | None]:
    """Show a round to those whose later choices depend on it; return its record with what they keep, the strategy's
    state and the standing of the best models."""
    state = strategy.observed(state, record.metrics)
    record, standing = _chosen(replace(record, state=state), standing, strategy.models(state))
    return record, state, standing


def _with_diversity(record: RoundRecord, diversity: Diversity | None) -> RoundRecord:
    found = diversity.value() if diversity else None
    return record if found is None else replace(record, metrics={**record.metrics, DIVERSITY: found})


def _chosen(record: RoundRecord, standing: Standing | None, models: Models) -> tuple[RoundRecord, Standing | None]:
    """Return the record with the standing of a choice in its state, and, where it is the last one, with the models
    chosen; and the standing. A run that its choice ends has this record's round as its last."""
    if standing is None:
        return record, None
    standing = standing.after(record.server_round, record.metrics, models)
    if record.models is not None or standing.is_over:
        record = replace(record, num_rounds=record.server_round, models=standing.models or models)
    return replace(record, state={**(record.state or {}), **standing.arrays()}), standing


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _own(metrics: Mapping[str, Metrics], silo: str) -> Scores:
    """The silo's errors under its own model, or else the global one; on held-out rows where it has some."""
    shown = metrics.get(silo) or next(iter(metrics.values()))
    return shown.held_out if shown.held_out.num_examples else shown.train


def _named(prefix: str, scores: Scores) -> dict[str, float]:
    return {f"{prefix}.{name}": value for name, value in scores.values().items()} if scores.num_examples else {}


def _catch_up(strategy: Strategy, state: State) -> Callable[[], Vector] | None:
    """Return what makes the vector for silos that have not answered the last round; None where it is that of all."""
    whole = getattr(strategy, "catch_up", None)
    return partial(whole, state) if whole else None


def _is_done(strategy: Strategy, state: State) -> bool:
    """Whether no further round would change the models."""
    done = getattr(strategy, "is_done", None)
    return bool(done and done(state))


def _require_end(job: Job, state: State) -> None:
    """Raise QuorumLost where the rounds are at an end, and a strategy that knows its own end has not come to it."""
    if getattr(job.strategy, "is_done", None) and not _is_done(job.strategy, state):
        reason = "the model is not whole: silos came and went too often, and each time something had to be done again"
        raise QuorumLost(job.num_rounds, reason)


def _fits(strategy: Strategy, state: State, first: State) -> bool:
    """Whether a state can be one that this strategy has come to from its first one."""
    own = getattr(strategy, "fits", None)
    if own:
        return own(state)
    return {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in first.items()}
