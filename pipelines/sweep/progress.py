"""How far a sweep is: on a terminal one line that is redrawn, elsewhere one line per finished trial."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, TextIO

from pipelines.sweep.outcomes import TrialOutcome
from pipelines.sweep.points import Trial
from ray_fed.metrics import Metric
from ray_fed.reporting.results import number
from ray_fed.reporting.terminal import clipped, one_line


class SweepProgress:
    """Says trials done, the best so far and the time left."""

    def __init__(
        self,
        trials: Sequence[Trial],
        objective: Metric,
        concurrent: int = 1,
        done: Sequence[TrialOutcome] = (),
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stream, self.clock, self.concurrent = stream or sys.stderr, clock, concurrent
        self.total, self.objective = len(trials), objective
        self.left = {trial.number: trial for trial in trials}
        self.best: TrialOutcome | None = None
        self._began: dict[int, float] = {}
        self._took: dict[str, list[float]] = {}
        self._redraws = self.stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        for outcome in done:
            self._count(outcome)

    def on_trial_start(self, trial: Trial) -> None:
        self._began[trial.number] = self.clock()
        self._draw(trial, 0.0)

    def on_trial_report(self, trial: Trial, report: Mapping[str, Any]) -> None:
        self._draw(trial, report["epochs"], self._reached(report["metrics"].get(self.objective.name)))

    def on_trial_end(self, trial: Trial, outcome: TrialOutcome) -> None:
        seconds = self.clock() - self._began.pop(trial.number)
        if outcome.status == "completed":
            self._took.setdefault(outcome.label, []).append(seconds)
        self._count(outcome)
        said = f"trial {self.total - len(self.left)}/{self.total}  {self._fate(outcome)}  {seconds:.1f} s"
        self._tell(f"{said}  |  {self.standing()}")

    def note(self, text: str) -> None:
        """Say something that stays."""
        self._tell(one_line(text))

    def close(self) -> None:
        if self._redraws:
            self._write("\r\x1b[K")

    def standing(self) -> str:
        """Return the best so far and the time left."""
        best = self.best
        said = [f"best {self._reached(best.value(self.objective))} ({best.label}, seed {best.seed})"] if best else []
        left = self.seconds_left()
        return ", ".join([*said, *([f"{_duration(left)} left"] if left is not None else [])])

    def seconds_left(self) -> float | None:
        """Return the seconds that the rest should take: a trial as long as others of its point, else as the average."""
        if not self._took:
            return None if self.left else 0.0
        average = mean(seconds for each in self._took.values() for seconds in each)
        now = self.clock()
        rest = 0.0
        for trial in self.left.values():
            expected = mean(self._took.get(trial.label(), [average]))
            rest += max(0.0, expected - (now - self._began.get(trial.number, now)))
        return rest / min(self.concurrent, max(1, len(self.left)))

    def _count(self, outcome: TrialOutcome) -> None:
        self.left.pop(outcome.number, None)
        value = outcome.value(self.objective)
        best = self.objective.worst if self.best is None else self.best.value(self.objective)
        if outcome.status != "failed" and self.objective.gain(value, best) > 0:
            self.best = outcome

    def _reached(self, value: object) -> str:
        return f"{self.objective.title} {number(value, self.objective.digits)}"

    def _fate(self, outcome: TrialOutcome) -> str:
        what = f"{outcome.label}, seed {outcome.seed}"
        if outcome.status == "failed":
            return f"{what}: failed: {outcome.reason}"
        stopped = f"stopped at epoch {outcome.epochs:g}, " if outcome.status == "stopped" else ""
        return f"{what}: {stopped}{self._reached(outcome.value(self.objective))}"

    def _draw(self, trial: Trial, epochs: float, said: str = "") -> None:
        if self._redraws:
            done = f"{self.total - len(self.left)}/{self.total} trials"
            now = " ".join(filter(None, [trial.label(), f"seed {trial.seed}", f"epoch {epochs:.0f}", said]))
            text = "  ".join(filter(None, [done, self.standing(), now]))
            self._write(f"\r\x1b[K{clipped(text, shutil.get_terminal_size().columns - 1)}")

    def _tell(self, line: str) -> None:
        self._write(("\r\x1b[K" if self._redraws else "") + f"{line}\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
