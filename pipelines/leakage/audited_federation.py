"""The silos of a run or a federation file, opened in this process as their owners allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from pipelines.ledger.coordinator_ledger import coordinator_path
from pipelines.training.pipeline import options_of, pipeline_of
from pipelines.training.setup import POOLED, Setup, jobs, resolve
from pipelines.update_options import require_own_code
from ray_fed.config import require
from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SiloDescription, Vector
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies import local_plan
from ray_fed.federation.task import Samples
from ray_fed.leakage.listed_records import RecordList
from ray_fed.leakage.marginals import Marginals
from ray_fed.leakage.replay import RecordedUpdate, Recording, recording_cohort
from ray_fed.learning.layout import load_vector
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.source import Source
from ray_fed.materials.graphs.graph_task import GraphTask
from ray_fed.materials.property_task import PropertyTask
from ray_fed.materials.trained_model import standardizer_of
from ray_fed.metrics import Metric, Scores, merged
from ray_fed.perimeter.chain import read_chain
from ray_fed.perimeter.ledger import vector_digest
from ray_fed.perimeter.policy import read_site, site_path
from ray_fed.reporting.model_files import ModelCard, load_model
from ray_fed.reporting.run_directory import RunDirectory


@dataclass(frozen=True)
class AuxiliaryKnowledge:
    """What attackers know besides the messages; nothing by default."""

    suspects: RecordList | None = None
    """What an attacker with a list suspects."""
    marginals: Marginals | None = None
    """How records are distributed."""
    public: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """Public records [num_rows, num_features], none of a silo's own among them, as the network sees them."""


@dataclass(frozen=True)
class AuditedFederation:
    """The audited silos, open and standardised, and what they do in the federation."""

    cohort: LocalCohort
    recording: Recording
    coordinator: Coordinator
    job: Job
    scale: np.ndarray
    """Standard deviations of the features, in their units."""
    units: Mapping[str, str]
    target_unit: str
    is_whole: bool
    """Whether all silos of the federation are audited."""
    knows: "AuxiliaryKnowledge" = field(default_factory=lambda: AuxiliaryKnowledge())
    """What attackers know besides the messages."""

    @property
    def silos(self) -> tuple[Silo, ...]:
        return tuple(self.cohort.silos[name] for name in self.job.silos)

    @property
    def sizes(self) -> dict[str, int]:
        return {silo.spec.name: len(silo.samples.features) for silo in self.silos}

    def untrained(self, silo: Silo) -> Samples:
        """Return records that no silo trains on: the common test set, or the rows held out here; perhaps none."""
        if self.cohort.evaluator is not None:
            return self.cohort.evaluator.samples
        held_out = replace(silo.rows, features=silo.rows.held_out_features, targets=silo.rows.held_out_targets)
        return silo.task.prepare(held_out, silo.samples.standardizer, "cpu")

    @property
    def local_plan(self) -> TrainingPlan:
        """Return the plan of a silo as the strategy has it."""
        return local_plan(self.job.strategy, self.job.any_plan, self.coordinator.task.model(self.job.model_seed))

    @property
    def metric(self) -> Metric:
        """In which the costs of defences are told."""
        return self.coordinator.task.metrics[0]

    def measured(self, vector: Vector) -> float:
        """Return the metric on the common test set, or on the silos' held-out rows if there is none; 0 without any."""
        on_test = self.cohort.evaluate_test({"model": vector})
        scores = on_test["model"] if on_test else merged(_held_out(silo, vector) for silo in self.silos)
        return scores.values()[self.metric.name] if scores.num_examples else 0.0


def setup_of(target: str, strategy: object = None) -> Setup:
    """Return the setup of a run or of a federation file. ConfigError where silos are at sites of their owners: nobody
    else replays what they send."""
    setup = _setup_of(target, strategy)
    alone = "an audit opens the data; each owner can audit a federation file that names the own data alone"
    require(not setup.sites, f"{target}: has silos at sites of their owners, and {alone}")
    return setup


def _setup_of(target: str, strategy: object) -> Setup:
    path = Path(target)
    if path.is_file():
        return resolve({"federation": str(path.absolute())})
    config = RunDirectory.open(path).read_config()
    if "silos" not in config or "set" not in config or "communication_frequency" not in config:
        raise ConfigError(
            f"{target} is not a run of train or formation-energy; an audit replays such runs, or a federation file"
        )
    options = options_of(config)
    require_own_code(options.get("strategy"), strategy, target)
    overrides = tuple(str(text) for text in config["set"] or ())  # type: ignore[union-attr]
    return resolve(options, overrides, pipeline_of(config))


def chosen_silos(setup: Setup, silos: Sequence[str]) -> tuple[str, ...]:
    """Return the silos asked for, all if none is; ConfigError for one that is not there."""
    known = tuple(spec.name for spec in setup.silos)
    for name in silos:
        if name not in known:
            raise ConfigError(f"silos: there is no silo {name!r}; there are: {', '.join(known)}")
    return tuple(name for name in known if not silos or name in silos)


def check_allowed(policy: str | None, silos: Sequence[str]) -> None:
    """Raise a ConfigError naming the first silo whose owner's site file does not allow an audit, and the remedy."""
    path = Path(policy) if policy else site_path()
    for silo in silos:
        if not read_site(silo, path).policy.audit:
            raise ConfigError(
                f"silo '{silo}': its owner has not allowed an audit; the owner writes "
                f"'silos: {{{silo}: {{audit: true}}}}' into {path}, or names another site file with --policy"
            )


def model_of(target: str) -> tuple[Mapping[str, np.ndarray], ModelCard] | None:
    """Return the model that a run ended with and its card, None where it left none."""
    path = RunDirectory(target).models / "federated.safetensors"
    return load_model(path) if path.is_file() else None


def scaler_of(target: str) -> Standardizer | None:
    """Return the scaler that a run agreed on, None where it left no model."""
    model = model_of(target)
    return standardizer_of(*model) if model else None


def open_audited(setup: Setup, chosen: Sequence[str], scaler: Standardizer | None = None) -> AuditedFederation:
    """Open the chosen silos alone, in this process, without a trace on disk; without a scaler they agree on one."""
    if not isinstance(setup.task, PropertyTask):
        raise DataError("an audit replays runs of train and formation-energy; this run has another task")
    if isinstance(setup.task, GraphTask):
        raise DataError("an audit attacks updates of networks on tables; this run's network is on crystal graphs")
    specs = [replace(spec, state_folder="", ledger_folder="") for spec in setup.silos if spec.name in chosen]
    cohort, recording = recording_cohort(specs, setup.task, setup.test)
    coordinator = Coordinator(cohort, setup.task, chosen)
    agreement = coordinator.agree()
    if scaler is not None:
        cohort.prepare(scaler)
    scaler = scaler or agreement.standardizer
    assert scaler is not None, "property tasks standardise"
    return AuditedFederation(
        cohort, recording, coordinator, _job(setup, agreement.silos), setup.task.scalers(scaler)[0].scale,
        setup.task.featurizer().feature_units(), setup.task.unit, len(chosen) == len(setup.silos),
    )  # fmt: skip


def knowledge(audited: AuditedFederation, public: str, length: int) -> tuple[AuxiliaryKnowledge, str]:
    """Return what public records tell an attacker: how records are distributed, and a list of at most `length` records
    on which those of the audited silos stand among public ones; and a line that says how many of each, and what of the
    public ones could not be used.

    public: a source of crystals, as `Source.path`. A silo's first rows come first: small batches are made of them.
    """
    own = [silo.samples.features.cpu().numpy() for silo in audited.silos]
    length = max(SHORTEST_LIST, length // _outputs(audited))  # every output is an unknown of its own
    share = length // 2 // len(own)
    listed = [features[:share] for features in own]
    task, standardizer = audited.coordinator.task, audited.silos[0].samples.standardizer
    assert isinstance(task, PropertyTask)
    wanted = length - sum(len(features) for features in listed)
    features, reasons = task.featurizer().transform_with_reasons(
        open_database(Source(public, target=None)).frame[:wanted]
    )
    usable = [not reason for reason in reasons]
    own_rows = sum(len(part) for part in listed)
    said = f"list of suspects: {own_rows:,} records of the audited silos among {sum(usable):,} public ones"
    if left_out := [reason for reason in reasons if reason]:
        said += f"; {len(left_out):,} public ones could not be used, the first: {left_out[0][:200]}"
    public_rows = task.inputs(features[usable], standardizer).numpy()
    return AuxiliaryKnowledge(
        RecordList(np.concatenate([*listed, public_rows])), Marginals.of(public_rows), public_rows
    ), said


SHORTEST_LIST = 100


def _outputs(audited: AuditedFederation) -> int:
    silo = audited.silos[0]
    with torch.no_grad():
        return silo.task.model(0)(silo.samples.features[:1]).numel()


def same_as_received(target: str, job: Job, recorded: Sequence[RecordedUpdate]) -> tuple[int, int] | None:
    """Return how many replayed updates are, by their SHA-256, those that the run's coordinator wrote down, and how many
    it wrote down of these rounds; None where the run keeps no ledger."""
    path = coordinator_path(RunDirectory(target))
    if not path.is_file():
        return None
    mine = {(one.update.silo, one.update.server_round): vector_digest(one.update.vector) for one in recorded}
    received = {}
    for line in read_chain(path).of_kind("received"):
        message = line["message"]
        key = (line["silo"], message["round"])
        if message["session"] == job.name and key in mine:
            received[key] = message["sha256"]
    return sum(mine[key] == digest for key, digest in received.items()), len(received)


def _job(setup: Setup, descriptions: Mapping[str, SiloDescription]) -> Job:
    """Return the federated job among the audited silos. The steps of an epoch depend on all silos' rows: those of silos
    that are not audited are taken to be as many as the audited ones have on average."""
    mean = sum(one.num_examples for one in descriptions.values()) // len(descriptions)
    some = next(iter(descriptions.values()))
    names = [*(spec.name for spec in setup.silos), POOLED]
    known = {name: descriptions.get(name) or replace(some, silo=name, num_examples=mean) for name in names}
    job = jobs(setup, known, setup.config.seed)[0]
    return replace(job, silos=tuple(name for name in job.silos if name in descriptions))


def _held_out(silo: Silo, vector: Vector) -> Scores:
    with torch.no_grad():
        outputs = load_vector(silo.task.model(0), vector)(silo.samples.held_out_features).numpy()
    return silo.task.score(silo.rows.held_out_targets, silo.samples.said(outputs))
