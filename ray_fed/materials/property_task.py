"""The task of multi-source training: a network from crystal features to one property (Guo et al. 2022)."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError, Trouble
from ray_fed.federation.reasons import counted_notes, counted_reasons
from ray_fed.federation.task import Counting, LocalRows, Samples, SiloSpec, Task, feature_tensor, target_tensor
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.learning.steps import Loss
from ray_fed.materials.chemical_groups import composition_keys
from ray_fed.materials.databases.columns import canonical_target
from ray_fed.materials.databases.database import Database, hash_of_rows, open_database
from ray_fed.materials.databases.feature_cache import cache_folder, cached, content_key, pack_texts, unpack_texts
from ray_fed.materials.databases.kinds import is_on_disk
from ray_fed.materials.databases.source import EMBEDDED, EMBEDDED_TARGET, Source
from ray_fed.materials.features.feature_sets import FeatureSet, make_feature_set
from ray_fed.materials.lattices import CELL_COLUMNS
from ray_fed.materials.partitions import hash_split
from ray_fed.materials.property_silo import PropertySilo
from ray_fed.materials.row_counts import PARTS, CrystalLocalRows, CrystalSamples, RowCounts
from ray_fed.materials.study import StudyPart
from ray_fed.materials.targets import (
    MOST_TARGETS,
    MaskedLoss,
    Target,
    labels,
    learned_values,
    moment_columns,
    predicted_values,
    target_scaler,
    transformed,
    values_by_target,
)
from ray_fed.metrics import (
    ClassificationSums,
    Metric,
    RegressionSums,
    Scores,
    SeveralScores,
    classification_metrics,
    metrics_of_targets,
    regression_metrics,
)
from ray_fed.metrics.classification import MISSING

FORMATION_ENERGY = Target(EMBEDDED_TARGET, "eV/atom")
LABELS = [f"label.{at}" for at in range(MOST_TARGETS)]
"""Columns of a frame with the targets of its rows, as numbers."""
LABELS_OF = "labels."
"""Before a target's name, in a fingerprint: how many training rows have it."""
MOST_REMARKS = 10_000
"""Lines of an owner's log about the rows of one reading."""
FEWEST_ENERGIES = 20
LARGEST_FORMATION_ENERGY = 20.0
"""In eV/atom. The most stable compounds lie near -4.5; a value beyond this is in kJ/mol, meV or another unit."""


@dataclass(frozen=True)
class CrystalRows:
    """Which rows of which source a silo trains on: the `source` of its SiloSpec."""

    source: Source = field(default_factory=Source)
    """Where the rows are; the embedded crystals by default."""
    part: StudyPart | None = None
    """In a study: the share of the source this silo plays. None takes every row."""
    test_fraction: float = 0.0
    """Without a common test set: share of formulas held out, the same formulas at every site."""
    split_seed: int = 0
    """Seed of that choice of formulas, equal at every site."""
    calibration_fraction: float = 0.0
    """Share of formulas, none of those, on which no model is trained either: how large its errors are there is counted
    for the intervals of predictions."""
    validation_fraction: float = 0.0
    """Share of formulas, none of those either, by whose errors the federation finds out when to stop."""
    target_is: tuple[str, ...] = ()
    """What the source's target columns hold, by the owner's word, where their names do not show it."""
    units: tuple[str, ...] = ()
    """Units of `source.targets`, "" for classes."""

    def with_one_number(self, task: "PropertyTask") -> "CrystalRows":
        """Return the same rows, read as those of one number per row where that is all the task wants."""
        source = self.source
        if not task.is_one_number:
            return self
        ((column, unit),) = zip(source.targets, self.units, strict=True)
        only = replace(source, target=column, targets=(), unit=unit)
        return replace(self, source=only, units=())


@dataclass(frozen=True)
class PropertyTask(Task):
    """Predict one property per crystal with an MLP on element statistics and cell parameters (Guo et al. 2022)."""

    features: str = "guo73"
    """Name of the feature set: one of `make_featurizer`."""
    feature_options: tuple[tuple[str, object], ...] = ()
    """(name, value) of its options."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers."""
    targets: tuple[Target, ...] = (FORMATION_ENERGY,)
    """What is learned."""
    standardise_target: bool = False
    """Whether the network learns numbers with mean 0 and deviation 1, agreed by all silos, so that no unit matters."""

    @property
    def is_one_number(self) -> bool:
        """Whether one regression target is all."""
        return [target.kind for target in self.targets] == ["regression"]

    @property
    def has_network(self) -> bool:
        """Whether the model is a network, which a silo can train further on its own rows."""
        return True

    loss = staticmethod(functional.mse_loss)

    @property
    def unit(self) -> str:  # type: ignore[override]
        """Unit of the first target."""
        return self.targets[0].shown_unit

    def metrics_of(self, target: Target) -> tuple[Metric, ...]:
        """Return what is told of one target, as it stands in records: with its name, if there are several."""
        return tuple(
            metric for metric in self.metrics if len(self.targets) == 1 or metric.name.startswith(f"{target.key}.")
        )

    def featurizer(self) -> FeatureSet:
        """Return a fresh feature set of this task."""
        return make_feature_set(self.features, **dict(self.feature_options))

    def model(self, seed: int) -> nn.Module:
        """Return the network, input [rows, num_features], output [rows, num_outputs] as `predicted` reads it."""
        num_outputs = sum(target.num_outputs for target in self.targets)
        return seeded_mlp(self.num_features, self.hidden, seed, num_outputs)

    @property
    def num_features(self) -> int:
        """Columns of the feature set."""
        return len(self.featurizer().get_feature_names_out())

    def agreement(self) -> dict[str, str]:
        """Features and tables (by hash), target and unit: what all silos must share."""
        return {
            "feature set": self.features,
            "feature table hash": self.featurizer().fingerprint()[:16],
            "target": self._agreed([target.name for target in self.targets]),
        }

    def _agreed(self, names: Sequence[str]) -> str:
        return "; ".join(target.agreed_as(name) for target, name in zip(self.targets, names, strict=True))

    def load(self, spec: SiloSpec) -> LocalRows:
        """Open the source, take the silo's part, featurise; unusable rows are counted by kind of reason.

        DataError names the silo when nothing usable is left.
        """
        wanted = spec.source
        if not isinstance(wanted, CrystalRows):
            raise DataError(
                f"silo '{spec.name}': its source is {wanted!r}; a property task needs CrystalRows",
                failure=Trouble.OPTION_WRONG,
            )
        database = open_database(self.as_read(wanted.source), spec.name)
        whole = self._labelled(database, wanted, spec.name)
        frame = wanted.part.take(whole) if wanted.part else whole
        folder = None if wanted.source.path == EMBEDDED else cache_folder()
        features, reasons = self.features_of(frame, folder)
        usable = np.array([not reason for reason in reasons])
        held_out, calibration, validation = (usable & part for part in self._held_out(frame, wanted))
        train = usable & ~held_out & ~calibration & ~validation
        if not train.any():
            raise DataError(
                f"silo '{spec.name}': no usable row of {len(frame)}: {self._why(frame, reasons)}",
                failure=Trouble.TOO_FEW_ROWS,
            )
        table = frame[LABELS[: len(self.targets)]].to_numpy(np.float64)
        targets = table[:, 0] if len(self.targets) == 1 else table
        named = [canonical_target(name) for name in wanted.source.targets] or [database.target_name]
        held = self._agreed(wanted.target_is or named)
        if held == FORMATION_ENERGY.agreed_as(EMBEDDED_TARGET):
            _check_size(table[usable, 0], spec.name)
        formulas = frame["formula"].tolist()
        groups = np.array(composition_keys(formulas), dtype=object)
        names = np.array([f"{one} {formula}" for one, formula in zip(frame["id"], formulas, strict=True)], dtype=object)
        return CrystalLocalRows(
            features[train], targets[train], features[held_out], targets[held_out], counted_reasons(reasons),
            {**database.fingerprint, "rows_of_silo": len(frame), **self._label_counts(targets[train])},
            {**self.agreement(), "target": held}, groups=groups[train].tolist(),
            held_out_groups=groups[held_out].tolist(), names=names[train].tolist(),
            held_out_names=names[held_out].tolist(), notes=counted_notes([*frame["note"], *database.notices]),
            remarks=remarks(frame, reasons, database.notices),
            calibration_features=features[calibration], calibration_targets=targets[calibration],
            validation_features=features[validation], validation_targets=targets[validation],
            formulas={
                name: [formulas[row] for row in np.flatnonzero(rows)]
                for name, rows in zip(PARTS, (calibration, held_out, train, validation), strict=True)
            },
        )  # fmt: skip

    # ---- what its silos answer besides (property_silo.py)

    def silo(self, spec: SiloSpec, device: str = "cpu") -> PropertySilo:
        """Return a silo that knows more questions."""
        return PropertySilo(spec, self, device)

    def published_test(self, spec: SiloSpec) -> LocalRows | None:
        """Return the common test set of a study, which each of its silos can read; None elsewhere."""
        wanted = spec.source
        if not isinstance(wanted, CrystalRows) or wanted.part is None:
            return None
        return self.load(
            replace(
                spec,
                source=replace(
                    wanted, part=replace(wanted.part, name="test"), calibration_fraction=0.0, validation_fraction=0.0
                ),
            )
        )

    def tree_targets(self, targets: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return targets as trees learn them, [rows, T], and how many classes each has, 0 for a number."""
        return transformed(self._table(targets), self.targets), tuple(len(one.classes) for one in self.targets)

    # ---- what a row of features is: here columns of a table

    def as_read(self, source: Source) -> Source:
        """Return the source as the task wants it read."""
        return as_read(source, self.featurizer())

    def features_of(self, frame: pd.DataFrame, folder: Path | None) -> tuple[Any, list[str]]:
        """Return the features of a crystal frame, one row each, and a reason per row, "" where it can be used. Kept in
        `folder` under the hash of everything they depend on; None keeps nothing."""
        return self._table_of(frame, folder)

    def described(self, features: Any) -> np.ndarray:
        """Return the columns of a table [rows, d] that features, as read or as a network takes them, have."""
        return features.cpu().numpy() if isinstance(features, torch.Tensor) else features

    def changed(self, features: Any, table: np.ndarray) -> Any:  # noqa: ARG002
        """Return features with other columns [rows, d] in their table."""
        return table

    def inputs(self, features: Any, standardizer: Standardizer | None, device: str = "cpu") -> Any:
        """Return features [rows, d] as the network takes them."""
        assert standardizer is not None, "property tasks standardise"
        return feature_tensor(features, self.scalers(standardizer)[0], device)

    # ---- targets

    def nothing_predicted(self) -> np.ndarray:
        """Return predictions of no rows, [0, W]."""
        return np.empty((0, sum(target.num_values for target in self.targets)))

    def _labelled(self, database: Database, wanted: CrystalRows, silo: str) -> pd.DataFrame:
        """Return the database's frame with a column for each target, in its unit or as numbers of classes, and a reason
        for rows without any. DataError names the silo."""
        source, frame = wanted.source, database.frame
        names = [f"target.{at}" for at in range(len(source.targets))] or ["target"]
        columns = [pd.Series(frame[name]) for name in names]
        units = wanted.units if source.targets else (database.target_unit,)
        try:
            values, reasons = labels(columns, self.targets, units)
        except DataError as error:
            raise DataError(f"silo '{silo}': {error}", failure=error.failure) from error
        found = {name: values[:, at] for at, name in enumerate(LABELS[: len(self.targets)])}
        told = [first or second for first, second in zip(frame["reason"], reasons, strict=True)]
        return frame.assign(**found, target=values[:, 0], reason=pd.Series(told, dtype="str"))

    def _label_counts(self, targets: np.ndarray) -> dict[str, int]:
        """Return how many training rows have a label of each target, where some have none."""
        if len(self.targets) == 1:
            return {}
        counts = (~np.isnan(targets)).sum(axis=0).tolist()
        return {f"{LABELS_OF}{target.key}": count for target, count in zip(self.targets, counts, strict=True)}

    def _table(self, targets: np.ndarray) -> np.ndarray:
        """Return targets [rows, T]; those of one target alone are [rows]."""
        return targets.reshape(len(targets), len(self.targets))

    def moment_columns(self, rows: LocalRows) -> np.ndarray:
        """Return the features [rows, d], and beside them what target_scaler needs where targets are standardised."""
        columns = self.described(rows.features)
        if not self.standardise_target:
            return columns
        return np.hstack([columns, moment_columns(self._table(rows.targets), self.targets)])

    def standardizer(self, moments: ColumnMoments) -> Standardizer:
        """Return the scaler of the features, and after them of the regression targets, where they are standardised."""
        if not self.standardise_target:
            return Standardizer.from_moments(moments)
        d = len(moments.digits) - 2 * sum(not target.classes for target in self.targets)
        of_features = Standardizer.from_moments(replace(moments, digits=moments.digits[:d]))
        return of_features.beside(target_scaler(replace(moments, digits=moments.digits[d:]), self.targets))

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> Samples:
        """Return features [rows, d] and what is learned of the targets [rows, outputs] as tensors on the device."""
        assert standardizer is not None, "property tasks standardise"
        of_targets = self.scalers(standardizer)[1]
        features, held_out = (
            self.inputs(part, standardizer, device) for part in (rows.features, rows.held_out_features)
        )
        learned = target_tensor(learned_values(self._table(rows.targets), self.targets, of_targets), device)
        undo = None
        if self.standardise_target or not self.is_one_number or self.targets[0].transform != "none":
            undo = partial(self.predicted, standardizer=standardizer)
        return CrystalSamples(
            rows, features, learned, held_out, standardizer=standardizer, undo=undo, of_targets=of_targets
        )

    def countings(self) -> Mapping[str, Counting]:
        """Return what a silo counts for the limits of predictions (limits.py)."""
        return RowCounts(self).questions()

    def scalers(self, standardizer: Standardizer) -> tuple[Standardizer, Standardizer | None]:
        """Return the scaler of the features, and that of the targets where they are standardised."""
        if not self.standardise_target:
            return standardizer, None
        return standardizer.split(len(standardizer.mean) - sum(not target.classes for target in self.targets))

    def predicted(self, outputs: np.ndarray, standardizer: Standardizer | None) -> np.ndarray:
        """Return what outputs of the network [rows, O] say, [rows, W] (targets.predicted_values)."""
        of_targets = None if standardizer is None else self.scalers(standardizer)[1]
        return predicted_values(outputs, self.targets, of_targets)

    def possession(self, source: object) -> str:
        """Return a hash over the bytes of a source's files, or over what its database answers; data that come with the
        package are everybody's."""
        if not isinstance(source, CrystalRows):
            return ""
        path = source.source.path
        if path == EMBEDDED:
            return EMBEDDED
        return _hash_of_files(Path(path)) if is_on_disk(path) else hash_of_rows(source.source)

    def _table_of(self, frame: pd.DataFrame, folder: Path | None) -> tuple[np.ndarray, list[str]]:
        """Return (features [rows, d], reason per row): the reader's reason first, then the featurizer's."""
        featurizer = self.featurizer()

        def compute() -> dict[str, np.ndarray]:
            features, reasons = featurizer.transform_with_reasons(frame)
            return {"features": features, "reasons": pack_texts(reasons)}

        columns = [name for name in (*CELL_COLUMNS, "spacegroup_number", "num_atoms") if name in frame]
        cells = frame[columns].to_numpy(np.float64)
        key = content_key(featurizer.fingerprint(), pack_texts(frame["formula"].tolist()), cells)
        table = cached(key, compute, folder)
        given = [str(reason) for reason in frame["reason"]]
        found = unpack_texts(table["reasons"])
        return table["features"], [first or second for first, second in zip(given, found, strict=True)]

    def _why(self, frame: pd.DataFrame, reasons: Sequence[str]) -> str:
        counted = "; ".join(f"{count} x {reason}" for reason, count in counted_reasons(reasons).items())
        if self.featurizer().needs_structure and bool(frame["volume"].isna().all()):
            return f"{counted}; without cells use features=guo65 or rich, which need formulas only"
        return counted

    @staticmethod
    def _held_out(frame: pd.DataFrame, rows: CrystalRows) -> list[np.ndarray]:
        """Return which rows are for evaluation, for calibration and for early stopping, bool [rows] each: all rows of a
        formula are in one part."""
        shares = np.cumsum([0.0, rows.test_fraction, rows.calibration_fraction, rows.validation_fraction]).tolist()
        if shares[-1] == 0:
            return [np.zeros(len(frame), bool)] * 3
        formulas = frame["formula"].tolist()
        up_to = {share: hash_split(formulas, share, rows.split_seed) for share in set(shares)}
        return [up_to[upper] & ~up_to[lower] for lower, upper in itertools.pairwise(shares)]


@dataclass(frozen=True)
class JointPropertyTask(PropertyTask):
    """Predict several properties, or classes, with one network; each row teaches what it has a label of."""

    @property
    def loss(self) -> Loss:  # type: ignore[override]
        """The mean over targets of squared error and cross-entropy over the labels that are there."""
        return MaskedLoss(tuple(len(target.classes) for target in self.targets))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Of each target those of its kind."""
        return metrics_of_targets({target.key: _metrics(target) for target in self.targets})

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> Scores:
        """Return the scores of each target over the rows that have it."""
        columns = zip(self.targets, self._table(targets).T, values_by_target(outputs, self.targets), strict=True)
        parts = {target.key: _scores(target, true, said) for target, true, said in columns}
        return next(iter(parts.values())) if len(parts) == 1 else SeveralScores(len(targets), parts)


def _metrics(target: Target) -> tuple[Metric, ...]:
    return classification_metrics(len(target.classes)) if target.classes else regression_metrics(target.shown_unit)


def _scores(target: Target, true: np.ndarray, said: np.ndarray) -> RegressionSums | ClassificationSums:
    """Return the scores of one target; true [rows], NaN without a label, said [rows, values]."""
    there = ~np.isnan(true)
    if target.classes:
        return ClassificationSums.of(np.where(there, np.nan_to_num(true), MISSING).astype(np.int64), said)
    return RegressionSums.of(true[there], said[there, 0])


def property_task(
    features: str, options: tuple[tuple[str, object], ...], hidden: tuple[int, ...], targets: tuple[Target, ...],
    standardise_target: bool,
) -> PropertyTask:  # fmt: skip
    """Return the task of these targets."""
    kind = PropertyTask if [target.kind for target in targets] == ["regression"] else JointPropertyTask
    return kind(features, options, hidden, targets, standardise_target)


def as_read(source: Source, features: FeatureSet) -> Source:
    """Return the source as a feature set wants it read: with the cells that its options name."""
    return replace(source, cell=features.cell if features.needs_structure else "given")


def remarks(frame: pd.DataFrame, reasons: Sequence[str], notices: Sequence[str]) -> tuple[str, ...]:
    """Return what is wrong or odd about rows and their source in whole, one line each, for the owner alone."""
    told = [f"source: {notice}" for notice in notices]
    for name, reason, note in zip(frame["id"], reasons, frame["note"], strict=True):
        told += [f"row {name} not usable: {reason}"] if reason else []
        told += [f"row {name}: {note}"] if note else []
    more = len(told) - MOST_REMARKS
    return tuple(told[:MOST_REMARKS]) + ((f"and {more:,} more rows",) if more > 0 else ())


def _hash_of_files(path: Path) -> str:
    """Return a hash of a file, or of all files of a folder, that no message holds; "" where they cannot be read."""
    digest = hashlib.sha256(b"held by who asks")
    try:
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if each.is_file():
                with each.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError:
        return ""
    return digest.hexdigest() if path.exists() else ""


def _check_size(energies: np.ndarray, silo: str) -> None:
    """One silo in kJ/mol would spoil the model of all: DataError where most values are no formation energies. A few
    rows are not looked at: they must be told by no error of their own."""
    if len(energies) >= FEWEST_ENERGIES and np.median(np.abs(energies)) > LARGEST_FORMATION_ENERGY:
        raise DataError(
            f"silo '{silo}': most of its {EMBEDDED_TARGET} are beyond {LARGEST_FORMATION_ENERGY:g} eV/atom, which no "
            "formation energy is; are they in another unit? convert the column to eV/atom",
            failure=Trouble.WRONG_UNIT,
        )
