"""What a sweep has to do, how far it came, and where it is kept."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.sweep.config import SweepConfig
from pipelines.sweep.outcomes import TrialOutcome, objective_of
from pipelines.sweep.points import Trial
from pipelines.training.setup import Setup
from ray_fed.metrics import Metric, reported
from ray_fed.reporting.run_directory import RunDirectory


@dataclass(frozen=True)
class Sweep:
    """A sweep that is about to run, or to go on."""

    config: SweepConfig
    setup: Setup
    trials: tuple[Trial, ...]
    directory: RunDirectory
    command: str
    done: tuple[TrialOutcome, ...] = ()
    """Trials that came to their end in an earlier process."""
    is_resumed: bool = False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What tables and curves show."""
        return reported(self.setup.task.metrics)

    @property
    def objective(self) -> Metric:
        """By which trials are compared."""
        return objective_of(self.setup.task.metrics, self.config.objective)

    @property
    def left(self) -> list[Trial]:
        finished = {outcome.number for outcome in self.done}
        return [trial for trial in self.trials if trial.number not in finished]

    @property
    def results_path(self) -> Path:
        return self.directory.path / "results.jsonl"
