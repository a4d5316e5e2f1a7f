"""A table whose columns have no roles yet, and the one place where a reader's exceptions become a DataError."""

import csv
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ray_fed.errors import DataError, Trouble, quoted


@dataclass(frozen=True)
class RawTable:
    """A source's columns, decoded when `read` asks for them.

    source    what messages call it
    columns   names, all different
    num_rows  rows, also the unreadable ones
    read      name -> that column, [num_rows], of any dtype
    problems  row -> why it is no row at all (torn, not an object, its file is missing)
    """

    source: str
    columns: tuple[str, ...]
    num_rows: int
    read: Callable[[str], pd.Series]
    problems: Mapping[int, str] = field(default_factory=dict)

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
        zlib.error, csv.Error,
    ) as error:  # fmt: skip
        message = quoted(str(error) or type(error).__name__)
        raise DataError(f"{path} cannot be read, it may be damaged: {message}", failure=Trouble.FILE_DAMAGED) from error
