"""What a sweep found: one outcome per trial, summaries per point, the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import mean, stdev
from typing import Any

from pipelines.sweep.points import Trial
from ray_fed.reporting.results import number

SPENT = ("local_steps", "round", "bytes_sent", "seconds_compute", "seconds_communicate")


@dataclass(frozen=True)
class TrialOutcome:
    """The last report of a trial."""

    number: int
    label: str
    seed: int
    status: str
    """completed | stopped (by the scheduler) | failed"""
    reason: str = ""
    r2: float = float("nan")
    mae: float = float("nan")
    loss: float = float("nan")
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

    def row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PointSummary:
    """All repeats of one point that ran to their end."""

    label: str
    r2: Mapping[int, float]
    """Seed -> R2."""
    mae: Mapping[int, float]
    spent: Mapping[str, float]
    """Mean over repeats of SPENT."""
    num_failed: int

    @property
    def mean_r2(self) -> float:
        return mean(self.r2.values()) if self.r2 else math.nan

    @property
    def std_r2(self) -> float:
        return _spread(self.r2)

    @property
    def megabytes(self) -> float:
        return self.spent["bytes_sent"] / 1e6


def summaries(outcomes: Sequence[TrialOutcome]) -> list[PointSummary]:
    """Return one summary per point in the order of the trials; only trials that ran to their end count."""
    labels = dict.fromkeys(outcome.label for outcome in sorted(outcomes, key=lambda outcome: outcome.number))
    return [_summary(label, [outcome for outcome in outcomes if outcome.label == label]) for label in labels]


def _summary(label: str, outcomes: Sequence[TrialOutcome]) -> PointSummary:
    whole = [outcome for outcome in outcomes if outcome.status == "completed" and math.isfinite(outcome.r2)]
    whole.sort(key=lambda outcome: outcome.seed)
    return PointSummary(
        label,
        {outcome.seed: outcome.r2 for outcome in whole},
        {outcome.seed: outcome.mae for outcome in whole},
        {key: mean(getattr(outcome, key) for outcome in whole) if whole else math.nan for key in SPENT},
        sum(outcome.status == "failed" for outcome in outcomes),
    )


def _spread(values: Mapping[int, float]) -> float:
    return stdev(values.values()) if len(values) > 1 else 0.0


def pareto_front(points: Sequence[PointSummary]) -> list[str]:
    """Return the labels of points that no other one beats in both mean R2 and bytes, fewest bytes first."""
    known = sorted((p for p in points if p.r2), key=lambda p: (p.spent["bytes_sent"], -p.mean_r2))
    front, best = [], -math.inf
    for point in known:
        if point.mean_r2 > best:
            front.append(point.label)
            best = point.mean_r2
    return front


def table(points: Sequence[PointSummary]) -> list[list[str]]:
    """Return header and one row per point, as text."""
    header = [
        "point",
        "runs",
        "R2",
        "± std",
        "MAE",
        "± std",
        "steps/silo",
        "rounds",
        "MB",
        "computing s",
        "communicating s",
    ]
    return [header, *(_cells(point) for point in points)]


def _cells(point: PointSummary) -> list[str]:
    spent = point.spent
    runs = f"{len(point.r2)}" + (f" ({point.num_failed} failed)" if point.num_failed else "")
    mae = mean(point.mae.values()) if point.mae else math.nan
    several = len(point.r2) > 1
    return [
        point.label, runs, number(point.mean_r2), number(point.std_r2) if several else "-", number(mae),
        number(_spread(point.mae)) if several else "-", number(spent["local_steps"], 0), number(spent["round"], 0),
        number(point.megabytes, 1), number(spent["seconds_compute"], 2), number(spent["seconds_communicate"], 2),
    ]  # fmt: skip
