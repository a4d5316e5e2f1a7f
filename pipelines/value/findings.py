"""What a study of value has found: points of learning curves, contribution scores, and what they say in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from pipelines.training.members import SURE
from ray_fed.metrics import Metric

LIMITS_OF_CURVES = (
    "The model of the others was trained without the member, so a curve says what receiving it is worth; that joining "
    "makes this model better, too, is not in it. The features' means and variances are of all silos. Rows are drawn "
    "anew for each draw, the unseen rows are the same."
)
LIMITS_OF_SCORES = (
    "A contribution is by how much the model is worse for all silos' unseen rows without the silo: one seed, at this "
    "number of rows, beside these others; of two silos with the same rows neither contributes. It is no payment rule. "
    "Leaving updates out of the sums costs nothing and is a guess, as the others' updates were made at models that the "
    "silo had a part in; training again without the silo is the measure."
)


@dataclass(frozen=True)
class CurvePoint:
    """A member at one number of rows, over the draws."""

    silo: str
    num_rows: int
    own: tuple[float, ...]
    """Metric of what it can do alone, draw by draw."""
    joined: tuple[float, ...]
    """With the model of the others."""
    errors: tuple[float, ...] = ()
    """Standard errors of the differences over the unseen rows."""

    def gains(self, metric: Metric) -> list[float]:
        """Return by how many per cent of its own error the member is better off, draw by draw; of a metric of which 1
        is all, of what is missing to it."""
        sign = -1 if metric.higher_is_better else 1
        wholes = [1 - own if metric.higher_is_better else own for own in self.own]
        parts = zip(self.own, self.joined, wholes, strict=True)
        return [100 * sign * (own - joined) / whole if whole else 0.0 for own, joined, whole in parts]

    def noise(self, metric: Metric) -> float:
        """Return the uncertainty of the mean gain, in per cent: over the draws, or over the unseen rows, whichever is
        larger."""
        gains, own = self.gains(metric), mean(self.own)
        over_draws = stdev(gains) if len(gains) > 1 else 0.0
        known = [error for error in self.errors if error == error]
        over_rows = 100 * mean(known) / own if known and own else 0.0
        return max(over_draws, over_rows)


@dataclass(frozen=True)
class SiloContribution:
    """What one silo contributes, in the metric's unit; more is better."""

    silo: str
    num_rows: int
    retrained: float | None
    """By training without it."""
    left_out: float | None
    """By leaving its updates out of the sums; None where there are no updates of parameters."""


@dataclass(frozen=True)
class ValueFindings:
    """All of it."""

    metric: Metric
    curves: Mapping[str, Sequence[CurvePoint]]
    contributions: Sequence[SiloContribution] = ()
    whole: float | None = None
    """The metric of the model of all, on the unseen rows of all silos."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Silo -> why it told no curve."""

    def sentence(self, silo: str) -> str:
        """Say to a member what joining would bring with all of its rows, and how that has changed with rows."""
        points, metric = self.curves[silo], self.metric
        if not points:
            return f"{silo}: it has too few rows for a curve"
        last, first = points[-1], points[0]
        gain, noise = mean(last.gains(metric)), last.noise(metric)
        if abs(gain) <= SURE * noise:
            said = "joining makes no difference that its unseen rows can show"
        else:
            said = "joining pays" if gain > 0 else "joining does not pay"
        unit = f" {metric.unit}" if metric.unit else ""
        shown = [f"{mean(values):.{metric.digits}f}" for values in (last.own, last.joined)]
        early = (
            f"; with {first.num_rows:,} rows it would be {mean(first.gains(metric)):+.1f} %" if first != last else ""
        )
        numbers = f"{metric.label or metric.name} {shown[0]}{unit} alone, {shown[1]}{unit} joined"
        return f"{silo}: with its {last.num_rows:,} rows {said}: {numbers}, {gain:+.1f} ± {noise:.1f} %{early}"

    def curve_table(self) -> list[list[str]]:
        metric = self.metric
        unit = f" ({metric.unit})" if metric.unit else ""
        header, rows = ["member", "rows", f"alone{unit}", f"joined{unit}", "gain"], []
        for silo, points in self.curves.items():
            for point in points:
                own, joined = (_shown(values, metric.digits) for values in (point.own, point.joined))
                gain = f"{mean(point.gains(metric)):+.1f} ± {point.noise(metric):.1f} %"
                rows.append([silo, f"{point.num_rows:,}", own, joined, gain])
        return [header, *rows]

    def curve_columns(self) -> dict[str, list[object]]:
        """Return the columns of value.csv: one row for each draw."""
        found: dict[str, list[object]] = {
            name: [] for name in ("silo", "rows", "draw", "alone", "joined", "gain_percent", "standard_error")
        }
        for silo, points in self.curves.items():
            for point in points:
                gains, errors = point.gains(self.metric), point.errors or (float("nan"),) * len(point.own)
                for draw, values in enumerate(zip(point.own, point.joined, gains, errors, strict=True)):
                    for name, value in zip(found, (silo, point.num_rows, draw, *values), strict=True):
                        found[name].append(value)
        return found

    def contribution_table(self) -> list[list[str]]:
        if not self.contributions:
            return []
        digits, unit = self.metric.digits, f" ({self.metric.unit})" if self.metric.unit else ""
        rows = [
            [one.silo, f"{one.num_rows:,}", *(_signed(value, digits) for value in (one.retrained, one.left_out))]
            for one in self.contributions
        ]
        return [["silo", "rows", f"trained without it{unit}", f"its updates left out{unit}"], *rows]

    def contribution_columns(self) -> dict[str, list[object]]:
        """Return the columns of contributions.csv."""
        return {
            "silo": [one.silo for one in self.contributions],
            "rows": [one.num_rows for one in self.contributions],
            "retrained": [_number(one.retrained) for one in self.contributions],
            "updates_left_out": [_number(one.left_out) for one in self.contributions],
        }

    def summary(self) -> dict[str, object]:
        """Return `member.<silo>.gain_percent` and `.gain_noise` with all rows, `contribution.<silo>.retrained` and
        `.updates_left_out`, for summary.json."""
        found: dict[str, object] = {}
        for silo, points in self.curves.items():
            if points:
                found[f"member.{silo}.gain_percent"] = mean(points[-1].gains(self.metric))
                found[f"member.{silo}.gain_noise"] = points[-1].noise(self.metric)
        for one in self.contributions:
            kinds = {"retrained": one.retrained, "updates_left_out": one.left_out}
            found |= {f"contribution.{one.silo}.{kind}": value for kind, value in kinds.items() if value is not None}
        if self.whole is not None:
            found[f"federated.{self.metric.name}"] = self.whole
        return found


def _shown(values: Sequence[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
