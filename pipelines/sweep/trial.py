"""What one trial does, in a process of its own: a coordinator over silos that other trials use, too."""

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import ceil, nan
from typing import Any

from actors.cohort import RayCohort
from actors.shared_silos import read_board
from actors.silo import Handle
from actors.tuning import OBJECTIVE
from pipelines.sweep.points import Trial, configured
from pipelines.training.config import TrainConfig
from pipelines.training.setup import Setup, jobs
from pipelines.tuning.rungs import rounds_at
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SiloDescription
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.metrics import TRAIN_LOSS, Metric

EVALUATIONS = 10
"""About this many evaluations of a trial: enough for a curve and for a scheduler to compare."""
CLOCKS = ("compute", "communicate", "evaluate")


@dataclass(frozen=True)
class Shared:
    """What all trials have in common."""

    setup: Setup
    board: Handle
    evaluator: Handle | None
    descriptions: Mapping[str, SiloDescription]
    objective: Metric
    rungs: tuple[int, ...] | None = None
    """Local steps after which trials report, where a scheduler compares them; None: each about EVALUATIONS times."""


def job_of(setup: Setup, descriptions: Mapping[str, SiloDescription], trial: Trial) -> Job:
    """Return the federated job of a trial: that of `ray-fed formation-energy` with the same options and seed.

    A silo that dies is not started again by one of several coordinators: the trial fails and says so, and the silo is
    started again before the next trial.
    """
    config: TrainConfig = replace(configured(setup.config, trial), baselines=False, repeats=1)
    job = jobs(replace(setup, config=config, pooled=None), dict(descriptions), trial.seed)[0]
    every = ceil(job.num_rounds / EVALUATIONS)
    return replace(
        job, name=trial.name, evaluate_every=every, evaluate_silos=setup.test is None,
        rules=replace(job.rules, max_restarts=0),
    )  # fmt: skip


def work(config: Mapping[str, Any], shared: Shared) -> Generator[dict[str, Any], None, None]:
    """Run a trial; yield a report at each evaluation."""
    trial = Trial(config["number"], tuple((field, value) for field, value in config["point"]), config["seed"])
    job = job_of(shared.setup, shared.descriptions, trial)
    if shared.rungs is not None:  # without a common one but the end, the end alone
        job = replace(job, evaluate_at=rounds_at(job, shared.rungs) or (job.num_rounds,))
    cohort = RayCohort(read_board(shared.board), shared.evaluator, answer_timeout=job.rules.round_timeout)
    coordinator = Coordinator(cohort, shared.setup.task, job.silos)
    coordinator.hear(shared.descriptions.values())
    return trial_reports(coordinator.run(job), job, shared.setup.task.metrics, shared.objective)


def trial_reports(
    records: Iterator[RoundRecord], job: Job, metrics: Sequence[Metric], objective: Metric
) -> Generator[dict[str, Any], None, None]:
    """Turn records into reports: what was reached, and what it has cost so far. Closing it ends the job."""
    spent = dict.fromkeys([*CLOCKS, *(f"silo.{silo}" for silo in job.silos)], 0.0)
    sent, failures = 0, 0
    with closing(records):  # type: ignore[type-var]
        for record in records:
            sent += record.bytes_sent
            failures += len(record.failures)
            if record.server_round:
                spent = {name: value + record.seconds.get(name, 0.0) for name, value in spent.items()}
            if record.server_round and any(name.startswith("federated.") for name in record.metrics):
                costs = {"bytes_sent": sent, "failures": failures}
                found = {metric.name: record.metrics.get(f"federated.{metric.name}", nan) for metric in metrics}
                reached = {"metrics": found, OBJECTIVE: found[objective.name]}
                yield _quality(record, job) | reached | costs | {f"seconds_{name}": spent[name] for name in CLOCKS} | {
                    "silos": {silo: _of_silo(record, silo, spent) for silo in job.silos}
                }  # fmt: skip


def _quality(record: RoundRecord, job: Job) -> dict[str, Any]:
    return {
        "epochs": job.any_plan.epochs * record.server_round / job.num_rounds,
        "round": record.server_round,
        "local_steps": job.any_plan.steps_of_round(record.server_round).stop,
        TRAIN_LOSS: record.metrics.get(TRAIN_LOSS, nan),
        "digest": _digest(record) if record.models else "",
    }


def _of_silo(record: RoundRecord, silo: str, spent: Mapping[str, float]) -> dict[str, float]:
    loss = record.metrics.get(f"silo.{silo}.{TRAIN_LOSS}", nan)
    return {TRAIN_LOSS: loss, "seconds_compute": spent[f"silo.{silo}"]}


def _digest(record: RoundRecord) -> str:
    assert record.models is not None
    return hashlib.sha256(b"".join(model.tobytes() for _, model in sorted(record.models.items()))).hexdigest()
