"""`ray-fed audit RUN|FEDERATION`: replay what a coordinator receives, inside the silos, and attack it."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.leakage.audit_config import AuditConfig
from pipelines.leakage.audit_findings import SUM, Findings, LeakLimit
from pipelines.leakage.audit_report import (
    change_table,
    defence_table,
    membership_table,
    silo_table,
    smaller_table,
    write_audit,
)
from pipelines.leakage.audited_federation import (
    AuditedFederation,
    check_allowed,
    chosen_silos,
    model_of,
    open_audited,
    same_as_received,
    scaler_of,
    setup_of,
    suspected,
)
from pipelines.leakage.tree_audit import audit_trees
from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.strategies import FedAvg, State, local_plan
from ray_fed.leakage.audit import MessageAudit, TrainingChange, audit, check_first_layer
from ray_fed.leakage.defences import Defence, parse_defence
from ray_fed.leakage.replay import (
    RecordedUpdate,
    Replay,
    beside_parameters,
    in_sum,
    of_round,
    one_batch,
    replay_rounds,
    single_records,
)
from ray_fed.learning.layout import initial_vector, load_vector
from ray_fed.materials.trained_model import raw_outputs
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table

PIPELINE = "audit"
FEW = 8
"""Size of the small batch that is replayed besides the configured one."""


def run(options: dict[str, Any], command_line: Sequence[str]) -> int:
    """Audit a run or a federation file; prints what leaks. Returns 1 where that is more than --max-leak, else 0."""
    target, strategy = options.pop("target"), options.pop("strategy")
    config = AuditConfig(**options)
    setup = setup_of(target, strategy)
    chosen = chosen_silos(setup, config.silos)
    check_allowed(config.policy, chosen)
    directory = RunDirectory.create(config.out, PIPELINE)
    try:
        if isinstance(setup.task, BoostedTask):
            return audit_trees(target, config, setup, chosen, directory, command_line)
        audited = open_audited(setup, chosen, scaler_of(target) if Path(target).is_dir() else None)
        check_first_layer(audited.silos[0].task.model(0))
        if config.has_list:
            listed, said = suspected(audited, config.candidates, config.list_length)
            print(said, file=sys.stderr)
            audited = replace(audited, suspects=listed)
        return _carry_out(target, config, audited, directory, command_line)
    finally:
        directory.discard_if_empty()


def _carry_out(
    target: str, config: AuditConfig, audited: AuditedFederation, directory: RunDirectory, command: Sequence[str]
) -> int:
    started = time.perf_counter()
    findings = Findings(audited.target_unit, audited.units, audited.metric)
    findings.is_summed = bool(audited.job.secure_threshold)
    findings.has_secret_noise = audited.job.any_plan.private is not None
    recorded = _as_set_up(audited, config, findings)
    if Path(target).is_dir() and audited.is_whole:
        findings.verified = same_as_received(target, audited.job, recorded)
    _defences(audited, config, recorded, findings)
    _changes(audited, config, findings)
    _memberships(target, audited, recorded, findings)
    gate = LeakLimit(config.limits(), findings)
    directory.write_config({"command": shlex.join(command), "target": target, **asdict(config)})
    directory.write_environment({})
    write_audit(directory, findings, gate, time.perf_counter() - started, command)
    _print(findings, directory)
    if gate.broken:
        print(f"ray-fed audit: {gate.words}", file=sys.stderr)
    elif gate.limits:
        print(gate.words)
    return 1 if gate.broken else 0


def _as_set_up(audited: AuditedFederation, config: AuditConfig, findings: Findings) -> list[RecordedUpdate]:
    """Replay the first rounds; attack every update, and every sum of a round's updates."""
    recorded, state = replay_rounds(audited.recording, audited.coordinator, audited.job, config.rounds)
    if config.costs:
        findings.costs[""] = _error(audited, audited.job, state)
    for replays in (*_rounds(audited, recorded), *_beside(audited, recorded)):
        findings.of_rounds += [_audited(audited, one, None) for one in replays]
        if len(replays) > 1:
            findings.of_sums += [_audited(audited, one, None) for one in in_sum(replays)]
    print(f"{config.rounds} rounds as set up: replayed and attacked", file=sys.stderr)
    return recorded


def _beside(audited: AuditedFederation, recorded: Sequence[RecordedUpdate]) -> Iterator[list[Replay]]:
    """Yield what the silos send beside the parameters, where that is made of their gradients."""
    silos = {silo.spec.name: silo for silo in audited.silos}
    job, coordinator = audited.job, audited.coordinator
    plan = local_plan(job.strategy, job.any_plan, coordinator.task.model(job.model_seed))
    found = [beside_parameters(silos[one.update.silo], one, coordinator.layout, plan) for one in recorded]
    if sent := [one for one in found if one is not None]:
        yield sent


def _memberships(
    target: str, audited: AuditedFederation, recorded: Sequence[RecordedUpdate], findings: Findings
) -> None:
    """Ask who was trained on, of the last update of each silo in the replay, and of the model of the whole run."""
    last = {one.update.silo: one.update for one in recorded}
    size = audited.coordinator.layout.size
    networks = {
        name: load_vector(audited.coordinator.task.model(0), update.vector[:size]) for name, update in last.items()
    }
    some = next(iter(last.values()))
    with torch.no_grad():
        findings.memberships += audited.memberships(
            f"update of round {some.server_round}", lambda samples, silo: networks[silo](samples.features.cpu())
        )
        model = model_of(target) if Path(target).is_dir() else None
        if model is not None:
            findings.memberships += audited.memberships(
                "model of the whole run",
                lambda samples, _: torch.from_numpy(raw_outputs(samples.rows.features, *model)),
            )


def _rounds(audited: AuditedFederation, recorded: Sequence[RecordedUpdate]) -> Iterator[list[Replay]]:
    """Yield the messages of each round, one per silo."""
    silos = {silo.spec.name: silo for silo in audited.silos}
    layout = audited.coordinator.layout
    for server_round in sorted({one.update.server_round for one in recorded}):
        there = [one for one in recorded if one.update.server_round == server_round]
        yield [of_round(silos[one.update.silo], one, layout, audited.job.any_plan) for one in there]


def _defences(
    audited: AuditedFederation, config: AuditConfig, recorded: Sequence[RecordedUpdate], findings: Findings
) -> None:
    """Attack every kind of message under every defence, and train under it."""
    kinds = _kinds(audited, next(_rounds(audited, recorded)))
    for text in ("", *config.defences):
        defence = replace(parse_defence(text), releases=audited.job.num_rounds) if text else None
        for kind in kinds:
            findings.of_kinds += [_audited(audited, one, defence) for one in kind]
        if defence and config.costs:
            _, state = replay_rounds(audited.recording, audited.coordinator, audited.job, config.rounds, defence)
            findings.costs[text] = _error(audited, audited.job, state)
        print(f"defence {text or 'none'}: attacked{_cost_words(findings, text)}", file=sys.stderr)
    for kind in kinds if len(audited.silos) > 1 else ():
        findings.of_kinds += [replace(_audited(audited, one, None), defence=SUM) for one in in_sum(kind)]
    if len(audited.silos) > 1 and config.costs:
        findings.costs[SUM] = findings.costs[""]  # the sum is exact: the model is the same, bit for bit


def _kinds(audited: AuditedFederation, first_round: list[Replay]) -> list[list[Replay]]:
    """Return the kinds of message, each of every silo: of one record, of few, of a batch, of a whole round."""
    vector = initial_vector(audited.silos[0].task.model(audited.job.model_seed))
    steps = audited.job.any_plan.steps_per_epoch
    batches = {silo.spec.name: max(1, len(silo.samples.features) // steps) for silo in audited.silos}
    return [
        [single_records(silo, vector) for silo in audited.silos],
        [one_batch(silo, vector, FEW) for silo in audited.silos],
        [replace(one_batch(silo, vector, batches[silo.spec.name]), kind="gradient of a whole batch")
         for silo in audited.silos],
        first_round,
    ]  # fmt: skip


def _changes(audited: AuditedFederation, config: AuditConfig, findings: Findings) -> None:
    """Train the same rows in other ways: attack the messages of the first round, and see what it costs."""
    job = audited.job
    wanted = min(config.rounds, job.num_rounds) / job.num_rounds if config.costs else 0.0
    for change in (TrainingChange(), *config.parsed_changes()):
        strategy = FedAvg() if change.is_averaged else job.strategy
        plans = change.of(job.plans, audited.sizes)
        changed = replace(job, name=f"change {change}", plans=plans, strategy=strategy)
        rounds = max(1, round(wanted * changed.num_rounds))
        recorded, state = replay_rounds(audited.recording, audited.coordinator, changed, rounds)
        first = next(_rounds(replace(audited, job=changed), recorded[: len(audited.silos)]))
        findings.of_changes[str(change)] = [_audited(audited, one, None) for one in first]
        if len(first) > 1:
            findings.of_changed_sums[str(change)] = [_audited(audited, one, None) for one in in_sum(first)]
        if config.costs:
            findings.costs[str(change)] = _error(audited, changed, state)
        print(f"training {str(change) or 'as set up'}: attacked{_cost_words(findings, str(change))}", file=sys.stderr)


def _audited(audited: AuditedFederation, replay: Replay, defence: Defence | None) -> MessageAudit:
    silo = audited.cohort.silos[replay.silo]
    return audit(silo, replay, audited.units, audited.scale, defence, audited.suspects)


def _error(audited: AuditedFederation, job: Job, state: State) -> float:
    return audited.measured(next(iter(job.strategy.models(state).values())))


def _cost_words(findings: Findings, key: str) -> str:
    metric = findings.metric
    return f", {metric.title} {findings.costs[key]:.4g} {metric.unit}" if key in findings.costs else ""


def _print(findings: Findings, directory: RunDirectory) -> None:
    print("As the federation is set up, the worst of the replayed messages (records):")
    print(aligned(silo_table(findings), right=range(2, 8), rule=True))
    print("\nWhat smaller messages would give away:")
    print(aligned(smaller_table(findings), right=range(2, 8), rule=True))
    print("\nWhat each message gives away, by defence (reconstructed / behind, named / listed behind):")
    print(aligned(defence_table(findings), right=range(1, 8), rule=True))
    print("\nThe same training, done in other ways:")
    print(aligned(change_table(findings), right=range(2, 9), rule=True))
    print("\nWho was trained on, from the losses of candidates with their targets (AUC 0.5 is chance):")
    print(aligned(membership_table(findings), right=range(2, 6), rule=True))
    print(findings.verified_words)
    paths_table({"report": directory.report_path, "summary": directory.summary_path})
