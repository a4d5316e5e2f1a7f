"""What a site has told about the rows of a data set, so that two answers do not give the row between them.

The means of 1,001 rows less those of 1,000 of them are the row that came. So a version of a data set, or a part of it,
that differs from one told before by fewer rows than a statistic needs gets the old answer; with other columns beside
those of before, none. Rows are recognised by 64-bit hashes of them and of each column whose values are mostly
different, which stay in the owner's folder (mode 0600). Not recognised: rows of which another run asks for other
columns that are all categories.
"""

import contextlib
import fcntl
import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_fed.errors import DataError
from ray_fed.learning.standardisation import ColumnMoments

MOST_VERSIONS = 256
SKETCH = 32
"""Smallest hashes of a column, by which the columns that may be alike are found."""
MANY_VALUES = 0.5
"""Share of a column's values that are different, from which on it recognises its rows; of a column of categories many
another one has nearly the same counts."""


@dataclass(frozen=True)
class Version:
    """Rows that were told about."""

    columns: np.ndarray
    """uint64 [columns + 1, rows]: hashes of the values of each column, sorted; last those of whole rows."""
    moments: ColumnMoments


class ToldMoments:
    """Of one data set; without a folder it forgets when its process ends."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._versions: list[Version] | None = None if folder else []

    def answer(self, features: np.ndarray, moments: ColumnMoments, fewest: int) -> ColumnMoments:
        """Return the moments of these rows, or those told of nearly the same rows before; ValueError says why there is
        no answer. One silo of a data set is answered after the other: each must know what was told to those before."""
        mine = Version(_hashes(features), moments)
        with self._locked():
            return self._answer(mine, moments, fewest)

    def _answer(self, mine: Version, moments: ColumnMoments, fewest: int) -> ColumnMoments:
        for old in self.versions():
            if num_different(old.columns[-1], mine.columns[-1]) < fewest and len(old.columns) == len(mine.columns):
                return old.moments
            if _has_near(old.columns[:-1], mine.columns[:-1], fewest):
                near = f"some of its columns differ in fewer than {fewest} rows from columns told before"
                raise ValueError(f"{near}; ask for the columns of then, or wait for more rows")
        if len(self.versions()) >= MOST_VERSIONS:
            raise ValueError(f"{MOST_VERSIONS} versions of its rows have been told; its owner may remove them")
        self._keep(mine)
        return moments

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Read anew what other processes of the site have told, and let none of them tell more meanwhile."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._versions = None
            yield
        finally:
            os.close(handle)

    def versions(self) -> list[Version]:
        if self._versions is None:
            assert self.folder is not None
            self._versions = [_read(path) for path in sorted(self.folder.glob("*.npz"))]
        return self._versions

    def _keep(self, version: Version) -> None:
        self.versions().append(version)
        if self.folder:
            path = self.folder / f"{len(self.versions()):04d}-{os.getpid()}.npz"
            _write(path, version)


def folder_of_told(ledger_folder: str, dataset: str) -> Path:
    """Return where an owner's folder keeps what was told of a data set."""
    name = hashlib.sha256(dataset.encode()).hexdigest()[:16] if dataset else "all"
    return Path(ledger_folder) / "told" / name


def _hashes(features: np.ndarray) -> np.ndarray:
    """Return uint64 [columns + 1, rows]: of each column's values, and of whole rows, sorted."""
    bits = np.ascontiguousarray(np.asarray(features, np.float64) + 0.0).view(np.uint64)  # -0.0 is 0.0
    columns, rows = _mixed(bits), np.zeros(len(bits), np.uint64)
    for number in range(bits.shape[1]):
        rows = _mixed(rows ^ columns[:, number])
    return np.sort(np.vstack([columns.T, rows]), axis=1)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Return numbers whose bits all depend on all bits (splitmix64, Steele, Lea and Flood 2014)."""
    mixed = bits + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _has_near(old: np.ndarray, new: np.ndarray, fewest: int) -> bool:
    """Tell whether a column differs from one of before in some rows, but fewer than `fewest`."""
    of_sketch: dict[int, set[int]] = {}
    for number, column in enumerate(old):
        for value in _sketch(column):
            of_sketch.setdefault(value, set()).add(number)
    alike = [(column, {other for value in _sketch(column) for other in of_sketch.get(value, ())}) for column in new]
    return any(any(0 < num_different(old[other], column) < fewest for other in others) for column, others in alike)


def _sketch(column: np.ndarray) -> list[int]:
    """Return the smallest of the values of a column, none of one that does not tell rows apart."""
    values = np.unique(column)
    return values[:SKETCH].tolist() if len(values) >= MANY_VALUES * len(column) else []


def num_different(old: np.ndarray, new: np.ndarray) -> int:
    """Return how many values [rows] are in one of two columns and not in the other, each as often as it is there."""
    if abs(len(old) - len(new)) > len(old):
        return abs(len(old) - len(new))
    values, inverse = np.unique(np.concatenate([old, new]), return_inverse=True)
    signs = np.concatenate([np.ones(len(old)), -np.ones(len(new))])
    return int(np.abs(np.bincount(inverse, signs, len(values))).sum())


def _write(path: Path, version: Version) -> None:
    """Write a version beside its place and move it there, readable by its owner."""
    draft = path.with_name(f".{path.name}.part")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        moments = version.moments
        np.savez(file, columns=version.columns, num_examples=moments.num_examples, digits=moments.digits)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read(path: Path) -> Version:
    """DataError for a file that is none: what was told cannot be told apart from it."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Version(kept["columns"], ColumnMoments(int(kept["num_examples"]), kept["digits"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        remedy = "put back a copy, or remove it and with it what it says was told"
        raise DataError(f"{path} is damaged; {remedy}") from error
