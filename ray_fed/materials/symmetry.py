"""Space-group numbers of crystals by spglib or, about eight times as fast, by moyopy.

Both search the symmetry of the cell as given within `symprec` Å. They agree on all but about 1 % of real crystals:
those whose atoms lie near the edge of the tolerance.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np

from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.structures import Crystal

Finder = Literal["spglib", "moyopy"]
Symmetry = Literal["given", "spglib", "moyopy"]
READER_VERSION = 1
"""Raise it when the same file would be read differently: old cache entries are then left alone."""
_SPGLIB_PRINTS = "SPGLIB_WARNING"


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

    @property
    def finder(self) -> Finder:
        return "spglib" if self.symmetry == "given" else self.symmetry

    @property
    def identity(self) -> str:
        """What a result depends on beside the structures."""
        finder = finder_version(self.finder)  # first: its error names the remedy
        parsers = f"reader {READER_VERSION}, pymatgen-core {version('pymatgen-core')}"
        return f"{parsers}, {finder}, {self.symmetry}, {self.symprec!r}"


def space_groups(crystals: Sequence[Crystal], finder: Finder, symprec: float) -> tuple[np.ndarray, list[str]]:
    """Return space-group numbers, float64 [n], NaN where none is found, and a reason per crystal, "" where one is."""
    finder_version(finder)
    search = _by_spglib if finder == "spglib" else _by_moyopy
    numbers, reasons = np.full(len(crystals), np.nan), [""] * len(crystals)
    with _quiet():
        for row, crystal in enumerate(crystals):
            try:
                numbers[row] = search(crystal, symprec)
            except DataError as error:
                reasons[row] = str(error)
    return numbers, reasons


def _by_spglib(crystal: Crystal, symprec: float) -> int:
    import spglib

    try:
        cell: Any = _wrapped(crystal)
        # "Fm-3m (225)": a third faster than get_symmetry_dataset, which also makes arrays of all operations.
        found: Any = spglib.get_spacegroup(cell, symprec=symprec)
    except Exception as error:
        # Version 2.8 returns None where later ones raise `SpglibError`, a class that earlier ones do not have.
        raise DataError(f"spglib finds no space group '{type(error).__name__}'") from error
    if found is None:
        raise DataError("spglib finds no space group")
    return int(found.rpartition("(")[2].rstrip(")"))


def _by_moyopy(crystal: Crystal, symprec: float) -> int:
    import moyopy  # pyright: ignore[reportMissingImports]

    vectors, positions, kinds = _wrapped(crystal)
    try:
        cell = moyopy.Cell(vectors.tolist(), positions.tolist(), kinds.tolist())
        return moyopy.MoyoDataset(cell, symprec=symprec).number
    except BaseException as error:
        # A panic of its Rust code arrives as PanicException, which is not even an Exception.
        if isinstance(error, ValueError) or type(error).__name__ == "PanicException":
            raise DataError(f"moyopy finds no space group '{type(error).__name__}'") from error
        raise


def _wrapped(crystal: Crystal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (vectors, positions in [0, 1), kinds) as the finders take them."""
    return crystal.vectors, crystal.positions % 1.0, crystal.kinds


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep deprecation warnings of spglib and what both print for each odd crystal off the terminal."""
    logger = logging.getLogger("moyo")
    level, printing = logger.level, os.environ.get(_SPGLIB_PRINTS)
    logger.setLevel(logging.ERROR)
    os.environ[_SPGLIB_PRINTS] = "OFF"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        os.environ.pop(_SPGLIB_PRINTS)
        if printing is not None:
            os.environ[_SPGLIB_PRINTS] = printing
