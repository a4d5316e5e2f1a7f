"""Databases of the Atomic Simulation Environment: `ase:///crystals.db`, or the path of such a file.

Key-value pairs are columns, and so are energy, free_energy (eV) and magmom (μB) where a calculator left them; the
structure is made from the row's atoms. `id` is the row's number, where no key-value pair is an id. `query` is a
selection as ASE writes it: `Ti,band_gap<2`.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.databases.addresses import file_of, shown
from ray_fed.materials.databases.columns import find_roles
from ray_fed.materials.databases.packages import required_package
from ray_fed.materials.databases.raw_table import RawTable, reading, table_of_records
from ray_fed.materials.databases.source import Source
from ray_fed.materials.databases.sql import is_sqlite, read_only_sqlite

RESULTS = ("energy", "free_energy", "magmom")


def open_ase(source: Source, file: Path | None = None) -> RawTable:
    """Return the rows of a selection, by their numbers. DataError where there are none, or it cannot be read.

    file   where the source is its path and no address
    """
    name = source.name if file else shown(source.path)
    required_package("ase", "ase", name)
    path, access = file or file_of(source.path), source.access
    if access.table:
        raise DataError(f"{name}: it has no tables; choose rows with query", failure=Trouble.OPTION_WRONG)
    with reading(path):
        if not path.is_file():
            raise FileNotFoundError(path)
    found = _records(path, access.query, time.monotonic() + access.query_timeout, name)
    records = sorted(found, key=lambda record: record["number"])
    if not find_roles([key for record in records for key in record if key != "number"]).get("id"):
        records = [{"id" if key == "number" else key: value for key, value in record.items()} for record in records]
    return table_of_records(name, records)


def is_ase_database(path: Path) -> bool:
    """Return whether an SQLite file has the tables of an ASE database."""
    try:
        with contextlib.closing(read_only_sqlite(path)) as connection:
            named = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    except sqlite3.Error:
        return False  # who opens it as SQLite says what is wrong with it
    return {"systems", "number_key_values", "text_key_values"} <= {name for (name,) in named}


def _records(path: Path, selection: str, deadline: float, name: str) -> Iterator[Mapping[str, Any]]:
    with reading(path):
        database = _database(path)
        try:
            for row in database.select(selection or None):
                if time.monotonic() > deadline:
                    remedy = "ask for less, or allow more with query_timeout"
                    raise DataError(f"{name}: its rows took too long to read; {remedy}", failure=Trouble.QUERY_LATE)
                yield _record(row)
        except (KeyError, ValueError, TypeError, SyntaxError) as error:  # what ASE raises at a selection
            asked = f"{name}: the selection {quoted(selection)} cannot be answered ({type(error).__name__})"
            raise DataError(f"{asked}; see ASE's manual for how one is written", failure=Trouble.QUERY_FAILED) from None
        except sqlite3.Error as error:
            told = f"{name} cannot be read ({type(error).__name__}); is it an ASE database?"
            raise DataError(told, failure=Trouble.FILE_DAMAGED) from None


def _database(path: Path) -> Any:
    """Return ASE's database, with a connection that can write nothing."""
    if not is_sqlite(path):
        from ase.db.jsondb import JSONDatabase

        return JSONDatabase(str(path), use_lock_file=False)
    from ase.db.sqlite import SQLite3Database

    class ReadOnly(SQLite3Database):
        def _connect(self) -> sqlite3.Connection:
            return read_only_sqlite(path)

    return ReadOnly(str(path), create_indices=False, use_lock_file=False)


def _record(row: Any) -> dict[str, Any]:
    results = {key: getattr(row, key) for key in RESULTS if getattr(row, key, None) is not None}
    atoms = {
        "lattice_mat": row.cell.tolist(),
        "coords": row.positions.tolist(),
        "elements": list(row.symbols),
        "cartesian": True,
    }
    return {"number": row.id, **results, **row.key_value_pairs, "structure": atoms}
