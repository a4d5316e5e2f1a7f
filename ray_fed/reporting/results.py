"""The rows everyone asks for first: each silo alone, pooled, federated. One source for terminal, report and figures."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_fed.metrics import Metric, reported
from ray_fed.reporting.writing import to_plain

KINDS = ("silo", "best", "other", "pooled", "best pooled", "federated")
"""In the order of a table."""
BEST = "best"
"""First part of the keys of what a silo, or who had all rows, could do alone with the best of several learners:
`best.<silo>.<metric>`, and `best.<silo>.learner`."""
SAME_NETWORK = "network"
"""The learner that is the federation's own network: its row is there anyway."""


@dataclass(frozen=True)
class ResultRow:
    """One model on the common test set."""

    name: str
    kind: str
    """silo (one silo's rows alone, the same network) | best (the best that one could do alone) | pooled | best pooled |
    federated | other"""
    values: Mapping[str, float | None]
    """Name of a metric -> value."""
    spreads: Mapping[str, float | None] = field(default_factory=dict)
    """Name of a metric -> standard deviation over seeds; none with one seed."""
    num_examples: int | None = None
    """Rows the model was trained on."""
    learner: str = SAME_NETWORK
    """What learned."""
    place: str = ""
    """The silo whose rows it learned from; "pooled" of all rows' best, "" of others."""

    @property
    def label(self) -> str:
        """How the model is called in tables: "mit alone", "pooled", "federated"."""
        return f"{self.name} alone" if self.kind == "silo" else self.name


@dataclass(frozen=True)
class Results:
    """The models of a run, and what they are measured by."""

    metrics: tuple[Metric, ...] = ()
    """Those that are shown, the headline first."""
    rows: tuple[ResultRow, ...] = ()
    others_tried: bool = False
    """Whether silos tried other learners than the network, even where these are compared on other rows than here."""

    @property
    def has_spread(self) -> bool:
        """Whether any row was repeated over seeds."""
        return any(_finite(spread) is not None for row in self.rows for spread in row.spreads.values())

    def table(self) -> list[list[str]]:
        """Return header and one row per model, as text; of the best alone those that are no network."""
        spread = ["± std"] if self.has_spread else []
        titles = [title for metric in self.metrics for title in (metric.heading, *spread)]
        return [["model", "training rows", *titles], *(self._cells(row) for row in self.shown)]

    @property
    def shown(self) -> list[ResultRow]:
        """The rows of a table: the best alone that is the same network has a row already."""
        return [row for row in self.rows if not row.kind.startswith(BEST) or row.learner != SAME_NETWORK]

    def comparison(self) -> str:
        """Say in one sentence how federated training did against pooled and against the best that a silo could do
        alone; empty without it."""
        federated = self._best("federated")
        if federated is None:
            return ""
        pooled, alone = self._best("pooled", "best pooled"), self._best("silo", BEST)
        against = [("pooled training", pooled), ("the best silo alone", alone)]
        parts = [self._relation(federated, other, name + self._how(other)) for name, other in against if other]
        return f"Federated {self.metrics[0].title} is {' and '.join(parts)}." if parts else ""

    def _how(self, row: ResultRow) -> str:
        """Return with which learner: " (gradient boosting)"; of silos which one, too."""
        if not any(other.kind.startswith(BEST) for other in self.rows):
            untried = "" if self.others_tried else "; no other learner was tried"
            return f" (the same model{untried})" if row.kind == "silo" else ""
        named = f"{row.place}, " if row.place and row.kind in ("silo", BEST) else ""
        return f" ({named}{words(row.learner)})"

    def _cells(self, row: ResultRow) -> list[str]:
        cells = [row.label, "-" if row.num_examples is None else f"{row.num_examples:,}"]
        for metric in self.metrics:
            cells.append(number(row.values.get(metric.name), metric.digits))
            cells += [number(row.spreads.get(metric.name), metric.digits)] if self.has_spread else []
        return cells

    def _best(self, *kinds: str) -> ResultRow | None:
        """Return the row of these kinds with the best headline; of two as good, the first."""
        headline = self.metrics[0]
        known = [row for row in self.rows if row.kind in kinds and _finite(row.values.get(headline.name)) is not None]
        best = headline.best(float(row.values[headline.name]) for row in known)  # type: ignore[arg-type]
        return next((row for row in known if row.values[headline.name] == best), None)

    def _relation(self, ours: ResultRow, theirs: ResultRow, name: str) -> str:
        headline = self.metrics[0]
        federated, other = (float(row.values[headline.name]) for row in (ours, theirs))  # type: ignore[arg-type]
        if min(federated, other) <= 0:  # of such numbers no percentage tells anything
            return f"{number(federated, headline.digits)} against {number(other, headline.digits)} of {name}"
        percent = 100 * (federated / other - 1)
        if abs(percent) < 0.05:
            return f"equal to that of {name}"
        return f"{abs(percent):.1f} % {'above' if percent > 0 else 'below'} that of {name}"


def words(learner: str) -> str:
    """Return a learner's name as people write it."""
    return learner.replace("_", " ")


def results_from_summary(summary: Mapping[str, object], metrics: Sequence[Metric]) -> Results:
    """Return one row per `<model>.<headline>` of a summary: silos in natural order, then pooled, then federated.

    Keys read: `<model>.<metric>`, `<model>.<metric>_std`, `<model>.num_examples`; <model> is "federated", "pooled",
    "silo.<name>" or "best.<name>", and a name may have dots. Of the metrics, the headline and those that any model has
    are shown.
    """
    headline, *others = reported(metrics)
    ending = f".{headline.name}"
    models = [key.removesuffix(ending) for key in summary if key.endswith(ending)]
    known = [metric for metric in others if any(f"{model}.{metric.name}" in summary for model in models)]
    shown = (headline, *(known or others))
    rows = sorted((_row(model, summary, shown) for model in models), key=_place)
    return Results(shown, tuple(rows), any(key.endswith(".learner") for key in summary))


def measured(values: Mapping[str, float], model: str, metrics: Iterable[Metric]) -> dict[str, float]:
    """Return name -> value of the metrics that a record has of a model."""
    return {m.name: values[f"{model}.{m.name}"] for m in metrics if f"{model}.{m.name}" in values}


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key with which silo_2 comes before silo_10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if index % 2 else (1, 0, part) for index, part in enumerate(parts)]


def number(value: object, digits: int = 4) -> str:
    """Return a number with fixed decimals so that columns line up; one that would lose its digits with three of them,
    "-" for None and NaN."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    if 0 < abs(value) < 10.0 ** (1 - digits):
        return f"{value:.3g}"
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.{digits}g}"


def _place(row: ResultRow) -> tuple[int, list[tuple[int, int, str]]]:
    return KINDS.index(row.kind), natural_order(row.name)


def _row(model: str, summary: Mapping[str, object], metrics: Sequence[Metric]) -> ResultRow:
    def found(key: str) -> Any:
        return to_plain(summary.get(f"{model}.{key}"))

    group, _, place = model.partition(".")
    kind, name = model if model in KINDS else "other", model
    learner = str(found("learner") or SAME_NETWORK)
    if group == "silo":
        kind, name = "silo", place
    elif group == BEST:
        kind = "best pooled" if place == "pooled" else BEST
        name = f"pooled, {words(learner)}" if place == "pooled" else f"{place} alone, {words(learner)}"
    values = {metric.name: found(metric.name) for metric in metrics}
    spreads = {key: found(f"{key}_std") for key in values}
    return ResultRow(name, kind, values, spreads, found("num_examples"), learner, place)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
