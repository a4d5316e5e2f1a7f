"""What one trial does, in a process of its own: a coordinator over silos that other trials use, too."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from actors.cohort import RayCohort
from actors.silo import Handle
from pipelines.formation_energy.config import FormationEnergyConfig
from pipelines.formation_energy.setup import Setup, jobs
from pipelines.sweep.points import Trial, configured
from ray_fed.federation.coordinator import Coordinator, Job, RoundRecord
from ray_fed.federation.messages import SiloDescription

EVALUATIONS = 10


@dataclass(frozen=True)
class Shared:
    """What all trials have in common."""

    setup: Setup
    silos: Mapping[str, Handle]
    examiner: Handle | None
    descriptions: Mapping[str, SiloDescription]


def job_of(setup: Setup, descriptions: Mapping[str, SiloDescription], trial: Trial) -> Job:
    """Return the federated job of a trial: that of `ray-fed formation-energy` with the same options and seed.

    A silo that dies is not started again by one of several coordinators: the trial fails and says so.
    """
    config: FormationEnergyConfig = replace(configured(setup.config, trial), baselines=False, repeats=1)
    job = jobs(replace(setup, config=config, pooled=None), dict(descriptions), trial.seed)[0]
    every = ceil(job.num_rounds / EVALUATIONS)
    return replace(
        job, name=trial.name, evaluate_every=every, evaluate_silos=setup.test is None,
        rules=replace(job.rules, max_restarts=0),
    )  # fmt: skip


def work(config: Mapping[str, Any], shared: Shared) -> Iterator[dict[str, Any]]:
    """Run a trial; yield a report at each evaluation."""
    trial = Trial(config["number"], tuple((field, value) for field, value in config["point"]), config["seed"])
    job = job_of(shared.setup, shared.descriptions, trial)
    cohort = RayCohort(shared.silos, shared.examiner, patience=job.rules.round_timeout)
    coordinator = Coordinator(cohort, shared.setup.task, job.silos)
    return reports(coordinator.run(job), job)


def reports(records: Iterator[RoundRecord], job: Job) -> Iterator[dict[str, Any]]:
    """Turn records into reports: what was reached, and what it has cost so far."""
    spent = dict.fromkeys(("compute", "communicate", "evaluate"), 0.0)
    sent, failures = 0, 0
    for record in records:
        sent += record.bytes_sent
        failures += len(record.failures)
        if record.server_round:
            spent = {name: value + record.seconds[name] for name, value in spent.items()}
        if "federated.r2" in record.metrics and record.server_round:
            yield {
                "epochs": job.any_plan.epochs * record.server_round / job.num_rounds,
                "round": record.server_round,
                "r2": record.metrics["federated.r2"],
                "mae": record.metrics["federated.mae"],
                "loss": record.metrics.get("loss", float("nan")),
                "bytes_sent": sent,
                "failures": failures,
                "local_steps": job.any_plan.steps_of_round(record.server_round).stop,
                "digest": _digest(record) if record.models else "",
                **{f"seconds_{name}": value for name, value in spent.items()},
            }


def _digest(record: RoundRecord) -> str:
    assert record.models is not None
    return hashlib.sha256(b"".join(model.tobytes() for _, model in sorted(record.models.items()))).hexdigest()
