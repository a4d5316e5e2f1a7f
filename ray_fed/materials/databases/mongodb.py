"""Collections of MongoDB: `mongodb://user@host/database`, with the collection as `table` and a filter as `query`.

Only `find` is called. Documents are flattened: {"spacegroup": {"number": 225}} has the column spacegroup.number; a
structure stays whole. `_id` is the id where no other field is one.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray_fed.errors import DataError, FedError, Trouble
from ray_fed.materials.databases.addresses import filled, shown
from ray_fed.materials.databases.columns import find_roles
from ray_fed.materials.databases.packages import required_package
from ray_fed.materials.databases.raw_table import RawTable, in_fixed_order, table_of_records
from ray_fed.materials.databases.source import Access, Source
from ray_fed.reading import parse_json

CONNECT_SECONDS = 15
_OTHER_SECRETS = re.compile(r"[?&]authmechanism(?:properties)?=(?!SCRAM|MONGODB-X509)", re.IGNORECASE)
RUNS_CODE = ("$where", "$function", "$accumulator")
"""Parts of a filter that make the server run code."""


def open_mongodb(source: Source) -> RawTable:
    """Return the documents that a filter finds. DataError where there are none, or no server answers."""
    name = shown(source.path)
    required_package("pymongo", "mongodb", name)
    wanted = _filter(source.access.query, name)
    if _OTHER_SECRETS.search(source.path):
        told = f"{name}: its authMechanism would tell the server this machine's own credentials"
        raise DataError(f"{told}; use a user and a password", failure=Trouble.OPTION_WRONG)
    if not source.access.table:
        raise DataError(f"{name}: table is missing; give the name of a collection", failure=Trouble.OPTION_WRONG)
    with _problems_told(name, source.access.query_timeout), _client(source) as client:
        found = _found(_collection(client, source, name), wanted, source.access)
    return in_fixed_order(table_of_records(name, _with_id([_flat(document) for document in found])))


def _filter(query: str, name: str) -> dict[str, Any]:
    wanted = parse_json(query or "{}", f"{name}: query", 'write a filter, e.g. {"band_gap": {"$gt": 0}}')
    if not isinstance(wanted, dict) or any(word in query for word in RUNS_CODE):
        remedy = f"a JSON object, without {', '.join(RUNS_CODE)}, which run code"
        raise DataError(f"{name}: query must be a filter: {remedy}", failure=Trouble.OPTION_WRONG)
    return wanted


@contextlib.contextmanager
def _client(source: Source) -> Iterator[Any]:
    milliseconds = round(1000 * min(CONNECT_SECONDS, source.access.query_timeout))
    client = connect(
        filled(source.path, source.access.password),
        serverSelectionTimeoutMS=milliseconds,
        connectTimeoutMS=milliseconds,
        timeoutMS=round(1000 * source.access.query_timeout),
        appname="ray-fed",
    )
    try:
        yield client
    finally:
        client.close()


def connect(address: str, **options: Any) -> Any:
    """Return the driver's client."""
    from pymongo import MongoClient

    return MongoClient(address, **options)


def _collection(client: Any, source: Source, name: str) -> Any:
    from pymongo.errors import ConfigurationError

    try:
        return client.get_default_database()[source.access.table]
    except ConfigurationError:
        remedy = "write mongodb://SERVER/DATABASE"
    raise DataError(f"{name}: the address names no database; {remedy}", failure=Trouble.OPTION_WRONG)


def _found(collection: Any, wanted: Mapping[str, Any], access: Access) -> list[Any]:
    milliseconds = round(1000 * access.query_timeout)
    return list(collection.find(wanted).sort("_id", 1).max_time_ms(milliseconds))


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value; a structure, in whichever of its forms, is one value."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and not {"sites", "lattice_mat"} & value.keys():
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_id(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if find_roles([name for record in records for name in record]).get("id"):
        return records
    return [{"id" if name == "_id" else name: value for name, value in record.items()} for record in records]


@contextlib.contextmanager
def _problems_told(name: str, seconds: float) -> Iterator[None]:
    """Turn what the driver raises into a DataError of one line: its words hold the server and what it was asked."""
    problem: DataError | None = None
    try:
        yield
    except FedError:
        raise
    except Exception as error:  # the driver's own, those of an address, and whatever a strange answer makes it raise
        problem = next(make(name, seconds) for fits, make in _PROBLEMS if fits(error))
    if problem is not None:
        raise problem from None


def _is(*classes: str, codes: tuple[int, ...] = ()) -> Callable[[Exception], bool]:
    named = {*classes}
    return lambda error: (
        bool(named & {cls.__name__ for cls in type(error).__mro__}) or getattr(error, "code", 0) in codes
    )


def _says(text: str, failure: Trouble) -> Callable[[str, float], DataError]:
    return lambda name, seconds: DataError(f"{name}: {text.format(seconds=seconds)}", failure=failure)


_PROBLEMS = (
    (_is("ExecutionTimeout", "NetworkTimeout", "WTimeoutError"),
     _says("the query was not answered within {seconds:g} s; ask for less, or allow more with query_timeout",
           Trouble.QUERY_LATE)),
    (_is(codes=(13, 18, 8000)),
     _says("it refuses the user or the password; its owner sets them where the silo runs", Trouble.DATABASE_LOCKED)),
    (_is("ConnectionFailure", "ServerSelectionTimeoutError"),
     _says("no server answers there; is it running, and is the address right?", Trouble.DATABASE_AWAY)),
    (_is("BSONError", "LookupError", "AttributeError"),
     _says("its answer cannot be read; is there a MongoDB server at the address?", Trouble.DATABASE_AWAY)),
    (_is("ConfigurationError", "InvalidURI", "ValueError", "TypeError"),
     _says("the address cannot be used; write mongodb://USER@SERVER/DATABASE", Trouble.OPTION_WRONG)),
    (lambda _: True,
     _says("the query fails; try its filter in the database's own client", Trouble.QUERY_FAILED)),
)  # fmt: skip
"""(whether it is this one; what is said of it)."""
