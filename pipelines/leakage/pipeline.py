"""`ray-fed leakage`: from options to a run directory, in this process or as Ray tasks; a broken-off run goes on."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipelines.leakage.config import LeakageConfig
from pipelines.leakage.frequency import frequency_leaks
from pipelines.leakage.jobs import study_jobs, work
from pipelines.leakage.label_study import label_results
from pipelines.leakage.outcome import LeakageOutcome, tabular_blocks
from pipelines.leakage.results import HEADER, table_cells
from ray_fed.errors import ConfigError
from ray_fed.leakage.study import AttackJob, AttackResult, run_job
from ray_fed.leakage.tabular_study import TabularCase, crystal_rows, tabular_leaks
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import RoundProgress, aligned, paths_table
from ray_fed.reporting.writing import to_plain

PIPELINE = "leakage"
TABULAR_RECORDS, TABULAR_MESSAGES = 2000, 10
TABULAR_CASES = (
    *(TabularCase(size) for size in (1, 2, 4, 8, 10, 12, 16, 20, 32, 40, 60, 70, 100, 200, 800)),
    *(TabularCase(1, steps, "sgd", 1e-2) for steps in (2, 4, 8, 16, 32)),
    *(TabularCase(4, steps, "sgd", 1e-2) for steps in (2, 4, 8)),
    TabularCase(8, 4), TabularCase(20, 40), TabularCase(8, silos=4), TabularCase(20, silos=10),
    *(TabularCase(20, defence=text) for text in (
        "clip:1", "fp16", "int8", "noise:0.01", "noise:0.1", "noise:1", "prune:0.9", "prune:0.99")),
    *(TabularCase(size, steps, "adam") for size in (1, 20) for steps in (1, 8, 40)),
)  # fmt: skip


def run(options: dict[str, object], command: Sequence[str]) -> int:
    """Run the studies; prints progress to stderr and tables to stdout, returns the exit code."""
    config = LeakageConfig(**options)  # type: ignore[arg-type]
    jobs = study_jobs(config)
    directory, begun = _directory(config)
    try:
        outcome = LeakageOutcome(config, directory, command)
        return _carry_out(config, jobs, outcome, begun)
    finally:
        directory.discard_if_empty()


def _carry_out(config: LeakageConfig, jobs: Sequence[AttackJob], outcome: LeakageOutcome, begun: bool) -> int:
    import torch

    torch.set_num_threads(1)  # matrices this small are slower on several threads, and the tasks have the other cores
    started = time.perf_counter()
    print(f"threat model: {outcome.threat_model()}", file=sys.stderr)
    if begun:
        _recall(outcome)
    else:
        outcome.begin()
    missing = [job for job in jobs if job.key not in outcome.seconds]
    status = "interrupted"
    try:
        _attack(config, missing, outcome)
        if "labels" in config.wanted_studies:
            outcome.labels = list(label_results(config))
        if "frequency" in config.wanted_studies:
            features, targets, _ = crystal_rows(TABULAR_RECORDS, config.seed)
            outcome.frequency = list(frequency_leaks(features, targets, config.seed))
        if "tabular" in config.wanted_studies:
            features, targets, _ = crystal_rows(TABULAR_RECORDS, config.seed)
            outcome.tabular = list(tabular_leaks(features, targets, TABULAR_CASES, TABULAR_MESSAGES, config.seed))
        status = "completed"
    finally:
        outcome.finish(status, time.perf_counter() - started)
    _print(outcome)
    return 0 if any("failed" not in row for row in outcome.rows) or not outcome.rows else 1


def _directory(config: LeakageConfig) -> tuple[RunDirectory, bool]:
    """Return the run directory, and whether it holds a run with these options that was broken off."""
    if config.out and (Path(config.out) / "config.yaml").is_file():
        directory = RunDirectory.open(config.out)
        wanted = {key: value for key, value in to_plain(asdict(config)).items() if key not in SAME_RESULT}  # type: ignore[union-attr]
        there = {key: value for key, value in directory.read_config().items() if key in wanted}
        if directory.summary_path.is_file() and directory.read_summary().get("status") == "completed":
            raise ConfigError(f"out={config.out} holds a complete run; give another --out")
        if there != wanted:
            changed = next(key for key in wanted if wanted[key] != there.get(key))
            raise ConfigError(
                f"out={config.out} holds a run with {changed}={there.get(changed)}, not {wanted[changed]}; "
                "give the same options to go on, or another --out"
            )
        return directory, True
    return RunDirectory.create(config.out, PIPELINE), False


SAME_RESULT = ("out", "cohort", "address", "num_gpus")
"""Options that do not change what comes out."""


def _attack(config: LeakageConfig, jobs: Sequence[AttackJob], outcome: LeakageOutcome) -> None:
    costs = {job.key: work(job) for job in jobs}
    done, total = 0.0, sum(costs.values())
    if not jobs:  # a run that was broken off after its attacks: no cluster is started for nothing
        return
    with _runner(config) as run_all, RoundProgress(step="part") as progress:
        progress.start(100, "attacks, in hundredths of the work")  # jobs differ too much in size to be counted
        for result in run_all(jobs):
            _keep(result, outcome)
            done += costs[result.key]
            progress.advance({"server_round": round(100 * done / total)})


@contextlib.contextmanager
def _runner(config: LeakageConfig) -> Iterator:
    if config.cohort == "local" or config.is_own:  # workers do not know a module of the user's
        yield lambda jobs: map(run_job, jobs)
        return
    from actors.session import session

    with session(config.address):
        from actors.leakage import run_tasks

        yield lambda jobs: run_tasks(jobs, num_gpus=config.num_gpus)


def _keep(result: AttackResult, outcome: LeakageOutcome) -> None:
    """Write a job's arrays first and its rows last: rows that are there are whole."""
    if result.arrays:
        outcome.directory.write_arrays(f"arrays/{_file(result.key)}.npz", result.arrays)
        outcome.arrays[result.key] = dict(result.arrays)
    outcome.directory.append_history({"job": result.key, "rows": result.rows})
    outcome.directory.append_timing({"job": result.key, "seconds": result.seconds})
    outcome.rows.extend(result.rows)
    outcome.seconds[result.key] = result.seconds


def _recall(outcome: LeakageOutcome) -> None:
    """Read the jobs that an earlier process finished."""
    seconds = {str(line["job"]): float(line["seconds"]) for line in outcome.directory.read_timing()}  # type: ignore[arg-type]
    for line in outcome.directory.read_history():
        key = str(line["job"])
        if key in seconds:
            outcome.rows.extend(line["rows"])  # type: ignore[arg-type]
            outcome.seconds[key] = seconds[key]
            path = outcome.directory.path / "arrays" / f"{_file(key)}.npz"
            if path.is_file():
                with np.load(path) as arrays:
                    outcome.arrays[key] = {name: arrays[name] for name in arrays.files}


def _file(key: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in key)


def _print(outcome: LeakageOutcome) -> None:
    for data in outcome.compared():
        for budget in outcome.config.wanted_budgets:
            for family, results in outcome.blocks(data, budget).items():
                if family == "algebraic" and budget > outcome.config.wanted_budgets[0]:
                    continue
                spent = "" if family == "algebraic" else f", {budget:,} gradient evaluations each"
                print(f"{data}: {outcome.config.wanted_images} images, {family} attacks{spent}")
                print(aligned([HEADER, *map(table_cells, results)], right=range(3, 10), rule=True))
    if outcome.config.is_own:
        for attack, said in sorted(outcome.endings().items()):
            print(f"{attack}: {said}")
    for verdict in outcome.verdicts():
        print(f"{verdict.verdict}: {verdict.claim}\n    {verdict.because}")
    if outcome.tabular:
        table = tabular_blocks(outcome.tabular)[1]
        print("\nRows of the 73-feature regression network, by message: found, and named from a list of 2,000:")
        print(
            aligned(
                [table.header, *(list(map(str, row)) for row in table.rows)],
                right=range(1, len(table.header)),
                rule=True,
            )
        )
    reasons = sorted({str(row["failed"]) for row in outcome.rows if "failed" in row})
    for reason in reasons:
        print(f"note: {reason}", file=sys.stderr)
    print()
    directory = outcome.directory
    paths_table({"report": directory.report_path, "summary": directory.summary_path, "rows": directory.history_path,
                 "TensorBoard": directory.tensorboard})  # fmt: skip
