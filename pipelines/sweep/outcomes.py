"""What a sweep found: one outcome per trial, summaries per point, the Pareto front, and a recommendation."""

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
    """All repeats of one point."""

    label: str
    r2: tuple[float, ...]
    mae: tuple[float, ...]
    spent: Mapping[str, float]
    """Mean over repeats of SPENT."""
    num_failed: int

    @property
    def mean_r2(self) -> float:
        return mean(self.r2) if self.r2 else float("nan")

    @property
    def std_r2(self) -> float:
        return stdev(self.r2) if len(self.r2) > 1 else 0.0


def summaries(outcomes: Sequence[TrialOutcome]) -> list[PointSummary]:
    """Return one summary per point in the order of the trials; only trials that ran to their end count."""
    labels = dict.fromkeys(outcome.label for outcome in sorted(outcomes, key=lambda outcome: outcome.number))
    found = []
    for label in labels:
        mine = [outcome for outcome in outcomes if outcome.label == label]
        whole = [outcome for outcome in mine if outcome.status == "completed" and math.isfinite(outcome.r2)]
        spent = {key: mean(getattr(outcome, key) for outcome in whole) if whole else float("nan") for key in SPENT}
        found.append(
            PointSummary(
                label,
                tuple(outcome.r2 for outcome in whole),
                tuple(outcome.mae for outcome in whole),
                spent,
                sum(outcome.status == "failed" for outcome in mine),
            )
        )
    return found


def pareto_front(points: Sequence[PointSummary]) -> list[str]:
    """Return the labels of points that no other one beats in both mean R2 and bytes, fewest bytes first."""
    known = sorted((p for p in points if p.r2), key=lambda p: (p.spent["bytes_sent"], -p.mean_r2))
    front, best = [], -math.inf
    for point in known:
        if point.mean_r2 > best:
            front.append(point.label)
            best = point.mean_r2
    return front


def recommendation(points: Sequence[PointSummary]) -> str:
    """Say which point to take and why: the one with the fewest bytes whose mean R2 is within the spread of the best."""
    known = [point for point in points if point.r2]
    if not known:
        return "no trial ran to its end; nothing can be recommended"
    best = max(known, key=lambda point: point.mean_r2)
    # The standard error of a difference of two means; with one repeat each there is no spread to speak of.
    spread = math.hypot(best.std_r2, *[0.0]) / math.sqrt(len(best.r2))
    good = [p for p in known if p.mean_r2 >= best.mean_r2 - math.hypot(spread, p.std_r2 / math.sqrt(len(p.r2)))]
    chosen = min(good, key=lambda point: point.spent["bytes_sent"])
    megabytes = chosen.spent["bytes_sent"] / 1e6
    text = (
        f"take {chosen.label}: R2 {number(chosen.mean_r2)} ± {number(chosen.std_r2)} with {megabytes:.1f} MB and "
        f"{chosen.spent['seconds_communicate']:.2f} s of communication"
    )
    if chosen.label == best.label:
        return f"{text}; nothing with fewer bytes comes within one standard error of it"
    times = best.spent["bytes_sent"] / chosen.spent["bytes_sent"]
    return (
        f"{text}; the best mean, {best.label} with R2 {number(best.mean_r2)} ± {number(best.std_r2)}, is within one "
        f"standard error of it and sends {times:.3g} times the bytes"
    )


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
    mae = (mean(point.mae), stdev(point.mae) if len(point.mae) > 1 else 0.0) if point.mae else (float("nan"),) * 2
    spent = point.spent
    runs = f"{len(point.r2)}" + (f" ({point.num_failed} failed)" if point.num_failed else "")
    return [
        point.label, runs, number(point.mean_r2), number(point.std_r2), number(mae[0]), number(mae[1]),
        number(spent["local_steps"], 0), number(spent["round"], 0), number(spent["bytes_sent"] / 1e6, 1),
        number(spent["seconds_compute"], 2), number(spent["seconds_communicate"], 2),
    ]  # fmt: skip
