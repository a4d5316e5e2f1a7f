"""`ray-fed audit RUN|FEDERATION`: replay what a coordinator receives, inside the silos, and attack it."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.leakage.audit_config import AuditConfig
from pipelines.leakage.audit_findings import SUM, Findings, Gate
from pipelines.leakage.audit_report import change_table, defence_table, silo_table, smaller_table, write_audit
from pipelines.leakage.standing import (
    Standing,
    check_allowed,
    chosen_silos,
    same_as_received,
    scaler_of,
    setup_of,
    stand,
)
from ray_fed.federation.coordinator import Job
from ray_fed.federation.strategies import State
from ray_fed.leakage.audit import MessageAudit, audit, check_first_layer
from ray_fed.leakage.defences import Defence, parse_defence
from ray_fed.leakage.replay import Heard, Replay, hear, in_sum, of_round, one_batch, single_records
from ray_fed.leakage.training_change import TrainingChange
from ray_fed.learning.layout import initial_vector
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table

PIPELINE = "audit"
FEW = 8
"""Size of the small batch that is replayed besides the configured one."""


def run(target: str, options: dict[str, object], command: Sequence[str]) -> int:
    """Audit a run or a federation file; prints what leaks. Returns 1 where that is more than --max-leak, else 0."""
    config = AuditConfig(**options)  # type: ignore[arg-type]
    setup = setup_of(target)
    chosen = chosen_silos(setup, config.silos)
    check_allowed(config.policy, chosen)
    directory = RunDirectory.create(config.out, PIPELINE)
    try:
        standing = stand(setup, chosen, scaler_of(target) if Path(target).is_dir() else None)
        check_first_layer(standing.silos[0].task.model(0))
        return _carry_out(target, config, standing, directory, command)
    finally:
        directory.discard_if_empty()


def _carry_out(
    target: str, config: AuditConfig, standing: Standing, directory: RunDirectory, command: Sequence[str]
) -> int:
    started = time.perf_counter()
    findings = Findings(standing.target_unit, standing.units)
    findings.is_summed = bool(standing.job.secure_threshold)
    findings.has_secret_noise = standing.job.any_plan.private is not None
    heard = _as_set_up(standing, config, findings)
    if Path(target).is_dir() and standing.is_whole:
        findings.verified = same_as_received(target, standing.job, heard)
    _defences(standing, config, heard, findings)
    _changes(standing, config, findings)
    gate = Gate(config.max_leak, findings)
    directory.write_config({"command": shlex.join(command), "target": target, **asdict(config)})
    directory.write_environment({})
    write_audit(directory, findings, gate, time.perf_counter() - started, command)
    _print(findings, directory)
    if gate.is_broken:
        print(f"ray-fed audit: {gate.words}", file=sys.stderr)
    elif config.max_leak is not None:
        print(gate.words)
    return 1 if gate.is_broken else 0


def _as_set_up(standing: Standing, config: AuditConfig, findings: Findings) -> list[Heard]:
    """Replay the first rounds; attack every update, and every sum of a round's updates."""
    heard, state = hear(standing.cohort, standing.coordinator, standing.job, config.rounds)
    if config.costs:
        findings.costs[""] = _error(standing, standing.job, state)
    for replays in _rounds(standing, heard):
        findings.of_rounds += [_audited(standing, one, None) for one in replays]
        if len(replays) > 1:
            findings.of_sums += [_audited(standing, one, None) for one in in_sum(replays)]
    print(f"{config.rounds} rounds as set up: replayed and attacked", file=sys.stderr)
    return heard


def _rounds(standing: Standing, heard: Sequence[Heard]) -> Iterator[list[Replay]]:
    """Yield the messages of each round, one per silo."""
    silos = {silo.spec.name: silo for silo in standing.silos}
    layout = standing.coordinator.layout
    for server_round in sorted({one.update.server_round for one in heard}):
        there = [one for one in heard if one.update.server_round == server_round]
        yield [of_round(silos[one.update.silo], one, layout, standing.job.any_plan) for one in there]


def _defences(standing: Standing, config: AuditConfig, heard: Sequence[Heard], findings: Findings) -> None:
    """Attack every kind of message under every defence, and train under it."""
    kinds = _kinds(standing, next(_rounds(standing, heard)))
    for text in ("", *config.defences):
        defence = replace(parse_defence(text), releases=standing.job.num_rounds) if text else None
        for kind in kinds:
            findings.of_kinds += [_audited(standing, one, defence) for one in kind]
        if defence and config.costs:
            _, state = hear(standing.cohort, standing.coordinator, standing.job, config.rounds, defence)
            findings.costs[text] = _error(standing, standing.job, state)
        print(f"defence {text or 'none'}: attacked{_cost_words(findings, text)}", file=sys.stderr)
    for kind in kinds if len(standing.silos) > 1 else ():
        findings.of_kinds += [replace(_audited(standing, one, None), defence=SUM) for one in in_sum(kind)]
    if len(standing.silos) > 1 and config.costs:
        findings.costs[SUM] = findings.costs[""]  # the sum is exact: the model is the same, bit for bit


def _kinds(standing: Standing, first_round: list[Replay]) -> list[list[Replay]]:
    """Return the kinds of message, each of every silo: of one record, of few, of a batch, of a whole round."""
    vector = initial_vector(standing.silos[0].task.model(standing.job.model_seed))
    steps = standing.job.any_plan.steps_per_epoch
    batches = {silo.spec.name: max(1, len(silo.features) // steps) for silo in standing.silos}
    return [
        [single_records(silo, vector) for silo in standing.silos],
        [one_batch(silo, vector, FEW) for silo in standing.silos],
        [replace(one_batch(silo, vector, batches[silo.spec.name]), kind="gradient of a whole batch")
         for silo in standing.silos],
        first_round,
    ]  # fmt: skip


def _changes(standing: Standing, config: AuditConfig, findings: Findings) -> None:
    """Train the same rows in other ways: attack the messages of the first round, and see what it costs."""
    job = standing.job
    wanted = min(config.rounds, job.num_rounds) / job.num_rounds if config.costs else 0.0
    for change in (TrainingChange(), *config.parsed_changes()):
        changed = replace(job, name=f"change {change}", plans=change.of(job.plans, standing.sizes))
        rounds = max(1, round(wanted * changed.num_rounds))
        heard, state = hear(standing.cohort, standing.coordinator, changed, rounds)
        first = next(_rounds(replace(standing, job=changed), heard[: len(standing.silos)]))
        findings.of_changes[str(change)] = [_audited(standing, one, None) for one in first]
        if len(first) > 1:
            findings.of_changed_sums[str(change)] = [_audited(standing, one, None) for one in in_sum(first)]
        if config.costs:
            findings.costs[str(change)] = _error(standing, changed, state)
        print(f"training {str(change) or 'as set up'}: attacked{_cost_words(findings, str(change))}", file=sys.stderr)


def _audited(standing: Standing, replay: Replay, defence: Defence | None) -> MessageAudit:
    silo = standing.cohort.silos[replay.silo]
    vector = initial_vector(silo.task.model(standing.job.model_seed))
    return audit(silo, replay, vector, standing.units, standing.scale, defence)


def _error(standing: Standing, job: Job, state: State) -> float:
    return standing.mean_absolute_error(next(iter(job.strategy.models(state).values())))


def _cost_words(findings: Findings, key: str) -> str:
    return f", MAE {findings.costs[key]:.4g} {findings.unit}" if key in findings.costs else ""


def _print(findings: Findings, directory: RunDirectory) -> None:
    print("As the federation is set up, the worst of the replayed messages (records):")
    print(aligned(silo_table(findings), right=range(2, 7), rule=True))
    print("\nWhat smaller messages would give away:")
    print(aligned(smaller_table(findings), right=range(2, 7), rule=True))
    print("\nWhat each message gives away, by defence (records found / records behind the message):")
    print(aligned(defence_table(findings), right=range(1, 8), rule=True))
    print("\nThe same training, done in other ways:")
    print(aligned(change_table(findings), right=range(2, 8), rule=True))
    print(findings.verified_words)
    paths_table({"report": directory.report_path, "summary": directory.summary_path})
