"""`ray-fed audit RUN|FEDERATION`: replay what a coordinator receives, inside the silos, and attack it."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.formation_energy.setup import POOLED, Setup, jobs, resolve
from pipelines.leakage.audit_config import AuditConfig
from pipelines.leakage.audit_report import Costs, audit_table, write_audit
from pipelines.leakage.policy import check_allowed
from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.messages import SiloDescription
from ray_fed.federation.silo import Silo
from ray_fed.leakage.audit import (
    MessageAudit,
    Replay,
    audit,
    one_batch,
    single_records,
    summed,
    trained_error,
    whole_round,
)
from ray_fed.leakage.defences import Defence, parse_defence
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.standardisation import Standardizer, merge_moments
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.property_task import PropertyTask
from ray_fed.reporting.model_files import load_model
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table

PIPELINE = "audit"
FEW = 8
"""Size of the small batch that is replayed besides the configured one."""


@dataclass(frozen=True)
class Standing:
    """The audited silos, open and standardised, and what they would do in the federation."""

    cohort: LocalCohort
    silos: tuple[Silo, ...]
    plans: Mapping[str, TrainingPlan]
    scale: np.ndarray
    """Standard deviations of the features, in their units."""
    units: Mapping[str, str]
    target_unit: str
    seed: int


def run(target: str, options: dict[str, object], command: Sequence[str]) -> int:
    """Audit a run or a federation file; prints what leaks, returns the exit code."""
    config = AuditConfig(**options)  # type: ignore[arg-type]
    setup, scaler = _setup(target)
    chosen = _chosen(setup, config)
    check_allowed(config.policy, chosen)
    directory = RunDirectory.create(config.out, PIPELINE)
    try:
        return _carry_out(target, config, _open(setup, chosen, scaler), directory, command)
    finally:
        directory.discard_if_empty()


def _carry_out(
    target: str, config: AuditConfig, standing: Standing, directory: RunDirectory, command: Sequence[str]
) -> int:
    started = time.perf_counter()
    defences = [None, *(parse_defence(text) for text in config.defences)]
    vector = initial_vector(standing.silos[0].task.model(standing.seed))
    audits: list[MessageAudit] = []
    for silo, replays in _replays(standing, vector):
        for replay in replays:
            audits += [audit(silo, replay, vector, standing.units, standing.scale, defence) for defence in defences]
        print(f"silo '{silo.spec.name}': replayed and attacked", file=sys.stderr)
    costs = _costs(standing, config, [one for one in defences if one is not None])
    directory.write_config({"command": shlex.join(command), "target": target, **asdict(config)})
    directory.write_environment({})
    write_audit(directory, audits, costs, standing.units, standing.target_unit, time.perf_counter() - started, command)
    print(aligned(audit_table(audits, costs, standing.target_unit), right=range(2, 8), rule=True))
    paths_table({"report": directory.report_path, "summary": directory.summary_path})
    return 0


def _setup(target: str) -> tuple[Setup, Standardizer | None]:
    """Return the setup of a run or a federation file, and the run's scaler if it has a model."""
    path = Path(target)
    if path.is_file():
        return resolve({"federation": str(path.absolute())}), None
    directory = RunDirectory.open(path)
    config = directory.read_config()
    if "silos" not in config or "set" not in config:
        raise ConfigError(
            f"{target} is not a run of formation-energy; an audit replays such runs, or a federation file"
        )
    options = {key: _as_option(value) for key, value in config.items() if key not in ("command", "set", "out")}
    setup = resolve(options, tuple(str(text) for text in config["set"] or ()))  # type: ignore[union-attr]
    model = directory.models / "federated.safetensors"
    if not model.is_file():
        return setup, None
    arrays, card = load_model(model)
    return setup, Standardizer(*(arrays[name] for name in card.scaler_tensors))


def _as_option(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _chosen(setup: Setup, config: AuditConfig) -> tuple[str, ...]:
    known = tuple(spec.name for spec in setup.silos)
    for name in config.silos:
        if name not in known:
            raise ConfigError(f"silos: there is no silo {name!r}; there are: {', '.join(known)}")
    return config.silos or known


def _open(setup: Setup, chosen: Sequence[str], scaler: Standardizer | None) -> Standing:
    """Open the chosen silos alone, in this process, without a trace on disk."""
    if not isinstance(setup.task, PropertyTask):
        raise DataError("an audit replays runs of formation-energy; this run has another task")
    specs = [replace(spec, state_folder="") for spec in setup.silos if spec.name in chosen]
    cohort = LocalCohort(specs, setup.task, setup.test)
    descriptions = cohort.open()
    moments = merge_moments(list(cohort.moments(sorted(descriptions)).values()))
    scaler = scaler or Standardizer.from_moments(moments)
    cohort.prepare(scaler)
    return Standing(
        cohort, tuple(cohort.silos.values()), _plans(setup, descriptions), scaler.scale,
        setup.task.featurizer().feature_units(), setup.task.unit, setup.config.seed,
    )  # fmt: skip


def _plans(setup: Setup, descriptions: Mapping[str, SiloDescription]) -> Mapping[str, TrainingPlan]:
    """Return each silo's plan. The steps of an epoch depend on all silos' rows: those of silos that are not audited are
    taken to be as many as the audited ones have on average."""
    mean = sum(one.num_examples for one in descriptions.values()) // len(descriptions)
    some = next(iter(descriptions.values()))
    names = [*(spec.name for spec in setup.silos), POOLED]
    known = {name: descriptions.get(name) or replace(some, silo=name, num_examples=mean) for name in names}
    return jobs(setup, known, setup.config.seed)[0].plans


def _replays(standing: Standing, vector: np.ndarray) -> list[tuple[Silo, list[Replay]]]:
    rounds = {silo: whole_round(silo, standing.plans[silo.spec.name], vector, standing.seed) for silo in standing.silos}
    sums = summed(list(rounds.values())) if len(rounds) > 1 else []
    found = []
    for number, (silo, of_round) in enumerate(rounds.items()):
        plan = standing.plans[silo.spec.name]
        batch = max(1, len(silo.features) // plan.steps_per_epoch)
        replays = [single_records(silo, vector), one_batch(silo, vector, FEW), one_batch(silo, vector, batch), of_round]
        found.append((silo, [*replays, *sums[number : number + 1]]))
    return found


def _costs(standing: Standing, config: AuditConfig, defences: Sequence[Defence]) -> Costs:
    """Return defence -> error after some rounds of training, in the target's unit; '' is without a defence."""
    if config.cost_rounds == 0:
        return {}
    found: dict[str, float] = {}
    for defence in (None, *defences):
        rounds = min(config.cost_rounds, next(iter(standing.plans.values())).num_rounds)
        error = trained_error(
            standing.silos, standing.plans, standing.seed, rounds, defence, lambda v: _mae(standing, v)
        )
        found[str(defence or "")] = error
        print(
            f"{rounds} rounds with defence {defence or 'none'}: MAE {error:.4g} {standing.target_unit}", file=sys.stderr
        )
    return found


def _mae(standing: Standing, vector: np.ndarray) -> float:
    """Mean absolute error on the common test set, or on the silos' held-out rows where there is none."""
    examined = standing.cohort.examine({"model": vector})
    if examined is not None:
        return examined["model"].values()["mae"]
    errors, count = 0.0, 0
    for silo in standing.silos:
        predicted = _predict(silo, vector)
        errors += float(np.abs(predicted - silo.rows.held_out_targets).sum())
        count += len(predicted)
    return errors / max(1, count)


def _predict(silo: Silo, vector: np.ndarray) -> np.ndarray:
    import torch

    from ray_fed.learning.layout import load_vector

    with torch.no_grad():
        return load_vector(silo.task.model(0), vector)(silo.held_out_features)[:, 0].numpy()
