"""The formation-energy pipeline from options to a finished run directory."""

import sys
import time
from collections.abc import Sequence

from pipelines.formation_energy.experiment import Experiment, placed
from pipelines.formation_energy.outcome import Outcome
from pipelines.formation_energy.recorder import Recorder
from pipelines.formation_energy.setup import Setup, resolve
from ray_fed.errors import DataError, FedError
from ray_fed.federation.coordinator import Agreement
from ray_fed.reporting.results import results_from_summary
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import paths_table, results_table

PIPELINE = "formation-energy"


def run(options: dict[str, object], command: Sequence[str]) -> int:
    """Run the pipeline; prints progress to stderr and the results to stdout, returns the exit code."""
    started = time.perf_counter()
    site_overrides = options.pop("site_overrides", [])
    assert isinstance(site_overrides, list)
    setup = resolve(options, site_overrides)
    directory = RunDirectory.create(setup.config.out, PIPELINE)
    try:
        outcome = _train(setup, directory, list(command), started)
    finally:
        directory.discard_if_empty()
    results_table(results_from_summary(outcome.summary), unit=setup.task.unit)
    print()
    paths_table(outcome.paths())
    return 0


def _train(setup: Setup, directory: RunDirectory, command: list[str], started: float) -> Outcome:
    """Train, and write the run directory whatever happens once the silos have agreed."""
    where = "in this process" if setup.config.cohort == "local" else f"as Ray actors (address {setup.config.address})"
    print(f"opening {len(setup.silos)} silos {where}", file=sys.stderr)
    with placed(setup) as (coordinator, notices):
        agreement = coordinator.agree()
        for line in [*notices, *_unusable(agreement)]:
            print(f"note: {line}", file=sys.stderr)
        _check_sizes(agreement)
        with Recorder(setup, directory) as recorder:
            experiment = Experiment(setup, agreement, recorder, started=started)
            outcome = Outcome(experiment, directory, command, notices)
            outcome.begin()
            try:
                experiment.train(coordinator)
            except KeyboardInterrupt:
                outcome.finish("interrupted")
                print(f"interrupted; what was done so far is in {directory.path}", file=sys.stderr)
                raise
            except FedError as error:
                outcome.finish("failed", str(error))
                print(f"failed; what was done so far is in {directory.path}", file=sys.stderr)
                raise
    outcome.finish("completed")
    return outcome


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
