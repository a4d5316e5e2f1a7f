"""Writes every record of a run as it comes: terminal, history, timing, TensorBoard."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from pipelines.launching import CoordinatorLike
from pipelines.ledger.coordinator_ledger import CoordinatorLedger
from pipelines.round_notes import FailureNotes, missing_in
from ray_fed.errors import FedError
from ray_fed.federation.rounds.job import EPSILON, Job, RoundRecord
from ray_fed.federation.rounds.kept_back import KEPT_BACK, KEPT_ROUND
from ray_fed.federation.task import SiloSpec
from ray_fed.metrics import TRAIN_LOSS, Metric
from ray_fed.reporting.results import measured
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, chart_titles, global_tag, model_tag, silo_tag
from ray_fed.reporting.terminal import RoundProgress

MAX_LOGGED_ROUNDS = 500
"""TensorBoard shows every round of a job up to this length, and the evaluated rounds of a longer one; the history has
them all."""


@dataclass(frozen=True)
class Watched:
    """What a recorder must know of a run."""

    metrics: tuple[Metric, ...]
    silos: tuple[str, ...]
    """Names of the silos of the federation."""
    hyperparameters: Mapping[str, object]
    """For TensorBoard's table of runs."""
    seed: int
    """The first one."""
    models: tuple[str, ...] = ()
    """Names of all that trains a model of its own beside it: silos alone, pooled rows."""
    repeats: int = 1
    delta: float = 0.0
    """Of the privacy account, where there is one."""
    has_tensorboard: bool = True


class TrainingRecorder:
    """Listens to the jobs of a run; a context manager, so that nothing is left open or unflushed."""

    def __init__(
        self, watched: Watched, directory: RunDirectory, ledger: CoordinatorLedger | None = None,
        silos: Sequence[SiloSpec] = (),
    ):  # fmt: skip
        """silos: those whose logs may be on this disk, to say why one failed."""
        self.watched, self.directory, self.ledger = watched, directory, ledger
        self.metrics = watched.metrics
        self.progress = RoundProgress(self.metrics)
        self.logs: dict[str, EventLog] = {}
        self._failures = FailureNotes(silos)

    def __enter__(self) -> "TrainingRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:  # one that cannot be written must not keep the others from closing
            for log in self.logs.values():
                closing.callback(log.close)
            if self.ledger and error:  # that of a run that came this far is closed with its model files
                closing.callback(self.ledger.close)
            closing.callback(self.progress.close)

    def collect(self, coordinator: CoordinatorLike) -> list[str]:
        """Fetch the silos' ledgers; return notices of those that did not come. A coordinator that is gone has none,
        which must not hide why it is gone."""
        if not self.ledger:
            return []
        try:
            found = coordinator.collect_ledgers()
            self.ledger.add_silo_ledgers(found)
        except FedError as error:
            return [f"the silos' ledgers were not collected: {error}"]
        return [f"no ledger of silo '{silo}': {reason}" for silo, reason in sorted(found.missing.items())]

    def on_job_start(self, job: Job, seed: int) -> None:
        kind = "federated" if job.kind == "federated" else "each silo alone, pooled"
        title = f"{kind}, seed {seed}" if self.watched.repeats > 1 else kind
        self.progress.start(job.num_rounds, title)

    def on_round_end(self, record: RoundRecord, seed: int) -> None:
        self.directory.append_history(history_line(record, seed))
        if self.ledger:
            self.ledger.write(record.notes)
        self.directory.append_timing(timing_line(record))
        is_short = record.num_rounds <= MAX_LOGGED_ROUNDS
        is_shown = is_short or measured(record.metrics, self._model(record), self.metrics)
        if self.watched.has_tensorboard and is_shown:
            self._log(record, seed)
        self._tell_restarts(record, seed)
        self._tell_joined(record, seed)
        self._tell_failures(record, seed)
        if EPSILON in record.metrics and record.server_round:
            where = f"round {record.server_round}/{record.num_rounds}"
            self.progress.note(f"{where}: epsilon {record.metrics[EPSILON]:.3g} (delta {self.watched.delta:g})")
        if KEPT_ROUND in record.metrics:
            best = f"exchange {record.metrics[KEPT_ROUND]:.0f} is kept: the rows kept back were predicted best by it"
            self.progress.note(f"early stopping after {record.server_round} exchanges; {best}")
        if record.server_round:
            self.progress.advance(self._shown(record))

    def _tell_failures(self, record: RoundRecord, seed: int) -> None:
        """Say who failed and why once, not in each of a thousand rounds."""
        where = f"round {record.server_round}/{record.num_rounds}"
        told = dict(record.failures), dict(record.unevaluated), record.pooled_over
        for line in (f"{where}: {line}" for line in self._failures.lines(*told)):
            self.progress.note(line)
            self._note(record, seed, "failures", line)

    def _tell_restarts(self, record: RoundRecord, seed: int) -> None:
        where = f"round {record.server_round}/{record.num_rounds}"
        for silo, reason in record.restarts:
            redone = " and redid the round" if silo in record.participants else ""
            line = f"{where}: silo '{silo}' was started again{redone}: {reason}"
            self.progress.note(line)
            self._note(record, seed, "restarts", line)

    def _tell_joined(self, record: RoundRecord, seed: int) -> None:
        where = f"round {record.server_round}/{record.num_rounds}"
        for silo in record.joined:
            line = f"{where}: silo '{silo.silo}' joins with {silo.num_examples:,} rows, from the next round on"
            self.progress.note(line)
            self._note(record, seed, "joined", line)

    def _note(self, record: RoundRecord, seed: int, what: str, line: str) -> None:
        if record.kind == "federated" and self.watched.has_tensorboard:
            self._run(seed).text(what, line, record.server_round)

    @staticmethod
    def _model(record: RoundRecord) -> str:
        return "federated" if record.kind == "federated" else "pooled"

    def _shown(self, record: RoundRecord) -> dict[str, float | int | None]:
        """What the progress line shows: the federated model, or pooled among the baselines."""
        return {
            "server_round": record.server_round,
            TRAIN_LOSS: record.metrics.get(TRAIN_LOSS),
            **measured(record.metrics, self._model(record), self.metrics),
            "bytes_sent": record.bytes_sent if record.kind == "federated" else None,
        }

    def _log(self, record: RoundRecord, seed: int) -> None:
        log = self._run(seed)
        if record.kind == "federated":
            self._log_federated(log, record)
            return
        for model in self.watched.models:
            loss, tag = f"silo.{model}.{TRAIN_LOSS}", partial(model_tag, self._alone(model))
            log.scalars(self._curves(record, model, loss, tag), record.server_round)

    def _log_federated(self, log: EventLog, record: RoundRecord) -> None:
        step = record.server_round
        log.scalars(self._curves(record, "federated", TRAIN_LOSS, global_tag), step)
        if EPSILON in record.metrics:
            log.scalar(global_tag("epsilon"), record.metrics[EPSILON], step)
        if KEPT_BACK in record.metrics:
            log.scalar(global_tag("kept_back_loss"), record.metrics[KEPT_BACK], step)
        if step:
            log.scalar(global_tag("bytes_sent"), record.bytes_sent, step)
            log.scalar(global_tag("participants"), len(record.participants), step)
            log.scalar(global_tag("failures"), len(record.failures), step)
            log.scalar(global_tag("seconds_compute"), record.seconds["compute"], step)
            log.scalar(global_tag("seconds_communicate"), record.seconds["communicate"], step)
        for silo in self.watched.silos:
            curves = self._curves(record, f"silo.{silo}", f"silo.{silo}.{TRAIN_LOSS}", partial(silo_tag, silo))
            if step:
                curves[silo_tag(silo, "bytes_sent")] = record.bytes_sent / len(self.watched.silos)
                curves[silo_tag(silo, "seconds_compute")] = record.seconds.get(f"silo.{silo}", 0.0)
                waited = record.seconds["total"] - record.seconds.get(f"silo.{silo}", 0.0)
                curves[silo_tag(silo, "seconds_communicate")] = waited
            log.scalars(curves, step)

    def _run(self, seed: int) -> EventLog:
        """Return the log of a seed: of the first one the run directory's own, of others one in a folder."""
        name = "" if seed == self.watched.seed else f"seed-{seed}"
        if name not in self.logs:
            log = self.logs[name] = EventLog(self.directory.tensorboard / name)
            models = [self._alone(model) for model in self.watched.models]
            log.custom_layout(self.watched.silos, chart_titles(self.metrics), models=models)
            if not name:
                log.hyperparameters(self.watched.hyperparameters, self.directory.path.name)
        return self.logs[name]

    def _alone(self, model: str) -> str:
        return f"{model} alone" if model in self.watched.silos else model

    def _curves(self, record: RoundRecord, model: str, loss: str, tag: Callable[[str], str]) -> dict[str, float]:
        """Return tag -> value of what is known of a model after the round; `loss` is the key of its training loss."""
        found = measured(record.metrics, model, self.metrics)
        found |= {TRAIN_LOSS: record.metrics[loss]} if loss in record.metrics else {}
        return {tag(name): value for name, value in found.items()}


def timing_line(record: RoundRecord) -> dict[str, object]:
    """What timing.jsonl keeps of a round: all that another run of the same seed need not repeat."""
    restarts = {"restarts": dict(record.restarts)} if record.restarts else {}
    return {"job": record.job, "round": record.server_round, **record.seconds, **restarts}


def history_line(record: RoundRecord, seed: int) -> dict[str, object]:
    """What history.jsonl keeps of a round: nothing that depends on a clock."""
    return {
        "job": record.job,
        "kind": record.kind,
        "seed": seed,
        "round": record.server_round,
        "num_rounds": record.num_rounds,
        "participants": list(record.participants),
        "failures": dict(record.failures),
        **missing_in(record),
        "bytes_sent": record.bytes_sent,
        **({"joined": [silo.silo for silo in record.joined]} if record.joined else {}),
        "metrics": dict(sorted(record.metrics.items())),
    }
