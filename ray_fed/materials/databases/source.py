"""Where a silo's rows come from: a file, a folder, a database or the embedded crystals, and which of their columns and
rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ray_fed.config import require
from ray_fed.materials.databases.addresses import check_address, redacted, scheme_of, shown
from ray_fed.materials.symmetry import Cell, Symmetry

EMBEDDED = "embedded"
EMBEDDED_TARGET = "formation_energy_per_atom"


@dataclass(frozen=True)
class Access:
    """How a database is asked for its rows."""

    query: str = ""
    """One SELECT statement; for OPTIMADE a filter, for MongoDB a filter as JSON, for ASE a selection."""
    table: str = ""
    """Instead of a statement the name of a table or view; for MongoDB the collection."""
    query_timeout: float = 600.0
    """Seconds in which all rows must have come."""
    password: str = field(default="", repr=False)
    """From the owner's site file; others have none here."""

    def __post_init__(self) -> None:
        timeout = self.query_timeout
        fits = isinstance(timeout, int | float) and 0 < timeout <= 7 * 24 * 3600
        require(fits, f"query_timeout={timeout!r} must be seconds, above 0 and up to a week")


@dataclass(frozen=True)
class Source:
    """Where a silo's rows come from. Hashable, picklable, and checked: ConfigError names the wrong field."""

    path: str = EMBEDDED
    """A file (parquet, CSV, JSON, JSON lines), a folder of structures with id_prop.csv, a folder with one such file,
    the address of a database (`kinds.KINDS`), or 'embedded' (model crystals). An address holds no password."""
    target: str | None = EMBEDDED_TARGET
    """Column to learn; None for rows to predict, which need no target."""
    where: tuple[tuple[str, Any], ...] = ()
    """(column, value) pairs, or a mapping: keep only rows that equal all of them."""
    symmetry: Symmetry = "given"
    """Space group: the given number, else spglib; the same with a note where spglib finds another ('check'); or always
    computed by spglib or moyopy."""
    symprec: float = 0.1
    """Tolerance of the symmetry search in Å."""
    cell: Cell = "given"
    """Cell and space group as the source has them, or of the standardised primitive cell, which does not depend on how
    a crystal is written down (`standard_cells`)."""
    structures: str = ""
    """Which of several structures in one file: 'all', 'first', or a number from 1; '': all where each has a label of
    its own or none is needed, otherwise the file's row cannot be used."""
    rows: int | None = None
    """At most this many rows, the first ones; for the embedded set the number of crystals made."""
    keep: tuple[str, ...] = ()
    """Further columns of the source to keep in the frame, e.g. for a partition by them."""
    seed: int = 0
    """Which crystals the embedded set has."""
    unit: str | None = None
    """Unit of the target where the source's column is not one of the known ones."""
    columns: tuple[str, ...] = ()
    """The columns that may be used as inputs; all of them if not given."""
    access: Access = field(default_factory=Access)
    """Of a database: what it is asked."""
    targets: tuple[str, ...] = ()
    """With target=None: columns of several targets, or of labels of classes, which stand as they are in the frame, as
    "target.0", "target.1", ..."""
    sites: bool = False
    """Whether the frame has the atoms of each crystal's standardised primitive cell, too: cell='standard'."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "where", _pairs(self.where))
        named = bool(self.path) and "\0" not in self.path
        require(named, f"path={redacted(self.path)!r} must name a file or folder, or be 'embedded'")
        check_address(self.path, "path")
        require(self.target is None or bool(self.target), "target='' must name a column; None is for rows to predict")
        both = "target and targets are two ways to say it; give one"
        require(self.target is None or not self.targets, both)
        object.__setattr__(self, "targets", tuple(self.targets))
        known = get_args(Symmetry)
        require(self.symmetry in known, f"symmetry={self.symmetry!r} must be one of {', '.join(known)}")
        require(self.cell in get_args(Cell), f"cell={self.cell!r} must be one of {', '.join(get_args(Cell))}")
        require(not self.sites or self.cell == "standard", "sites are those of the standard cell: cell='standard'")
        check_structures(self.structures)
        fits = isinstance(self.symprec, int | float) and 0 < self.symprec <= 1
        require(fits, f"symprec={self.symprec!r} must be a length in Å, above 0 and up to 1")
        counts = isinstance(self.rows, int) and not isinstance(self.rows, bool) and self.rows >= 1
        require(self.rows is None or counts, f"rows={self.rows!r} must be a whole number, 1 or more")
        names = not isinstance(self.keep, str) and all(isinstance(name, str) and name for name in self.keep)
        require(names, f"keep={self.keep!r} must be column names, e.g. ('source',)")
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))
        object.__setattr__(self, "columns", tuple(self.columns))

    @property
    def name(self) -> str:
        """The last part of the path: what may be disclosed without the owner's folder or server."""
        if scheme_of(self.path):
            return shown(self.path)
        return EMBEDDED if self.path == EMBEDDED else Path(self.path).name

    @property
    def wanted_columns(self) -> tuple[str, ...]:
        """All columns that are named here: the targets, those to filter by, to keep, and to use."""
        targets = (self.target,) if self.target else self.targets
        return tuple(dict.fromkeys([*targets, *(name for name, _ in self.where), *self.keep, *self.columns]))


def check_structures(chosen: str) -> None:
    """Raise ConfigError for what chooses none of several structures in one file."""
    fits = chosen in ("", "all", "first") or (chosen.isdecimal() and int(chosen) > 0)
    require(fits, f"structures={chosen!r} must be all, first, or a number from 1")


def _pairs(where: Any) -> tuple[tuple[str, Any], ...]:
    pairs = tuple(where.items()) if isinstance(where, Mapping) else where
    message = f"where={where!r} must be a mapping or pairs of column and value, e.g. (('source', 'OQMD'),)"
    require(isinstance(pairs, tuple | list), message)
    for pair in pairs:
        require(isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str), message)
        require(isinstance(pair[1], str | int | float | bool), message)
    return tuple((column, value) for column, value in pairs)
