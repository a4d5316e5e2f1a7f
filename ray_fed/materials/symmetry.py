"""Space-group numbers of crystals by spglib or, about eight times as fast, by moyopy.

Both search the symmetry of the cell as given within `symprec` Å. They agree on all but about 1 % of real crystals:
those whose atoms lie near the edge of the tolerance. What they warn of is a note of the crystal's row (`finder_words`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np

from ray_fed.errors import ConfigError, DataError, quoted
from ray_fed.materials.crystal import Crystal
from ray_fed.materials.finder_words import quiet_finders

Finder = Literal["spglib", "moyopy"]
Symmetry = Literal["given", "check", "spglib", "moyopy"]
Cell = Literal["given", "standard"]
READER_VERSION = 3
"""Raise it when the same file would be read differently: old cache entries are then left alone."""


def finder_version(finder: Finder) -> str:
    """Return e.g. "spglib 2.8.0". ConfigError says how to install moyopy where it is not."""
    try:
        return f"{finder} {version(finder)}"
    except PackageNotFoundError as error:
        raise ConfigError(
            f"symmetry={finder!r}: {finder} is not installed; run `pip install ray-fed[symmetry]` or use 'spglib'"
        ) from error


@dataclass(frozen=True)
class SymmetrySearch:
    """How space groups are found."""

    symmetry: Symmetry = "given"
    symprec: float = 0.1
    """Å"""
    cell: Cell = "given"
    """As the source has it, or the standard one (`standard_cells`)."""
    keeps_sites: bool = False
    """Whether the atoms of the standard cell are kept, too."""

    @property
    def finder(self) -> Finder:
        return "moyopy" if self.symmetry == "moyopy" else "spglib"

    @property
    def takes_given(self) -> bool:
        """Whether a given number is the space group, where there is one."""
        return self.symmetry in ("given", "check") and self.cell == "given"

    @property
    def searches_all(self) -> bool:
        """Whether the symmetry of every crystal is searched, also where its number is given."""
        return not self.takes_given or self.symmetry == "check"

    @property
    def identity(self) -> str:
        """What a result depends on beside the structures."""
        finder = finder_version(self.finder)  # first: its error names the remedy
        parsers = f"reader {READER_VERSION}, pymatgen-core {version('pymatgen-core')}"
        kept = " with its sites" if self.keeps_sites else ""
        return f"{parsers}, {finder}, {self.symmetry}, {self.symprec!r}, {self.cell} cell{kept}"


@dataclass(frozen=True)
class Operations:
    """The symmetry of a cell with its k operations: x -> rotation x + translation, in fractions of the vectors.

    number        of the space group
    rotations     int64   [k, 3, 3]
    translations  float64 [k, 3]
    """

    number: int
    rotations: np.ndarray
    translations: np.ndarray

    @property
    def pure_translations(self) -> np.ndarray:
        """Return the translations without a rotation, float64 [m, 3]; one, of zero, in a primitive cell."""
        return self.translations[(self.rotations == np.eye(3, dtype=np.int64)).all((1, 2))]


def space_groups(
    crystals: Sequence[Crystal], finder: Finder, symprec: float, notes: list[list[str]] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Return space-group numbers, float64 [n], NaN where none is found, and a reason per crystal, "" where one is.

    What the finder warns of goes into the crystal's list of `notes`.
    """
    finder_version(finder)
    search = _number_by_spglib if finder == "spglib" else _number_by_moyopy
    numbers, reasons = np.full(len(crystals), np.nan), [""] * len(crystals)
    with quiet_finders() as words:
        for row, crystal in enumerate(crystals):
            try:
                numbers[row] = search(crystal, symprec)
            except DataError as error:
                reasons[row] = str(error)
            said = words.taken(finder)
            if notes is not None:
                notes[row] += said
    return numbers, reasons


def operations(
    vectors: np.ndarray, positions: np.ndarray, kinds: np.ndarray, finder: Finder, symprec: float
) -> Operations:
    """Return the symmetry of a cell; DataError where none is found. Call it under `quiet_finders`."""
    inside = positions % 1.0
    if finder == "spglib":
        found = _asked_spglib("get_symmetry_dataset", (vectors, inside, kinds), symprec)
        return Operations(found.number, found.rotations.astype(np.int64), found.translations)
    found = _asked_moyopy(vectors, inside, kinds, symprec)
    return Operations(
        found.number, np.array(found.operations.rotations, np.int64), np.array(found.operations.translations)
    )


def _number_by_spglib(crystal: Crystal, symprec: float) -> int:
    # "Fm-3m (225)": a third faster than get_symmetry_dataset, which also makes arrays of all operations.
    found = _asked_spglib("get_spacegroup", _wrapped(crystal), symprec)
    return int(found.rpartition("(")[2].rstrip(")"))


def _asked_spglib(function: str, cell: Any, symprec: float) -> Any:
    import spglib

    try:
        found = getattr(spglib, function)(cell, symprec=symprec)
    except Exception as error:
        # Version 2.8 returns None where later ones raise `SpglibError`, a class that earlier ones do not have.
        raise DataError(f"spglib finds no space group {quoted(f'{type(error).__name__}: {error}', 200)}") from error
    if found is None:
        raise DataError("spglib finds no space group")
    return found


def _number_by_moyopy(crystal: Crystal, symprec: float) -> int:
    return _asked_moyopy(*_wrapped(crystal), symprec).number


def _asked_moyopy(vectors: np.ndarray, positions: np.ndarray, kinds: np.ndarray, symprec: float) -> Any:
    import moyopy  # pyright: ignore[reportMissingImports]

    try:
        cell = moyopy.Cell(vectors.tolist(), positions.tolist(), kinds.tolist())
        return moyopy.MoyoDataset(cell, symprec=symprec)
    except BaseException as error:
        # A panic of its Rust code arrives as PanicException, which is not even an Exception.
        if isinstance(error, ValueError) or type(error).__name__ == "PanicException":
            raise DataError(f"moyopy finds no space group {quoted(f'{type(error).__name__}: {error}', 200)}") from error
        raise


def _wrapped(crystal: Crystal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (vectors, positions in [0, 1), kinds) as the finders take them."""
    return crystal.vectors, crystal.positions % 1.0, crystal.kinds
