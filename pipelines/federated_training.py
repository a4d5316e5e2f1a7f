"""The Python API: one call federates a task over silos, in this process or on Ray."""

import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pipelines.callbacks import Callback, Callbacks, StopTraining
from pipelines.federated_result import Federated, without_bulk
from pipelines.federated_run import Asked, FederatedRun
from pipelines.launching import CoordinatorLike, FederationSpec, launched
from pipelines.round_notes import FailureNotes
from pipelines.training.recorded_jobs import recorded
from pipelines.training.recorder import Watched
from ray_fed.config import require
from ray_fed.errors import CallbackFailed, DataError, FedError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.messages import Vector
from ray_fed.federation.rounds.best_round import BestRound, Standing, without_choice
from ray_fed.federation.rounds.job import CENTRAL, EvaluateFn, Job, RoundRecord
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.strategies import Strategy, local_plan, make_strategy
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.federation.torch_task import TorchTask
from ray_fed.learning.layout import BufferPolicy
from ray_fed.learning.recipe import FLAT, MakeOptimizer, MakeScheduler, Recipe, Schedule, named
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import TRAIN_LOSS

NAME = "federated"
"""Of the job, and of its session in the silos."""
Initial = nn.Module | Mapping[str, torch.Tensor | np.ndarray] | Federated | Path | str | None
"""What training starts from."""


@dataclass(frozen=True)
class Training:
    """How every silo trains, and how often they meet. ConfigError for a number that is not positive."""

    rounds: int = 10
    """Exchanges in the whole run."""
    epochs: int = 10
    """Passes of every silo over its samples in the whole run."""
    batch_size: int = 32
    """Samples of one local step of a silo."""
    learning_rate: float = 1e-3
    """Of every silo's own optimiser."""
    optimizer: str | MakeOptimizer = "adam"
    """What the silos train with: the name of a class in torch.optim ("adamw"), such a class, or a function of the
    network that makes one."""
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    """What that class takes besides parameters and learning rate: {"weight_decay": 0.01, "betas": (0.9, 0.98)}."""
    schedule: str | Schedule = "constant"
    """constant | linear | cosine, to 0 over the run; or a function of `Progress` (step, total_steps, server_round,
    num_rounds) that says what the learning rate is multiplied with."""
    schedule_by: Literal["step", "round"] = "step"
    """Whether a named schedule moves with each step of a silo, or at each exchange."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises from 0."""
    scheduler: MakeScheduler | None = None
    """(optimiser, all steps of the silo) -> one of torch.optim.lr_scheduler, in place of `schedule`."""
    clip_norm: float | None = None
    """Longest gradient of a step, over all parameters."""
    clip_value: float | None = None
    """Largest value of a gradient, either way."""
    accumulate: int = 1
    """Mini-batches whose mean gradient makes one step."""
    autocast: Literal["", "bfloat16", "float16"] = ""
    """Type of the forward pass and the loss in training steps; the network, its gradients, what travels and what is
    marked stay float32."""
    optimizer_state: Literal["keep", "reset", "average"] = "keep"
    """Adam's moments at an exchange."""
    buffers: Literal["average", "local", "recompute"] = "average"
    """BatchNorm's running statistics at an exchange."""
    seed: int = 0
    """Of initial weights, shuffles and the choice of silos."""

    def __post_init__(self) -> None:
        for name in ("rounds", "epochs", "batch_size", "learning_rate"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        self.recipe()

    def recipe(self) -> Recipe:
        """Return how steps are taken, as far as a plan does not say it. ConfigError for what PyTorch does not have."""
        return Recipe(**{item.name: getattr(self, item.name) for item in fields(Recipe)})

    def plan(self, num_examples: int) -> TrainingPlan:
        """Return the plan of a silo with that many samples."""
        return TrainingPlan(
            self.seed, self.epochs, ceil(num_examples / self.batch_size), self.rounds, self.learning_rate,
            "sgd" if self.optimizer == "sgd" else "adam", self.optimizer_state, buffers=self.buffers,
        )  # fmt: skip


@dataclass(frozen=True)
class EarlyStopping:
    """End a run when a metric no longer gets better; its model is then that of the best round."""

    metric: str = ""
    """A metric of the task, `train_loss`, or `central.<name>` of `evaluate_fn`; empty: the task's first."""
    patience: int = 5
    """Evaluations without a better value after which the run ends."""
    least_gain: float = 0.0
    """By how much a value must be better to count as better."""
    higher_is_better: bool | None = None
    """None: as the task's metric says; to be given of a metric that the task does not know."""


def federate(
    task: Task,
    silos: Sequence[SiloSpec],
    training: Training | None = None,
    *,
    test: SiloSpec | None = None,
    strategy: Strategy | str = "fed_avg",
    rules: RoundRules | None = None,
    cohort: Literal["ray", "local"] = "ray",
    address: str = "local",
    out: Path | str | None = None,
    resume: bool = False,
    tensorboard: bool = True,
    initial: Initial = None,
    callbacks: Sequence[Callback | Callable[[RoundRecord], object]] = (),
    early_stopping: EarlyStopping | None = None,
    select: str = "",
    evaluate_fn: EvaluateFn | None = None,
    evaluate_every: int = 1,
) -> Federated:
    """Train one network over all silos; their samples stay where they are.

    strategy: a name that `make_strategy` knows, or an object with the methods of `Strategy`.
    rules: when a round counts, and which share of the silos takes part in each (`fraction_fit`); by default every silo
    takes part, and failures are gone on without.
    test: a common test set, published by its owner; without one, models are marked on the silos' held-out samples.
    cohort: "ray" makes every silo an actor on the cluster at `address` ("local" starts a private one, or uses the one
    this process is connected to); "local" keeps all silos in this process, with bit-equal results. A cluster that is
    joined runs the ray-fed installed at its nodes, or, with RAY_FED_SHIP_CODE=yes, this process's.
    out: folder of the run: history, checkpoints, model, ledgers and, with `tensorboard`, curves.
    resume: go on with the run in `out`, from its last complete round, to the same bytes as if it had not been broken
    off; a run that is complete is read, one that is not there begun.
    initial: what training starts from in place of random weights: a network, a state dict, a `Federated`, or the folder
    of one.
    callbacks: called in this process between rounds: functions of a RoundRecord, or `Callback`s. `StopTraining` ends
    the run in good order. Whatever else one raises ends it as CallbackFailed, whose `result` is what was done.
    early_stopping, select: the model that comes back is that of the round with the best value of a metric; `select`
    names one as `EarlyStopping.metric` does, and does not end the run.
    evaluate_fn: (server_round, network) -> metrics by name, called beside the silos' evaluations in the coordinator's
    process; its metrics are `central.<name>`.
    evaluate_every: rounds between two evaluations.

    Raises ConfigError, DataError, PlacementError or SiloRefused before training; QuorumLost, SiloFailed, StrategyFailed
    or CallbackFailed during it.
    """
    training = training or Training()
    task = _with_recipe(task, training)
    chosen = make_strategy(strategy) if isinstance(strategy, str) else strategy
    names = tuple(spec.name for spec in silos)
    require(len(names) > 0, "silos is empty; give at least one SiloSpec")
    require(len(set(names)) == len(names), f"silo names {names} must differ")
    require(evaluate_every >= 1, f"evaluate_every={evaluate_every} must be at least 1")
    require(out is not None or not resume, "resume=True goes on with the run in a folder; give it as out=")
    rules = rules or RoundRules()
    best = _best_of(task, early_stopping, select)
    start = initial_vector_of(initial, task, training, _buffers_of(chosen, task, training))
    asked = _Asked(
        task, tuple(silos), training, test and replace(test, possession=task.possession(test.source)), chosen, rules,
        cohort, address, tensorboard, start, tuple(callbacks), best, evaluate_fn,
        evaluate_every,
    )  # fmt: skip
    if out is None:
        return _Training(asked).run()
    with FederatedRun.at(out, asked.for_folder(), resume) as run:
        return run.finished() or _Training(asked, run).run()


@dataclass(frozen=True)
class _Asked:
    """The arguments of `federate`, settled."""

    task: Task
    silos: tuple[SiloSpec, ...]
    training: Training
    test: SiloSpec | None
    strategy: Strategy
    rules: RoundRules
    cohort: Literal["ray", "local"]
    address: str
    tensorboard: bool
    initial: Vector | None
    callbacks: tuple[Callback | Callable[[RoundRecord], object], ...]
    best: BestRound | None
    evaluate_fn: EvaluateFn | None
    evaluate_every: int

    @property
    def buffers(self) -> BufferPolicy:
        return _buffers_of(self.strategy, self.task, self.training)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.silos)

    def for_folder(self) -> Asked:
        """Return what a resumed run must ask for, too."""
        best = {f"best.{name}": value for name, value in asdict(self.best).items()} if self.best else {}
        rules = {name: value for name, value in asdict(self.rules).items() if name not in ("round_timeout",)}
        initial = "" if self.initial is None else hashlib.sha256(self.initial.tobytes()).hexdigest()
        more = {"evaluate_every": self.evaluate_every, "initial": initial, "has_test": self.test is not None}
        return Asked(self.task, self.silos, self.strategy, {**_said(self.training), **rules, **best, **more})

    def job(self, agreement: Agreement) -> Job:
        """Return the training of all silos that have samples; DataError where none has."""
        rows = {name: agreement.silos[name].num_examples for name in self.names}
        there = tuple(name for name in self.names if rows[name])
        if not there:
            raise DataError(
                "no silo has a training sample, or as many as its owner's min_examples; see what their sources hold"
            )
        for name in sorted({*self.names} - {*there}):
            reason = "no training samples, or fewer than its owner's min_examples"
            print(f"note: silo '{name}' has {reason}, and takes no part", file=sys.stderr)
        plans = {name: self.training.plan(rows[name]) for name in there}
        return Job(
            NAME, there, plans, self.training.seed, self.strategy, self.rules, evaluate_every=self.evaluate_every,
            initial=self.initial, best_round=self.best, evaluate_fn=self.evaluate_fn,
        )  # fmt: skip


class _Training:
    """One run, from its silos to its outcome."""

    def __init__(self, asked: _Asked, run: FederatedRun | None = None):
        self.asked, self.run_folder = asked, run
        self.callbacks = Callbacks(asked.callbacks)
        self.records: list[RoundRecord] = []
        self.last: RoundRecord | None = None
        """The last complete round, with its models or the strategy's state."""
        self.agreement: Agreement | None = None
        if run and run.has_begun:
            self.records = [record for _, record in run.checkpoint.records()]

    def run(self) -> Federated:
        asked = self.asked
        silos, test = asked.silos, asked.test
        if folder := self.run_folder:
            silos = tuple(folder.placed(spec, asked.cohort, asked.address) for spec in silos)
        with contextlib.ExitStack() as block:
            if asked.cohort == "ray" and _is_private(asked.address):  # one user plays all silos, and reads their logs
                folder = block.enter_context(tempfile.TemporaryDirectory(prefix="ray-fed-logs-"))
                silos = tuple(spec if spec.log_folder else replace(spec, log_folder=folder) for spec in silos)
            return self._over(silos, test)

    def _over(self, silos: tuple[SiloSpec, ...], test: SiloSpec | None) -> Federated:
        asked = self.asked
        members = FederationSpec(silos, asked.task, test, asked.names)
        launch = members, asked.cohort, asked.address, asked.rules.round_timeout
        with launched(*launch, every_state=bool(asked.callbacks)) as (coordinator, _):
            self.agreement = coordinator.agree()
            _require_marked(asked, self.agreement)
            job = asked.job(self.agreement)
            if self.run_folder is None:
                return self._followed(_told(coordinator.run(job), silos))
            return self._in_folder(coordinator, job, self.run_folder, silos)

    def _in_folder(
        self, coordinator: CoordinatorLike, job: Job, run: FederatedRun, silos: Sequence[SiloSpec]
    ) -> Federated:
        asked = self.asked
        run.begin(self._agreed)
        watched = Watched(
            asked.task.metrics, asked.names, run.asked.as_config(), job.model_seed, has_tensorboard=asked.tensorboard
        )
        with run.recorder(watched, asked.cohort == "ray", silos) as recorder:
            try:
                result = self._followed(recorded(coordinator, job, job.model_seed, run.checkpoint, recorder))
            except BaseException as error:
                self._break_off(run, error)
                if isinstance(error, FedError):  # of any other, the coordinator may be in the middle of a round
                    recorder.collect(coordinator)
                raise
            for line in recorder.collect(coordinator):
                recorder.progress.note(f"note: {line}")
            run.complete(result, recorder)
            return result

    def _break_off(self, run: FederatedRun, error: BaseException) -> None:
        if self.last is not None:
            run.checkpoint.settle(self.last)
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        result = self._result() if self.last is not None else None
        run.break_off(result, status, str(error) or type(error).__name__)
        error.add_note(f"what was done is in {run.directory.path}; the same call with resume=True goes on with it")

    def _followed(self, stream: Generator[RoundRecord, None, None]) -> Federated:
        """Follow the rounds to their end, and tell the callbacks."""
        reason = ""
        try:
            with contextlib.closing(stream):
                self._follow(stream)
        except StopTraining as stop:
            reason = str(stop)
        except CallbackFailed as error:
            error.result = self._result() if self.last is not None else None
            self._tell_stop(str(error))
            raise
        except BaseException as error:
            self._tell_stop(str(error) or type(error).__name__)
            raise
        result = self._result(reason or self._why_early())
        if self.asked.best and result.best_round is None:
            told = f"{self.asked.best.metric} was told in no round"
            print(f"note: {told}, so the model is that of the last one", file=sys.stderr)
        self.callbacks.stop(result.stopped, result.records[-1].server_round)
        return result

    def _tell_stop(self, reason: str) -> None:
        with contextlib.suppress(CallbackFailed, StopTraining):  # the run ends of something else already
            self.callbacks.stop(reason, self.records[-1].server_round if self.records else 0)

    def _follow(self, stream: Iterator[RoundRecord]) -> None:
        following = self.records[-1].server_round + 1 if self.records else 0
        while True:
            if following and following <= self.asked.training.rounds:
                self.callbacks.begin(following)
            record = next(stream, None)
            if record is None:
                return
            self.last, following = record, record.server_round + 1
            self.records.append(without_bulk(record))
            self.callbacks.end(self.records[-1], self._is_evaluated(record))
            if record.models is not None:
                following = 0

    def _is_evaluated(self, record: RoundRecord) -> bool:
        return record.server_round % self.asked.evaluate_every == 0 or record.models is not None

    def _why_early(self) -> str:
        best, done = self.asked.best, self.records[-1].server_round
        if best is None or best.patience is None or done >= self.asked.training.rounds:
            return ""
        return f"ended after round {done}: {best.metric} was not better in {best.patience} evaluations"

    def _result(self, stopped: str = "") -> Federated:
        asked, last = self.asked, self.last
        assert last is not None
        models = last.models
        if models is None:
            assert last.state is not None, "callbacks have every state"
            standing = Standing.of(asked.best, last.state) if asked.best else None
            own = asked.strategy.models(without_choice(last.state))
            models = (standing.models if standing else None) or own
        vector = next(iter(models.values()))
        module = asked.task.model(asked.training.seed)
        module = asked.task.layout(module, asked.buffers).load(module, vector).eval()
        return Federated(
            module, tuple(self.records), self._agreed, asked.task, asked.training.seed, self._best_round(), stopped
        )  # fmt: skip

    def _best_round(self) -> int | None:
        best = self.asked.best
        if best is None:
            return None
        told = [
            (record.server_round, record.metrics[best.metric])
            for record in self.records
            if best.metric in record.metrics
        ]
        found = best.best_round(told)
        return None if found == -1 else found

    @property
    def _agreed(self) -> Agreement:
        assert self.agreement is not None
        return self.agreement


def _with_recipe(task: Task, training: Training) -> Task:
    """Return the task with steps as `training` says. ConfigError for a task that takes them in a way of its own."""
    recipe = training.recipe()
    if isinstance(task, TorchTask):
        return task.with_recipe(recipe)
    changed = [item.name for item in fields(Recipe) if getattr(recipe, item.name) != getattr(Recipe(), item.name)]
    own = [name for name in changed if name != "optimizer" or recipe.optimizer not in FLAT]
    kind = type(task).__name__
    require(not own, f"Training({', '.join(own)}): a {kind} takes steps of its own; leave it out, or use a TorchTask")
    return task


def _said(training: Training) -> dict[str, object]:
    """Return the fields of a Training for the record of a run: functions and classes by their names."""
    said = {item.name: getattr(training, item.name) for item in fields(Training)}
    return {name: named(value) if callable(value) else value for name, value in said.items()}


def _is_private(address: str) -> bool:
    from actors.session import will_be_private

    return will_be_private(address)


def _require_marked(asked: _Asked, agreement: Agreement) -> None:
    """Say that models are marked on no samples of their own, where that is so. ConfigError where one shall be chosen by
    that."""
    has_held_out = any(silo.num_held_out for silo in agreement.silos.values())
    if has_held_out or asked.test or not asked.task.knows_rows:
        return
    said = "no silo has held-out samples, and there is no test="
    is_chosen_by = asked.best is not None and asked.best.metric.startswith(f"{NAME}.")
    remedy = f"choose by {TRAIN_LOSS} or {CENTRAL}<name>, or let `samples` return held-out ones, too"
    require(not is_chosen_by, f"{said}, so {asked.best and asked.best.metric} is told in no round: {remedy}")
    print(f"note: {said}: the model is marked on each silo's training samples alone", file=sys.stderr)


def _told(records: Generator[RoundRecord, None, None], silos: Sequence[SiloSpec]) -> Generator[RoundRecord, None, None]:
    """Pass the records of a run without a folder on, and say who failed and why, once per reason."""
    notes = FailureNotes(silos)
    with contextlib.closing(records):
        for record in records:
            for line in notes.lines(dict(record.failures), dict(record.unevaluated), record.pooled_over):
                print(f"round {record.server_round}/{record.num_rounds}: {line}", file=sys.stderr)
            yield record


def _best_of(task: Task, early: EarlyStopping | None, select: str) -> BestRound | None:
    """Return by which metric the outcome is chosen. ConfigError for one that nobody tells, or two that differ."""
    if early is None and not select:
        return None
    patience, early = early and early.patience, early or EarlyStopping(select)
    differ = f"select={select!r} and early_stopping by {early.metric!r} differ; name one metric"
    require(not select or early.metric in ("", select), differ)
    metrics = {metric.name: metric for metric in task.metrics}
    name = (early.metric or select or next(iter(metrics))).removeprefix("federated.")
    is_known = name in metrics or name == TRAIN_LOSS or name.startswith(CENTRAL)
    require(is_known, f"metric {name!r} is none of {', '.join(metrics)}, {TRAIN_LOSS} or {CENTRAL}<name>")
    higher = early.higher_is_better
    if higher is None:
        said = f"say of {name!r} whether more of it is better: EarlyStopping({name!r}, higher_is_better=...)"
        require(not name.startswith(CENTRAL), said)
        higher = name in metrics and metrics[name].higher_is_better
    return BestRound(f"federated.{name}" if name in metrics else name, higher, patience, early.least_gain)


def initial_vector_of(initial: Initial, task: Task, training: Training, buffers: BufferPolicy) -> Vector | None:
    """Return what training starts from as a vector. ConfigError names tensors that are missing or of another shape."""
    if initial is None:
        return None
    if isinstance(initial, str | Path):
        initial = Federated.load(initial, task)
    if isinstance(initial, Federated):
        initial = initial.module
    given = initial.state_dict() if isinstance(initial, nn.Module) else initial
    arrays = {
        name: np.asarray(value.detach().cpu().float() if isinstance(value, torch.Tensor) else value)
        for name, value in given.items()
    }
    module = task.model(training.seed)
    layout = task.layout(module, buffers)
    _require_same_where_kept(module, arrays, layout.names)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        found = arrays[name].shape if name in arrays else None
        require(
            found == shape,
            f"initial: {name} is {f'of shape {found}' if found is not None else 'missing'}; the network wants {shape}",
        )
    return layout.flatten(arrays)


def _buffers_of(strategy: Strategy, task: Task, training: Training) -> BufferPolicy:
    """Return what happens to running statistics, once the strategy has had its say."""
    return local_plan(strategy, training.plan(1), task.model(training.seed)).buffers


def _require_same_where_kept(module: nn.Module, arrays: Mapping[str, np.ndarray], travelling: Collection[str]) -> None:
    """Raise ConfigError for a value that would not reach the silos: they have what the task's network makes."""
    for name, tensor in module.named_parameters():
        is_other = name in arrays and not np.array_equal(arrays[name], tensor.detach().cpu().float().numpy())
        said = f"initial: {name} does not travel, so its value must come from the task's network; load it there"
        require(name in travelling or not is_other, said)
