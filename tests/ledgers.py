"""A finished run of a small federation behind boundaries, with its ledgers and its model file, as forgers find it."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.ledger.coordinator_ledger import CoordinatorLedger, name_of_run
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies import FedAvg, State
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.coordinator_record import CollectedLedgers, CoordinatorRecord, SiloLedger
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.ledger import GENESIS, LedgerCounts, line_digest, to_line
from ray_fed.privacy.signing import SigningKey
from ray_fed.reporting.model_files import serialised
from ray_fed.reporting.run_directory import RunDirectory
from tests.synthetic import SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=3, learning_rate=0.01)
NAMES = ("silo-1", "silo-2")


def finished_run(folder: Path, broken_off_after: int | None = None) -> tuple[RunDirectory, list[RoundRecord]]:
    """Return a run of two silos and three rounds, and its records. The silos' keys are in folder/silos, the
    coordinator's is folder/coordinator.key.

    broken_off_after: round after which all processes end, and the run is resumed by new ones.
    """
    directory = RunDirectory(folder / "run")
    directory.path.mkdir()
    directory.write_config({"pipeline": "synthetic"})
    parts = [(0, 4)] if broken_off_after is None else [(0, broken_off_after + 1), (broken_off_after, 4)]
    records: list[RoundRecord] = []
    for after_round, until in parts:
        records += _one_process(folder, directory, after_round, until, records[-1].state if records else None)
    models = records[-1].models
    assert models is not None
    arrays = Layout.of(SyntheticTask().model(0)).unflatten(models["federated"])
    directory.write_bytes("models/federated.safetensors", serialised(arrays))
    CoordinatorLedger(directory, name_of_run(directory), SigningKey.at(folder / "coordinator.key")).end_run()
    directory.write_summary({"status": "completed"})
    return directory, records


def _one_process(
    folder: Path, directory: RunDirectory, after_round: int, until: int, state: State | None
) -> list[RoundRecord]:
    """Run rounds as one process of silos and coordinator does it, and hand the ledgers over."""
    run, task = name_of_run(directory), SyntheticTask()
    specs = [replace(spec, run=run, ledger_folder=str(folder / "silos")) for spec in silos(40, 60, held_out=12)]
    cohort = LocalCohort(specs, task)
    boundaries = {spec.name: GuardedSilo(spec, lambda spec=spec: Silo(spec, task)) for spec in specs}
    cohort.silos = boundaries  # type: ignore[assignment]
    coordinator = Coordinator(cohort, task, NAMES, [CoordinatorRecord(task)])
    ledger = CoordinatorLedger(directory, run, SigningKey.at(folder / "coordinator.key"))
    coordinator.agree()
    job = Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), 0, FedAvg())
    rounds = coordinator.run(job, after_round, state)
    records = list(itertools.islice(rounds, until - after_round - (state is not None)))
    rounds.close()  # type: ignore[attr-defined]
    for record in records:
        ledger.write(record.notes)
    collected = {name: boundary.collect_ledger() for name, boundary in boundaries.items()}
    found = {name: SiloLedger.handed_over(name, said) for name, said in collected.items()}
    ledger.add_silo_ledgers(CollectedLedgers({name: each for name, each in found.items() if each is not None}))
    ledger.close()
    return records


def owners_keys(directory: RunDirectory) -> dict[str, str]:
    """Return writer -> the public key that its owner would tell."""
    folder = directory.path.parent
    own = {name: SigningKey.at(folder / "silos" / name / "signing.key").public for name in NAMES}
    return {"coordinator": SigningKey.at(folder / "coordinator.key").public, **own}


def copied(directory: RunDirectory, to: Path) -> RunDirectory:
    """Return a copy to be forged."""
    shutil.copytree(directory.path, to)
    return RunDirectory(to)


def ledger_of(directory: RunDirectory, writer: str) -> Path:
    if writer == "coordinator":
        return directory.path / "ledger" / "coordinator.jsonl"
    [path] = directory.path.glob(f"ledger/silos/{writer}/*.jsonl")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


Change = Callable[[list[dict[str, Any]]], Iterable[Mapping[str, Any]]]


def write_anew(path: Path, change: Change = lambda lines: lines, key: SigningKey | None = None) -> SigningKey:
    """Change the lines of a ledger, and make chain, closing lines and signatures fit again, as a forger with a key of
    his own does it; return that key."""
    key = key or SigningKey(Ed25519PrivateKey.generate())
    previous, written, counts = GENESIS, [], LedgerCounts()
    for number, line in enumerate(change(lines_of(path)), start=1):
        facts = {**line, "number": number, "previous": previous}
        facts |= {"public_key": key.public} if "public_key" in facts else {}
        facts |= counts.facts() if facts["kind"] == "closing" else {}
        if facts["kind"] == "signature":
            del facts["signature"]
            facts["signature"] = key.sign(to_line(facts))
        counts.add(facts)
        written.append(to_line(facts))
        previous = line_digest(written[-1])
    path.write_bytes(b"".join(line + b"\n" for line in written))
    return key
