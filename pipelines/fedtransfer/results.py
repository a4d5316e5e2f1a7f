"""The lines of a run as tables: one row per model, with the spread over seeds and folds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ray_fed.errors import SiloFailed
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.metrics import LOSS, Metric, reported
from ray_fed.micrographs import agreement
from ray_fed.style_transfer.methods import METHODS

METRICS = reported(agreement.METRICS)
"""What the tables show; the first decides."""
GLOBAL = "global"
ALIKE = 5e-4
"""Difference that three digits do not show."""
CLEAR = 2.0
"""Standard errors below which a difference of means is called none."""
TABLE_2 = ("separate", "central")
HEADLINE = METRICS[0]


@dataclass(frozen=True)
class Cell:
    """A metric over seeds and folds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """Sample standard deviation; 0 with one value."""
        n = len(self.values)
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.values) / (n - 1)) if n > 1 else 0.0

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.spread:.3f}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class ModelResult:
    """One row of Table 2 or 3."""

    method: str
    model: str
    title: str
    cells: Mapping[tuple[str, str], Cell]
    """(silo whose test set it is, or GLOBAL; name of a metric) -> values."""

    @property
    def headline(self) -> Cell:
        return self.cells[GLOBAL, HEADLINE.name]


def model_results(lines: Iterable[Mapping[str, Any]], silos: Sequence[str]) -> list[ModelResult]:
    """Return a row per method (per silo for `separate`), in the order of METHODS.

    A method with fewer seeds than another, in a run that was extended, says how many. The global value is the plain
    mean over the silos' test sets, as in the paper.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        for model, by_silo in line.get("test", {}).items():
            found.setdefault((line["method"], model), []).append(by_silo)
    rows, most = [], max(map(len, found.values()), default=0)
    for method in METHODS:
        for (name, model), runs in found.items():
            if name == method:
                title = f"{METHODS[method].title}: {model}" if method == "separate" else METHODS[method].title
                title += f" ({len(runs)} run{'s' * (len(runs) > 1)})" if len(runs) < most else ""
                rows.append(ModelResult(method, model, title, _cells(runs, silos)))
    return rows


def _cells(runs: Sequence[Mapping[str, Any]], silos: Sequence[str]) -> dict[tuple[str, str], Cell]:
    metrics = [name for name in runs[0][silos[0]] if name != LOSS.name]
    cells = {(silo, m): Cell(tuple(float(run[silo][m]) for run in runs)) for silo in silos for m in metrics}
    for metric in metrics:
        means = tuple(sum(float(run[silo][metric]) for silo in silos) / len(silos) for run in runs)
        cells[GLOBAL, metric] = Cell(means)
    return cells


def header(places: Sequence[str]) -> list[str]:
    """Return the columns of Tables 2-3 for some test sets (silos or GLOBAL)."""
    return ["method", *(f"{place} {metric.title}" for place in places for metric in METRICS)]


def table_rows(results: Sequence[ModelResult], places: Sequence[str]) -> list[list[str]]:
    """Return the cells of Tables 2-3 as text."""
    return [[r.title, *(str(r.cells[place, m.name]) for place in places for m in METRICS)] for r in results]


def verdicts(results: Sequence[ModelResult]) -> list[str]:
    """Return, in sentences, who beats whom on the global test set, whatever the paper says."""
    by_name = {row.method: row for row in results if row.method != "separate"}
    alone = [row for row in results if row.method == "separate"]
    said = []
    transfers = [row for name, row in by_name.items() if METHODS[name].pool == "transfer"]
    if not transfers:
        return said
    # A named one, not the best of them: picking by test scores would flatter.
    ours = by_name.get("transfer_int8") or by_name.get("transfer_fp32") or transfers[0]
    ladder = [*([max(alone, key=lambda row: row.headline.mean)] if alone else [])]
    ladder += [by_name[name] for name in ("fed_avg",) if name in by_name]
    ladder += [ours]
    ladder += [by_name[name] for name in ("central",) if name in by_name]
    if len(ladder) > 2:
        said.append(_order(ladder))
    for name in ("fed_avg", "fed_avg_gn", "fed_avg_greys", "fed_bn", "amplitude"):
        if name in by_name:
            said.append(_against(ours, by_name[name]))
    if "transfer_fp32" in by_name and "transfer_int8" in by_name:
        said.append(_against(by_name["transfer_int8"], by_name["transfer_fp32"]))
    return said


def _order(ladder: Sequence[ModelResult]) -> str:
    """Say in which metrics every step goes the paper's way, and in which all do so by more than the spread."""
    several = len(ladder[0].headline.values) > 1
    found: dict[str, list[str]] = {}
    for metric in METRICS:
        steps = [_step(a, b, metric) for a, b in pairwise(ladder)]
        smallest = min(size for _, size in steps)
        if not all(gain > 0 for gain, _ in steps):
            found.setdefault("does not hold in", []).append(metric.title)
        elif several and smallest < CLEAR:
            found.setdefault("holds, but not beyond the spread over runs, in", []).append(
                f"{metric.title} ({smallest:.1f})"
            )
        else:
            found.setdefault("holds in", []).append(metric.title + (f" ({smallest:.1f})" if several else ""))
    order = " < ".join(row.title for row in ladder)
    said = " and ".join(f"{how} {', '.join(metrics)}" for how, metrics in found.items())
    note = (
        " In brackets: the smallest step in standard errors."
        if several and len(found) > ("does not hold in" in found)
        else ""
    )
    return f"The paper's order on the global test set, {order}, {said}.{note}"


def _step(below: ModelResult, above: ModelResult, metric: Metric) -> tuple[float, float]:
    """Return how much better `above` is, and that in standard errors over runs (0 with one run)."""
    a, b = below.cells[GLOBAL, metric.name], above.cells[GLOBAL, metric.name]
    gain = metric.gain(b.mean, a.mean)
    error = _error(a, b)
    return gain, gain / error if error else 0.0


def _error(a: Cell, b: Cell) -> float:
    """Return the standard error of the difference of two means."""
    return math.sqrt(a.spread**2 / len(a.values) + b.spread**2 / len(b.values))


def _against(ours: ModelResult, other: ModelResult) -> str:
    """Compare in every metric with the spread: a difference below twice its standard error is called none."""
    found: dict[str, list[str]] = {}
    for metric in METRICS:
        a, b = (row.cells[GLOBAL, metric.name] for row in (ours, other))
        found.setdefault(_relation(metric, a, b), []).append(f"{metric.title} ({a} against {b})")
    said = "; ".join(f"{relation} in {', '.join(numbers)}" for relation, numbers in found.items())
    several = len(ours.headline.values) > 1
    return f"{ours.title} compared with {other.title}: {said}" + (
        "." if several else "; one run each: no spread known."
    )


def _relation(metric: Metric, a: Cell, b: Cell) -> str:
    """Say how `a` stands to `b`."""
    gain = metric.gain(a.mean, b.mean)
    if len(a.values) < 2:
        return "alike" if abs(gain) < ALIKE else "better" if gain > 0 else "worse"
    if abs(gain) < CLEAR * _error(a, b):
        return "no different beyond the spread over runs"
    return "better" if gain > 0 else "worse"


def epoch_curve(told: Mapping[str, float], name: str) -> list[float]:
    """Return a loss over the epochs from the facts of `learn_style`."""
    values, epoch = [], 1
    while f"epoch.{epoch}.{name}" in told:
        values.append(told[f"epoch.{epoch}.{name}"])
        epoch += 1
    return values


def silo_losses(record: RoundRecord) -> dict[str, float]:
    """Return silo -> validation loss after the round."""
    return {
        name.removeprefix("silo.").removesuffix(f".{LOSS.name}"): value
        for name, value in record.metrics.items()
        if name.startswith("silo.") and name.endswith(f".{LOSS.name}")
    }


def validation_losses(record: RoundRecord, silos: Iterable[str]) -> dict[str, float]:
    """Return the validation loss of each of the silos, by which a round is chosen; SiloFailed for one that died in the
    evaluation: its training loss, which is known, says something else."""
    found = silo_losses(record)
    for silo in silos:
        if silo not in found:
            reason = (
                "it told no validation loss, by which a round is chosen: it died in the evaluation (start again, "
                "finished stages are kept), has fewer validation tiles than its owner's min_examples (give it more), "
                "or its owner's site.yaml keeps metrics (kinds)"
            )
            raise SiloFailed(silo, f"evaluating round {record.server_round}", reason)
    return {silo: found[silo] for silo in silos}
