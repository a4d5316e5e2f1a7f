"""The formation-energy pipeline: from options, or from a run that was broken off, to a finished run directory."""

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipelines.formation_energy.checkpoint import Checkpoint
from pipelines.formation_energy.config import FormationEnergyConfig
from pipelines.formation_energy.experiment import Experiment, placed
from pipelines.formation_energy.outcome import Outcome, fingerprints
from pipelines.formation_energy.recorder import Recorder
from pipelines.formation_energy.setup import Setup, resolve, with_state_folder
from ray_fed.errors import DataError, FedError
from ray_fed.federation.coordinator import Agreement
from ray_fed.reporting.plain_values import to_plain
from ray_fed.reporting.results import results_from_summary
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import paths_table, results_table

PIPELINE = "formation-energy"


@dataclass(frozen=True)
class Assignment:
    """One run to do: what, where it is kept, and whether it was begun before."""

    setup: Setup
    directory: RunDirectory
    command: tuple[str, ...]
    site_overrides: tuple[str, ...]
    checkpoint: Checkpoint
    is_resumed: bool


def run(options: dict[str, object], command: Sequence[str]) -> int:
    """Run the pipeline; prints progress to stderr and the results to stdout, returns the exit code."""
    given = options.pop("site_overrides", [])
    assert isinstance(given, list)
    setup = resolve(_with_whole_paths(options), given)
    directory = RunDirectory.create(setup.config.out, PIPELINE)
    checkpoint = Checkpoint(directory)
    setup = with_state_folder(setup, checkpoint.silo_state)
    try:
        return _carry_out(Assignment(setup, directory, tuple(command), tuple(given), checkpoint, False))
    finally:
        directory.discard_if_empty()


def resume(path: str) -> int:
    """Go on with a run that was broken off, from its last complete round; the result is that of an unbroken run."""
    directory = RunDirectory.open(path)
    if directory.read_summary().get("status") == "completed":
        print(f"{path} is complete; nothing to resume")
        return 0
    config = directory.read_config()
    known = {field.name for field in fields(FormationEnergyConfig)} - {"out"}
    options = {key: _as_option(value) for key, value in config.items() if key in known and value is not None}
    overrides = tuple(str(text) for text in config["set"])  # type: ignore[union-attr]
    checkpoint = Checkpoint(directory)
    setup = with_state_folder(resolve(options, overrides), checkpoint.silo_state)
    command = tuple(shlex.split(str(config["command"])))
    return _carry_out(Assignment(setup, directory, command, overrides, checkpoint, checkpoint.load()))


def _carry_out(assignment: Assignment) -> int:
    outcome = _train(assignment)
    results_table(results_from_summary(outcome.summary), unit=assignment.setup.task.unit)
    print()
    paths_table(outcome.paths())
    return 0


def _train(assignment: Assignment) -> Outcome:
    """Train, and write the run directory whatever happens once the silos have agreed."""
    started, setup = time.perf_counter(), assignment.setup
    where = "in this process" if setup.config.cohort == "local" else f"as Ray actors (address {setup.config.address})"
    print(f"opening {len(setup.silos)} silos {where}", file=sys.stderr)
    with placed(setup) as (coordinator, notices):
        agreement = coordinator.agree()
        for line in [*notices, *_unusable(agreement)]:
            print(f"note: {line}", file=sys.stderr)
        _check_sizes(agreement)
        if assignment.is_resumed:
            _check_data(agreement, assignment.directory)
        with Recorder(setup, assignment.directory) as recorder:
            records = assignment.checkpoint.records() if assignment.is_resumed else []
            experiment = Experiment(setup, agreement, recorder, assignment.checkpoint, records, started=started)
            outcome = Outcome(experiment, assignment.directory, assignment.command, notices, assignment.site_overrides)
            outcome.begin()
            try:
                experiment.train(coordinator)
            except KeyboardInterrupt:
                _broken_off(outcome, "interrupted", "")
                raise
            except FedError as error:
                _broken_off(outcome, "failed", str(error))
                raise
    outcome.finish("completed")
    shutil.rmtree(assignment.checkpoint.folder, ignore_errors=True)
    return outcome


def _broken_off(outcome: Outcome, status: str, reason: str) -> None:
    outcome.finish(status, reason)
    path = outcome.directory.path
    print(f"{status}; what was done so far is in {path}; go on with: ray-fed resume {path}", file=sys.stderr)


def _unusable(agreement: Agreement) -> list[str]:
    """Say per silo how many rows could not be used, and why."""
    lines = []
    for name, silo in agreement.silos.items():
        if silo.unreadable:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted(silo.unreadable.items()))
            lines.append(f"silo '{name}': {sum(silo.unreadable.values())} rows not usable: {reasons}")
    return lines


def _check_sizes(agreement: Agreement) -> None:
    for name, silo in agreement.silos.items():
        if silo.num_examples < 2:
            raise DataError(f"silo '{name}' has {silo.num_examples} usable training rows; it needs at least 2")


def _check_data(agreement: Agreement, directory: RunDirectory) -> None:
    """A resumed run must find the data it began with: DataError names the silo whose rows changed."""
    for then, now in zip(directory.read_data(), to_plain(fingerprints(agreement)), strict=True):  # type: ignore[arg-type]
        if then != now:
            raise DataError(f"silo '{then['silo']}': its data changed since the run began; start a new run")


def _with_whole_paths(options: Mapping[str, object]) -> dict[str, object]:
    """Make paths independent of the current folder, so that a run can be resumed from anywhere."""
    whole = dict(options)
    for name in ("data", "federation"):
        value = whole.get(name)
        if isinstance(value, str) and value != "embedded":
            whole[name] = str(Path(value).expanduser().absolute())
    return whole


def _as_option(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
