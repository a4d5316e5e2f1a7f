"""`ray-fed study value`: what joining is worth to each member before it commits, and what each silo contributes."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import mean
from typing import Any

from pipelines.training.experiment import launched
from pipelines.training.pipeline import check_sizes, said_of_rows, with_whole_paths
from pipelines.training.setup import Setup, resolve
from pipelines.value.config import ValueConfig
from pipelines.value.experiment import ValueStudy
from pipelines.value.figures import curves_figure
from pipelines.value.findings import LIMITS_OF_CURVES, LIMITS_OF_SCORES, ValueFindings
from ray_fed.config import at_home, require
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.report import Figure, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, silo_tag
from ray_fed.reporting.terminal import aligned, paths_table

PIPELINE = "study-value"
SETTLED: Mapping[str, object] = {
    "baselines": False, "personal": "none", "calibration_fraction": 0.0, "analysis": False, "share_model": False,
}  # fmt: skip
"""Options of `train` that a study settles: the silos hold out rows themselves, draw by draw."""


def run(options: dict[str, Any], command_line: Sequence[str]) -> int:
    """Run a study; returns the exit code."""
    started, overrides = time.perf_counter(), options.pop("site_overrides", [])
    names = {field.name for field in fields(ValueConfig)}
    config = ValueConfig(**{name: value for name, value in options.items() if name in names})
    setup = _resolved({name: value for name, value in options.items() if name not in names}, overrides)
    directory = RunDirectory.create(at_home(setup.config.out) if setup.config.out else None, PIPELINE)
    try:
        with directory.held():
            told = {"command": shlex.join(command_line), "set": list(overrides), "pipeline": PIPELINE}
            directory.write_config({**told, **asdict(config), "train": asdict(setup.config)})
            found = _studied(config, setup)
            _write(directory, config, setup, found, shlex.join(command_line), time.perf_counter() - started)
            _print(found, directory)
    finally:
        directory.discard_if_empty()
    return 0


def _resolved(options: Mapping[str, Any], overrides: Sequence[str]) -> Setup:
    """Return what `train` would do with these options, without what a study does itself."""
    given = sorted(name for name, value in SETTLED.items() if name in options and options[name] != value)
    require(not given, f"{', '.join(given)}: a study settles that itself; leave it out")
    setup = resolve({**with_whole_paths(dict(options)), **SETTLED}, list(overrides), "train")
    config, single = setup.config, "a study asks each silo for its own gain"
    require(not config.secure_aggregation, f"secure_aggregation: {single}, which masks forbid; leave it out")
    require(not config.is_private, f"differential privacy: {single}, of which nothing without noise may be told")
    require(config.strategy != "fed_buff", "strategy=fed_buff has no rounds to leave a silo out of; choose another one")
    require(len(setup.training) > 1, "a study of value needs two silos or more")
    return setup


def _studied(config: ValueConfig, setup: Setup) -> ValueFindings:
    print(f"opening {len(setup.training)} silos", file=sys.stderr)
    with launched(setup) as (coordinator, notices):
        agreement = coordinator.agree()
        for line in [*setup.notes, *notices, *said_of_rows(agreement)]:
            print(f"note: {line}", file=sys.stderr)
        check_sizes(agreement)
        found = ValueStudy(config, setup, coordinator, agreement).run()
    for silo, why in found.silent.items():
        print(f"note: silo '{silo}': its gain is not known: {why}", file=sys.stderr)
    return found


def _write(
    directory: RunDirectory, config: ValueConfig, setup: Setup, found: ValueFindings, command: str, seconds: float
) -> None:
    directory.write_environment()
    directory.write_metrics(setup.task.metrics)
    directory.write_csv("value.csv", found.curve_columns())
    if found.contributions:
        directory.write_csv("contributions.csv", found.contribution_columns())
    summary = {**found.summary(), "silos": len(setup.training), "seconds.total": seconds, "status": "completed"}
    said = [f"{found.sentence(silo)}." for silo in found.curves]
    header, *rows = found.curve_table()
    body: list[Table | Figure] = [Table(header, rows, " ".join([*said, LIMITS_OF_CURVES]))]
    figure, pictures = curves_figure(found), list[Path]()
    if figure is not None:
        path = save_figure(figure, directory.figures / "value.png")
        pictures.append(path)
        body.append(Figure(path, "Error on unseen rows, alone and with the model of the others; a dot is one draw."))
    sections = [Section("What joining is worth to each member", body)]
    if found.contributions:
        header, *rows = found.contribution_table()
        sections.append(Section("What each silo contributes", [Table(header, rows, LIMITS_OF_SCORES)]))
    silent = [f"silo '{silo}': its gain is not known: {why}" for silo, why in found.silent.items()]
    write_report(
        directory, "What joining is worth", summary, sections, command=command, warnings=silent,
        subtitle=f"{len(setup.training)} silos, before they commit",
    )  # fmt: skip
    directory.write_summary(summary)  # type: ignore[arg-type]
    with EventLog(directory.tensorboard) as log:
        given = {"pipeline": PIPELINE, **asdict(setup.config), **asdict(config)}
        log.hyperparameters(given, directory.path.name)
        log_curves(log, found)
        log.outcome(summary, pictures)


def log_curves(log: EventLog, found: ValueFindings) -> None:
    """Draw what each member has alone and joined, over the number of its rows."""
    for silo, points in found.curves.items():
        for point in points:
            means = {"alone": mean(point.own), "joined": mean(point.joined)}
            log.scalars({silo_tag(silo, name): value for name, value in means.items()}, point.num_rows)
    log.layout({"Alone and joined, by rows": {
        silo: [silo_tag(silo, "alone"), silo_tag(silo, "joined")] for silo in found.curves
    }})  # fmt: skip


def _print(found: ValueFindings, directory: RunDirectory) -> None:
    table = found.curve_table()
    print(aligned(table, right=range(1, len(table[0])), rule=True))
    for silo in found.curves:
        print(found.sentence(silo))
    print(f"({LIMITS_OF_CURVES})")
    if found.contributions:
        scores = found.contribution_table()
        print(f"\ncontributions: {found.metric.heading} that all silos' unseen rows lose without a silo")
        print(aligned(scores, right=range(1, len(scores[0])), rule=True))
        print(f"({LIMITS_OF_SCORES})")
    csv = {"contributions": directory.path / "contributions.csv"} if found.contributions else {}
    curves = {"curves": directory.path / "value.csv", **csv, "TensorBoard": directory.tensorboard}
    paths_table({"report": directory.report_path, **curves})
