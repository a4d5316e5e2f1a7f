"""What a sweep found: one outcome per trial, summaries per point, the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import mean, stdev
from typing import Any

from pipelines.sweep.points import Trial
from ray_fed.errors import ConfigError
from ray_fed.metrics import Metric, reported
from ray_fed.reporting.results import number

SPENT = ("local_steps", "round", "bytes_sent", "seconds_compute", "seconds_communicate")


def objective_of(metrics: Sequence[Metric], name: str = "") -> Metric:
    """Return the metric by which trials are compared: the one named; else the first without a unit, which says the same
    of every target; else the first. ConfigError for a name that the task does not have."""
    known = {metric.name: metric for metric in metrics}
    if name and name not in known:
        raise ConfigError(f"objective={name!r} must be one of the task's metrics: {', '.join(known)}")
    return known[name] if name else next((m for m in reported(metrics) if not m.unit), metrics[0])


@dataclass(frozen=True)
class TrialOutcome:
    """The last report of a trial."""

    number: int
    label: str
    seed: int
    status: str
    """completed | stopped (by the scheduler) | failed"""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the federated model."""
    train_loss: float = float("nan")
    epochs: float = 0.0
    round: int = 0
    local_steps: int = 0
    """Per silo: the same for all trials that ran to their end, unless epochs or batch size are varied."""
    bytes_sent: int = 0
    seconds_compute: float = 0.0
    seconds_communicate: float = 0.0
    seconds_evaluate: float = 0.0
    failures: int = 0
    digest: str = ""
    """sha256 of the model: equal to that of the same single run."""

    @classmethod
    def of(cls, trial: Trial, report: Mapping[str, Any], total_epochs: float, reason: str = "") -> "TrialOutcome":
        """Return the outcome of a trial whose last report this is."""
        known = {field.name for field in fields(cls)} - {"number", "label", "seed", "status", "reason"}
        values = {key: value for key, value in report.items() if key in known}
        is_whole = values.get("epochs", 0.0) >= total_epochs - 1e-9
        status = "failed" if reason else "completed" if is_whole else "stopped"
        return cls(trial.number, trial.label(), trial.seed, status, reason, **values)

    def value(self, metric: Metric) -> float:
        """Return what the model comes to; NaN where it was not measured."""
        return self.metrics.get(metric.name, math.nan)


@dataclass(frozen=True)
class PointSummary:
    """All repeats of one point that ran to their end."""

    label: str
    objective: Metric
    values: Mapping[str, Mapping[int, float]]
    """Name of a metric -> seed -> value."""
    spent: Mapping[str, float]
    """Mean over repeats of SPENT."""
    num_failed: int

    @property
    def reached(self) -> Mapping[int, float]:
        """Seed -> value of the objective."""
        return self.values.get(self.objective.name, {})

    @property
    def mean(self) -> float:
        """Of the objective; NaN without a run that ended."""
        return self.mean_of(self.objective)

    @property
    def std(self) -> float:
        return self.std_of(self.objective)

    def mean_of(self, metric: Metric) -> float:
        known = self.values.get(metric.name, {})
        return mean(known.values()) if known else math.nan

    def std_of(self, metric: Metric) -> float:
        """Return the spread over seeds; 0 with one."""
        known = self.values.get(metric.name, {})
        return stdev(known.values()) if len(known) > 1 else 0.0

    def gain_over(self, other: "PointSummary") -> float:
        """Return by how much its mean is better than that of another point."""
        return self.objective.gain(self.mean, other.mean)

    @property
    def megabytes(self) -> float:
        return self.spent["bytes_sent"] / 1e6


def summaries(outcomes: Sequence[TrialOutcome], objective: Metric) -> list[PointSummary]:
    """Return one summary per point in the order of the trials; only trials that ran to their end count."""
    labels = dict.fromkeys(outcome.label for outcome in sorted(outcomes, key=lambda outcome: outcome.number))
    return [_summary(label, [outcome for outcome in outcomes if outcome.label == label], objective) for label in labels]


def _summary(label: str, outcomes: Sequence[TrialOutcome], objective: Metric) -> PointSummary:
    ended = (outcome for outcome in outcomes if outcome.status == "completed")
    whole = [outcome for outcome in ended if math.isfinite(outcome.value(objective))]
    whole.sort(key=lambda outcome: outcome.seed)
    names = dict.fromkeys(name for outcome in whole for name in outcome.metrics)
    return PointSummary(
        label,
        objective,
        {name: {outcome.seed: outcome.metrics.get(name, math.nan) for outcome in whole} for name in names},
        {key: mean(getattr(outcome, key) for outcome in whole) if whole else math.nan for key in SPENT},
        sum(outcome.status == "failed" for outcome in outcomes),
    )


def best_of(points: Sequence[PointSummary]) -> PointSummary | None:
    """Return the point with the best mean, the first of equal ones; None where no run ended."""
    known = [point for point in points if point.reached]
    return next((point for point in known if all(other.gain_over(point) <= 0 for other in known)), None)


def pareto_front(points: Sequence[PointSummary]) -> list[str]:
    """Return the labels of points that no other one beats in both the mean objective and bytes, fewest bytes first."""
    known = sorted((p for p in points if p.reached), key=cost_and_worth)
    front: list[PointSummary] = []
    for point in known:
        if not front or point.gain_over(front[-1]) > 0:
            front.append(point)
    return [point.label for point in front]


def cost_and_worth(point: PointSummary) -> tuple[float, float]:
    """Return a sort key: fewest bytes first, the better of equal ones before the worse."""
    return point.spent["bytes_sent"], point.objective.gain(0.0, point.mean)


def table(points: Sequence[PointSummary], metrics: Sequence[Metric]) -> list[list[str]]:
    """Return header and one row per point, as text; the objective before the other metrics."""
    spent = ["steps/silo", "rounds", "MB", "computing s", "communicating s"]
    objective = points[0].objective if points else metrics[0]
    shown = (objective, *(metric for metric in metrics if metric != objective))
    titles = [title for metric in shown for title in (metric.title, "± std")]
    return [["point", "runs", *titles, *spent], *(_cells(point, shown) for point in points)]


def _cells(point: PointSummary, metrics: Sequence[Metric]) -> list[str]:
    spent, several = point.spent, len(point.reached) > 1
    runs = f"{len(point.reached)}" + (f" ({point.num_failed} failed)" if point.num_failed else "")
    measured: list[str] = []
    for metric in metrics:
        std = number(point.std_of(metric), metric.digits) if several else "-"
        measured += [number(point.mean_of(metric), metric.digits), std]
    return [
        point.label, runs, *measured, number(spent["local_steps"], 0), number(spent["round"], 0),
        number(point.megabytes, 1), number(spent["seconds_compute"], 2), number(spent["seconds_communicate"], 2),
    ]  # fmt: skip
