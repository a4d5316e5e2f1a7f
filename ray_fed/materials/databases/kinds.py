"""Every kind of source, and who opens it: by the scheme of its address, else as a file or a folder.

A kind is a function that takes a `Source` and returns a `RawTable`. It reads all rows in an order that does not change
from one time to the next (`raw_table.in_fixed_order`), writes nothing into the source, waits no longer than
`source.access.query_timeout`, and raises DataError in one line that holds no secret and no value of a row.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray_fed.config import at_home, require, unknown_name
from ray_fed.materials.databases.addresses import located, scheme_of
from ray_fed.materials.databases.ase_database import is_ase_database, open_ase
from ray_fed.materials.databases.mongodb import open_mongodb
from ray_fed.materials.databases.optimade import open_optimade
from ray_fed.materials.databases.raw_table import RawTable
from ray_fed.materials.databases.readers import open_table
from ray_fed.materials.databases.source import EMBEDDED, Source
from ray_fed.materials.databases.sql import is_dialect, is_sqlite, open_sql


@dataclass(frozen=True)
class Kind:
    """One kind of source."""

    open: Callable[[Source], RawTable]
    """Reads the rows."""
    is_file: bool = False
    """Its address is SCHEME:///PATH of a file."""


KINDS: dict[str, Kind] = {
    "postgresql": Kind(open_sql),
    "sqlite": Kind(open_sql, is_file=True),
    "ase": Kind(open_ase, is_file=True),
    "optimade": Kind(open_optimade),
    "mongodb": Kind(open_mongodb),
}
"""Scheme of an address, without a driver (`postgresql+psycopg` is postgresql) -> kind. All others are left to
SQLAlchemy, which knows mysql, oracle, mssql, and what is installed beside it."""


def open_source(source: Source) -> RawTable:
    """Return the table of a source that is not the embedded one. DataError where there is none."""
    if scheme_of(source.path):
        return kind_of(source.path).open(source)
    path = at_home(source.path)
    if is_sqlite(path):
        return open_ase(source, path) if is_ase_database(path) else open_sql(source, path)
    access = source.access
    unused = "the data are a file or a folder, which takes none; choose rows with where"
    require(not (access.query or access.table), f"query, table: {unused}")
    return open_table(path, source.target or next(iter(source.targets), None), source.structures)


def kind_of(address: str) -> Kind:
    """Return the kind of an address; ConfigError for a scheme that nobody here knows."""
    scheme = scheme_of(address)
    if scheme not in KINDS and not is_dialect(scheme):
        raise unknown_name("kind of database", scheme, KINDS)
    return KINDS.get(scheme, Kind(open_sql))


def whole_path(path: str, folder: Path) -> str:
    """Return where a source is, the same from every folder: relative paths are taken from `folder`, those that begin
    with `~` are left to the account that opens them, addresses of servers are as they are."""
    if path == EMBEDDED or path.startswith("~"):
        return path
    if scheme_of(path):
        is_file = scheme_of(path) in KINDS and KINDS[scheme_of(path)].is_file
        return located(path, folder) if is_file else path
    return os.path.abspath(folder / path)  # noqa: PTH100 (resolve() raises on a loop of links)


def is_on_disk(path: str) -> bool:
    """Return whether a source is a file or folder of this machine, by a path that can be looked for."""
    return path != EMBEDDED and not scheme_of(path)
