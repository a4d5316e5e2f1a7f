"""The index of a library: one SQLite row per card. It holds nothing that the cards do not: it can be made again."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ray_fed.config import unknown_name
from ray_fed.errors import ConfigError, DataError
from ray_fed.model_library.cards import FIELDS, SEARCHED, SHOWN
from ray_fed.model_library.query import Query, field_name, parse_query

SQL_TYPES = {"BOOL": "INTEGER"}


class Index:
    """The SQLite file of a library."""

    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path}: the index cannot be used ({error}); make it again: ray-fed library reindex"
            ) from error

    def create(self) -> None:
        """Make an empty index in the place of any other."""
        columns = ", ".join(f'"{name}" {SQL_TYPES.get(field.kind, field.kind)}' for name, field in FIELDS.items())
        with self._connection() as connection:
            connection.execute("DROP TABLE IF EXISTS models")
            connection.execute(f'CREATE TABLE models ({columns}, PRIMARY KEY ("id"))')
            for name in SEARCHED:
                connection.execute(f'CREATE INDEX "by_{name}" ON models ("{name}")')

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, all or none; a row with an id that is there already changes nothing."""
        names = list(FIELDS)
        statement = f"INSERT OR IGNORE INTO models VALUES ({','.join('?' * len(names))})"
        with self._connection() as connection:
            connection.executemany(statement, ([row.get(name) for name in names] for row in rows))
        with self._connection() as connection:
            # Statistics let SQLite choose between its indexes.
            connection.execute("ANALYZE")

    def mark_deprecated(self, ids: Sequence[str]) -> None:
        """Set `deprecated` for these models."""
        with self._connection() as connection:
            connection.executemany('UPDATE models SET "deprecated" = 1 WHERE "id" = ?', ([item] for item in ids))

    def ids(self, prefix: str = "") -> list[str]:
        """Return the sorted ids of models (not of failures) that start with `prefix`."""
        with self._connection() as connection:
            found = connection.execute(
                'SELECT "id" FROM models WHERE "succeed" = 1 AND substr("id", 1, ?) = ? ORDER BY "id"',
                (len(prefix), prefix),
            )
            return [row[0] for row in found]

    def values(self, name: str) -> list[str]:
        """Return the different values of a column, sorted."""
        with self._connection() as connection:
            found = connection.execute(f'SELECT DISTINCT "{field_name(name)}" FROM models')
            return sorted(str(row[0]) for row in found if row[0] is not None)

    def count(self, query: str = "") -> int:
        """Return how many rows answer a query."""
        parsed = self._checked(query)
        with self._connection() as connection:
            return connection.execute(
                f"SELECT COUNT(*) FROM models WHERE {parsed.where}", parsed.parameters
            ).fetchone()[0]

    def query(self, text: str = "", columns: Sequence[str] | None = None, failures: bool = False) -> pd.DataFrame:
        """Return the models that answer a query, one a row.

        columns   fields to return; SHOWN if not given
        failures  also the models that failed (they answer `succeed = false` in any case)

        ConfigError for a query that makes no sense, an unknown property, or errors asked in another unit.
        """
        parsed = self._checked(text)
        names = [field_name(name) for name in columns or SHOWN]
        if not failures and "succeed" not in parsed.fields:
            parsed.where = f'"succeed" = 1 AND ({parsed.where})'
        chosen = ", ".join(f'"{name}"' for name in names)
        with self._connection() as connection:
            rows = connection.execute(f"SELECT {chosen} FROM models {parsed.sql}", parsed.parameters).fetchall()
            if not rows and parsed.units:
                self._check_units(connection, parsed)
        return pd.DataFrame.from_records(rows, columns=list(columns or SHOWN))

    def _checked(self, text: str) -> Query:
        parsed = parse_query(text)
        for name, value in parsed.named:
            known = self.values(name)
            if value not in known:
                raise (
                    unknown_name(name, value, known)
                    if known
                    else ConfigError(f"unknown {name} {value!r}; the library is empty")
                )
        return parsed

    def _check_units(self, connection: sqlite3.Connection, parsed: Query) -> None:
        """Raise when nothing was found because the unit is not that of the models asked for."""
        where = parsed.where.replace('AND "unit" = ?', "")
        given = [unit for _, unit in parsed.units]
        remaining = list(parsed.parameters)
        for unit in given:
            remaining.remove(unit)
        found = {row[0] for row in connection.execute(f"SELECT DISTINCT unit FROM models WHERE {where}", remaining)}
        for name, unit in parsed.units:
            if found and unit not in found:
                known = ", ".join(sorted(map(str, found)))
                raise ConfigError(f"unit mismatch: {name} of these models is in {known}, not {unit}; convert the bound")
