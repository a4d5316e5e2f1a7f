"""Keeps and shows what trials report: results.jsonl, TensorBoard, one line a trial or a line that is redrawn."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.sweep.outcomes import TrialOutcome
from pipelines.sweep.points import Trial, swept_fields
from ray_fed.reporting.plain_values import to_json
from ray_fed.reporting.results import number
from ray_fed.reporting.tensorboard_log import EventLog

METRICS = {
    "sweep/r2": "R²",
    "sweep/mae": "MAE",
    "sweep/megabytes": "MB sent",
    "sweep/seconds_compute": "Seconds computing",
    "sweep/seconds_communicate": "Seconds communicating",
}


class Watcher:
    """The listener of the trials, in the driver's process."""

    def __init__(
        self,
        trials: Sequence[Trial],
        total_epochs: Callable[[Trial], float],
        results: Path,
        tensorboard: Path,
        done: Sequence[TrialOutcome] = (),
    ):
        self.trials = {trial.number: trial for trial in trials}
        self.total_epochs, self.results, self.tensorboard = total_epochs, results, tensorboard
        self.outcomes = {outcome.number: outcome for outcome in done}
        self._last: dict[int, Mapping[str, Any]] = {}
        self._logs: dict[int, EventLog] = {}
        self._fields = swept_fields(list(self.trials.values()))
        self._started, self._at_start = time.monotonic(), len(self.outcomes)
        self._describe()

    def reports(self, number: int, report: Mapping[str, Any]) -> None:
        self._last[number] = report
        log = self._log(number)
        for quantity in ("r2", "mae", "loss"):
            log.scalar(f"global/{quantity}", float(report[quantity]), int(report["round"]))
        self._show(end="\r")

    def ends(self, number: int, reason: str) -> None:
        trial, report = self.trials[number], self._last.get(number, {})
        outcome = TrialOutcome.of(trial, report, self.total_epochs(trial), reason)
        self.outcomes[number] = outcome
        with self.results.open("ab") as file:
            file.write(to_json(outcome.row()) + b"\n")
        self._finish_log(number, outcome)
        self._say(outcome)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[K")

    # ---- TensorBoard

    def _describe(self) -> None:
        """One event file says what is varied; each trial's says with which values."""
        values = {
            field: sorted({dict(trial.point).get(field) for trial in self.trials.values()} - {None}, key=str)
            for field in self._fields
        }
        with EventLog(self.tensorboard) as log:
            log.experiment({**values, "seed": sorted({t.seed for t in self.trials.values()})}, METRICS)

    def _log(self, number: int) -> EventLog:
        if number not in self._logs:
            trial = self.trials[number]
            self._logs[number] = EventLog(self.tensorboard / trial.name)
            self._logs[number].hyperparameters({**_texts(trial, self._fields), "seed": trial.seed}, trial.name)
        return self._logs[number]

    def _finish_log(self, number: int, outcome: TrialOutcome) -> None:
        log = self._log(number)
        if outcome.status != "failed":
            final = {
                "sweep/r2": outcome.r2,
                "sweep/mae": outcome.mae,
                "sweep/megabytes": outcome.bytes_sent / 1e6,
                "sweep/seconds_compute": outcome.seconds_compute,
                "sweep/seconds_communicate": outcome.seconds_communicate,
            }
            log.scalars(final, outcome.round)
        log.close()
        del self._logs[number]

    # ---- terminal

    def _say(self, outcome: TrialOutcome) -> None:
        what = f"R2 {number(outcome.r2)}" if outcome.status != "failed" else outcome.reason
        head = f"trial {len(self.outcomes)}/{len(self.trials)}  {outcome.label}, seed {outcome.seed}: "
        status = "" if outcome.status == "completed" else f"{outcome.status} at epoch {outcome.epochs:g}, "
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[K")
        sys.stderr.write(f"{head}{status}{what}  {self._standing()}\n")
        sys.stderr.flush()

    def _show(self, end: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\x1b[K{len(self.outcomes)}/{len(self.trials)} trials  {self._standing()}{end}")
            sys.stderr.flush()

    def _standing(self) -> str:
        """Best so far and time left."""
        good = [outcome for outcome in self.outcomes.values() if outcome.r2 == outcome.r2]
        best = max(good, key=lambda outcome: outcome.r2, default=None)
        done = len(self.outcomes) - self._at_start
        left = (time.monotonic() - self._started) / done * (len(self.trials) - len(self.outcomes)) if done else None
        said = [f"best {number(best.r2)} ({best.label})"] if best else []
        return "  ".join([*said, *([f"{left:.0f} s left"] if left is not None else [])])


def read_outcomes(path: Path) -> list[TrialOutcome]:
    """Return the outcomes of an earlier process; a last line cut by a kill is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(TrialOutcome(**{key: _number(value) for key, value in json.loads(line).items()}))
        except (ValueError, TypeError):
            break
    return found


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


def _texts(trial: Trial, fields: Sequence[str]) -> dict[str, Any]:
    point = dict(trial.point)
    return {field: point.get(field, "") for field in fields}
