"""`ray-fed attach`: the progress of a run, read from its folder while somebody else writes it."""

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.round_notes import POOLED_OVER, UNEVALUATED, FailureNotes
from pipelines.training.checkpoint import kind_of
from pipelines.training.config import FormationEnergyConfig
from ray_fed.materials.databases.columns import unit_of_target
from ray_fed.materials.units import UNKNOWN_UNIT
from ray_fed.metrics import TRAIN_LOSS, Metric, regression_metrics
from ray_fed.reporting.results import measured, results_from_summary
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import RoundProgress, results_table

LOOK_EVERY_S = 0.5


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Show the rounds so far and those to come; 0 when the run completed, 1 when it ended otherwise or stands still."""
    directory = RunDirectory.open(options["run_directory"])
    metrics, clock = _metrics(directory), RunClock()
    with RoundProgress(metrics, clock=clock) as progress:
        screen = Screen(progress, clock)
        for record, seconds in follow(directory, lambda: time.sleep(LOOK_EVERY_S)):
            screen.show(record, seconds)
    return _conclusion(directory, metrics)


def _metrics(directory: RunDirectory) -> tuple[Metric, ...]:
    """Return what the run is measured by; runs that do not say so are of before there was `ray-fed train`."""
    unit = unit_of_target(str(directory.read_config().get("target", "")))
    assumed = FormationEnergyConfig.UNIT_IF_UNKNOWN
    return directory.read_metrics() or regression_metrics(assumed if unit == UNKNOWN_UNIT else unit)


def follow(directory: RunDirectory, wait: Callable[[], object]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yield the lines of history.jsonl with their seconds as they are written, until nobody works on the run."""
    told = 0
    while True:
        is_worked_on = has_worker(directory.path)  # asked first: what is written between the two is read below
        history = directory.read_history()
        timing = directory.read_timing()
        for number in range(told, len(history)):
            seconds: Any = timing[number].get("total", 0.0) if number < len(timing) else 0.0
            yield history[number], float(seconds)
        told = len(history)
        if not is_worked_on:
            return
        wait()


def has_worker(path: Path) -> bool:
    """Whether a process on this machine holds the run: a run's process locks its folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


class RunClock:
    """Shows the run's time, not ours: rounds that lie behind took what they took, however fast they are read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Screen:
    """Shows records of a history as the run's own terminal does."""

    def __init__(self, progress: RoundProgress, clock: RunClock):
        self.progress, self.clock = progress, clock
        self._job = ""
        self._failures = FailureNotes()

    def show(self, record: Mapping[str, Any], seconds: float) -> None:
        """Show one round, which took so long; a record that is none (a pipeline without rounds) is counted."""
        job = str(record.get("job", "run"))
        if job != self._job:
            self._job = job
            self.progress.start(int(record.get("num_rounds", 1)), job)
        self.clock.seconds += seconds
        self._tell_failures(record)
        if record.get("round", 1):
            self.progress.advance(self._shown(record))

    def _tell_failures(self, record: Mapping[str, Any]) -> None:
        told = record.get("failures", {}), record.get(UNEVALUATED, {}), record.get(POOLED_OVER, ())
        for line in self._failures.lines(*told):
            self.progress.note(f"round {record['round']}/{record['num_rounds']}: {line}")

    def _shown(self, record: Mapping[str, Any]) -> dict[str, Any]:
        values = record.get("metrics", {})
        model = "federated" if kind_of(record) == "federated" else "pooled"
        return {
            "server_round": record.get("round"),
            TRAIN_LOSS: values.get(TRAIN_LOSS),
            **measured(values, model, self.progress.metrics),
            "bytes_sent": record.get("bytes_sent"),
        }


def _conclusion(directory: RunDirectory, metrics: Sequence[Metric]) -> int:
    """Say how it ended."""
    summary = dict(directory.read_summary()) if directory.summary_path.is_file() else {}
    status = summary.get("status", "running")
    if status == "completed":
        results = results_from_summary(summary, metrics)
        if results.rows:
            results_table(results)
            print()
        print(f"report  {directory.report_path}")
        return 0
    reason = f": {summary['reason']}" if summary.get("reason") else ""
    said = "no process on this machine works on it" if status == "running" else f"{status}{reason}"
    print(f"{directory.path}: {said}; go on with: ray-fed resume {directory.path}", file=sys.stderr)
    return 1
