"""`--folds`: one run per fold, each with its own folder, and one table of means and spreads over them.

RUN/fold-1 ... RUN/fold-K    complete run directories
RUN/summary.json             <model>.<metric> and its _std over the folds, fold.<k>.<model>.<metric>
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipelines.training.config import TrainConfig
from ray_fed.metrics import Metric
from ray_fed.reporting.report import Section, Table, write_report
from ray_fed.reporting.results import BEST, number, results_from_summary
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import paths_table, results_table

MODELS = ("federated", "pooled", "silo.", f"{BEST}.")
"""How keys of a summary begin that are averaged."""

RunFold = Callable[[int, Path], None]
"""(fold, its folder) -> done, or gone on with and done."""


def all_folds(config: TrainConfig, directory: RunDirectory, command: Sequence[str], run_fold: RunFold) -> int:
    """Run the folds that are not complete, and write what they come to; returns 0."""
    for fold in range(1, config.num_folds + 1):
        place = directory.path / f"fold-{fold}"
        if _is_complete(place):
            continue
        print(f"fold {fold} of {config.num_folds}", file=sys.stderr)
        run_fold(fold, place)
    summaries = [_summary(directory.path / f"fold-{fold}") for fold in range(1, config.num_folds + 1)]
    metrics = RunDirectory(directory.path / "fold-1").read_metrics()
    _write(config, directory, command, summaries, metrics)
    return 0


def _is_complete(folder: Path) -> bool:
    return (folder / "summary.json").is_file() and _summary(folder).get("status") == "completed"


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def together(summaries: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return the mean of each model's numbers over the folds that have it, with `_std`; a learner that not all folds
    chose is named with the others."""
    keys = dict.fromkeys(key for one in summaries for key in one if key.startswith(MODELS) and not key.endswith("_std"))
    found: dict[str, object] = {}
    for key in keys:
        values = [one[key] for one in summaries if key in one]
        if key.endswith(".num_examples"):
            found[key] = round(mean(values))
        elif all(isinstance(value, int | float) for value in values):
            found |= {key: mean(values), **({f"{key}_std": stdev(values)} if len(values) > 1 else {})}
        elif key.endswith(".learner"):
            found[key] = " or ".join(sorted(set(map(str, values))))
    return found


def _write(
    config: TrainConfig, directory: RunDirectory, command: Sequence[str], summaries: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric],
) -> None:  # fmt: skip
    count, headline = len(summaries), metrics[0]
    numbered = list(enumerate(summaries, 1))
    shown = {f"fold.{fold}.{key}": one[key] for fold, one in numbered for key in _headline_keys(one, headline)}
    summary = {**together(summaries), **shown, "folds": count, "group": config.group, "status": "completed"}
    directory.write_metrics(metrics)
    results = results_from_summary(summary, metrics)
    kind = "matbench's" if config.folds == "matbench" else f"grouped by {config.group.replace('_', ' ')}"
    said = f"Mean and standard deviation over {count} folds ({kind})."
    write_report(
        directory, f"Over {count} folds", summary, [Section("Fold by fold", [_by_fold(summaries, headline, said)])],
        subtitle=said, command=shlex.join(command), results=results,
    )  # fmt: skip
    directory.write_summary(summary)  # type: ignore[arg-type]
    print(said)
    results_table(results)
    print()
    paths_table({"report": directory.report_path, "summary": directory.summary_path})


def _headline_keys(summary: Mapping[str, Any], headline: Metric) -> list[str]:
    return [key for key in summary if key.startswith(MODELS) and key.endswith(f".{headline.name}")]


def _by_fold(summaries: Sequence[Mapping[str, Any]], headline: Metric, said: str) -> Table:
    keys = list(dict.fromkeys(key for one in summaries for key in _headline_keys(one, headline)))
    header = ["fold", *(key.removesuffix(f".{headline.name}") for key in keys)]
    rows = [
        [str(fold), *(number(one.get(key), headline.digits) for key in keys)] for fold, one in enumerate(summaries, 1)
    ]
    return Table(header, rows, f"{headline.heading}. {said}")
