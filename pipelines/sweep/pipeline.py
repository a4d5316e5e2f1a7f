"""The sweep pipeline: from options, or from a sweep that was broken off, to a table, figures and a recommendation."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.formation_energy.config import FormationEnergyConfig
from pipelines.formation_energy.outcome import fingerprints
from pipelines.formation_energy.setup import Setup, resolve
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.outcomes import PointSummary, TrialOutcome, pareto_front, recommendation, summaries, table
from pipelines.sweep.points import Trial, configured, swept_fields, trials_of
from pipelines.sweep.trial import Shared, job_of, work
from pipelines.sweep.watcher import Watcher, read_outcomes
from ray_fed.config import require
from ray_fed.errors import DataError
from ray_fed.reporting.report import Figure, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table

PIPELINE = "sweep"


@dataclass(frozen=True)
class Sweep:
    """A sweep that is about to run, or to go on."""

    config: SweepConfig
    setup: Setup
    trials: tuple[Trial, ...]
    directory: RunDirectory
    command: str
    done: tuple[TrialOutcome, ...] = ()


def run(options: dict[str, Any], command: str) -> int:
    """Run a sweep; returns 0 unless every trial failed."""
    names = {field.name for field in fields(SweepConfig)}
    resumed = options.pop("resume", None)
    if resumed:
        return _carry_out(_begun(Path(resumed)))
    sweep = SweepConfig(**{key: value for key, value in options.items() if key in names})
    base = {key: value for key, value in options.items() if key not in names}
    base.setdefault("repeats", {"fig5": 10, "fig5-heat": 2}.get(sweep.preset, 1))
    setup, trials = _resolved(sweep, base)
    directory = RunDirectory.create(setup.config.out, PIPELINE)
    try:
        return _carry_out(Sweep(sweep, setup, trials, directory, command))
    finally:
        directory.discard_if_empty()


def _resolved(sweep: SweepConfig, base: Mapping[str, Any]) -> tuple[Setup, tuple[Trial, ...]]:
    setup = resolve(dict(base))
    require(setup.config.cohort == "ray", "cohort=local: trials of a sweep share silo actors; leave --cohort ray")
    return setup, tuple(trials_of(sweep, setup.config))


def _begun(path: Path) -> Sweep:
    directory = RunDirectory.open(path)
    config = directory.read_config()
    try:
        told, base = config["sweep"], config["base"]
        assert isinstance(told, dict)
        assert isinstance(base, dict)
        sweep = SweepConfig(**{key: _as_option(value) for key, value in told.items()})
        setup, trials = _resolved(sweep, {key: _as_option(value) for key, value in base.items() if key != "out"})
    except (KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{path} is not a sweep ({type(error).__name__}: {error}); give the folder of one") from error
    done = tuple(outcome for outcome in read_outcomes(_results(directory)) if outcome.status != "failed")
    return Sweep(sweep, setup, trials, directory, str(config["command"]), done)


def _as_option(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _results(directory: RunDirectory) -> Path:
    return directory.path / "results.jsonl"


def _carry_out(sweep: Sweep) -> int:
    started = time.perf_counter()
    finished = {outcome.number for outcome in sweep.done}
    left = [trial for trial in sweep.trials if trial.number not in finished]
    outcomes = list(sweep.done)
    status = "completed"
    if left:
        try:
            outcomes = _run_trials(sweep, left)
        except KeyboardInterrupt:
            status = "interrupted"
            outcomes = read_outcomes(_results(sweep.directory))
            print(f"interrupted; go on with: ray-fed sweep --resume {sweep.directory.path}", file=sys.stderr)
            if not outcomes:
                raise
    points = summaries(outcomes)
    _write(sweep, outcomes, points, status, time.perf_counter() - started)
    print(aligned(table(points), right=range(2, 11), rule=True))
    print(f"Recommendation: {recommendation(points)}.\n")
    paths_table({"report": sweep.directory.report_path, "results": sweep.directory.path / "results.csv",
                 "TensorBoard": sweep.directory.tensorboard})  # fmt: skip
    if status == "interrupted":
        raise KeyboardInterrupt
    return 1 if outcomes and all(outcome.status == "failed" for outcome in outcomes) else 0


def _run_trials(sweep: Sweep, left: Sequence[Trial]) -> list[TrialOutcome]:
    from actors.session import session

    setup = replace(sweep.setup, pooled=None)
    num_cpus = sum(spec.num_cpus for spec in setup.silos) + 1 + sweep.config.concurrent
    print(f"opening {len(setup.silos)} silos for {len(left)} trials", file=sys.stderr)
    with session(setup.config.address, num_cpus):
        from actors.federation import federation
        from actors.tuning import run_trials

        with federation(setup.members, setup.task, setup.test, setup.training) as standing:
            agreement = standing.coordinator.agree()
            for line in standing.notices:
                print(f"note: {line}", file=sys.stderr)
            for trial in left:
                job_of(setup, agreement.silos, trial)  # whatever is wrong with one is said before any begins
            directory = sweep.directory
            directory.write_config({"command": sweep.command, "sweep": asdict(sweep.config), "base": _base(setup)})
            directory.write_environment({name: silo.device for name, silo in agreement.silos.items()})
            directory.write_data(fingerprints(agreement))
            watcher = Watcher(
                sweep.trials, lambda trial: configured(setup.config, trial).epochs, _results(directory),
                directory.tensorboard, sweep.done,
            )  # fmt: skip
            tune_folder = directory.path / "tune"
            try:
                run_trials(
                    work,
                    [{"number": t.number, "point": list(t.point), "seed": t.seed} for t in left],
                    Shared(setup, standing.silos, standing.examiner, agreement.silos),
                    _Freeing(watcher, standing.silos),
                    folder=tune_folder,
                    scheduler=sweep.config.scheduler,
                    concurrent=sweep.config.concurrent,
                    longest=max(configured(setup.config, trial).epochs for trial in left),
                )
            finally:
                watcher.close()
                shutil.rmtree(tune_folder, ignore_errors=True)
            return list(watcher.outcomes.values())


def _base(setup: Setup) -> dict[str, object]:
    """Return the options of the pipeline as given: those that differ from the defaults."""
    defaults = FormationEnergyConfig()
    return {key: value for key, value in asdict(setup.config).items() if value != getattr(defaults, key)}


class _Freeing:
    """Passes on what is heard of trials, and frees a trial's session in every silo once the trial is over, also when
    its process was killed or stopped by a scheduler and could not do so itself."""

    def __init__(self, watcher: Watcher, silos: Mapping[str, Any]):
        self.watcher, self.silos = watcher, silos

    def reports(self, number: int, report: Mapping[str, Any]) -> None:
        self.watcher.reports(number, report)

    def ends(self, number: int, reason: str) -> None:
        for silo in self.silos.values():
            silo.close_session.remote(self.watcher.trials[number].name)
        self.watcher.ends(number, reason)


# ---- what is left behind


def _write(
    sweep: Sweep, outcomes: Sequence[TrialOutcome], points: Sequence[PointSummary], status: str, seconds: float
) -> None:
    directory, ordered = sweep.directory, sorted(outcomes, key=lambda outcome: outcome.number)
    rows = [outcome.row() for outcome in ordered]
    directory.write_csv("results.csv", {key: [row[key] for row in rows] for key in rows[0]} if rows else {})
    best = max((point for point in points if point.r2), key=lambda point: point.mean_r2, default=None)
    summary: dict[str, Any] = {
        "trials": len(sweep.trials),
        "trials.completed": sum(outcome.status == "completed" for outcome in outcomes),
        "trials.failed": sum(outcome.status == "failed" for outcome in outcomes),
        "best.point": best.label if best else None,
        "best.r2": best.mean_r2 if best else None,
        "recommendation": recommendation(points),
        "seconds.total": seconds,
        "status": status,
    }
    directory.write_summary(summary)
    failed = [
        f"trial {o.number} ({o.label}, seed {o.seed}) failed: {o.reason}" for o in ordered if o.status == "failed"
    ]
    header, *cells = table(points)
    sections = [
        Section("Points", [Table(header, cells), Paragraph(f"Recommendation: {summary['recommendation']}.")]),
        Section("Figures", _figures(sweep, points)),
    ]
    write_report(
        directory, "Sweep of the formation-energy network", summary, sections, results=(),
        subtitle=f"{len(outcomes)} trials on {len(sweep.setup.silos)} silos", command=sweep.command, warnings=failed,
        provenance="Method: Guo et al., Sci Rep 12 (2022), doi:10.1038/s41598-022-19426-8, Fig. 5 and 6.",
    )  # fmt: skip


def _figures(sweep: Sweep, points: Sequence[PointSummary]) -> list[Figure]:
    known = [point for point in points if point.r2]
    if not known:
        return []
    varied = swept_fields(sweep.trials)
    names = {point.label: _short(point.label) if len(varied) == 1 else point.label for point in known}
    x_label = varied[0].replace("_", " ") if len(varied) == 1 else "point"
    from ray_fed.reporting import sweep_figures as draw

    made = []
    if len(known) <= 16:
        boxes = draw.boxes_figure({names[p.label]: p.r2 for p in known}, x_label)
        times = draw.times_figure(
            {names[p.label]: p.spent["seconds_compute"] for p in known},
            {names[p.label]: p.spent["seconds_communicate"] for p in known},
            x_label,
        )
        made += [("boxes", boxes, "R² of all runs at each point (Guo et al. 2022, Fig. 5)."),
                 ("times", times, "Time of a run, computing and communicating (Fig. 6).")]  # fmt: skip
    front = [names[label] for label in pareto_front(known)]
    pareto = draw.pareto_figure(
        [names[p.label] for p in known], [p.spent["bytes_sent"] / 1e6 for p in known], [p.mean_r2 for p in known],
        [p.std_r2 for p in known], front,
    )  # fmt: skip
    made.append(("pareto", pareto, "R² against parameters sent; the line joins points that no other one beats."))
    if len(varied) == 2:
        made.append(("heat", _heat(sweep, known, varied), "Mean R² over both fields."))
    return [_saved(sweep.directory, *each) for each in made]


def _heat(sweep: Sweep, points: Sequence[PointSummary], varied: Sequence[str]):
    from ray_fed.reporting.sweep_figures import heat_figure

    places = {trial.label(): dict(trial.point) for trial in sweep.trials}
    ours = [(places[point.label], point) for point in points]
    rows, columns = (sorted({place[field] for place, _ in ours}, key=_order) for field in (varied[1], varied[0]))
    values = np.full((len(rows), len(columns)), np.nan)
    for place, point in ours:
        values[rows.index(place[varied[1]]), columns.index(place[varied[0]])] = point.mean_r2
    labels = (varied[0].replace("_", " "), varied[1].replace("_", " "), "mean R²")
    return heat_figure([_text(r) for r in rows], [_text(c) for c in columns], values, labels)


def _saved(directory: RunDirectory, name: str, figure: Any, caption: str) -> Figure:
    from ray_fed.reporting.figures import save_figure

    path = directory.figures / f"{name}.png"
    save_figure(figure, path)
    return Figure(path, caption)


def _short(label: str) -> str:
    return label.partition("=")[2] or label


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
