"""What a silo trains on: any source of crystals or compositions, opened as one crystal frame.

    database = open_database(Source("../shared/datasets/mp_structures"), silo="mit")
    database.frame               one row per entry, unusable ones with a reason
    database.reason_counts()     {"target is missing": 3}
    database.fingerprint         sha256, rows, columns: what may be told about the source

The crystal frame
    column                unit    meaning
    id, formula                   as the source has them, else "row-7" and the structure's reduced formula
    a, b, c               Å       cell as given; NaN where the source has no structure
    alpha, beta, gamma    degree
    volume                Å³      of the whole cell; from the lattice where not given
    spacegroup_number             1 to 230; the source's own number, else computed from the structure; NaN unknown
    num_atoms                     sites in the cell; NaN unknown
    target                        in `Database.target_unit`
    reason                        "" for a usable row, else why it cannot be used; values of the row stand in '...'
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from ray_fed.config import require
from ray_fed.errors import DataError
from ray_fed.materials.databases.columns import canonical_target, unit_of_target
from ray_fed.materials.databases.crystal_batches import Symmetry
from ray_fed.materials.databases.crystal_frames import crystal_frame
from ray_fed.materials.databases.feature_cache import content_key
from ray_fed.materials.databases.raw_table import RawTable
from ray_fed.materials.databases.readers import open_table

EMBEDDED = "embedded"
EMBEDDED_TARGET = "formation_energy_per_atom"


@dataclass(frozen=True)
class Source:
    """Where a silo's rows come from. Hashable, picklable, and checked: ConfigError names the wrong field."""

    path: str = EMBEDDED
    """A file (parquet, CSV, JSON, JSON lines), a folder of structures with id_prop.csv, a folder with one such file, or
    'embedded' (model crystals)."""
    target: str | None = EMBEDDED_TARGET
    """Column to learn; None for rows to predict, which need no target."""
    where: tuple[tuple[str, Any], ...] = ()
    """(column, value) pairs, or a mapping: keep only rows that equal all of them."""
    symmetry: Symmetry = "given"
    """Space group: the given number, else spglib; or always computed by spglib or moyopy."""
    symprec: float = 0.1
    """Tolerance of the symmetry search in Å."""
    rows: int | None = None
    """At most this many rows, the first ones; for the embedded set the number of crystals made."""
    keep: tuple[str, ...] = ()
    """Further columns of the source to keep in the frame, e.g. for a partition by them."""
    seed: int = 0
    """Which crystals the embedded set has."""
    unit: str | None = None
    """Unit of the target where the source's column is not one of the known ones."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "where", _pairs(self.where))
        named = bool(self.path) and "\0" not in self.path
        require(named, f"path={self.path!r} must name a file or folder, or be 'embedded'")
        require(self.target is None or bool(self.target), "target='' must name a column; None is for rows to predict")
        known = get_args(Symmetry)
        require(self.symmetry in known, f"symmetry={self.symmetry!r} must be one of {', '.join(known)}")
        fits = isinstance(self.symprec, int | float) and 0 < self.symprec <= 1
        require(fits, f"symprec={self.symprec!r} must be a length in Å, above 0 and up to 1")
        counts = isinstance(self.rows, int) and not isinstance(self.rows, bool) and self.rows >= 1
        require(self.rows is None or counts, f"rows={self.rows!r} must be a whole number, 1 or more")
        names = not isinstance(self.keep, str) and all(isinstance(name, str) and name for name in self.keep)
        require(names, f"keep={self.keep!r} must be column names, e.g. ('source',)")
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))

    @property
    def name(self) -> str:
        """The last part of the path: what may be told without telling where the owner keeps it."""
        return EMBEDDED if self.path == EMBEDDED else Path(self.path).name


def _pairs(where: Any) -> tuple[tuple[str, Any], ...]:
    pairs = tuple(where.items()) if isinstance(where, Mapping) else where
    message = f"where={where!r} must be a mapping or pairs of column and value, e.g. (('source', 'OQMD'),)"
    require(isinstance(pairs, tuple | list), message)
    for pair in pairs:
        require(isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str), message)
        require(isinstance(pair[1], str | int | float | bool), message)
    return tuple((column, value) for column, value in pairs)


@dataclass(frozen=True)
class Database:
    """An open source. The frame stays where it was opened; the fingerprint may be told."""

    frame: pd.DataFrame
    """The crystal frame, see the module's head; RangeIndex."""
    target_name: str
    """One name for each quantity, whatever the source's column is called; "" without a target."""
    target_unit: str
    fingerprint: dict[str, object]
    """sha256, num_rows, num_usable, columns, source, target: plain values."""

    def reason_counts(self) -> dict[str, int]:
        """Return reason -> number of rows, the commonest first; values of single rows are left out."""
        return reason_counts(self.frame)


def reason_counts(frame: pd.DataFrame) -> dict[str, int]:
    """Return reason -> number of rows, the commonest first, without what stands in quotes: values of single rows."""
    reasons = (re.sub(r"\s*'[^']*'", "", reason) for reason in frame["reason"] if reason)
    return dict(Counter(reasons).most_common())


def open_database(source: Source, silo: str = "") -> Database:
    """Read a source. DataError, in one line that begins with the silo's name, where nothing in it can be used.

    ConfigError where `source.symmetry` needs a package that is not installed.
    """
    try:
        return _open(source)
    except DataError as error:
        # Names of columns and files may hold line breaks; a message is one line.
        message = " ".join(str(error).split())
        raise DataError(f"silo '{silo}': {message}" if silo else message) from error


def _open(source: Source) -> Database:
    table = _embedded_table(source) if source.path == EMBEDDED else open_table(Path(source.path), source.target)
    frame = crystal_frame(table, source)
    if all(frame["reason"]):
        counted = "; ".join(f"{count} x {reason}" for reason, count in list(reason_counts(frame).items())[:5])
        raise DataError(f"{table.source} has no usable row of {len(frame)}: {counted}")
    name = canonical_target(source.target) if source.target else ""
    unit = source.unit or (unit_of_target(name) if name else "")
    return Database(frame, name, unit, _fingerprint(frame, source, f"{name} [{unit}]"))


def _embedded_table(source: Source) -> RawTable:
    from ray_fed.materials.model_crystals.crystals import make_model_crystals

    if source.target is not None and canonical_target(source.target) != EMBEDDED_TARGET:
        raise DataError(f"the embedded data have no {source.target!r}; their only target is {EMBEDDED_TARGET!r}")
    options = {} if source.rows is None else {"num_rows": source.rows}
    frame = make_model_crystals(**options, seed=source.seed)
    columns = {EMBEDDED_TARGET if name == "target" else str(name): column for name, column in frame.items()}
    return RawTable(EMBEDDED, tuple(columns), len(frame), columns.__getitem__)


def _fingerprint(frame: pd.DataFrame, source: Source, target: str) -> dict[str, object]:
    """Return what identifies the rows without telling one: a hash over all of them, counts, names."""
    columns = list(frame.columns)
    parts = [part for name, column in frame.items() for part in (str(name), _content(column))]
    return {
        "source": source.name,
        "sha256": content_key(target, *parts),
        "num_rows": len(frame),
        "num_usable": sum(not reason for reason in frame["reason"]),
        "target": target,
        "columns": columns,
    }


def _content(column: pd.Series) -> np.ndarray | str:
    """Return a column as what can be hashed alike on every machine; all NaN have one bit pattern."""
    if column.dtype.kind != "f":
        return "\x1f".join(column.astype(str).tolist())
    values = column.to_numpy(np.dtype("<f8"), copy=True)
    values[np.isnan(values)] = math.nan
    return values
