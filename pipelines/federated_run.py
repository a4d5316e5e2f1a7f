"""The folder of a run of `federate`: what it was asked to do, where it stands, how it goes on."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.federated_result import FACTS, Federated
from pipelines.fingerprints import check_data, fingerprints
from pipelines.ledger.coordinator_ledger import CoordinatorLedger, discard_unused, name_of_run, silos_folder
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.recorder import TrainingRecorder, Watched
from ray_fed.config import at_home
from ray_fed.errors import ConfigError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.strategies import Strategy
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_plain

PIPELINE = "federate"


@dataclass(frozen=True)
class Asked:
    """What a call of `federate` asks for, as far as a resumed run must ask for the same."""

    task: Task
    silos: Sequence[SiloSpec]
    strategy: Strategy
    options: Mapping[str, object]
    """Flat and plain: training, rules, choice of the model."""

    def as_config(self) -> dict[str, Any]:
        """Return what config.yaml says; functions and classes by their names."""
        task, strategy = type(self.task), type(self.strategy)
        fields = {}
        if is_dataclass(self.strategy):
            fields = {f"strategy.{name}": _plain(value) for name, value in vars(self.strategy).items()}
        return {
            "pipeline": PIPELINE,
            "task": f"{task.__module__}.{task.__qualname__}",
            "silos": [spec.name for spec in self.silos],
            "strategy": f"{strategy.__module__}.{strategy.__qualname__}",
            **fields,
            **{name: _plain(value) for name, value in self.options.items()},
        }


def _plain(value: object) -> object:
    return (
        to_plain(value) if isinstance(value, bool | int | float | str | list | tuple | Mapping | None) else repr(value)
    )


class FederatedRun:
    """A run with a folder; held by this process for as long as it works in it."""

    def __init__(self, directory: RunDirectory, asked: Asked, is_resumed: bool):
        self.directory, self.asked, self.is_resumed = directory, asked, is_resumed
        self.checkpoint = Checkpoint(directory)
        self.is_complete = is_resumed and self._is_complete()
        # Loading cuts off what a checkpoint does not count, and a complete run has no checkpoint.
        self.has_begun = is_resumed and not self.is_complete and self.checkpoint.load()
        self.run = name_of_run(directory)

    @classmethod
    @contextlib.contextmanager
    def at(cls, out: Path | str, asked: Asked, resume: bool) -> "Iterator[FederatedRun]":
        """Begin a run in a new folder, or go on with the one that is there. ConfigError where there is something else,
        or it was asked to do something else."""
        path = Path(at_home(str(out)))
        is_there = (path / "config.yaml").is_file()
        if is_there and not resume:
            raise ConfigError(f"out={path} holds a run; resume=True goes on with it, another folder begins a new one")
        directory = RunDirectory(path) if is_there else RunDirectory.create(path, PIPELINE)
        try:
            with directory.held():
                if is_there:
                    _require_same(directory.read_config(), asked.as_config(), path)
                yield cls(directory, asked, is_there)
        finally:
            discard_unused(directory)
            directory.discard_if_empty()

    def _is_complete(self) -> bool:
        is_there = self.directory.summary_path.is_file() and (self.directory.path / FACTS).is_file()
        return is_there and self.directory.read_summary().get("status") == "completed"

    def finished(self) -> Federated | None:
        """Return what a complete run came to, None of any other."""
        return Federated.load(self.directory.path, self.asked.task) if self.is_complete else None

    def placed(self, spec: SiloSpec, cohort: str, address: str) -> SiloSpec:
        """Return a silo with places for its state and its ledger: below the run's folder where silos are on this
        machine, else in the folders that it names itself, under the name of the run."""
        if address != "local":
            folder = str(Path(spec.state_folder) / self.run) if spec.state_folder else ""
            return replace(spec, state_folder=folder, run=self.run, ledger_folder=spec.ledger_folder or folder)
        spec = replace(spec, state_folder=str(self.checkpoint.silo_state.resolve()))
        if cohort == "local":  # silos within one process have no boundary
            return spec
        return replace(spec, run=self.run, ledger_folder=str(silos_folder(self.directory).resolve()))

    def begin(self, agreement: Agreement) -> None:
        """Write what is known before training; DataError where a resumed run finds other data."""
        directory = self.directory
        if self.has_begun:
            check_data(agreement, (), directory)
        directory.write_config(self.asked.as_config())
        directory.write_metrics(self.asked.task.metrics)
        directory.write_environment({name: silo.device for name, silo in agreement.silos.items()})
        directory.write_data(fingerprints(agreement))
        directory.write_summary({"status": "running"})

    def recorder(self, watched: Watched, has_boundary: bool, silos: Sequence[SiloSpec]) -> TrainingRecorder:
        """Return who writes the records down; with a ledger where silos keep theirs."""
        run = self.run if has_boundary else ""
        ledger = CoordinatorLedger.of_run(self.directory, run, self.checkpoint.folder)
        return TrainingRecorder(watched, self.directory, ledger, silos)

    def complete(self, result: Federated, recorder: TrainingRecorder) -> None:
        """Write the outcome; last of all that it is complete."""
        result.write(self.directory, "running")
        if recorder.ledger:
            recorder.ledger.end_run()
        result.write(self.directory)
        shutil.rmtree(self.checkpoint.folder, ignore_errors=True)

    def break_off(self, result: Federated | None, status: str, reason: str) -> None:
        """Write what there is, and that it can be gone on with."""
        if result is not None:
            result.write(self.directory, status, reason)
        else:
            self.directory.write_summary({"status": status, "reason": reason})


def _require_same(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError at the first thing that a resumed run is asked to do otherwise."""
    if then.get("pipeline") != PIPELINE:
        raise ConfigError(
            f"out={path} holds a run of `ray-fed {then.get('pipeline')}`; go on with: ray-fed resume {path}"
        )
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != to_plain(now.get(name)):
            said = f"{name}={now.get(name)!r}, the run in {path} began with {then.get(name)!r}"
            raise ConfigError(f"{said}; ask for the same, or begin a new run in another folder")
