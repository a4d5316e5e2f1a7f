"""Properties to learn from: one table per property, with its unit, source and licence.

`embedded` needs no file (model crystals). The others are folders as in the project's data sets; any table of your own
with a column of formulas or SMILES, and a column of numbers, is one call of `user_table`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ray_fed.config import unknown_name
from ray_fed.errors import ConfigError, DataError

FORMULA, SMILES, STRUCTURE = "formula", "smiles", "structure"
TRANSFORMS: Mapping[str, tuple[Callable, Callable]] = {
    "identity": (lambda values: values, lambda values: values),
    "log10": (np.log10, lambda values: np.power(10.0, values)),
}
"""Name -> (what is done to the target before training, its inverse)."""
SHARES = {"train": 0.65, "validation": 0.15, "test": 0.2}
"""Share of the compositions or molecules in each part."""


@dataclass(frozen=True)
class PropertyTable:
    """Materials and one measured or computed property of each."""

    property_name: str
    """Name by which models are found, e.g. "band_gap"."""
    unit: str
    """Unit of `values` as they are trained on; log10 values carry it: "log10(GPa)"."""
    modelset: str
    """Data set, e.g. "matbench_expt_gap"."""
    kind: str
    """formula | smiles | structure"""
    material: str
    """inorganic | polymer | molecule"""
    frame: pd.DataFrame
    """Columns `formula` or `smiles` (and the cell, the sites where there are structures), and `value` [rows]."""
    transform: str = "identity"
    """What was done to the source's numbers; `TRANSFORMS`."""
    licence: str = "unspecified"
    citation: str = ""

    @property
    def key(self) -> str:
        """Return the table's unique name."""
        return f"{self.modelset}/{self.property_name}"

    @property
    def groups(self) -> np.ndarray:
        """Return the composition or molecule of each row, int64: rows of one group stay on one side of a split."""
        column = "smiles" if self.kind == SMILES else "formula"
        return pd.factorize(self.frame[column])[0]

    def digest(self) -> str:
        """Return sha256 over materials and values in order."""
        column = "smiles" if self.kind == SMILES else "formula"
        text = "\n".join(self.frame[column].astype(str)).encode()
        return hashlib.sha256(text + np.ascontiguousarray(self.frame["value"], "<f8").tobytes()).hexdigest()

    def fingerprint(self) -> dict[str, object]:
        """Return the facts about its data for a model card."""
        return {
            "name": self.modelset, "property": self.property_name, "rows": len(self.frame), "sha256": self.digest(),
            "licence": self.licence, "citation": self.citation, "material": self.material, "kind": self.kind,
        }  # fmt: skip

    def sample(self, rows: int, draw: np.random.Generator) -> "PropertyTable":
        """Return at most `rows` rows by a random choice, in their old order."""
        if len(self.frame) <= rows:
            return self
        chosen = np.sort(draw.choice(len(self.frame), rows, replace=False))
        return replace(self, frame=self.frame.iloc[chosen].reset_index(drop=True))


@dataclass(frozen=True)
class SplitRows:
    """Features and targets of a job, divided so that a composition or molecule is on one side only."""

    features: np.ndarray
    targets: np.ndarray
    parts: dict[str, np.ndarray]
    """"train", "validation", "test" -> row numbers"""
    unreadable: int
    """Rows left out because the descriptor could not read them."""

    def of(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (features, targets) of a part."""
        rows = self.parts[part]
        return self.features[rows], self.targets[rows]


def divided(groups: np.ndarray, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Return row numbers of train, validation and test; rows of one group stay together."""
    names = np.unique(groups)
    shuffled = draw.permutation(names)
    first = round(SHARES["train"] * len(names))
    second = first + max(1, round(SHARES["validation"] * len(names)))
    chosen = {"train": shuffled[:first], "validation": shuffled[first:second], "test": shuffled[second:]}
    return {part: np.flatnonzero(np.isin(groups, members)) for part, members in chosen.items()}


def prepared(table: PropertyTable) -> PropertyTable:
    """Return the table with its target transformed and rows without a number dropped; DataError when none is left."""
    values = np.asarray(pd.to_numeric(table.frame["value"], errors="coerce"), float)
    with np.errstate(all="ignore"):
        values = TRANSFORMS[table.transform][0](values)
    usable = np.isfinite(values)
    if usable.sum() < 10:
        raise DataError(f"{table.key}: {usable.sum()} usable rows; a model needs 10 or more")
    unit = table.unit if table.transform == "identity" else f"{table.transform}({table.unit})"
    frame = table.frame.assign(value=values)[usable].reset_index(drop=True)
    return replace(table, frame=frame, unit=unit)


def user_table(path: Path | str, target: str, unit: str, name: str | None = None) -> PropertyTable:
    """Return a property of a CSV, parquet or JSON table of your own.

    A column `formula` makes it a table of compositions, `smiles` (or `SMILES`) one of molecules; the cell columns
    a, b, c, alpha, beta, gamma, volume, spacegroup_number are used where they are. DataError names what is missing.
    """
    path = Path(path)
    frame = read_table(path)
    frame = frame.rename(columns={"SMILES": "smiles", "composition": "formula"})
    kind = FORMULA if "formula" in frame else SMILES
    for column in (kind, target):
        if column not in frame:
            raise DataError(f"{path} has no column {column!r}; it has: {', '.join(map(str, frame.columns))}")
    material = "inorganic" if kind == FORMULA else "molecule"
    return prepared(PropertyTable(name or target, unit, path.stem, kind, material, frame.assign(value=frame[target])))


def read_table(path: Path) -> pd.DataFrame:
    """Return a table by its suffix; DataError when it cannot be read."""
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: tables are .csv, .parquet or .json")
    try:
        options = {"keep_default_na": False, "na_values": [""]} if path.suffix == ".csv" else {}
        return readers[path.suffix](path, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); check the path") from error


def find_table(tables: Mapping[str, PropertyTable], name: str) -> PropertyTable:
    """Return a table by its key, or by its property where only one table has it; ConfigError otherwise."""
    if name in tables:
        return tables[name]
    found = [table for table in tables.values() if table.property_name == name or table.modelset == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"property {name!r} is in {len(found)} tables: {', '.join(table.key for table in found)}")
    raise unknown_name("property", name, {table.property_name for table in tables.values()} | set(tables))
