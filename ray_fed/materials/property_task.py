"""The task of multi-source training: a network from crystal features to one property (Guo et al. 2022)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError, Trouble
from ray_fed.federation.reasons import counted_reasons
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.models import seeded_mlp
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.feature_cache import cache_folder, cached, content_key, pack_texts, unpack_texts
from ray_fed.materials.databases.kinds import is_on_disk
from ray_fed.materials.databases.source import EMBEDDED, EMBEDDED_TARGET, Source
from ray_fed.materials.features.feature_sets import FeatureSet, make_feature_set
from ray_fed.materials.lattices import CELL_COLUMNS
from ray_fed.materials.partitions import hash_split
from ray_fed.materials.study import StudyPart

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
    target_is: str = ""
    """What the source's target column holds, by the owner's word, where its name does not show it."""


@dataclass(frozen=True)
class PropertyTask(Task):
    """Predict one property per crystal with an MLP on element statistics and cell parameters (Guo et al. 2022)."""

    features: str = "guo73"
    """Name of the feature set: one of `make_featurizer`."""
    feature_options: tuple[tuple[str, object], ...] = ()
    """(name, value) of its options."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers."""
    target: str = "formation_energy_per_atom"
    """The property, as all silos' columns must be named."""
    unit: str = "eV/atom"
    """Unit of the property."""

    loss = staticmethod(functional.mse_loss)

    def featurizer(self) -> FeatureSet:
        """Return a fresh feature set of this task."""
        return make_feature_set(self.features, **dict(self.feature_options))

    def model(self, seed: int) -> nn.Module:
        """Return the network, input [rows, num_features], output [rows, 1] in `unit`."""
        return seeded_mlp(len(self.featurizer().get_feature_names_out()), self.hidden, seed)

    def agreement(self) -> dict[str, str]:
        """Features and tables (by hash), target and unit: what all silos must share."""
        return {
            "feature set": self.features,
            "feature table hash": self.featurizer().fingerprint()[:16],
            "target": f"{self.target} [{self.unit}]",
        }

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
        database = open_database(wanted.source, spec.name)
        frame = wanted.part.take(database.frame) if wanted.part else database.frame
        folder = None if wanted.source.path == EMBEDDED else cache_folder()
        features, reasons = self._features(frame, folder)
        usable = np.array([not reason for reason in reasons])
        held_out = usable & self._held_out(frame, wanted)
        train = usable & ~held_out
        if not train.any():
            raise DataError(
                f"silo '{spec.name}': no usable row of {len(frame)}: {self._why(frame, reasons)}",
                failure=Trouble.TOO_FEW_ROWS,
            )
        targets = frame["target"].to_numpy(np.float64)
        held = f"{wanted.target_is or database.target_name} [{database.target_unit}]"
        if held == f"{EMBEDDED_TARGET} [eV/atom]":
            _check_size(targets[usable], spec.name)
        return LocalRows(
            features[train], targets[train], features[held_out], targets[held_out], counted_reasons(reasons),
            {**database.fingerprint, "rows_of_silo": len(frame)}, {**self.agreement(), "target": held},
        )  # fmt: skip

    def possession(self, source: object) -> str:
        """Return a hash over the bytes of a source's files; data that come with the package are everybody's."""
        if not isinstance(source, CrystalRows):
            return ""
        path = source.source.path
        if not is_on_disk(path):  # nobody shows by hashing what a database answers that its rows are his
            return EMBEDDED if path == EMBEDDED else ""
        return _hash_of_files(Path(path))

    def _features(self, frame: pd.DataFrame, folder: Path | None) -> tuple[np.ndarray, list[str]]:
        """Return (features [rows, d], reason per row): the reader's reason first, then the featurizer's.

        Kept in `folder` under the hash of everything they depend on; None keeps nothing.
        """
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
    def _held_out(frame: pd.DataFrame, rows: CrystalRows) -> np.ndarray:
        if rows.test_fraction == 0:
            return np.zeros(len(frame), bool)
        return hash_split(frame["formula"].tolist(), rows.test_fraction, rows.split_seed)


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
