"""`ray-fed audit RUN|FEDERATION`: replay what a coordinator receives, inside the silos, and attack it."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.leakage.audit_config import AuditConfig
from pipelines.leakage.audit_findings import NOTHING, SUM, Findings, LeakLimit, tried
from pipelines.leakage.audit_report import log_audit, tables, write_audit
from pipelines.leakage.audited_federation import (
    AuditedFederation,
    check_allowed,
    chosen_silos,
    knowledge,
    open_audited,
    same_as_received,
    scaler_of,
    setup_of,
)
from pipelines.leakage.threats import (
    CRAFTED,
    EXPLAINED,
    LISTED,
    MARGINALS,
    MEMBERSHIP,
    MODELS,
    NOTHING_KNOWN,
    PROPERTY,
    SILOS,
)
from pipelines.leakage.trained_models import answers, memberships, properties, write_exposures
from pipelines.leakage.tree_audit import audit_trees
from pipelines.leakage.whose_rows import whose_rows
from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies import FedAvg, State
from ray_fed.leakage.audit import (
    MessageAudit,
    TrainingChange,
    audit,
    audit_crafted,
    audit_together,
    check_first_layer,
)
from ray_fed.leakage.crafted_models import crafted, why_not_crafted
from ray_fed.leakage.defences import Defence, parse_defence
from ray_fed.leakage.replay import (
    RecordedUpdate,
    Replay,
    Replayed,
    beside_parameters,
    between_models,
    in_sum,
    of_round,
    one_batch,
    replay_rounds,
    rows_of_round,
    single_records,
    spread_rounds,
)
from ray_fed.leakage.shadow_models import shadow_trainer
from ray_fed.learning.layout import initial_vector
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table

PIPELINE = "audit"
TOGETHER = 2
"""Last rounds under a defence that are attacked together: each costs a pass over the list."""


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
            known, said = knowledge(audited, config.candidates, config.list_length)
            print(said, file=sys.stderr)
            audited = replace(audited, knows=known)
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
    for name, said in EXPLAINED.items():
        print(f"threat model {name}: {said}", file=sys.stderr)
    replayed = _as_set_up(audited, config, findings)
    if Path(target).is_dir() and audited.is_whole:
        findings.verified = same_as_received(target, audited.job, replayed.updates)
    _crafted(audited, findings)
    _defences(audited, config, next(_rounds(audited, replayed.updates)), findings)
    _changes(audited, config, findings)
    findings.memberships, exposed = memberships(target, audited, replayed, config.shadows)
    if config.exposed_records:
        write_exposures(Path(config.exposed_records), exposed)
    findings.memberships += answers(audited, replayed)
    if config.shadows:
        findings.properties = properties(audited, replayed.updates[: len(audited.silos)])
    print("who was trained on, and means over the rows: asked", file=sys.stderr)
    findings.untried = _untried(audited, config, findings)
    gate = LeakLimit(config.limits(), findings, config.models_named())
    directory.write_config({"command": shlex.join(command), "target": target, **asdict(config)})
    directory.write_environment({})
    write_audit(directory, findings, gate, time.perf_counter() - started, command)
    log_audit(directory, config)
    _print(findings, gate, directory)
    if gate.has_failed:
        print(f"ray-fed audit: {gate.words}", file=sys.stderr)
    elif gate.limits:
        print(gate.words)
    return int(gate.has_failed)


def _untried(audited: AuditedFederation, config: AuditConfig, findings: Findings) -> dict[str, str]:
    """Return threat model -> why it was not tried."""
    no_list, alone = "candidates is 'no', so there is no list", "there is no other silo, and no sum"
    network = audited.silos[0].task.model(audited.job.model_seed)
    masked = "the coordinator sees sums alone; what all others together read is under 'silos'"
    reasons = {
        NOTHING_KNOWN: "no message was attacked",
        MARGINALS: no_list,
        LISTED: no_list,
        MODELS: alone if config.has_list else no_list,
        SILOS: alone,
        MEMBERSHIP: "there are no records that no silo trains on: give a test set, or hold rows out",
        PROPERTY: masked if findings.is_summed else "shadows is 0, or the silos have too few rows for shadow silos",
        CRAFTED: why_not_crafted(network) or no_list,
    }
    there = tried(findings)
    return {model: why for model, why in reasons.items() if model not in there}


def _as_set_up(audited: AuditedFederation, config: AuditConfig, findings: Findings) -> Replayed:
    """Replay the run; attack every update, every sum and every change of the global model of some of its rounds."""
    job = audited.job
    last = job.num_rounds if config.whole_run else min(config.rounds, job.num_rounds)
    keep = spread_rounds(last, config.rounds)
    replayed = replay_rounds(audited.recording, audited.coordinator, job, last, keep=keep)
    findings.rounds = (len(keep), last, job.num_rounds)
    rounds = list(_rounds(audited, replayed.updates))
    for replays in (*rounds, *_beside(audited, replayed.updates)):
        findings.of_rounds += [_audited(audited, one, None) for one in replays]
        if len(replays) > 1:
            findings.of_sums += [_audited(audited, one, None) for one in in_sum(replays)]
    for replays in rounds:
        findings.of_models += [_audited(audited, one, None) for one in _between(audited, replays, replayed)]
    _rounds_together(audited, rounds, findings)
    print(f"{findings.rounds_words}: replayed and attacked", file=sys.stderr)
    return replayed


def _between(audited: AuditedFederation, replays: Sequence[Replay], replayed: Replayed) -> list[Replay]:
    """Return what another silo sees of a round; nothing where there is no other."""
    sent = replays[0].sent
    updates = [one.update for one in replayed.updates if np.array_equal(one.sent[: len(sent)], sent)]
    weights = {one.silo: one.num_examples for one in updates}
    if len(replays) < 2 or set(weights) != {one.silo for one in replays}:
        return []
    layout = audited.coordinator.layout
    moved = sent.astype(np.float64) - replayed.after[updates[0].server_round][: layout.size]
    parts = list(layout.unflatten(moved).values())
    return between_models(replays, parts, [weights[one.silo] for one in replays])


def _rounds_together(audited: AuditedFederation, rounds: Sequence[Sequence[Replay]], findings: Findings) -> None:
    """Attack each silo's updates of all attacked rounds at once, and the sums of all silos."""
    if audited.knows.suspects is None or len(rounds) < 2:
        return
    sums = [in_sum(replays) if len(replays) > 1 else [] for replays in rounds]
    for of_rounds, found in ((rounds, findings.of_rounds), (sums, findings.of_sums)):
        for silo in audited.silos:
            mine = [one for replays in of_rounds for one in replays if one.silo == silo.spec.name]
            if len(mine) > 1:
                found.append(audit_together(silo, mine, audited.knows.suspects))


def _crafted(audited: AuditedFederation, findings: Findings) -> None:
    """Send the own silos crafted models, and attack the gradient of a whole batch and the answer of the first round."""
    public, job = audited.knows.public, audited.job
    first = audited.silos[0]
    together = len(first.samples.features) // job.any_plan.steps_per_epoch
    network = first.task.model(job.model_seed)
    for kind, made in crafted(network, public, max(1, together)).items() if len(public) else ():
        vector = initial_vector(made)
        batches = [one_batch(silo, vector, _batch(audited, silo)) for silo in audited.silos]
        answers = [_answer(audited, silo, vector) for silo in audited.silos]
        for replays, found in ((batches, findings.of_crafted_batches), (answers, findings.of_crafted)):
            seen = in_sum(replays) if findings.is_summed and len(replays) > 1 else replays
            found += [audit_crafted(audited.cohort.silos[one.silo], one, kind) for one in seen]
    said = why_not_crafted(network) or ("" if len(public) else "there are no public records to make them of")
    print(f"crafted models: {said or 'sent to the own silos, answers attacked'}", file=sys.stderr)


def _answer(audited: AuditedFederation, silo: Silo, vector: Vector) -> Replay:
    """Return a silo's update of the first round where it was sent the parameters `vector`."""
    plan, layout = audited.local_plan, audited.coordinator.layout
    trainer = shadow_trainer(silo, silo.samples.features, silo.samples.targets, plan)
    sent = trainer.vector()
    sent[: layout.size] = vector[: layout.size]
    returned, fitted = trainer.fit_round(sent, 1)
    update = Update(silo.spec.name, "crafted", 1, returned, fitted.num_examples, fitted.num_steps, 0.0)
    return of_round(silo, RecordedUpdate(sent, update, rows_of_round(trainer, 1)), layout, plan)


def _batch(audited: AuditedFederation, silo: Silo) -> int:
    return max(1, len(silo.samples.features) // audited.job.any_plan.steps_per_epoch)


def _beside(audited: AuditedFederation, recorded: Sequence[RecordedUpdate]) -> Iterator[list[Replay]]:
    """Yield what the silos send beside the parameters, where that is made of their gradients."""
    silos = {silo.spec.name: silo for silo in audited.silos}
    layout, plan = audited.coordinator.layout, audited.local_plan
    found = [beside_parameters(silos[one.update.silo], one, layout, plan) for one in recorded]
    if sent := [one for one in found if one is not None]:
        yield sent


def _rounds(audited: AuditedFederation, recorded: Sequence[RecordedUpdate]) -> Iterator[list[Replay]]:
    """Yield the messages of each round, one per silo."""
    silos = {silo.spec.name: silo for silo in audited.silos}
    layout = audited.coordinator.layout
    for server_round in sorted({one.update.server_round for one in recorded}):
        there = [one for one in recorded if one.update.server_round == server_round]
        yield [of_round(silos[one.update.silo], one, layout, audited.job.any_plan) for one in there]


def _defences(audited: AuditedFederation, config: AuditConfig, first_round: list[Replay], findings: Findings) -> None:
    """Attack every kind of message under every defence, and what leaves in the rounds trained under it."""
    kinds = _kinds(audited, config, first_round)
    findings.attributed = [one for kind in kinds[1:] for one in whose_rows(audited, kind)]
    for text in ("", *config.defences):
        defence = replace(parse_defence(text), releases=audited.job.num_rounds) if text else None
        for kind in kinds:
            findings.of_kinds += [_audited(audited, one, defence) for one in kind]
        if config.costs:
            recording, job, rounds = audited.recording, audited.job, min(config.cost_rounds, audited.job.num_rounds)
            last = range(max(1, rounds - TOGETHER + 1), rounds + 1)
            replayed = replay_rounds(recording, audited.coordinator, job, rounds, defence, keep=last)
            findings.costs[text] = _error(audited, audited.job, replayed.state)
            findings.of_kinds += _under(audited, replayed.updates, text)
        print(f"defence {text or 'none'}: attacked{_cost_words(findings, text)}", file=sys.stderr)
    for kind in kinds if len(audited.silos) > 1 else ():
        findings.of_kinds += [replace(_audited(audited, one, None), defence=SUM) for one in in_sum(kind)]
    if len(audited.silos) > 1 and config.costs:
        findings.costs[SUM] = findings.costs[""]  # the sum is exact: the model is the same, bit for bit


def _under(audited: AuditedFederation, recorded: Sequence[RecordedUpdate], defence: str) -> Iterator[MessageAudit]:
    """Yield what the last rounds under a defence give away together: the same records, with other noise."""
    rounds, listed = list(_rounds(audited, recorded))[-TOGETHER:], audited.knows.suspects
    for silo in audited.silos if listed is not None and len(rounds) > 1 else ():
        mine = [one for replays in rounds for one in replays if one.silo == silo.spec.name]
        assert listed is not None
        yield replace(audit_together(silo, mine, listed), defence=defence or NOTHING)


def _kinds(audited: AuditedFederation, config: AuditConfig, first_round: list[Replay]) -> list[list[Replay]]:
    """Return the kinds of message, each of every silo: of one record, of some sizes, of a batch, of a whole round."""
    vector = initial_vector(audited.silos[0].task.model(audited.job.model_seed))
    return [
        [single_records(silo, vector) for silo in audited.silos],
        *([one_batch(silo, vector, size) for silo in audited.silos] for size in config.batches),
        [replace(one_batch(silo, vector, _batch(audited, silo)), kind="gradient of a whole batch")
         for silo in audited.silos],
        first_round,
    ]  # fmt: skip


def _changes(audited: AuditedFederation, config: AuditConfig, findings: Findings) -> None:
    """Train the same rows in other ways: attack the messages of the first round, and see what it costs."""
    job = audited.job
    wanted = min(config.cost_rounds, job.num_rounds) / job.num_rounds if config.costs else 0.0
    for change in (TrainingChange(), *config.parsed_changes()):
        strategy = FedAvg() if change.is_averaged else job.strategy
        plans = change.of(job.plans, audited.sizes)
        changed = replace(job, name=f"change {change}", plans=plans, strategy=strategy)
        rounds = max(1, round(wanted * changed.num_rounds))
        replayed = replay_rounds(audited.recording, audited.coordinator, changed, rounds, keep=(1,))
        first = next(_rounds(replace(audited, job=changed), replayed.updates))
        findings.of_changes[str(change)] = [_audited(audited, one, None) for one in first]
        if len(first) > 1:
            findings.of_changed_sums[str(change)] = [_audited(audited, one, None) for one in in_sum(first)]
        if config.costs:
            findings.costs[str(change)] = _error(audited, changed, replayed.state)
        print(f"training {str(change) or 'as set up'}: attacked{_cost_words(findings, str(change))}", file=sys.stderr)


def _audited(audited: AuditedFederation, replay: Replay, defence: Defence | None) -> MessageAudit:
    silo = audited.cohort.silos[replay.silo]
    return audit(silo, replay, audited.units, audited.scale, defence, audited.knows.suspects, audited.knows.marginals)


def _error(audited: AuditedFederation, job: Job, state: State) -> float:
    return audited.measured(next(iter(job.strategy.models(state).values())))


def _cost_words(findings: Findings, key: str) -> str:
    metric = findings.metric
    return f", {metric.title} {findings.costs[key]:.4g} {metric.unit}" if key in findings.costs else ""


def _print(findings: Findings, gate: LeakLimit, directory: RunDirectory) -> None:
    for title, table in tables(findings, gate):
        print(f"\n{title}:")
        print(aligned(table, right=range(1, len(table[0])), rule=True))
    print(findings.verified_words)
    paths_table({"report": directory.report_path, "summary": directory.summary_path})
