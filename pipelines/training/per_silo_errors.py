"""What each owner asks first: on my own held-out rows, is the federation's model better than mine alone?

Answered where there is no common test set: each site then holds out rows of its own. Silos that keep something for
themselves (`--personal-bias`) use it here.
"""

from collections.abc import Mapping
from statistics import mean, stdev

from pipelines.training.experiment import TrainingExperiment
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.metrics import Metric
from ray_fed.reporting.results import number


def own_errors(experiment: TrainingExperiment) -> dict[str, float]:
    """Return `own.<silo>.alone_<headline>` and `own.<silo>.federated_<headline>`, means over seeds, with `_std` for
    several."""
    if experiment.agreement.test is not None:
        return {}
    name, found = experiment.metrics[0].name, dict[str, float]()
    for silo in experiment.setup.training:
        for kind in ("alone", "federated"):
            key, records = f"silo.{silo}.{name}", _last(experiment, kind)
            values = [record.metrics[key] for record in records if record.metrics.get(key) is not None]
            if values:
                found[f"own.{silo}.{kind}_{name}"] = mean(values)
            if len(values) > 1:
                found[f"own.{silo}.{kind}_{name}_std"] = stdev(values)
    return found


def own_table(summary: Mapping[str, object], silos: tuple[str, ...], metric: Metric) -> list[list[str]]:
    """Return header and rows: silo, the metric on its held-out rows alone, federated, and the change; empty without
    such results."""
    rows = [_row(summary, silo, metric) for silo in silos if f"own.{silo}.federated_{metric.name}" in summary]
    unit = f" ({metric.unit})" if metric.unit else ""
    return [["own held-out rows", f"alone{unit}", f"federated{unit}", "change"], *rows] if rows else []


def _row(summary: Mapping[str, object], silo: str, metric: Metric) -> list[str]:
    alone, federated = (summary.get(f"own.{silo}.{kind}_{metric.name}") for kind in ("alone", "federated"))
    both = isinstance(alone, float) and isinstance(federated, float)
    change = f"{100 * (federated / alone - 1):+.1f} %" if both and alone else "-"  # type: ignore[operator]
    return [silo, _spread(summary, silo, "alone", metric), _spread(summary, silo, "federated", metric), change]


def _spread(summary: Mapping[str, object], silo: str, kind: str, metric: Metric) -> str:
    key = f"own.{silo}.{kind}_{metric.name}"
    std = f" ± {number(summary[f'{key}_std'], metric.digits)}" if f"{key}_std" in summary else ""
    return number(summary.get(key), metric.digits) + std


def _last(experiment: TrainingExperiment, kind: str) -> list[RoundRecord]:
    """Return the last record of each seed's federated or baseline job."""
    wanted = "federated" if kind == "federated" else "baseline"
    return [record for _, record in experiment.records if record.models is not None and record.kind == wanted]
