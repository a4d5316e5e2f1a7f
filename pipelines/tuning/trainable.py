"""`federated_trainable`: a class for the user's own `ray.tune.Tuner`, whose trials train on silos that stand."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.federated_result import Federated, without_bulk
from pipelines.federated_training import Training
from pipelines.training.checkpoint import Checkpoint
from pipelines.tuning.rungs import Rungs, rounds_of_rungs, steps_after
from pipelines.tuning.trial_plans import Config, Experiment, OwnExperiment, PipelineExperiment, checked_silos
from ray_fed.config import require
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.strategies import State, Strategy
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.metrics import TRAIN_LOSS
from ray_fed.reading import parse_json, readable
from ray_fed.reporting.model_files import read_model_file, serialised, tensors_of
from ray_fed.reporting.run_directory import RunDirectory

if TYPE_CHECKING:
    from actors.tuned_silos import TunedSilos
    from actors.tuning import TrialBase

STATE, STANDING = "models/strategy.safetensors", "trial.json"


@contextlib.contextmanager
def federated_trainable(
    experiment: Task | Callable[[Config], Task] | str,
    silos: Sequence[SiloSpec] = (),
    training: Training | None = None,
    *,
    options: Config | None = None,
    strategy: Strategy | str = "fed_avg",
    rules: RoundRules | None = None,
    test: SiloSpec | None = None,
    rungs: Rungs = 10,
    address: str = "local",
) -> "Iterator[type[TrialBase]]":
    """Place silos, yield a trainable for `ray.tune.Tuner` that trains on them, and take them down afterwards.

    experiment: a Task; or a function of a trial's config that returns one; or a pipeline of `ray-fed` by name (train,
    formation-energy), with the `options` of its command.
    silos, training, strategy, rules, test: as in `federate`; a pipeline's come from its options.
    rungs: after which local steps trials report, and Tune compares them: in how many equal parts of their own, or the
    steps themselves. A scheduler's `time_attr` is "rung" or "local_steps".

    `param_space` of a Task holds fields of Training and RoundRules, beside each other or in groups "training" and
    "rules", and "strategy": a name or {"name": ..., option: value}. All of it goes to a function, too, which may take
    keys of its own. Of a pipeline it holds fields of its command (hidden, seed, features, tree_options ...), in any
    groups.
    Each result has the metrics of the federated model by their names, `train_loss`, `silo/NAME/METRIC`, `round`,
    `rung`, `local_steps`, `bytes_sent` and `failures`; each has a checkpoint, which `trainable.load(checkpoint,
    config)` reads as a `Federated`.
    A trial that goes on from a checkpoint, restored or as another's (PBT), begins with the model and the strategy's
    state in it; the silos' optimisers stand as their own disks have them (`SiloSpec.state_folder`), else afresh.
    """
    if isinstance(experiment, str):
        require(not silos and training is None, "a pipeline's silos and training come from its options")
        made: Experiment = PipelineExperiment.of(experiment, options or {})
    else:
        require(options is None, "options are those of a pipeline; a task's are its own")
        made = OwnExperiment(
            experiment, checked_silos(silos), test and replace(test, possession=_possession(experiment, test)),
            training or Training(), strategy, rules or RoundRules(),
        )  # fmt: skip
    from actors.session import session

    with session(address, sum(spec.num_cpus for spec in made.silos) + 2):
        from actors.tuned_silos import tuned_silos
        from actors.tuning import shared_trainable

        with tuned_silos(made.silos, made.test) as standing:
            yield shared_trainable(_trial_class(made), (made, standing, rungs))


def _possession(experiment: object, test: SiloSpec) -> str:
    return experiment.possession(test.source) if isinstance(experiment, Task) else ""


class RungTrial:
    """One trial, from rung to rung; plain of Tune, which `TrialBase` wraps."""

    def __init__(self, config: Config, name: str, shared: "tuple[Experiment, TunedSilos, Rungs]"):
        experiment, self.standing, rungs = shared
        self.plan = experiment.plan(config)
        self.wanted_key = ""
        self.cohort, self.agreement = self._begin()
        job = self.plan.make_job(self.agreement)
        self.rungs = rounds_of_rungs(job, rungs)
        self.job: Job = replace(job, name=name, evaluate_at=tuple(self.rungs))
        self.records: list[RoundRecord] = []
        self.state: State | None = None
        self.num_failures = 0
        self._steps = self._from(0, None)

    def _begin(self) -> tuple[Any, Any]:
        from actors.tuned_silos import Wanted

        plan = self.plan
        wanted = Wanted(
            plan.key, plan.specs, plan.task, plan.test, plan.training, plan.secure_threshold, plan.answer_timeout
        )  # fmt: skip
        begun = self.standing.begin(wanted)
        self.wanted_key = wanted.key
        return begun

    def _from(self, after_round: int, state: State | None) -> Iterator[RoundRecord]:
        coordinator = Coordinator(self.cohort, self.plan.task, self.plan.training)
        coordinator.hear(self.agreement.silos.values())
        return coordinator.run(self.job, after_round, state)

    def next_rung(self) -> dict[str, Any]:
        """Train until the next report, and return it."""
        for record in self._steps:
            self.records.append(without_bulk(record))
            self.state = record.state
            self.num_failures += len(record.failures)
            if record.server_round and (record.server_round in self.rungs or record.models is not None):
                return self._report(record)
        raise AssertionError("a trial was asked for more than its last round")

    def _report(self, record: RoundRecord) -> dict[str, Any]:
        number, _ = self.rungs.get(record.server_round, (len(self.rungs), 0))
        names = [metric.name for metric in self.plan.task.metrics]
        found = {name: record.metrics.get(f"federated.{name}", math.nan) for name in names}
        silos = {
            name.replace(".", "/", 1).replace(".", "/") if name.count(".") == 2 else name: value
            for name, value in record.metrics.items()
            if name.startswith("silo.")
        }
        return {
            **found, TRAIN_LOSS: record.metrics.get(TRAIN_LOSS, math.nan), **silos, "round": record.server_round,
            "rung": number, "local_steps": steps_after(self.job, record.server_round),
            "bytes_sent": sum(one.bytes_sent for one in self.records), "failures": self.num_failures,
            "done": record.server_round >= self.job.num_rounds or record.models is not None,
        }  # fmt: skip

    def federated(self) -> Federated:
        """Return the model as of the last report."""
        assert self.state is not None
        module = self.plan.task.model(self.job.model_seed)
        vector = next(iter(self.job.strategy.models(self.state).values()))
        module = self.plan.task.layout(module, self.job.any_plan.buffers).load(module, vector).eval()
        return Federated(module, tuple(self.records), self.agreement, self.plan.task, self.job.model_seed)

    def save(self, folder: Path) -> None:
        """Write model, history and all that is needed to go on."""
        directory = RunDirectory(self.federated().save(folder))
        assert self.state is not None
        directory.write_bytes(STATE, serialised(self.state))
        facts = {"round": self.records[-1].server_round, "session": self.job.name, "failures": self.num_failures}
        directory.write_json(STANDING, facts)

    def go_on_from(self, folder: Path) -> None:
        """Go on from what `save` wrote, of this trial or another one. ConfigError where its network is another."""
        facts: Any = parse_json(readable(folder / STANDING, "a checkpoint of a trial has it"), folder / STANDING)
        self.records = [record for _, record in Checkpoint(RunDirectory(folder)).records()]
        self.state = tensors_of(read_model_file(folder / STATE), folder / STATE)
        self.num_failures = facts["failures"]
        if facts["session"] != self.job.name:  # another's: what this one's silos keep is of another past
            self._close()
            self.job = replace(self.job, name=f"{self.job.name}-from-{facts['session']}-{facts['round']}")
        self._steps = self._from(facts["round"], self.state)

    def _close(self) -> None:
        close = getattr(self._steps, "close", None)
        if close:
            close()

    def end(self) -> None:
        self._close()
        if self.wanted_key:
            self.standing.end(self.wanted_key)


def _trial_class(experiment: Experiment) -> type:
    from actors.tuning import TrialBase
    from actors.user_code import Carried

    carried = Carried(experiment)  # Tune pickles the class, with what it holds, and once more what it has unpickled

    class FederatedTrial(TrialBase):
        """What Tune calls."""

        make = RungTrial

        @staticmethod
        def load(checkpoint: Any, config: Config | None = None) -> Federated:
            """Return the model in a checkpoint of a result, or in a folder; config: the result's."""
            path = Path(getattr(checkpoint, "path", checkpoint))
            return Federated.load(path, carried.value.plan(config or {}).task)

    return FederatedTrial
