"""Tables and queries of SQL databases, by SQLAlchemy: `postgresql://user@host/database`, `sqlite:///crystals.sqlite`.

One SELECT statement is run in one transaction that may not write, and its rows are taken in parts as they come.
Numbers arrive as the database holds them: doubles to the last bit, `real` as the number of 32 bits that it is,
`numeric` as the nearest double. Without an ORDER BY of the statement's own, rows are sorted here: see
`in_fixed_order`.

What a server says may hold rows, hosts and users. A message has its kind and code, and its words only where they are
about the statement: a name that is not there, a comma too many.
"""

import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ray_fed.errors import DataError, FedError, Trouble, quoted
from ray_fed.materials.databases.addresses import file_of, filled, scheme_of, shown
from ray_fed.materials.databases.packages import required_package
from ray_fed.materials.databases.raw_table import RawTable, in_fixed_order, reading, table_of_rows
from ray_fed.materials.databases.source import Access, Source
from ray_fed.reading import open_regular

PART_ROWS = 10_000
CONNECT_SECONDS = 15
READ_ONLY = {
    "postgresql": ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY", "SET LOCAL extra_float_digits = 3",
                   "SET LOCAL statement_timeout = {milliseconds}"),
    "sqlite": ("PRAGMA query_only = ON",),
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION max_execution_time = {milliseconds}"),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION max_statement_time = {seconds}"),
    "oracle": ("SET TRANSACTION READ ONLY",),
}  # fmt: skip
"""Dialect -> what is said before the statement; the others have no such word, and are only never told to commit.
Servers before PostgreSQL 12 would cut doubles to 15 digits."""
HARMLESS_OPTIONS = frozenset(
    {"charset", "driver", "encrypt", "service_name", "ssl_ca", "ssl_verify_cert", "trustservercertificate"}
)
SINGLE_TYPES = (700, 1021)
"""PostgreSQL's numbers for `real` and `real[]`: the driver reads their digits as doubles, which they are not."""
_QUOTED = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|--[^\n]*|/\*.*?\*/|(\$\w*\$).*?\1", re.DOTALL
)  # strings, names, comments, PostgreSQL's dollar quotes
_ABOUT_THE_STATEMENT = re.compile(r"no such (?:table|column|function)|syntax error|ambiguous column|unrecognized token")


def open_sql(source: Source, file: Path | None = None) -> RawTable:
    """Return the rows of a statement, or of a whole table. DataError where there are none, or the statement fails.

    file   of SQLite, where the source is its path and no address
    """
    name = source.name if file else shown(source.path)
    required_package("sqlalchemy", "sql", name)
    dialect = "sqlite" if file else scheme_of(source.path)
    _check_access(source.access, name)
    with _problems_told(name, source.access.query_timeout), _engine(source, file, dialect) as engine:
        statement = source.access.query or _whole_table(engine, source.access.table, name)
        with engine.connect() as connection:
            table = _answered(connection, dialect, statement, source.access, name)
    return table if _is_ordered(statement) else in_fixed_order(table)


def is_dialect(scheme: str) -> bool:
    """Return whether SQLAlchemy, if it is here, knows databases of that scheme."""
    try:
        from sqlalchemy.dialects import registry
        from sqlalchemy.exc import NoSuchModuleError
    except ImportError:
        return False
    try:
        registry.load(scheme)
    except NoSuchModuleError:
        return False
    return True


def is_sqlite(path: Path) -> bool:
    """Return whether a file is an SQLite database, by how it begins."""
    try:
        with open_regular(path) as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def read_only_sqlite(path: Path) -> sqlite3.Connection:
    """Return a connection that can write nothing; the file is not made where it is missing."""
    with reading(path):
        if not path.is_file():
            raise FileNotFoundError(path)
        return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=CONNECT_SECONDS)


def _check_access(access: Access, name: str) -> None:
    """One statement that reads: a second one could end the transaction that may not write."""
    if access.query and access.table:
        raise DataError(f"{name}: query and table are given; give one of them", failure=Trouble.OPTION_WRONG)
    bare = _QUOTED.sub(" ", access.query).strip().rstrip(";")
    reads = re.match(r"\s*(?:(?:select|with|values|table)\b|\()", bare, re.IGNORECASE)
    if access.query and (";" in bare or not reads):
        raise DataError(f"{name}: query must be one SELECT statement, no more", failure=Trouble.OPTION_WRONG)


def _is_ordered(statement: str) -> bool:
    """Return whether the statement itself, not a part in brackets, orders its rows."""
    bare = _QUOTED.sub(" ", statement)
    while (shorter := re.sub(r"\([^()]*\)", " ", bare)) != bare:
        bare = shorter
    return re.search(r"\border\s+by\b", bare, re.IGNORECASE) is not None


@contextlib.contextmanager
def _engine(source: Source, file: Path | None, dialect: str) -> Iterator[Any]:
    """Yield an engine whose connections are closed at the end."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    if dialect == "sqlite":
        path = file or file_of(source.path)
        engine = sqlalchemy.create_engine("sqlite://", creator=lambda: read_only_sqlite(path), poolclass=NullPool)
    else:
        url = sqlalchemy.engine.make_url(filled(source.path, source.access.password))
        _check_options(url, shown(source.path))
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=_patience(url, source.access))
    try:
        yield engine
    finally:
        engine.dispose()


def _check_options(url: Any, name: str) -> None:
    """DataError for an option after the address's '?' that may let a server read files here, or choose code to load;
    those of PostgreSQL's own library do neither."""
    known = HARMLESS_OPTIONS if url.get_backend_name() != "postgresql" else set(url.query) - {"plugin"}
    for option in url.query:
        if option.lower() not in known:
            told = f"{name}: the option {quoted(option)} is not allowed in an address"
            raise DataError(f"{told}; leave it out", failure=Trouble.OPTION_WRONG)


def _patience(url: Any, access: Access) -> dict[str, Any]:
    """Return what keeps PostgreSQL's driver from waiting for a server that is gone."""
    if url.get_backend_name() != "postgresql" or url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    seconds = max(2, min(CONNECT_SECONDS, round(access.query_timeout)))
    return {
        "connect_timeout": seconds,
        "tcp_user_timeout": round(1000 * access.query_timeout),
        "keepalives_idle": 30,
        "application_name": "ray-fed",
    }


def _whole_table(engine: Any, table: str, name: str) -> str:
    """Return the statement for a table; the only one there is where none is named."""
    import sqlalchemy

    if not table:
        inspector = sqlalchemy.inspect(engine)
        found = sorted([*inspector.get_table_names(), *inspector.get_view_names()])
        if len(found) != 1:
            there = f"{len(found)} tables" + (f" ({', '.join(found[:10])})" if found else "")
            raise DataError(f"{name} has {there}; give a query, or the name of a table", failure=Trouble.OPTION_WRONG)
        table = found[0]
    quote_name = engine.dialect.identifier_preparer.quote_identifier
    return f"SELECT * FROM {'.'.join(map(quote_name, table.split('.')))}"


def _answered(connection: Any, dialect: str, statement: str, access: Access, name: str) -> RawTable:
    deadline = time.monotonic() + access.query_timeout
    raw = connection.connection.dbapi_connection
    if dialect == "sqlite":
        raw.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    with connection.begin() as transaction:
        limits = {"milliseconds": max(1, round(1000 * access.query_timeout)), "seconds": access.query_timeout}
        for each in READ_ONLY.get(dialect, ()):
            connection.exec_driver_sql(each.format(**limits))
        # Without parameters a % is a %; with a cursor at the server, rows come as they are asked for.
        options = {"stream_results": True, "no_parameters": True, "max_row_buffer": PART_ROWS}
        result = connection.execution_options(**options).exec_driver_sql(statement.strip().rstrip(";"))
        described = result.cursor.description
        singles = [at for at, column in enumerate(described) if column[1] in SINGLE_TYPES]
        parts = (_widened(part, singles) for part in _parts(result, deadline))
        table = table_of_rows(name, [str(column[0]) for column in described], parts)
        result.close()
        transaction.rollback()
    return table


def _parts(result: Any, deadline: float) -> Iterator[Sequence[Any]]:
    while part := result.fetchmany(PART_ROWS):
        if time.monotonic() > deadline:
            raise TimeoutError
        yield part


def _widened(part: Sequence[Any], singles: Sequence[int]) -> Sequence[Any]:
    """Return rows whose columns of 32-bit numbers hold these numbers exactly."""
    if not singles:
        return part
    rows = [list(row) for row in part]
    for row in rows:
        for at in singles:
            row[at] = None if row[at] is None else np.float32(row[at]).astype(np.float64).tolist()
    return rows


@contextlib.contextmanager
def _problems_told(name: str, seconds: float) -> Iterator[None]:
    """Turn what drivers raise into a DataError of one line; nothing of theirs hangs on to it."""
    from sqlalchemy.exc import SQLAlchemyError

    problem: DataError | None = None
    try:
        yield
    except FedError:
        raise
    except TimeoutError:
        problem = _late(name, seconds)
    except ImportError as error:
        package = getattr(error, "name", None) or "of this database"
        told = f"{name}: the driver {package} is not installed; install it where the silo runs"
        problem = DataError(told, failure=Trouble.PACKAGE_MISSING)
    except (SQLAlchemyError, sqlite3.Error) as error:
        problem = _problem(name, seconds, error)
    except (ValueError, TypeError, OSError):  # of an address, or of the options in it
        told = f"{name}: the address cannot be used; write SCHEME://USER@SERVER:PORT/DATABASE"
        problem = DataError(told, failure=Trouble.OPTION_WRONG)
    if problem is not None:
        raise problem from None


def _late(name: str, seconds: float) -> DataError:
    remedy = "ask for less, or allow more with query_timeout"
    return DataError(f"{name}: the query was not answered within {seconds:g} s; {remedy}", failure=Trouble.QUERY_LATE)


def _problem(name: str, seconds: float, error: Exception) -> DataError:
    """Return what an error of SQLAlchemy or a driver comes to, without the values that it may hold."""
    original: Any = getattr(error, "orig", None) or error
    state, words = str(getattr(original, "sqlstate", None) or ""), " ".join(str(original).split())
    if state == "57014" or words == "interrupted":
        return _late(name, seconds)
    for fits, remedy, failure in _PROBLEMS:
        if fits(state, words.lower()):
            return DataError(f"{name}: {remedy}" + (f" (SQLSTATE {state})" if state else ""), failure=failure)
    failed = f"{name}: the query fails"
    if state.startswith("42"):
        said = getattr(getattr(original, "diag", None), "message_primary", "")
        return DataError(f"{failed} (SQLSTATE {state}): {quoted(said)}; correct it", failure=Trouble.QUERY_FAILED)
    if isinstance(original, sqlite3.Error) and _ABOUT_THE_STATEMENT.search(words):
        return DataError(f"{failed}: {quoted(words)}; correct it", failure=Trouble.QUERY_FAILED)
    code = f"SQLSTATE {state}" if state else type(original).__name__
    remedy = "try it in the database's own client"
    return DataError(f"{failed} ({code}); {remedy}", failure=Trouble.QUERY_FAILED)


def _with(*texts: str) -> Callable[[str, str], bool]:
    return lambda _state, words: any(text in words for text in texts)


_PROBLEMS: tuple[tuple[Callable[[str, str], bool], str, Trouble], ...] = (
    (lambda state, _: state[:2] == "28", "it refuses the user or the password; its owner sets them where the silo runs",
     Trouble.DATABASE_LOCKED),
    (_with("password authentication failed", "no password supplied", "access denied", "role ", "no pg_hba.conf"),
     "it refuses the user or the password; its owner sets them where the silo runs", Trouble.DATABASE_LOCKED),
    (lambda state, _: state == "42501", "this user may not read that table; its owner grants SELECT",
     Trouble.DATABASE_LOCKED),
    (lambda state, _: state == "25006", "the query writes, and only reading is allowed; leave that out",
     Trouble.QUERY_FAILED),
    (_with("attempt to write a readonly", "data-modifying"),
     "the query writes, and only reading is allowed; leave that out", Trouble.QUERY_FAILED),
    (lambda state, words: state == "3D000" or ("database" in words and "does not exist" in words),
     "the server has no such database; check the address", Trouble.DATABASE_AWAY),
    (_with("not a database"), "the file is no SQLite database; check the address", Trouble.FILE_UNKNOWN),
    (_with("database is locked"), "somebody else writes to it; try again", Trouble.DATABASE_AWAY),
    (_with("malformed"), "the file is damaged; get it again from where it came", Trouble.FILE_DAMAGED),
    (_with("connection", "could not connect", "server closed", "timeout expired", "timed out", "can't connect",
           "could not translate", "name or service", "unable to open"),
     "no server answers there; is it running, and is the address right?", Trouble.DATABASE_AWAY),
    (lambda state, _: state[:2] in ("08", "57"), "the server ended the connection; is it running?",
     Trouble.DATABASE_AWAY),
)  # fmt: skip
"""(whether it is this one, by SQLSTATE and words; what is said of it; what crosses)."""
