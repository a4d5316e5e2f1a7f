"""The sweep pipeline: from options, or from a sweep that was broken off, to a table, figures and a recommendation."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pipelines.sweep import results_file, whole_runs
from pipelines.sweep.advice import recommendation
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.outcomes import TrialOutcome, objective_of, table
from pipelines.sweep.points import Trial, configured, trials_of
from pipelines.sweep.privacy import read_privacy
from pipelines.sweep.sweep import Sweep
from pipelines.training.pipeline import pipeline_of
from pipelines.training.setup import Setup, resolve
from pipelines.update_options import require_own_code
from ray_fed.config import require
from ray_fed.errors import DataError, FedError
from ray_fed.materials.study import PAPER_ROWS
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table

PIPELINE = "sweep"
PRESET_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "fig5": {"repeats": 10, "rows": PAPER_ROWS},
    "fig5-heat": {"repeats": 2, "rows": PAPER_ROWS},
}


def run(options: dict[str, Any], command_line: Sequence[str]) -> int:
    """Run or resume a sweep; returns 0 unless every trial failed."""
    resumed, pipeline = options.pop("resume"), options.pop("pipeline")
    if resumed is None and pipeline in whole_runs.PIPELINES:
        return whole_runs.run(pipeline, options, command_line)
    if resumed is not None:
        strategy = options.pop("strategy", None)  # of a sweep with code of the user's own
        require(not options, f"--resume takes every option from {resumed}; leave out --{'/'.join(options)}")
        return _resume(Path(resumed), strategy)
    names = {field.name for field in fields(SweepConfig)}
    config = SweepConfig(**{key: _as_option(value) for key, value in options.items() if key in names})
    base = {key: value for key, value in options.items() if key not in names}
    setup, trials = _resolved(config, _with_defaults(base, config.preset), pipeline)
    directory = RunDirectory.create(setup.config.out, PIPELINE)
    try:
        with directory.held():
            return _carry_out(Sweep(config, setup, trials, directory, shlex.join(command_line)))
    finally:
        directory.discard_if_empty()


def _with_defaults(base: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Add what a preset says, and make paths independent of the current folder: a resumed sweep may have another."""
    whole = {**PRESET_DEFAULTS.get(preset, {}), "baselines": False, **base}
    for name in ("data", "federation"):
        if isinstance(whole.get(name), str) and whole[name] != "embedded":
            whole[name] = str(Path(whole[name]).absolute())
    return whole


def _resolved(config: SweepConfig, base: Mapping[str, Any], pipeline: str) -> tuple[Setup, tuple[Trial, ...]]:
    setup = replace(resolve(dict(base), (), pipeline), pooled=None)
    alone = f"trials share silo actors of one cluster; run ray-fed {pipeline} once for each setting"
    require(not setup.sites, f"federation={setup.config.federation}: has sites of their owners, and {alone}")
    require(setup.config.cohort == "ray", "cohort=local: trials of a sweep share silo actors; leave --cohort ray")
    require(not setup.config.baselines, "baselines=True: trials train no baselines; use ray-fed " + pipeline)
    objective_of(setup.task.metrics, config.objective)  # a name that the task does not have is refused before any run
    trials = tuple(trials_of(config, setup.config))
    for trial in trials:
        wanted, there = configured(setup.config, trial).min_fit_clients, len(setup.silos)
        require(wanted <= there, f"min_fit_clients={wanted} is more than the {there} silos there are")
    return setup, trials


def _resume(path: Path, strategy: str | None) -> int:
    directory = RunDirectory.open(path)
    with directory.held():
        if directory.read_config().get("pipeline") in whole_runs.PIPELINES:
            return whole_runs.resume(directory)
        sweep = _begun(directory, strategy)
        if not sweep.left and directory.summary_path.is_file() and directory.read_summary()["status"] == "completed":
            print(f"{path} is complete; nothing to resume")
            return 0
        results_file.mend(sweep.results_path)
        if sweep.done and sweep.config.scheduler != "fifo":
            note = "compares the trials that are left among themselves, not with those that are done"
            print(f"note: {sweep.config.scheduler} {note}", file=sys.stderr)
        return _carry_out(sweep)


def _begun(directory: RunDirectory, strategy: str | None) -> Sweep:
    """Read what a sweep was to do and how far it came; DataError where that cannot be made out. strategy: as the user
    has named it again."""
    try:
        told: Any = directory.read_config()
        config = SweepConfig(**{key: _as_option(value) for key, value in told["sweep"].items()})
        base = {key: _as_option(value) for key, value in told["base"].items() if key != "out"}
        require_own_code(base.get("strategy"), strategy, directory.config_path)
        setup, trials = _resolved(config, base, pipeline_of(told))
        done = tuple(o for o in results_file.read(directory.path / "results.jsonl") if o.status != "failed")
    except FedError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"{directory.path} is not a sweep that can go on ({said}); give the folder of one") from error
    return Sweep(config, setup, trials, directory, str(told["command"]), done, is_resumed=True)


def _as_option(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _carry_out(sweep: Sweep) -> int:
    started, status = time.perf_counter(), "completed"
    try:
        _run_trials(sweep)
    except KeyboardInterrupt:
        if not sweep.directory.config_path.is_file():
            raise
        status = "interrupted"
        print(f"interrupted; go on with: ray-fed sweep --resume {sweep.directory.path}", file=sys.stderr)
    outcomes = results_file.read(sweep.results_path)
    _conclude(sweep, outcomes, status, time.perf_counter() - started)
    if status == "interrupted":
        raise KeyboardInterrupt
    return int(all(outcome.status == "failed" for outcome in outcomes))


def _run_trials(sweep: Sweep) -> None:
    if not sweep.left:
        return
    from actors.session import session

    num_cpus = sum(spec.num_cpus for spec in sweep.setup.silos) + 1 + sweep.config.concurrent
    print(f"opening {len(sweep.setup.silos)} silos for {len(sweep.left)} trials", file=sys.stderr)
    with session(sweep.setup.config.address, num_cpus):
        from pipelines.sweep.running import run_left  # not before: Ray reads the session's token at its import

        run_left(sweep)


def _conclude(sweep: Sweep, outcomes: list[TrialOutcome], status: str, seconds: float) -> None:
    from pipelines.sweep.presentation import write_results

    directory = sweep.directory
    private = read_privacy(directory.path)
    points = write_results(
        directory, sweep.trials, outcomes, status, seconds, command=sweep.command, num_silos=len(sweep.setup.silos),
        metrics=sweep.metrics, objective=sweep.objective, private=private,
    )  # fmt: skip
    cells = table(points, sweep.metrics)
    print(aligned(cells, right=range(2, len(cells[0])), rule=True))
    print("\n".join([*recommendation(points), *(one.words for one in private)]), end="\n\n")
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if failed:
        again = f"ray-fed sweep --resume {directory.path}"
        print(f"{failed} of {len(outcomes)} trials failed (reasons in results.csv); try them again: {again}\n")
    paths_table({"report": directory.report_path, "results": directory.path / "results.csv",
                 "TensorBoard": directory.tensorboard})  # fmt: skip
