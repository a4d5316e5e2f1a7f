"""The coordinator as an actor, and the driver's end of the line to it."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from actors.cohort import RayCohort, value_of
from actors.gauges import asked_gauges
from actors.silo import Handle
from actors.user_code import travelling
from ray_fed.federation.coordinator import Agreement, Coordinator
from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Metrics, Vector
from ray_fed.federation.rounds.job import Job, RoundRecord, state_bytes
from ray_fed.federation.silo_state import rounds_apart
from ray_fed.federation.strategies import State
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.perimeter.coordinator_record import CollectedLedgers, CoordinatorRecord, collected, handed_over

BATCH_SECONDS = 0.2
"""Records of a thousand rounds a second must not mean a thousand messages a second to the driver."""


@ray.remote
class CoordinatorActor:
    """`Coordinator` on a `RayCohort`: gathers the silos' object refs and averages. Parameters never visit the driver
    before the job is done."""

    def __init__(
        self,
        silos: Mapping[str, Handle],
        evaluator: Handle | None,
        specs: Sequence[SiloSpec],
        task: Task,
        training: Sequence[str],
        answer_timeout: float | None,
        absent: Sequence[str] = (),
    ):
        import torch

        torch.set_num_threads(1)
        self.cohort, self.task = RayCohort(silos, evaluator, specs, task, answer_timeout, absent), task
        # Only a run that has a name keeps a ledger.
        self.record = CoordinatorRecord(task) if any(spec.run for spec in specs) else None
        self.steps: Generator[RoundRecord, None, None] = _none()
        observers = [*([self.record] if self.record else []), *asked_gauges()]
        self.coordinator = Coordinator(self.cohort, task, training, observers)

    @ray.method
    def agree(self, secure_threshold: int = 0) -> Agreement:
        return self.coordinator.agree(secure_threshold)

    # Without backpressure the coordinator would run ahead of a driver that is slow or stopped, past what a checkpoint
    # on the driver's disk and the few states on the silos' disks can bring together again.
    @ray.method(num_returns="streaming", _generator_backpressure_num_objects=1)
    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Iterator[list[RoundRecord]]:
        """Yield the records of short rounds together, with the strategy's state in the last one only."""
        yield from batches(self.coordinator.run(job, after_round, state))

    # The same step by step, for who decides after each round whether there is a next one: between two calls this actor
    # is free for others, which it is not while a stream waits for its reader.
    @ray.method
    def begin(self, job: Job, after_round: int = 0, state: State | None = None) -> None:
        """Begin a job of which `step` does the rounds."""
        self.steps = self.coordinator.run(job, after_round, state)

    @ray.method
    def step(self) -> RoundRecord | None:
        """Do a round; return its record, with the strategy's state; None where the job is over."""
        return next(self.steps, None)

    @ray.method
    def end(self) -> None:
        """Close what is left of the job."""
        self.steps.close()

    @ray.method
    def count(self, question: str, given: tuple, silos: Sequence[str], secure_threshold: int = 0) -> CountedRows:
        return self.coordinator.count(question, given, silos, secure_threshold)

    @ray.method
    def count_test(self, question: str, given: tuple) -> CountedRows | None:
        return self.coordinator.count_test(question, given)

    @ray.method
    def predict_test(self, models: Mapping[str, Vector]):
        return self.coordinator.predict_test(models)

    @ray.method
    def ask_metrics(
        self, query: str, silos: Sequence[str], names: Sequence[str], given: tuple = (),
        own: Mapping[str, tuple] | None = None,
    ) -> tuple[dict[str, Mapping[str, Metrics]], dict[str, str]]:  # fmt: skip
        return self.coordinator.ask_metrics(query, silos, names, given, own)

    @ray.method
    def collect_ledgers(self) -> CollectedLedgers:
        """See `collected`."""
        return collected(self._keepers(), self.record)

    @ray.method
    def hand_over_model(self, weights: np.ndarray, card: np.ndarray) -> dict[str, str]:
        """See `handed_over`."""
        return handed_over(self._keepers(), weights, card)

    def _keepers(self) -> dict[str, RayCohort]:
        absent = self.cohort.absent()
        return {name: self.cohort for name in self.cohort.silos if name not in absent}


def _none() -> Generator[RoundRecord, None, None]:
    yield from ()


def batches(records: Iterator[RoundRecord], seconds: float = BATCH_SECONDS) -> Iterator[list[RoundRecord]]:
    """Group records so that a batch takes at least `seconds`, or as many rounds as may lie between checkpoints.

    Records made before an error are handed on before it.
    """
    batch, started = [], time.monotonic()
    try:
        for record in records:
            batch.append(record)
            if time.monotonic() - started >= seconds or len(batch) >= rounds_apart(state_bytes(record)):
                yield _with_one_state(batch)
                batch, started = [], time.monotonic()
    except Exception:  # raised again below, once what came before it is handed on
        if batch:
            yield _with_one_state(batch)
        raise
    if batch:
        yield _with_one_state(batch)


def _with_one_state(batch: list[RoundRecord]) -> list[RoundRecord]:
    return [*(replace(record, state=None) for record in batch[:-1]), batch[-1]]


class RemoteCoordinator:
    """The same methods as `Coordinator`, each answered by the actor."""

    def __init__(self, actor: Handle, every_state: bool = False):
        """every_state: each record comes alone, with its state, and the next round begins when the next record is asked
        for."""
        self.actor, self.every_state = actor, every_state

    def agree(self, secure_threshold: int = 0) -> Agreement:
        return value_of(self.actor.agree.remote(secure_threshold), "coordinator", "agreeing with the silos")

    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Generator[RoundRecord, None, None]:
        # A generator of refs; the stubs know single ones.
        job = replace(job, strategy=travelling(job.strategy), evaluate_fn=travelling(job.evaluate_fn))
        doing = f"running job '{job.name}'"
        if self.every_state:
            yield from self._steps(job, after_round, state, doing)
            return
        stream: Any = self.actor.run.remote(job, after_round, state)
        for ref in stream:
            yield from value_of(ref, "coordinator", doing)

    def _steps(self, job: Job, after_round: int, state: State | None, doing: str) -> Generator[RoundRecord, None, None]:
        value_of(self.actor.begin.remote(job, after_round, state), "coordinator", doing)
        try:
            while (record := value_of(self.actor.step.remote(), "coordinator", doing)) is not None:
                yield record
        finally:
            self.actor.end.remote()

    def count(self, question: str, given: tuple, silos: Sequence[str], secure_threshold: int = 0) -> CountedRows:
        ref = self.actor.count.remote(question, given, silos, secure_threshold)
        return value_of(ref, "coordinator", f"asking for '{question}'")

    def count_test(self, question: str, given: tuple) -> CountedRows | None:
        return value_of(self.actor.count_test.remote(question, given), "coordinator", f"asking for '{question}'")

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        return value_of(self.actor.predict_test.remote(models), "coordinator", "predicting the test set")

    def ask_metrics(
        self, query: str, silos: Sequence[str], names: Sequence[str], given: tuple = (),
        own: Mapping[str, tuple] | None = None,
    ) -> tuple[dict[str, Mapping[str, Metrics]], dict[str, str]]:  # fmt: skip
        asked = self.actor.ask_metrics.remote(query, silos, names, given, own)
        return value_of(asked, "coordinator", f"asking '{query}'")

    def hand_over_model(self, weights: np.ndarray, card: np.ndarray) -> dict[str, str]:
        return value_of(self.actor.hand_over_model.remote(weights, card), "coordinator", "handing the model over")

    def collect_ledgers(self) -> CollectedLedgers:
        return value_of(self.actor.collect_ledgers.remote(), "coordinator", "collecting the ledgers")
