"""A table whose columns have no roles yet, how rows become one, and the one place where a reader's exceptions become a
DataError."""

import csv
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.databases.columns import find_roles

MAX_ROWS = 50_000_000
"""Of one source: a kilobyte of parquet can hold the same value a billion times."""


@dataclass(frozen=True)
class RawTable:
    """A source's columns, decoded when `read` asks for them.

    source    what messages call it
    columns   names, all different
    num_rows  rows, also the unreadable ones
    read      name -> that column, [num_rows], of any dtype
    problems  row -> why it is no row at all (torn, not an object, its file is missing)
    notes     row -> what is odd about it
    notices   what is odd about the source beside its rows
    record    what else the silo's fingerprint tells of the source: its provider, its licence
    """

    source: str
    columns: tuple[str, ...]
    num_rows: int
    read: Callable[[str], pd.Series]
    problems: Mapping[int, str] = field(default_factory=dict)
    record: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_rows == 0:
            raise DataError(f"{self.source} is empty: it has no rows", failure=Trouble.FILE_EMPTY)
        twice = [name for name in dict.fromkeys(self.columns) if self.columns.count(name) > 1]
        if twice:
            raise DataError(
                f"{self.source} has more than one column named {twice[0]!r}; rename them",
                failure=Trouble.COLUMN_TWICE,
            )


def table_of_columns(
    source: str, columns: Mapping[str, Sequence[Any]], num_rows: int, problems: Mapping[int, str] | None = None
) -> RawTable:
    """Return a table of columns that are in memory, each of any Python objects."""

    def read(name: str) -> pd.Series:
        return pd.Series(list(columns[name]), dtype=object)

    return RawTable(source, tuple(columns), num_rows, read, problems or {})


def table_of_rows(source: str, columns: Sequence[str], parts: Iterable[Sequence[Sequence[Any]]]) -> RawTable:
    """Return a table of rows that arrive in parts, each value as a database's driver gives it.

    Every column gets the type that a parquet file with the same values has, so that both are the same source.
    """
    gathered, num_rows = [_Column() for _ in columns], 0
    for part in parts:
        num_rows += len(part)
        if num_rows > MAX_ROWS:
            raise DataError(f"{source} has more than {MAX_ROWS:,} rows; ask for fewer", failure=Trouble.DATA_UNUSABLE)
        for column, values in zip(gathered, zip(*part, strict=True), strict=bool(part)):
            column.add(values)
    positions = {name: at for at, name in enumerate(columns)}
    return RawTable(source, tuple(columns), num_rows, lambda name: gathered[positions[name]].series())


def table_of_records(source: str, records: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> RawTable:
    """Return a table of mappings; its columns are `names`, and all others that any of them has."""
    columns = list(dict.fromkeys([*names, *(name for record in records for name in record)]))
    return table_of_rows(source, columns, [[[record.get(name) for name in columns] for record in records]])


class _Column:
    """One column in parts: packed where all values of a part are of one type, else a list."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def add(self, values: Sequence[Any]) -> None:
        self.parts.append(_packed([_plain(value) for value in values]))

    def series(self) -> pd.Series:
        """Return the column [rows]: int64, float64, bool or text where all its values are that, else of objects."""
        import pyarrow as pa

        types = {part.type for part in self.parts if isinstance(part, pa.Array) and part.type != pa.null()}
        if len(types) == 1 and all(isinstance(part, pa.Array) for part in self.parts):
            return pa.chunked_array([part.cast(*types) for part in self.parts]).to_pandas()
        values = list(chain.from_iterable(part if isinstance(part, list) else part.to_pylist() for part in self.parts))
        packed = _packed(values)
        return pd.Series(packed, dtype=object) if isinstance(packed, list) else packed.to_pandas()


def _packed(values: list[Any]) -> Any:
    """Return values as an arrow array; as they are where it has no type for them, or would give objects more keys."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):  # there is no one type: the values are kept as they are
        return values
    return values if "struct<" in str(array.type) else array


def _plain(value: Any) -> Any:
    """Return a driver's value as a number, text, time, list or mapping: decimals as the nearest float, bytes as the
    text they spell."""
    if value is None or isinstance(value, bool | int | float | str | datetime | date):
        return value
    if isinstance(value, Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text_of(bytes(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)  # a UUID, an ObjectId, a range, ...


def _text_of(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return f"{len(value)} bytes that are no text"


def in_fixed_order(table: RawTable) -> RawTable:
    """Return a table sorted by its ids, and by their content where they are the same or missing: a database that is
    asked for no order may give another one each time, and the order of rows is part of a training run."""
    ids = find_roles(table.columns).get("id")
    keys = [_sort_key(value) for value in (table.read(ids).tolist() if ids else [None] * table.num_rows)]
    if len(set(keys)) < len(keys):
        content = zip(*(map(repr, _as_lists(table.read(name).tolist())) for name in sorted(table.columns)), strict=True)
        keys = [(*key, *rest) for key, rest in zip(keys, content, strict=True)]
    order = sorted(range(table.num_rows), key=keys.__getitem__)
    return replace(
        table,
        read=lambda name: table.read(name).iloc[order].reset_index(drop=True),
        problems={at: table.problems[row] for at, row in enumerate(order) if row in table.problems},
    )


def _sort_key(value: Any) -> tuple[Any, ...]:
    is_number = isinstance(value, int | float) and value == value
    return (0, value, "") if is_number else (1, 0, str(value))


def _as_lists(values: list[Any]) -> list[Any]:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what readers raise at broken files into a DataError of one line that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file or folder; check the path", failure=Trouble.FILE_MISSING) from error
    except PermissionError as error:
        raise DataError(
            f"{path} may not be read by this user; check its permissions", failure=Trouble.FILE_UNREADABLE
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8, or is it another kind of file?",
            failure=Trouble.FILE_DAMAGED,
        ) from error
    except (  # raised again as a DataError that names the file: these are what readers raise at damaged bytes
        OSError, ValueError, EOFError, NotImplementedError, LookupError, TypeError, RecursionError, MemoryError,
        zlib.error, csv.Error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        message = quoted(str(error) or type(error).__name__)
        raise DataError(f"{path} cannot be read, it may be damaged: {message}", failure=Trouble.FILE_DAMAGED) from error
