"""Element tables: one row per chemical element, one column per property, with units, provenance and a hash.

Two tables ship as text in `tables/`, built by `python -m tests.golden.make_element_tables`:

    guo     the properties behind the 73 features of Guo et al. 2022 (matminer's preset "matminer"), from pymatgen
    rich    those of XenonPy's 58 properties that mendeleev and pymatgen hold

They exist because pymatgen and mendeleev change values between releases: members of a federation would feed one model
different numbers without a word. The digest covers values, units and log marks, so a federation can compare it.
Reading a table imports neither package.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ray_fed.errors import ConfigError, DataError
from ray_fed.reading import readable

_SYMBOL_TEXT = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts "
    "Og"
)
SYMBOLS = tuple(_SYMBOL_TEXT.split())
"""Symbols in order of atomic number; SYMBOLS[0] is hydrogen."""

ATOMIC_NUMBERS: Mapping[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS, 1)} | {"D": 1, "T": 1}
"""Symbol -> atomic number. Deuterium and tritium are hydrogen: an isotope has the same electrons and the same bonds."""

TABLE_FOLDER = Path(__file__).parent / "tables"
TABLE_NAMES = ("guo", "rich")
TABLE_FORMAT = 1
MAX_TABLE_BYTES = 1 << 24
"""Of an element table of one's own: 118 lines."""
"""Layout of the two files of a table; a file of another layout is refused."""

HEADER_KEYS = frozenset(("format", "sha256", "packages", "columns", "left_out"))

IMPUTATIONS = ("median", "matminer", "none")


@dataclass(frozen=True)
class ElementColumn:
    """What a column of an element table holds."""

    name: str
    unit: str = ""
    source: str = ""
    """Package and attribute the values come from."""
    log10: bool = False
    """The property spans decades: take its logarithm before values are imputed by the median."""
    fallback: str = ""
    """Another column of the table, same unit, that fills gaps before the median does."""

    def metadata(self) -> dict[str, object]:
        """Return the fields that the digest covers and the JSON file shows."""
        return {"unit": self.unit, "source": self.source, "log10": self.log10, "fallback": self.fallback}


@dataclass(frozen=True)
class ElementTable:
    """Values of properties for elements.

    values   float64 [119, num_columns], row = atomic number, row 0 unused; NaN where nothing is known
    covered  bool [119], True where the table has a row for the element at all
    """

    name: str
    columns: tuple[ElementColumn, ...]
    values: np.ndarray
    covered: np.ndarray
    packages: Mapping[str, str]
    left_out: Mapping[str, str]

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> tuple[ElementColumn, np.ndarray]:
        """Return the description and the values [119] of one column."""
        position = self.column_names.index(name)
        return self.columns[position], self.values[:, position].copy()

    @property
    def digest(self) -> str:
        """Return sha256 over names, units, sources, marks and the bit patterns of the values."""
        header = {column.name: column.metadata() for column in self.columns}
        # All NaN are one NaN, and big-endian machines hash the same bytes.
        numbers = np.where(np.isnan(self.values), np.nan, self.values).astype("<f8")
        parts = (json.dumps(header, sort_keys=False).encode(), np.packbits(self.covered).tobytes(), numbers.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def imputed(self, names: Sequence[str], impute: str) -> tuple[tuple[ElementColumn, ...], np.ndarray]:
        """Return the columns `names` ready for statistics: (descriptions, values [119, len(names)]).

            median    log10 where marked; gaps take the fallback column, then the median over all known elements
            matminer  gaps take the mean over all known elements (matminer 0.10)
            none      gaps stay NaN

        Nothing here looks at the data set, so every silo gets the same numbers.
        """
        if impute not in IMPUTATIONS:
            raise ConfigError(f"impute={impute!r} is not known; choose one of {', '.join(IMPUTATIONS)}")
        filled = [self._imputed_column(name, impute) for name in names]
        values = np.ascontiguousarray(np.stack([column for _, column in filled], axis=1))
        # An element without a row stays unknown: a whole row of medians would be an invented element.
        values[~self.covered] = np.nan
        return tuple(description for description, _ in filled), values

    def _imputed_column(self, name: str, impute: str) -> tuple[ElementColumn, np.ndarray]:
        description, values = self.column(name)
        if impute == "none":
            return description, values
        if impute == "matminer":
            return description, _fill(values, float(np.nanmean(values[1:])))
        values = self._with_fallback(description, values)
        if description.log10:
            values, description = np.log10(values), _logarithmic(description)
        return description, _fill(values, float(np.nanmedian(values[1:])))

    def _with_fallback(self, description: ElementColumn, values: np.ndarray) -> np.ndarray:
        if not description.fallback:
            return values
        return np.where(np.isnan(values), self.column(description.fallback)[1], values)

    def unknown(self, names: Sequence[str], *, fallback: bool) -> np.ndarray:
        """Return float64 [119, len(names)]: 1 where an element has no value of its own, else 0."""
        columns = [self.column(name) for name in names]
        values = [self._with_fallback(*column) if fallback else column[1] for column in columns]
        return np.isnan(np.stack(values, axis=1)).astype(np.float64)


def _fill(values: np.ndarray, number: float) -> np.ndarray:
    return np.where(np.isnan(values), number, values)


def _logarithmic(column: ElementColumn) -> ElementColumn:
    return ElementColumn(f"log10_{column.name}", f"log10({column.unit})", column.source, log10=True)


@lru_cache
def load_table(name: str) -> ElementTable:
    """Return the shipped table "guo" or "rich"; DataError when a file is missing or does not match its hash."""
    if name not in TABLE_NAMES:
        raise ConfigError(f"element table {name!r} is not known; choose one of {', '.join(TABLE_NAMES)}")
    return read_hashed_table(TABLE_FOLDER, name)


def read_hashed_table(folder: Path, name: str) -> ElementTable:
    """Read `name`_elements.csv and `name`_elements.json from `folder`; DataError unless the hash agrees."""
    values_path, header_path = table_paths(folder, name)
    header = _read_header(header_path)
    names, values, covered = _read_values(values_path)
    if list(header["columns"]) != names:
        raise DataError(f"{values_path}: its columns are not those of {header_path.name}; reinstall ray-fed")
    columns = tuple(_described(column, entry, header_path) for column, entry in header["columns"].items())
    table = ElementTable(name, columns, values, covered, header["packages"], header["left_out"])
    if table.digest != header["sha256"]:
        raise DataError(
            f"{values_path}: sha256 is {table.digest[:16]}, {header_path.name} says {header['sha256'][:16]}: "
            "values were changed; reinstall ray-fed, or pass your own table by its path"
        )
    return table


def _described(name: str, entry: Mapping, path: Path) -> ElementColumn:
    try:
        return ElementColumn(name, **entry)
    except TypeError as error:
        raise DataError(f"{path}: column '{name}' is described wrongly ({error}); reinstall ray-fed") from error


def table_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of the values (CSV) and of the description (JSON) of a table."""
    return folder / f"{name}_elements.csv", folder / f"{name}_elements.json"


def _read_header(path: Path) -> dict:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); reinstall ray-fed") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); reinstall ray-fed") from error
    missing = HEADER_KEYS - set(header)
    if missing or header["format"] != TABLE_FORMAT:
        fault = f"has no {', '.join(sorted(missing))}" if missing else f"has format {header['format']!r}"
        raise DataError(f"{path}: {fault}, this version reads format {TABLE_FORMAT}; reinstall ray-fed")
    return header


def read_element_table(path: str | Path) -> ElementTable:
    """Read an element table of your own: CSV, first column the symbol, the others numbers (empty or nan: unknown).

    XenonPy's `elements_completed` loads as it is. Columns `Z` are ignored. DataError names the file, row and column.
    """
    names, values, covered = _read_values(Path(path))
    empty = [name for name, column in zip(names, values.T, strict=True) if np.isnan(column).all()]
    if empty:
        raise DataError(f"{path}: column '{empty[0]}' holds no number; remove it")
    columns = tuple(ElementColumn(name, source=Path(path).name) for name in names)
    return ElementTable(Path(path).stem, columns, values, covered, {}, {})


def _read_values(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return column names, values [119, num_columns] and covered [119] of a CSV file."""
    header, *rows = _read_rows(path)
    symbol_at = next((i for i, name in enumerate(header) if name.lower() in ("symbol", "element")), 0)
    number_at = [i for i, name in enumerate(header) if i != symbol_at and name != "Z"]
    names = [header[i] for i in number_at]
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}: needs a symbol column and properties of different names; its header is {header}")
    values = np.full((len(SYMBOLS) + 1, len(names)), np.nan)
    covered = np.zeros(len(SYMBOLS) + 1, bool)
    for line, row in enumerate(rows, 2):
        number = _atomic_number(row, symbol_at, f"{path}, line {line}", len(header))
        values[number] = [_number(row[i], f"{path}, line {line}, column '{header[i]}'") for i in number_at]
        covered[number] = True
    return names, values, covered


def _read_rows(path: Path) -> list[list[str]]:
    try:
        text = readable(path, "check the path of the element table", MAX_TABLE_BYTES).decode()
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise DataError(f"{path}: element table is no CSV ({error}); save it as CSV") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: element table is not UTF-8 text; save it as CSV") from error
    if len(rows) < 2:
        raise DataError(f"{path}: element table holds no rows; it needs a header and one line per element")
    return rows


def _atomic_number(row: list[str], symbol_at: int, place: str, width: int) -> int:
    if len(row) != width:
        raise DataError(f"{place}: {len(row)} fields, the header has {width}")
    if row[symbol_at] not in SYMBOLS:
        raise DataError(f"{place}: unknown element '{row[symbol_at]}'")
    return ATOMIC_NUMBERS[row[symbol_at]]


def _number(text: str, place: str) -> float:
    try:
        number = float(text) if text.strip() else math.nan
    except ValueError as error:
        raise DataError(f"{place}: '{text}' is not a number; leave the field empty where a value is unknown") from error
    if math.isinf(number):
        raise DataError(f"{place}: '{text}' is not finite; leave the field empty where a value is unknown")
    return number
