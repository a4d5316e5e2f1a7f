"""The part of a sweep that happens on Ray: the silos stand, trials come and go."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from actors.federation import federation
from actors.shared_silos import SharedSilos
from actors.tuning import run_trials
from pipelines.fingerprints import fingerprints, is_same_source
from pipelines.sweep.points import Trial, configured
from pipelines.sweep.privacy import privacy_of, write_privacy
from pipelines.sweep.progress import SweepProgress
from pipelines.sweep.sweep import Sweep
from pipelines.sweep.trial import EVALUATIONS, Shared, job_of, work
from pipelines.sweep.watcher import Watcher
from pipelines.tuning.rungs import common_rungs
from ray_fed.errors import DataError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.rounds.job import Job
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_plain


class LeaseKeeper(Watcher):
    """A watcher that ends each trial's lease of the silos when it is over: a trial whose process was killed, or that a
    scheduler stopped, may leave its session behind. A silo that died is started again."""

    def __init__(self, silos: SharedSilos, *watched: Any):
        super().__init__(*watched)
        self.silos_lent = silos

    def on_trial_end(self, number: int, reason: str) -> None:
        self.silos_lent.end_lease(self.trials[number].name)
        super().on_trial_end(number, reason)
        for silo, why in (self.silos_lent.mend() if reason else {}).items():
            self.progress.note(f"note: silo '{silo}' could not be started again: {why}")


def run_left(sweep: Sweep) -> None:
    """Run the trials that are left; every outcome is a line in the results file when this returns, or raises."""
    setup = sweep.setup
    with federation(setup.members, setup.task, setup.test, setup.training, setup.config.round_timeout) as standing:
        thresholds = (configured(setup.config, trial).threshold(len(setup.training)) for trial in sweep.left)
        agreement = standing.coordinator.agree(max(thresholds, default=0))
        _check_metrics(agreement)
        for line in standing.notices:
            print(f"note: {line}", file=sys.stderr)
        jobs = [job_of(setup, agreement.silos, trial) for trial in sweep.trials]  # what is wrong is said at once
        spent = privacy_of(jobs)
        for one in spent:
            print(f"note: {one.words}", file=sys.stderr)
        write_privacy(sweep.directory.path, spent)
        _write_beginning(sweep, agreement)
        silos = SharedSilos.of(standing.silos, setup.members, setup.task, agreement.standardizer)
        rungs = _rungs(sweep, jobs)
        shared = Shared(setup, silos.board, standing.evaluator, agreement.silos, sweep.objective, rungs)
        _run(sweep, shared, silos)


def _rungs(sweep: Sweep, jobs: Sequence[Job]) -> tuple[int, ...] | None:
    """Return the local steps at which a scheduler compares the trials; None where none does."""
    if sweep.config.scheduler == "fifo":
        return None
    rungs = common_rungs(jobs, EVALUATIONS)
    if len(rungs) < 2:
        remedy = "it stops none; vary frequencies that are multiples of one another"
        print(f"note: the trials exchange together at {len(rungs)} moments, so {sweep.config.scheduler} has nothing to "
              f"compare before their end: {remedy}", file=sys.stderr)  # fmt: skip
    return tuple(rungs)


def _run(sweep: Sweep, shared: Shared, silos: SharedSilos) -> None:
    def epochs(trial: Trial) -> int:
        return configured(sweep.setup.config, trial).epochs

    progress = SweepProgress(sweep.trials, sweep.objective, sweep.config.concurrent, sweep.done)
    watcher = LeaseKeeper(
        silos, sweep.trials, epochs, sweep.results_path, sweep.directory.tensorboard, progress, sweep.done,
        sweep.setup.training, sweep.metrics,
    )  # fmt: skip
    tune_folder = sweep.directory.path / "tune"
    try:
        run_trials(
            work,
            [{"number": trial.number, "point": list(trial.point), "seed": trial.seed} for trial in sweep.left],
            shared,
            watcher,
            folder=tune_folder,
            scheduler=sweep.config.scheduler,
            concurrent=sweep.config.concurrent,
            longest=max(map(epochs, sweep.left)),
            mode="max" if sweep.objective.higher_is_better else "min",
        )
    finally:
        watcher.close()
        shutil.rmtree(tune_folder, ignore_errors=True)


def _write_beginning(sweep: Sweep, agreement: Agreement) -> None:
    directory, found = sweep.directory, fingerprints(agreement)
    if sweep.is_resumed:
        _check_data(directory, found)
    # All that is needed to take the sweep up again.
    base = sweep.setup.config
    asked = {"command": sweep.command, "pipeline": base.PIPELINE, "sweep": asdict(sweep.config), "base": asdict(base)}
    directory.write_config(asked)
    directory.write_environment({name: silo.device for name, silo in agreement.silos.items()})
    directory.write_data(found)


def _check_metrics(agreement: Agreement) -> None:
    """DataError where nobody tells how good a model is."""
    if agreement.test is None and not any(silo.metrics for silo in agreement.silos.values()):
        raise DataError(
            "no silo tells metrics (their owners' site.yaml: kinds), so trials cannot be compared; a common test set "
            "would do, or ask the owners"
        )


def _check_data(directory: RunDirectory, found: list[dict[str, object]]) -> None:
    """Trials of one table must have seen the same rows: DataError names the silo whose data changed."""
    for before, now in zip(directory.read_data(), to_plain(found), strict=True):  # type: ignore[arg-type]
        if not is_same_source(before, now):
            raise DataError(f"silo '{before['silo']}': its data changed since the sweep began; start a new sweep")
