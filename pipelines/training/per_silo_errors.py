"""What each owner asks first: on my own held-out rows, is the federation's model better than mine alone?

Answered where there is no common test set: each site then holds out rows of its own. Silos that keep something for
themselves (`--personal-bias`) use it here.
"""

from collections.abc import Mapping
from statistics import mean, stdev

from pipelines.training.alone import summary_of
from pipelines.training.experiment import TrainingExperiment
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.metrics import Metric
from ray_fed.reporting.results import BEST, number, words


def own_errors(experiment: TrainingExperiment) -> dict[str, object]:
    """Return `own.<silo>.alone_<headline>` (the same network) and `own.<silo>.federated_<headline>`, means over seeds,
    with `_std` for several; and what the best of several learners does alone, where that was asked."""
    if experiment.agreement.test is not None:
        return {}
    name, found = experiment.metrics[0].name, dict[str, object]()
    for silo in experiment.setup.training:
        for kind in ("alone", "federated"):
            key, records = f"silo.{silo}.{name}", _last(experiment, kind)
            values = [record.metrics[key] for record in records if record.metrics.get(key) is not None]
            if values:
                found[f"own.{silo}.{kind}_{name}"] = mean(values)
            if len(values) > 1:
                found[f"own.{silo}.{kind}_{name}_std"] = stdev(values)
    return found | _best_alone(experiment)


def _best_alone(experiment: TrainingExperiment) -> dict[str, object]:
    """Return `own.<silo>.best_<headline>`, `own.<silo>.learner` and the errors of its folds: what the best of several
    learners does on the silo's own held-out rows."""
    if not experiment.alone:
        return {}
    headline, silos = experiment.metrics[0], experiment.setup.training
    networks = {
        silo: [record.metrics[key] for record in _last(experiment, "alone") if key in record.metrics]
        for silo, key in ((silo, f"silo.{silo}.{headline.name}") for silo in silos)
    }
    told = summary_of(experiment.alone, {headline.name: networks}, [headline], "own")
    return {key.replace(f".{headline.name}", f".{BEST}_{headline.name}"): value for key, value in told.items()}


def own_table(summary: Mapping[str, object], silos: tuple[str, ...], metric: Metric) -> list[list[str]]:
    """Return header and rows: silo, the metric on its held-out rows of the same network alone, of the best it could do
    alone, federated, and the change against the better one; empty without such results."""
    known = [silo for silo in silos if f"own.{silo}.federated_{metric.name}" in summary]
    if not known:
        return []
    unit = f" ({metric.unit})" if metric.unit else ""
    has_best = any(f"own.{silo}.learner" in summary for silo in known)
    best = [f"best alone{unit}", "which"] if has_best else []
    header = ["own held-out rows", f"alone{unit}", *best, f"federated{unit}", "change"]
    return [header, *(_row(summary, silo, metric, has_best) for silo in known)]


def _row(summary: Mapping[str, object], silo: str, metric: Metric, has_best: bool) -> list[str]:
    federated = summary.get(f"own.{silo}.federated_{metric.name}")
    rivals = [summary.get(f"own.{silo}.{kind}_{metric.name}") for kind in ("alone", BEST)]
    rival = metric.best(float(value) for value in rivals if isinstance(value, float))
    change = f"{100 * (federated / rival - 1):+.1f} %" if isinstance(federated, float) and rival else "-"
    best = [_spread(summary, silo, BEST, metric), words(str(summary.get(f"own.{silo}.learner", "-")))]
    shown = best if has_best else []
    return [silo, _spread(summary, silo, "alone", metric), *shown, _spread(summary, silo, "federated", metric), change]


def _spread(summary: Mapping[str, object], silo: str, kind: str, metric: Metric) -> str:
    key = f"own.{silo}.{kind}_{metric.name}"
    std = f" ± {number(summary[f'{key}_std'], metric.digits)}" if f"{key}_std" in summary else ""
    return number(summary.get(key), metric.digits) + std


def _last(experiment: TrainingExperiment, kind: str) -> list[RoundRecord]:
    """Return the last record of each seed's federated or baseline job."""
    wanted = "federated" if kind == "federated" else "baseline"
    return [record for _, record in experiment.records if record.models is not None and record.kind == wanted]
