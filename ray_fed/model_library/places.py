"""Other places with the files of a library: a folder, or any URL that fsspec knows. Push, pull, query, verify.

    PLACE/models/ab/ab12....safetensors .card.json       as in a library
          deprecated.json                                ids that some library marked as superseded
          rows.json                                      one row per card, so that a query needs no card

rows.json is made from cards by whoever pushes. Where it lacks a model, or cannot be read, the card is read instead.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ray_fed.errors import ConfigError, DataError, FedError
from ray_fed.model_library.cards import FIELDS, PackedModel, index_row, read_filed_card, unpack
from ray_fed.model_library.index import LAYOUT, Index
from ray_fed.model_library.store import ID, MOST_BYTES, Fault, Library, marked_ids
from ray_fed.reading import parse_json, read_at_most
from ray_fed.reporting.model_files import CARD_SUFFIX, WEIGHTS_SUFFIX
from ray_fed.reporting.writing import to_json

BATCH = 200
"""Models whose rows wait for the index."""
MOST_ROW_BYTES = 1 << 28
FAILURES_IN_A_ROW = 3
"""After so many the place is taken for unreachable."""
WRITES_AT_ONCE = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci"})
"""Object stores: a file is there as a whole or not at all. Elsewhere it is written beside its place and moved."""
Report = Callable[[int, int], None]
"""(models done, models in all)"""


@dataclass(frozen=True)
class Difference:
    """Ids that only one of two libraries has; equal ids are equal models."""

    only_here: list[str]
    only_there: list[str]


@dataclass(frozen=True)
class Copied:
    """What a push or a pull did."""

    ids: list[str]
    faults: list[Fault]
    """Models that could not be copied, and why; a broken connection ends with one."""


class RemoteFolder:
    """A folder or URL with the files of a library."""

    def __init__(self, url: str):
        import fsspec

        self.url = url
        with _reaching(url, ConfigError):
            self.files, self.root = fsspec.core.url_to_fs(url)
            is_file = self.files.isfile(self.root)
        if is_file:
            raise ConfigError(f"{url} is a file; give a folder, or a URL of one, for models")

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file of a model there, by its name; {} where there is nothing yet."""
        with _reaching(self.url):
            self.files.invalidate_cache()
            found = self.files.find(f"{self.root}/models", detail=True) if self._is_there("models") else {}
        names = {path.rsplit("/", 1)[-1]: about for path, about in found.items()}
        return {name: int(about.get("size") or 0) for name, about in names.items() if ID.fullmatch(name[:64])}

    def ids(self) -> list[str]:
        """Return the ids of the models there, sorted; [] where there is nothing yet."""
        return _ids_of(self.sizes())

    def read(self, model_id: str) -> PackedModel:
        """Return a model after checking all its hashes; DataError when it is damaged or missing."""
        weights, card = (self._content(model_id, suffix) for suffix in (WEIGHTS_SUFFIX, CARD_SUFFIX))
        _, read = unpack(weights, card, f"{self.url}, model {model_id[:12]}", model_id)
        return PackedModel(model_id, weights, card, index_row(read))

    def row(self, model_id: str) -> dict[str, Any]:
        """Return the card of a model as a row of an index; DataError when it is damaged or missing."""
        where = f"{self.url}, model {model_id[:12]}"
        return index_row(read_filed_card(self._content(model_id, CARD_SUFFIX), where, model_id))

    def _content(self, model_id: str, suffix: str) -> bytes:
        with _reaching(f"{self.url}: model {model_id[:12]}"):
            return self._bytes(self._path(model_id, suffix), MOST_BYTES[suffix], f"model {model_id[:12]}: {suffix}")

    def _bytes(self, path: str, most: int, what: str) -> bytes:
        """Return a file of the place, within the bound for its kind; a link to a device is no file."""
        if self.files.info(path)["type"] != "file":
            raise DataError(f"{self.url}: {what} is no regular file")
        with self.files.open(path, "rb") as file:
            return read_at_most(file, most)

    def write(self, model_id: str, weights: bytes, card: bytes) -> None:
        """Write a model, weights first: a reader never finds a card without them."""
        with _reaching(f"{self.url}: model {model_id[:12]}"):
            self._put(self._path(model_id, WEIGHTS_SUFFIX), weights)
            self._put(self._path(model_id, CARD_SUFFIX), card)

    def _put(self, path: str, content: bytes) -> None:
        """Write a file as a whole: a connection that breaks leaves the old one."""
        folder, name = path.rsplit("/", 1)
        self.files.makedirs(folder, exist_ok=True)
        protocol = self.files.protocol
        if WRITES_AT_ONCE & {protocol} if isinstance(protocol, str) else WRITES_AT_ONCE & set(protocol):
            self.files.pipe_file(path, content)
            return
        draft = f"{folder}/.{name}.{os.getpid()}.part"
        try:
            self.files.pipe_file(draft, content)
            if self.files.size(draft) != len(content):
                raise OSError(f"{len(content):,} bytes were sent, another number arrived")
            self.files.mv(draft, path)
        finally:
            with contextlib.suppress(Exception):  # the first error counts; a draft is no model
                if self.files.exists(draft):
                    self.files.rm_file(draft)

    def deprecated(self) -> list[str]:
        """Return the ids that are marked there as superseded."""
        with _reaching(self.url):
            content = self._bytes(self._file("deprecated.json"), 1 << 26, "deprecated.json") if self._is_there(
                "deprecated.json") else b"[]"  # fmt: skip
        where = f"{self.url}: deprecated.json"
        return marked_ids(parse_json(content, where), where)

    def put_deprecated(self, ids: Sequence[str]) -> None:
        """Write the list of superseded models."""
        with _reaching(self.url):
            self._put(self._file("deprecated.json"), to_json(sorted(ids)))

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return id -> row of an index, as whoever pushed last told them; {} where that cannot be read."""
        if not self._is_there("rows.json"):
            return {}
        try:
            with _reaching(self.url):
                content = self._bytes(self._file("rows.json"), MOST_ROW_BYTES, "rows.json")
            told = parse_json(content, f"{self.url}: rows.json")
            fits = told.get("layout") == LAYOUT and set(told["columns"]) == set(FIELDS)
            rows = [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]] if fits else []
            return {str(row["id"]): row for row in rows if all(_fits(row[name], FIELDS[name].kind) for name in FIELDS)}
        except (DataError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def put_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of all models."""
        told = {"layout": LAYOUT, "columns": list(FIELDS), "rows": [[row[name] for name in FIELDS] for row in rows]}
        with _reaching(self.url):
            self._put(self._file("rows.json"), to_json(told))

    def exists(self) -> bool:
        """Whether there is such a place."""
        with _reaching(self.url):
            return bool(self.files.exists(self.root))

    def _is_there(self, name: str) -> bool:
        with _reaching(self.url):
            return bool(self.files.exists(self._file(name)))

    def _file(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _path(self, model_id: str, suffix: str) -> str:
        return f"{self.root}/models/{model_id[:2]}/{model_id}{suffix}"


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of a stranger's row may stand in a column of the index."""
    if value is None:
        return True
    if kind == "TEXT":
        return isinstance(value, str)
    return isinstance(value, int | float)


def _ids_of(sizes: Mapping[str, int]) -> list[str]:
    return sorted(name[:64] for name in sizes if name[64:] == CARD_SUFFIX)


@contextlib.contextmanager
def _reaching(place: str, raised: type[FedError] = DataError) -> Iterator[None]:
    """Turn whatever a file system raises into one error that names the place: each brings errors of its own."""
    try:
        yield
    except FedError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise raised(f"{place!r} is no place for models, or cannot be reached ({said}); check its name") from error


def push(library: Library, url: str, ids: Sequence[str], report: Report | None = None) -> Copied:
    """Copy models to `url` that it does not have or has damaged, one by one, then the marks and the index."""
    remote = RemoteFolder(url)
    sizes, damaged = remote.sizes(), []
    there = set(_ids_of(sizes))
    for model_id in sorted(set(ids) & there):
        if not _looks_whole(library, remote, model_id, sizes):
            damaged.append(model_id)
    new = sorted(set(ids) - there | set(damaged))

    def copy(model_id: str) -> None:
        weights, card = library.read(model_id)
        unpack(weights, card, str(library.paths(model_id)[0]), model_id)
        remote.write(model_id, weights, card)

    done, faults = _one_by_one(new, copy, report)
    present = there | set(done)
    marks = set(remote.deprecated())
    wanted = marks | (set(library.deprecated()) & present)
    if wanted != marks:
        remote.put_deprecated(sorted(wanted))
    if present:
        _send_rows(library, remote, present)
    return Copied(done, faults)


def _looks_whole(library: Library, remote: RemoteFolder, model_id: str, sizes: Mapping[str, int]) -> bool:
    """Whether a model there has the sizes of ours, or is sound although its card is laid out otherwise."""
    if all(sizes.get(path.name) == path.stat().st_size for path in library.paths(model_id) if path.exists()):
        return True
    try:
        remote.read(model_id)
    except DataError:
        return False
    return True


def _send_rows(library: Library, remote: RemoteFolder, present: set[str]) -> None:
    """Write the index of a place: its own rows, ours for models that are new to it."""
    told = {model_id: row for model_id, row in remote.rows().items() if model_id in present}
    ours = {row["id"]: row for row in library.index.rows(sorted(present - set(told)))}
    if ours or len(told) < len(present):
        rows = {**told, **ours}
        remote.put_rows([{**rows[model_id], "deprecated": 0} for model_id in sorted(rows)])


def pull(library: Library, url: str, prefixes: Sequence[str] = (), report: Report | None = None) -> Copied:
    """Copy models from `url`: those whose id starts with one of `prefixes`, or all new ones, one by one; with marks.

    Every hash is checked before a file is written. ConfigError when nothing starts so.
    """
    remote = RemoteFolder(url)
    there = remote.ids()
    if not there:
        raise DataError(f"{url} holds no models; check the place")
    wanted = there if not prefixes else [_unique(prefix, there, url) for prefix in prefixes]
    new = sorted(set(wanted) if prefixes else set(wanted) - set(library.index.ids()))
    with library.filling(BATCH) as add:
        done, faults = _one_by_one(new, lambda model_id: add(remote.read(model_id)), report)
    marked = set(remote.deprecated()) & set(library.index.ids()) - set(library.deprecated())
    if marked:
        library.mark_deprecated(marked)
    return Copied(done, faults)


def _one_by_one(
    ids: Sequence[str], copy: Callable[[str], None], report: Report | None
) -> tuple[list[str], list[Fault]]:
    """Copy models; one that cannot be copied is a fault. Several in a row are a place that cannot be reached."""
    done: list[str] = []
    faults: list[Fault] = []
    in_a_row = 0
    for number, model_id in enumerate(ids, 1):
        try:
            copy(model_id)
            done.append(model_id)
            in_a_row = 0
        except DataError as error:
            faults.append(Fault(model_id, str(error)))
            in_a_row += 1
            if in_a_row == FAILURES_IN_A_ROW and not done and number < len(ids):
                faults.append(Fault(model_id, f"{in_a_row} in a row; the other {len(ids) - number} were not tried"))
                break
        if report is not None:
            report(number, len(ids))
    return done, faults


def _unique(prefix: str, ids: Sequence[str], url: str) -> Any:
    found = [model_id for model_id in ids if model_id.startswith(prefix)]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} models of {url} have an id that starts with {prefix!r}; name exactly one")
    return found[0]


def difference(library: Library, url: str) -> Difference:
    """Return which models only one side has; ConfigError where there is no other side."""
    remote = RemoteFolder(url)
    if not remote.exists():
        raise ConfigError(f"{url}: no such place; check the name")
    here, there = set(library.stored_ids()), set(remote.ids())
    return Difference(sorted(here - there), sorted(there - here))


# ---- asking a place without pulling


@dataclass(frozen=True)
class PlaceAnswer:
    """What a place says to a query."""

    table: pd.DataFrame
    read_cards: int
    """Cards that were read, because rows.json did not have them."""
    faults: list[Fault]


def query_place(url: str, text: str = "", columns: Sequence[str] | None = None) -> PlaceAnswer:
    """PlaceAnswer a query from the index of a place; nothing is pulled, and weights are not read."""
    remote = RemoteFolder(url)
    present = remote.ids()
    if not present:
        raise DataError(f"{url} holds no models; check the place")
    told = remote.rows()
    rows, faults = [], []
    missing = [model_id for model_id in present if model_id not in told]
    for model_id in missing:
        try:
            rows.append(remote.row(model_id))
        except DataError as error:
            faults.append(Fault(model_id, str(error)))
    rows += [told[model_id] for model_id in present if model_id in told]
    with tempfile.TemporaryDirectory(prefix="ray-fed-index-") as folder:
        index = Index(Path(folder) / "index.sqlite")
        index.create()
        index.add(rows)
        index.mark_deprecated(remote.deprecated())
        return PlaceAnswer(index.query(text, columns), len(missing), faults)


def verify_place(url: str, report: Report | None = None) -> tuple[int, list[Fault]]:
    """Read every file of a place and check every hash; returns the number of models and what is wrong."""
    remote = RemoteFolder(url)
    sizes = remote.sizes()
    present = _ids_of(sizes)
    if not present:
        raise DataError(f"{url} holds no models; check the place")
    faults = []
    for number, model_id in enumerate(present, 1):
        try:
            remote.read(model_id)
        except DataError as error:
            faults.append(Fault(model_id, str(error)))
        if report is not None:
            report(number, len(present))
    cards = set(present)
    lonely = sorted({name[:64] for name in sizes if name[64:] == WEIGHTS_SUFFIX} - cards)
    return len(present), faults + [Fault(model_id, "weights without a card; push it again") for model_id in lonely]
