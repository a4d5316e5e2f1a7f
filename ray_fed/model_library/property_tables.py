"""Properties to learn from: one table per property, with its unit, source and licence.

`embedded` needs no file (model crystals). The others are folders as in the project's data sets; any table of your own
with a column of formulas or SMILES, and a column of numbers, is one call of `user_table`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ray_fed.config import unknown_name
from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.chemical_groups import composition_keys
from ray_fed.materials.databases.columns import find_roles, require_column
from ray_fed.materials.databases.raw_table import RawTable
from ray_fed.materials.databases.readers import open_table
from ray_fed.materials.features.composition import read_compositions
from ray_fed.model_library.target_values import read_targets

FORMULA, SMILES, STRUCTURE = "formula", "smiles", "structure"
TRANSFORMS: Mapping[str, tuple[Callable, Callable]] = {
    "identity": (lambda values: values, lambda values: values),
    "log10": (np.log10, lambda values: np.power(10.0, values)),
    "ln": (np.log, np.exp),
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
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Why rows of the source are not here -> how many."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """How numbers were read that are not plain -> rows."""

    @property
    def key(self) -> str:
        """Return the table's unique name."""
        return f"{self.modelset}/{self.property_name}"

    @property
    def groups(self) -> np.ndarray:
        """Return the composition or molecule of each row, int64: rows of one group stay on one side of a split."""
        names = self.frame[self.column].astype(str).tolist()
        return pd.factorize(np.array(names if self.kind == SMILES else composition_keys(names), dtype=object))[0]

    @property
    def column(self) -> str:
        """Return the column that names the materials."""
        return SMILES if self.kind == SMILES else FORMULA

    def account(self) -> str:
        """Return in one line how many rows there are, what was left out and why, "" where nothing was."""
        told = [f"{count:,} x {reason}" for counts in (self.dropped, self.notes) for reason, count in counts.items()]
        given = len(self.frame) + sum(self.dropped.values())
        return f"{self.key}: {len(self.frame):,} of {given:,} rows; {'; '.join(told)}" if told else ""

    def digest(self) -> str:
        """Return sha256 over materials and values in order."""
        text = "\n".join(self.frame[self.column].astype(str)).encode()
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


FEWEST_ROWS = 10
NO_MATERIAL = frozenset({"", "nan", "none", "null", "n/a", "<na>", "-", "--", "?"})
"""What programs write where there is no formula. "Na" is sodium, "NaN" sodium nitride where it is text."""


def prepared(table: PropertyTable) -> PropertyTable:
    """Return the table with its target transformed and rows dropped that have no material or no number, with counts of
    why; DataError when hardly any is left."""
    read = read_targets(table.frame["value"].tolist(), table.unit)
    with np.errstate(all="ignore"):
        values = TRANSFORMS[table.transform][0](read.values)
    outside = f"{table.transform} of a number that is not positive"
    reasons = [
        "no formula or SMILES" if _is_missing(material) else why or ("" if np.isfinite(value) else outside)
        for material, why, value in zip(table.frame[table.column].tolist(), read.reasons, values, strict=True)
    ]
    return _kept(replace(table, frame=table.frame.assign(value=values), notes=read.notes), reasons)


def _kept(table: PropertyTable, reasons: Sequence[str]) -> PropertyTable:
    usable = np.array([not reason for reason in reasons], bool)
    dropped = dict(Counter({**table.dropped}) + Counter(reason for reason in reasons if reason))
    if usable.sum() < FEWEST_ROWS:
        told = "; ".join(f"{count} x {reason}" for reason, count in dropped.items())
        raise DataError(f"{table.key}: {usable.sum()} usable rows; a model needs {FEWEST_ROWS} or more ({told})")
    known = table.unit.startswith(f"{table.transform}(")
    unit = table.unit if table.transform == "identity" or known else f"{table.transform}({table.unit})"
    return replace(table, frame=table.frame[usable].reset_index(drop=True), unit=unit, dropped=dropped)


def _is_missing(material: object) -> bool:
    if isinstance(material, str):
        return material.strip() in NO_MATERIAL or material.strip() in ("None", "NULL", "N/A", "<NA>")
    return material is None or material is pd.NA or (isinstance(material, float) and np.isnan(material))


def user_table(
    path: Path | str, target: str, unit: str, name: str | None = None, transform: str = "identity",
    material_column: str | None = None,
) -> PropertyTable:  # fmt: skip
    """Return a property of a table of your own: CSV, TSV, parquet, JSON, JSON lines, XLSX, packed or not.

    The column of formulas is found by its usual names, one of SMILES by "smiles"; `material_column` names another. The
    cell columns a, b, c, alpha, beta, gamma, volume, spacegroup_number are used where they are. DataError names what is
    missing; rows that cannot be used are counted in `dropped`.
    """
    path = Path(path)
    raw = open_table(path, None)
    frame, kind = materials_of(raw, material_column)
    column = require_column(raw.columns, target, raw.source)
    frame = frame.assign(value=raw.read(column).tolist())
    material = "inorganic" if kind == FORMULA else "molecule"
    table = PropertyTable(name or target, unit, path.name.split(".")[0], kind, material, frame, transform)
    table = prepared(table)
    if kind == SMILES:
        return table
    _, reasons = read_compositions(table.frame[FORMULA].tolist())
    return _kept(table, ["a formula that cannot be read" if reason else "" for reason in reasons])


def materials_of(raw: RawTable, material_column: str | None = None) -> tuple[pd.DataFrame, str]:
    """Return the columns of a table under the names that descriptors read, and whether they are formulas or SMILES."""
    columns = {name: raw.read(name).reset_index(drop=True) for name in raw.columns}
    roles = find_roles(raw.columns)
    smiles = next((name for name in raw.columns if name.casefold() == SMILES), None)
    if material_column is not None:
        own = require_column(raw.columns, material_column, raw.source)
        kind = FORMULA if _are_formulas(columns[own]) else SMILES
        return pd.DataFrame({**_by_role(columns, roles), kind: columns[own]}), kind
    if FORMULA not in roles and smiles is None:
        raise DataError(f"{raw.source} has no column of formulas or SMILES that is known by its name; name it with "
                        f"--material-column; it has: {', '.join(map(str, raw.columns))}")  # fmt: skip
    by_role = _by_role(columns, roles)
    return pd.DataFrame(by_role if smiles is None else {**by_role, SMILES: columns[smiles]}), (
        FORMULA if FORMULA in roles else SMILES
    )


def _by_role(columns: Mapping[str, pd.Series], roles: Mapping[str, str]) -> dict[str, pd.Series]:
    """Return all columns, those with a role also under its name."""
    return {**columns, **{role: columns[name] for role, name in roles.items()}}


def _are_formulas(column: pd.Series) -> bool:
    texts = [text for text in column.tolist() if not _is_missing(text)]
    return sum(not reason for reason in read_compositions(texts)[1]) * 2 >= len(texts)


def read_table(path: Path) -> pd.DataFrame:
    """Return a table of the open data sets; DataError when it cannot be read."""
    try:
        return pd.read_parquet(path)
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
