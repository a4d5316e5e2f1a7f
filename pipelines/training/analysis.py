"""Where the federated model errs, and on what it rests: by anion class, by element, row by row, property by property.

Of a common test set that is shown here anyway, from its rows; else asked of the silos, whose answers are sums over
groups of enough rows (ray_fed/materials/property_silo.py) and whose worst rows stay in their owners' logs.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from pipelines.launching import CoordinatorLike
from pipelines.training.setup import Setup
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.messages import Metrics, Vector
from ray_fed.materials.breakdown import GROUPS, WorstRow, importances, scores_of_groups, shuffled_rows, table, worst
from ray_fed.materials.property_silo import ALL, OF_GROUPS, OF_SHUFFLES
from ray_fed.metrics import FEWEST_ROWS, Metric, Scores

Importances = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Analysis:
    """What was found."""

    metric: Metric
    where: str
    """On which rows."""
    groups: Sequence[tuple[str, int, float]] = ()
    """(group, rows, value of the metric): anion classes, then elements, each the worst first."""
    importances: Importances = ()
    """(property, by how much the metric is worse with its columns shuffled), the most important first."""
    by_silo: Mapping[str, Importances] = field(default_factory=dict)
    """The same on each silo's own rows."""
    worst: Sequence[WorstRow] = ()
    """Of a public test set."""

    def as_json(self) -> dict[str, object]:
        """Return it for analysis.json."""
        return {
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "rows": self.where,
            "groups": [{"group": name, "num_examples": count, "value": value} for name, count, value in self.groups],
            "importances": dict(self.importances),
            "importances_by_silo": {silo: dict(found) for silo, found in self.by_silo.items()},
            "worst_rows": [asdict(row) for row in self.worst],
        }


def analyse(
    coordinator: CoordinatorLike, setup: Setup, agreement: Agreement, model: Vector, predicted: Mapping[str, np.ndarray]
) -> Analysis | None:
    """Return what is found; None, with a note, where nothing may be asked."""
    vector, config = np.ascontiguousarray(model[: agreement.layout.size]), setup.config
    if setup.test is not None and "federated" in predicted:
        return _of_shown_test(setup, agreement, vector)
    refused = {
        "a common test set that tells scores alone": setup.test is not None,
        "masks, under which no silo tells anything for itself": config.secure_aggregation,
        "noise, of which nothing without it may be told": config.is_private,
        "parameters that each silo keeps for itself": config.personal_bias,
    }
    for reason, holds in refused.items():
        if holds:
            print(f"note: no errors by element and chemistry: the run has {reason}", file=sys.stderr)
            return None
    return _of_silos(coordinator, setup, agreement, vector)


# ---- of rows that are shown here


def _of_shown_test(setup: Setup, agreement: Agreement, vector: Vector) -> Analysis:
    assert setup.test is not None
    task, rows = setup.task, setup.task.load(setup.test)
    predict = task.predictor()

    def scored(features: Any) -> np.ndarray:
        return task.predicted(predict(vector, task.inputs(features, agreement.standardizer)), agreement.standardizer)

    told, properties = scored(rows.features), task.featurizer().properties()
    shuffles = {
        name: task.score(rows.targets, scored(shuffled_rows(task, rows.features, columns, name)))
        for name, columns in {ALL: [], **properties}.items()
    }
    metric = task.metrics[0]
    return Analysis(
        metric,
        "the common test set",
        table(scores_of_groups(task, rows.groups, rows.targets, told), metric, FEWEST_ROWS),
        importances(shuffles, metric, ALL),
        worst=worst(task, rows.names, rows.targets, told),
    )


# ---- asked of the silos


def _of_silos(coordinator: CoordinatorLike, setup: Setup, agreement: Agreement, vector: Vector) -> Analysis:
    metric, silos = setup.task.metrics[0], [name for name in setup.training if name in agreement.silos]
    names = (ALL, *setup.task.featurizer().properties())
    groups = _asked(coordinator, OF_GROUPS, silos, GROUPS, vector)
    shuffles = _asked(coordinator, OF_SHUFFLES, silos, names, vector)
    held_out = all(agreement.silos[silo].num_held_out for silo in silos)
    part: Callable[[Metrics], Scores] = (lambda told: told.held_out) if held_out else (lambda told: told.train)
    together = _together(shuffles, part)
    return Analysis(
        metric,
        "the silos' held-out rows" if held_out else "the silos' training rows",
        table(_together(groups, part), metric, FEWEST_ROWS),
        importances(together, metric, ALL) if ALL in together else (),
        {
            silo: importances({name: part(scores) for name, scores in told.items()}, metric, ALL)
            for silo, told in shuffles.items()
        },
    )


def _asked(
    coordinator: CoordinatorLike, question: str, silos: Sequence[str], names: Sequence[str], vector: Vector
) -> Mapping[str, Mapping[str, Metrics]]:
    told, silent = coordinator.ask_metrics(question, silos, names, (vector,))
    for silo, why in silent.items():
        print(f"note: silo '{silo}': no {question}: {why}", file=sys.stderr)
    return told


def _together(told: Mapping[str, Mapping[str, Metrics]], part: Callable[[Metrics], Scores]) -> dict[str, Scores]:
    """Add the silos' scores up, name by name; those of no rows count for nothing."""
    by_name: dict[str, list[Scores]] = {}
    for answer in told.values():
        for name, metrics in answer.items():
            if part(metrics).num_examples:
                by_name.setdefault(name, []).append(part(metrics))
    return {name: reduce(add, scores) for name, scores in by_name.items()}
