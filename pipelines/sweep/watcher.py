"""Keeps and shows what trials report: results.jsonl, TensorBoard, and a line a person can read."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.sweep import results_file
from pipelines.sweep.outcomes import TrialOutcome
from pipelines.sweep.points import Trial, swept_fields
from pipelines.sweep.progress import SweepProgress
from ray_fed.metrics import TRAIN_LOSS, Metric
from ray_fed.reporting.tensorboard_log import EventLog, chart_titles, global_tag, silo_tag

CURVES = (TRAIN_LOSS, "bytes_sent", "seconds_compute", "seconds_communicate")
"""Besides those of the metrics."""
SILO_CURVES = (TRAIN_LOSS, "seconds_compute")


class Watcher:
    """The listener of the trials, in the driver's process."""

    def __init__(
        self,
        trials: Sequence[Trial],
        total_epochs: Callable[[Trial], float],
        results: Path,
        tensorboard: Path,
        progress: SweepProgress,
        done: Sequence[TrialOutcome] = (),
        silos: Sequence[str] = (),
        metrics: Sequence[Metric] = (),
    ):
        self.trials = {trial.number: trial for trial in trials}
        self.total_epochs, self.results, self.tensorboard = total_epochs, results, tensorboard
        self.outcomes = {outcome.number: outcome for outcome in done}
        self.progress, self.silos, self.metrics = progress, silos, metrics
        self._last: dict[int, Mapping[str, Any]] = {}
        self._logs: dict[int, EventLog] = {}
        self._fields = swept_fields(list(self.trials.values()))
        self._describe()

    def on_trial_start(self, number: int) -> None:
        if number not in self._logs:
            trial = self.trials[number]
            folder = self.tensorboard / trial.name
            shutil.rmtree(folder, ignore_errors=True)  # curves of a try that was broken off
            self._logs[number] = EventLog(folder)
            name = f"{self.tensorboard.parent.name} {trial.name}"  # trials of two sweeps are not one
            self._logs[number].hyperparameters({"pipeline": "sweep", **self._values(trial)}, name)
            self.progress.on_trial_start(trial)

    def on_trial_report(self, number: int, report: Mapping[str, Any]) -> None:
        self._last[number] = report
        log, step = self._logs[number], int(report["local_steps"])
        curves = {metric.name: report["metrics"][metric.name] for metric in self.metrics}
        curves |= {name: report[name] for name in CURVES}
        log.scalars({global_tag(name): value for name, value in curves.items()}, step)
        for silo, values in report.get("silos", {}).items():
            log.scalars({silo_tag(silo, name): value for name, value in values.items()}, step)
        self.progress.on_trial_report(self.trials[number], report)

    def on_trial_end(self, number: int, reason: str) -> None:
        trial, report = self.trials[number], self._last.get(number, {})
        outcome = TrialOutcome.of(trial, report, self.total_epochs(trial), reason)
        self.outcomes[number] = outcome
        results_file.append(self.results, outcome)
        log = self._logs.pop(number)
        if outcome.status != "failed":
            log.outcome(self._final(outcome), step=outcome.local_steps)
        log.close()
        self.progress.on_trial_end(trial, outcome)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self.progress.close()

    def _describe(self) -> None:
        """One event file says how the curves are grouped; each trial's with which values it was run."""
        for old in self.tensorboard.glob("events.*"):
            old.unlink()  # of the process that this one takes over from
        with EventLog(self.tensorboard) as log:
            charts = chart_titles(self.metrics)
            shown = {name: charts[name] for name in (*(metric.name for metric in self.metrics), *CURVES)}
            log.custom_layout(self.silos, shown, SILO_CURVES)

    def _values(self, trial: Trial) -> dict[str, Any]:
        point = dict(trial.point)
        return {**{field: point[field] for field in self._fields}, "seed": trial.seed}

    def _final(self, outcome: TrialOutcome) -> dict[str, float]:
        return {
            **{metric.name: outcome.value(metric) for metric in self.metrics},
            "megabytes": outcome.bytes_sent / 1e6,
            "seconds_compute": outcome.seconds_compute,
            "seconds_communicate": outcome.seconds_communicate,
        }
