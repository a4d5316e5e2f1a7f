"""Train the models of one job: one property, one descriptor, one method, many hyperparameters."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ray_fed.errors import DataError
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.model_library import predictors
from ray_fed.model_library.batched_training import Schedule, TrainingRows, train_pyramids
from ray_fed.model_library.cards import Failure, PackedModel, pack, regression_metrics, versions
from ray_fed.model_library.crystal_graph import GRAPH_HASH, METHOD, crystal_graphs, fit_crystal_graphs, predict_crystals
from ray_fed.model_library.descriptors import Descriptor, make_descriptor
from ray_fed.model_library.predictors import fit_scikit
from ray_fed.model_library.property_tables import SHARES, PropertyTable, SplitRows, divided
from ray_fed.model_library.stacked_networks import Pyramid, PyramidRanges, random_pyramids
from ray_fed.randomness import derived_seed, generator
from ray_fed.reporting.model_files import ModelCard
from ray_fed.reporting.writing import Plain, to_json

CLIP = predictors.INPUT_CLIP


@dataclass(frozen=True)
class BuildJob:
    """A bundle of models that share their rows and features."""

    table: str
    """Key of a `PropertyTable`."""
    descriptor: str
    method: str
    """mlp | random_forest | gradient_boosting | elastic_net | crystal_graph"""
    count: int
    """Models to train."""
    seed: int
    max_rows: int = 1500
    """Rows used, by a seeded choice."""
    element_table: str | None = None
    ranges: PyramidRanges = field(default_factory=PyramidRanges)
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Return what a build remembers the job by: equal jobs on any machine, equal keys."""
        facts = {name: value for name, value in vars(self).items() if name not in ("device", "element_table")}
        facts["ranges"] = vars(self.ranges)
        return hashlib.sha256(to_json(facts)).hexdigest()[:24]


@dataclass(frozen=True)
class BuildResult:
    """What came out of a job."""

    job: BuildJob
    models: list[PackedModel]
    failures: list[Failure]


def run_job(job: BuildJob, table: PropertyTable) -> BuildResult:
    """Train all models of a job. What goes wrong with one model, or with all, is a failure with its reason."""
    models, failures = [], []
    sample = table.sample(job.max_rows, generator(job.seed, "library rows", table.key))
    try:
        trained = _graph_models(job, sample) if job.method == METHOD else _feature_models(job, sample)
        for arrays, card, reason in trained:
            if reason:
                failures.append(_failure(job, table, card.seed, reason))
            else:
                models.append(pack(arrays, card))
    except DataError as error:
        failures.append(_failure(job, table, job.seed, str(error)))
    return BuildResult(job, models, failures)


def split_rows(table: PropertyTable, descriptor: Descriptor, job: BuildJob) -> SplitRows:
    """Featurise a table and divide its rows; DataError when too few are left."""
    if not descriptor.reads(table.frame):
        raise DataError(f"descriptor {descriptor.name!r} reads {descriptor.column!r}, {table.key} has no such column")
    features, reasons = descriptor.transform(table.frame)
    usable = np.array([not reason for reason in reasons]) & np.isfinite(features).all(axis=1)
    if usable.sum() < 20:
        first = next((reason for reason in reasons if reason), "features are not finite")
        raise DataError(f"{table.key} x {descriptor.name}: {usable.sum()} usable rows of {len(usable)}; {first}")
    parts = divided(table.groups[usable], generator(job.seed, "library split", table.key))
    targets = table.frame["value"].to_numpy(float)[usable]
    return SplitRows(features[usable], targets, parts, int((~usable).sum()))


Trained = Iterator[tuple[dict[str, np.ndarray], ModelCard, str]]
"""(arrays, card, reason); a reason other than "" means that the model failed."""


def _feature_models(job: BuildJob, table: PropertyTable) -> Trained:
    descriptor = make_descriptor(job.descriptor, job.element_table)
    rows = split_rows(table, descriptor, job)
    blank = _blank_card(job, table, descriptor.on_card(), descriptor.feature_names(), rows.unreadable)
    if job.method == predictors.NETWORK:
        trained = _networks(job, table, rows, blank)
    else:
        trained = fit_scikit(job.method, job.count, rows, blank, job.seed)
    features, wanted = rows.of("test")
    for arrays, card, reason in trained:
        if not reason:
            predicted = predictors.predict(arrays, card, features)
            card, reason = _scored(card, predicted, wanted, rows.targets[rows.parts["train"]], rows.parts)
        yield arrays, card, reason


def _graph_models(job: BuildJob, table: PropertyTable) -> Trained:
    if "numbers" not in table.frame:
        raise DataError(f"crystal graphs need structures, {table.key} has none")
    graphs, reasons = crystal_graphs(table.frame)
    usable = np.array([not reason for reason in reasons])
    if usable.sum() < 20:
        raise DataError(f"{table.key}: {usable.sum()} structures can be read; need 20")
    targets = table.frame["value"].to_numpy(float)[usable]
    parts = divided(table.groups[usable], generator(job.seed, "library split", table.key))
    descriptor: dict[str, Plain] = {"name": METHOD, "table_hash": GRAPH_HASH, "options": {}}
    blank = _blank_card(job, table, descriptor, (), int((~usable).sum()))
    test = graphs.take(parts["test"])
    for arrays, card, reason in fit_crystal_graphs(job.count, graphs, targets, parts, blank, job.seed):
        if not reason:
            predicted = predict_crystals(arrays, card, test)
            card, reason = _scored(card, predicted, targets[parts["test"]], targets[parts["train"]], parts)
        yield arrays, card, reason


def _scored(
    card: ModelCard, predicted: np.ndarray, wanted: np.ndarray, learned: np.ndarray, parts: dict[str, np.ndarray]
) -> tuple[ModelCard, str]:
    """Return the card with its metrics on the held-out rows, or why the model is of no use."""
    if not np.isfinite(predicted).all():
        return card, "predictions are not finite"
    counts = {part: {"n": len(parts[part])} for part in ("train", "validation")}
    test = regression_metrics(wanted, predicted.astype(np.float64), float(np.median(learned)))
    return replace(card, metrics={**counts, "test": test}), ""


def _networks(job: BuildJob, table: PropertyTable, rows: SplitRows, blank: ModelCard) -> Trained:
    """Train random pyramids in stacks; the target's scale is folded into the last layer."""
    features, targets = rows.of("train")
    scaler = Standardizer.from_moments(ColumnMoments.of(features))
    centre, spread = targets.mean(), targets.std() or 1.0
    held, wanted = rows.of("validation")
    # A property that hardly occurs among the training rows would send a standardised value to thousands.
    inputs, held = (np.clip(scaler(values), -CLIP, CLIP) for values in (features, held))
    data = TrainingRows(inputs, (targets - centre) / spread, held, (wanted - centre) / spread)
    pyramids = random_pyramids(job.count, job.ranges, job.seed, table.key, job.descriptor)
    schedule = Schedule(seed=derived_seed(job.seed, "library order", table.key), device=job.device)
    for result in train_pyramids(data, pyramids, schedule):
        arrays = with_target_scale(result.arrays, centre, spread)
        arrays |= {"scaler.mean": scaler.mean, "scaler.scale": scaler.scale}
        card = replace(
            blank,
            name=f"{table.property_name} {'-'.join(map(str, result.pyramid.hidden))}",
            architecture=_architecture(result.pyramid, features.shape[1]),
            hyperparameters={
                "optimizer": "adam", "learning_rate": result.pyramid.learning_rate, "batch_size": schedule.batch_size,
                "most_epochs": result.pyramid.epochs, "patience": schedule.patience, "epochs": result.epochs,
                "best_epoch": result.best_epoch, "input_clip": CLIP,
            },
            seed=result.pyramid.seed,
        )  # fmt: skip
        reason = "" if np.isfinite(result.validation_loss) else "training diverged: the validation error is not finite"
        yield arrays, card, reason


def with_target_scale(arrays: dict[str, np.ndarray], centre: float, spread: float) -> dict[str, np.ndarray]:
    """Return a network whose output is in the target's unit: y = centre + spread * z, in its last layer."""
    last = 2 * (predictors.num_layers(arrays) - 1)
    weight, bias = arrays[f"{last}.weight"].astype(np.float64), arrays[f"{last}.bias"].astype(np.float64)
    return {
        **arrays,
        f"{last}.weight": (weight * spread).astype(np.float32),
        f"{last}.bias": (bias * spread + centre).astype(np.float32),
    }


def _architecture(pyramid: Pyramid, num_features: int) -> dict:
    return {
        "type": predictors.NETWORK, "hidden": list(pyramid.hidden), "activation": "relu",
        "depth": len(pyramid.hidden), "num_parameters": pyramid.num_parameters(num_features),
    }  # fmt: skip


def _blank_card(
    job: BuildJob,
    table: PropertyTable,
    descriptor: Mapping[str, Plain],
    feature_names: tuple[str, ...],
    unreadable: int,
) -> ModelCard:
    """Return what the cards of a job have in common."""
    return ModelCard(
        name="",
        property=table.property_name,
        unit=table.unit,
        descriptor=descriptor,
        feature_names=feature_names,
        architecture={},
        hyperparameters={},
        seed=job.seed,
        data=({**table.fingerprint(), "unreadable_rows": unreadable},),  # type: ignore[arg-type]
        split={"how": "grouped", "seed": job.seed, "max_rows": job.max_rows, **SHARES},
        metrics={},
        target_transform=table.transform,
        licence=table.licence,
        citation=table.citation,
        software=versions(),
    )


def _failure(job: BuildJob, table: PropertyTable, seed: int, reason: str) -> Failure:
    reason = " ".join(reason.split())
    return Failure(table.property_name, table.unit, job.descriptor, job.method, table.modelset, seed, reason)


def plan(
    tables: Sequence[PropertyTable], descriptors: Sequence[str], methods: Sequence[tuple[str, int]], seed: int,
    max_rows: int, element_table: str | None = None, per_job: int = 128,
) -> list[BuildJob]:  # fmt: skip
    """Return the jobs of a build: every table with every descriptor that can read it, `count` models of each method."""
    jobs = []
    for table in tables:
        for name in descriptors:
            if not make_descriptor(name, element_table).reads(table.frame):
                continue
            for method, count in methods:
                for part, start in enumerate(range(0, count, per_job)):
                    size = min(per_job, count - start)
                    own = derived_seed(seed, "job", table.key, name, method, part) if part else seed
                    jobs.append(BuildJob(table.key, name, method, size, own, max_rows, element_table))
    return jobs
