"""Crystals of an OPTIMADE provider: `optimade+https://SERVER/PATH`, with a filter of its language as `query`.

Structures are asked for page by page, with the columns that the source names (`_exmpl_band_gap`). A server that is busy
is asked again after the time that it says, else after 1, 2, 4, ... s. Pages are kept in the owner's cache folder: a
download that breaks off goes on where it stopped, if that was less than a day ago; a whole one is used again for an
hour, and then asked for anew. Rows are sorted by id. Provider and licence go into the silo's record.

    OPTIMADE                                    column
    id                                          id
    lattice_vectors, cartesian_site_positions,  structure
    species, species_at_sites
    chemical_formula_reduced                    formula, of entries without a structure
"""

import gzip
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.databases.addresses import shown
from ray_fed.materials.databases.feature_cache import cache_folder, content_key, one_at_a_time
from ray_fed.materials.databases.raw_table import MAX_ROWS, RawTable, in_fixed_order, table_of_records
from ray_fed.materials.databases.source import Source
from ray_fed.reading import parse_json, read_at_most
from ray_fed.reporting.writing import write_atomically

STRUCTURE_FIELDS = ("lattice_vectors", "cartesian_site_positions", "species", "species_at_sites")
FORMULA_FIELD = "chemical_formula_reduced"
OWN_COLUMNS = ("id", "structure", "formula")
PAGE_LIMIT = 100
MAX_PAGE_BYTES = 1 << 26
REQUEST_SECONDS = 30.0
TRIES = 6
BROKEN_SECONDS, WHOLE_SECONDS = 24 * 3600, 3600
BUSY = (429, 502, 503, 504)
LICENCE_TEXT = re.compile(r"[A-Za-z0-9.+-]{1,40}")
_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/([0-9.]+)")

_log = logging.getLogger(__name__)


def open_optimade(source: Source) -> RawTable:
    """Return the structures that a filter finds. DataError where there are none, or no provider answers."""
    name, access = shown(source.path), source.access
    if access.table:
        told = f"{name}: it has no tables; choose entries by a filter, with query"
        raise DataError(told, failure=Trouble.OPTION_WRONG)
    columns = [column for column in source.wanted_columns if column not in OWN_COLUMNS]
    fields = [*STRUCTURE_FIELDS, FORMULA_FIELD, *columns]
    provider = _Provider(name, _base(source.path, name), time.monotonic() + access.query_timeout)
    pages, info = _downloaded(provider, access.query, fields)
    entries = [entry for page in pages for entry in page["data"] if isinstance(entry, dict)]
    records = [_record(entry, columns) for entry in entries]
    # A provider answers null for a column that it has never heard of.
    there = {key for record in records for key, value in record.items() if value is not None}
    table = table_of_records(name, [{k: v for k, v in record.items() if k in there} for record in records])
    return in_fixed_order(replace(table, record=_origin(info)))


def _base(address: str, name: str) -> str:
    """Return the address of version 1 of a provider's interface."""
    scheme, _, rest = address.partition("://")
    if "@" in rest:
        raise DataError(f"{name}: a provider takes no user; leave it out", failure=Trouble.OPTION_WRONG)
    base = f"{scheme.partition('+')[2] or 'https'}://{rest.partition('?')[0].rstrip('/')}"
    return base if re.search(r"/v\d[\d.]*$", base) else f"{base}/v1"


# ---- entries


def _record(entry: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    found = entry.get("attributes")
    attributes = found if isinstance(found, dict) else {}
    structure = _structure(attributes)
    formula = None if structure else attributes.get(FORMULA_FIELD)
    wanted = {column: attributes.get(column) for column in columns}
    return {"id": entry.get("id"), "formula": formula, "structure": structure, **wanted}


def _structure(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a crystal as `Structure.as_dict` has it; None for what has no three lattice vectors, or is torn."""
    try:
        vectors, positions = attributes["lattice_vectors"], attributes["cartesian_site_positions"]
        if not vectors or any(number is None for vector in vectors for number in vector):
            return None
        species = {each["name"]: _occupation(each) for each in attributes["species"]}
        kinds = [species[kind] for kind in attributes["species_at_sites"]]
        sites = [{"species": kind, "xyz": xyz} for kind, xyz in zip(kinds, positions, strict=True)]
    except (KeyError, TypeError, ValueError):  # the row says then that its structure is missing
        return None
    return {"lattice": {"matrix": vectors}, "sites": sites}


def _occupation(species: Mapping[str, Any]) -> list[dict[str, Any]]:
    pairs = zip(species["chemical_symbols"], species["concentration"], strict=True)
    return [{"element": symbol, "occu": share} for symbol, share in pairs if symbol != "vacancy"]


def _origin(info: Mapping[str, Any]) -> dict[str, str]:
    """Return provider and licence as a record can hold them: their short names."""
    attributes = info.get("data", {}).get("attributes", {}) if isinstance(info.get("data"), dict) else {}
    provider = info.get("meta", {}).get("provider", {}) if isinstance(info.get("meta"), dict) else {}
    prefix = provider.get("prefix") if isinstance(provider, dict) else None
    found = {"provider": prefix, "licence": _licence(attributes if isinstance(attributes, dict) else {})}
    return {key: text for key, text in found.items() if isinstance(text, str) and LICENCE_TEXT.fullmatch(text)}


def _licence(attributes: Mapping[str, Any]) -> str | None:
    named = attributes.get("available_licenses_for_entries") or attributes.get("available_licenses")
    if isinstance(named, list) and len(named) == 1:
        return str(named[0])
    link = attributes.get("license")
    href = str(link.get("href") if isinstance(link, dict) else link)
    if "spdx.org/licenses/" in href:
        return href.rpartition("/")[2]
    found = _CREATIVE_COMMONS.search(href)
    if found is None:
        return "see-provider" if link or named else None
    kind = "CC0" if found[1] == "publicdomain" else f"CC-{found[2].upper()}"
    return f"{kind}-{found[3]}"


# ---- pages


@dataclass
class _Provider:
    """Asks one server, with patience."""

    name: str
    base: str
    deadline: float
    num_answers: int = 0
    opener: Any = field(default_factory=lambda: urllib.request.build_opener(_SameServer))

    def asked(self, url: str) -> bytes:
        """Return what stands at an address of this server; DataError where it does not answer in time."""
        for attempt in range(TRIES):
            wait = self._try(url, attempt)
            if isinstance(wait, bytes):
                self.num_answers += 1
                return wait
            if time.monotonic() + wait > self.deadline:
                told = f"{self.name}: it is busy and asks for {wait:.0f} s more than query_timeout leaves"
                remedy = "try later; what has come is kept for a day"
                raise DataError(f"{told}; {remedy}", failure=Trouble.QUERY_LATE)
            _log.info("%s is busy: asking again in %.0f s", self.name, wait)
            time.sleep(wait)
        told = f"{self.name}: it did not answer {TRIES} times; try later, what has come is kept for a day"
        raise DataError(told, failure=Trouble.DATABASE_AWAY)

    def _try(self, url: str, attempt: int) -> bytes | float:
        """Return the answer, or after how many seconds to ask again."""
        left = self.deadline - time.monotonic()
        request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "ray-fed"})
        try:
            with self.opener.open(request, timeout=max(0.1, min(REQUEST_SECONDS, left))) as answer:
                return self._read(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in BUSY:
                    raise self._refused(error) from None
                return _seconds_to_wait(error.headers.get("Retry-After"), attempt)
        except DataError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            if self.num_answers == 0 and isinstance(error, urllib.error.URLError):
                told = f"{self.name}: no server answers there; is the address right?"
                raise DataError(told, failure=Trouble.DATABASE_AWAY) from None
            return _seconds_to_wait(None, attempt)

    def _read(self, answer: Any) -> bytes:
        """Return a whole page; a server that sends a byte now and then is not waited for beyond the time there is."""
        body = bytearray()
        while part := answer.read1(1 << 16):
            body += part
            if len(body) > MAX_PAGE_BYTES:
                told = f"{self.name}: a page is longer than {MAX_PAGE_BYTES:,} bytes; ask for fewer columns"
                raise DataError(told, failure=Trouble.QUERY_FAILED)
            if time.monotonic() > self.deadline:
                told = f"{self.name}: a page did not come in time; try later, or allow more with query_timeout"
                raise DataError(told, failure=Trouble.QUERY_LATE)
        return bytes(body)

    def _refused(self, error: urllib.error.HTTPError) -> DataError:
        if error.code in (401, 403):
            said = f"{self.name}: it refuses this request (HTTP {error.code}){_detail(error)}"
            told = f"{said}; if it wants a key: none can be sent"
            return DataError(told, failure=Trouble.DATABASE_LOCKED)
        if error.code in (301, 302, 307, 308):
            told = f"{self.name}: it has moved to another server; write that one's address"
            return DataError(told, failure=Trouble.DATABASE_AWAY)
        if error.code == 404:
            told = f"{self.name}: there is no OPTIMADE interface at that address; check its path"
            return DataError(told, failure=Trouble.DATABASE_AWAY)
        told = f"{self.name}: it refuses the query (HTTP {error.code}){_detail(error)}; correct the filter or a column"
        return DataError(told, failure=Trouble.QUERY_FAILED)

    def json(self, body: bytes) -> dict[str, Any]:
        found = parse_json(body, f"{self.name}: its answer", "is that an OPTIMADE provider?")
        if not isinstance(found, dict):
            raise DataError(f"{self.name}: its answer is no JSON object; is that an OPTIMADE provider?")
        return found


class _SameServer(urllib.request.HTTPRedirectHandler):
    """Follows no way to another server."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _detail(error: urllib.error.HTTPError) -> str:
    """Return what the provider says of the query, in quotes."""
    try:
        said = json.loads(read_at_most(error, 1 << 16))["errors"][0]
        return f": {quoted(said.get('detail') or said.get('title'))}"
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError):
        return ""


def _seconds_to_wait(told: str | None, attempt: int) -> float:
    """Return the seconds of a Retry-After, which is a number or a date; 1, 2, 4, ... s without one."""
    if told and told.strip().isdigit():
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told or "").timestamp() - time.time())
    except (TypeError, ValueError):
        return float(2**attempt)


def _downloaded(provider: _Provider, query: str, fields: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return all pages of a query, and what the provider says of itself; those that are kept are not asked for."""
    asked = {"response_fields": ",".join(fields), **({"filter": query} if query else {})}
    store = _PageStore.of(content_key(provider.base, urlencode(asked)))
    with store.held():
        store.drop_old()
        info = provider.json(store.read("info") or store.write("info", provider.asked(f"{provider.base}/info")))
        pages = list(_pages(provider, store, asked))
        store.write("whole", b"{}")
    return pages, info


def _pages(provider: _Provider, store: "_PageStore", asked: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    first = f"{provider.base}/structures?{urlencode(asked)}"
    url, number, seen, num_rows, told = first, 1, set(), 0, None
    while url:
        if url in seen or num_rows > MAX_ROWS:
            raise DataError(f"{provider.name}: its pages have no end; tell the provider", failure=Trouble.QUERY_FAILED)
        seen.add(url)
        kept = store.read(f"page-{number:06d}")
        body = kept or (_first_page(provider, url) if number == 1 else provider.asked(url))
        page = _checked(provider, body)
        if not kept:
            store.write(f"page-{number:06d}", body)
        told = _unchanged(provider, store, page, told)
        num_rows += len(page["data"])
        yield page
        url, number = _next(page, first), number + 1
    if told is not None and num_rows != told:
        store.drop()
        changed = f"{provider.name}: it told of {told:,} entries and gave {num_rows:,}; try again"
        raise DataError(changed, failure=Trouble.QUERY_FAILED)


def _first_page(provider: _Provider, url: str) -> bytes:
    """Return the first page, with many entries on each where the provider takes that."""
    try:
        return provider.asked(f"{url}&page_limit={PAGE_LIMIT}")
    except DataError as error:
        if error.failure not in (Trouble.QUERY_FAILED, Trouble.DATABASE_LOCKED):
            raise
    return provider.asked(url)


def _checked(provider: _Provider, body: bytes) -> dict[str, Any]:
    page = provider.json(body)
    if not isinstance(page.get("data"), list):
        told = f"{provider.name}: a page holds no list of entries; is that an OPTIMADE provider?"
        raise DataError(told, failure=Trouble.QUERY_FAILED)
    return page


def _unchanged(provider: _Provider, store: "_PageStore", page: Mapping[str, Any], before: int | None) -> int | None:
    """Return how many entries the provider tells of; DataError where that is not what it told before."""
    meta = page.get("meta")
    told = meta.get("data_returned") if isinstance(meta, dict) else None
    if before is not None and told is not None and told != before:
        store.drop()
        changed = f"{provider.name}: its data changed while they were read; try again"
        raise DataError(changed, failure=Trouble.QUERY_FAILED)
    return told if isinstance(told, int) else before


def _next(page: Mapping[str, Any], first: str) -> str:
    """Return the address of the next page, "" at the end. What a link says of the server does not count: it is the one
    we were sent to, whatever its name behind a proxy."""
    links = page.get("links")
    link = links.get("next") if isinstance(links, dict) else None
    href = link.get("href") if isinstance(link, dict) else link
    if not isinstance(href, str) or not href:
        return ""
    ours = urlsplit(first)
    return urlunsplit((ours.scheme, ours.netloc, ours.path, urlsplit(href).query, ""))


@dataclass(frozen=True)
class _PageStore:
    """Where the pages of one query are kept, packed; None keeps nothing."""

    folder: Path | None

    @classmethod
    def of(cls, key: str) -> "_PageStore":
        root = cache_folder()
        if root is None:
            return cls(None)
        folder = root / "optimade" / key
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            _log.warning("cannot make the cache folder %s (%s); downloading without it", folder, error)
            return cls(None)
        return cls(folder)

    def held(self) -> Any:
        """Let one process at a time download a query."""
        return one_at_a_time(self.folder.with_suffix(".lock")) if self.folder else nullcontext()

    def read(self, name: str) -> bytes | None:
        if self.folder is None:
            return None
        try:
            return gzip.decompress((self.folder / f"{name}.json.gz").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, EOFError) as error:
            _log.warning("a kept page cannot be read (%s); asking for it again", type(error).__name__)
            return None

    def write(self, name: str, body: bytes) -> bytes:
        if self.folder is not None:
            try:
                write_atomically(self.folder / f"{name}.json.gz", gzip.compress(body))
            except OSError as error:
                _log.warning("cannot keep a page (%s); going on without it", error.strerror)
        return body

    def drop_old(self) -> None:
        """Forget a whole download after an hour, a broken one after a day: its beginning would be of another time."""
        first = self._age("page-000001")
        limit = BROKEN_SECONDS if self._age("whole") is None else WHOLE_SECONDS
        if first is not None and first > limit:
            self.drop()

    def drop(self) -> None:
        for path in self.folder.glob("*.json.gz") if self.folder else ():
            path.unlink(missing_ok=True)

    def _age(self, name: str) -> float | None:
        try:
            return time.time() - (self.folder / f"{name}.json.gz").stat().st_mtime if self.folder else None
        except FileNotFoundError:
            return None
