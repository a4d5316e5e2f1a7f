"""A library on disk: safetensors and JSON cards, addressed by content; an index that can be made again from them.

LIBRARY/library.json                                {"format": 1}
        models/ab/ab12....safetensors .card.json     `ray_fed.reporting.model_files.load_model` reads them, too
        failures/cd34....json                        models that could not be trained, with their reason
        jobs/....json                                what a build has done (it resumes from there)
        index.sqlite

Models are copied between a library and another folder, or any URL that fsspec knows (s3://, gs://, sftp://, memory://):
`push`, `pull`. A remote folder holds the same files as a library, without an index: ids are the names of its cards.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError, DataError, FedError
from ray_fed.model_library.cards import Failure, PackedModel, index_row, read_filed_card, unpack
from ray_fed.model_library.index import Index
from ray_fed.reading import parse_json, read_at_most, read_json, readable
from ray_fed.reporting.model_files import CARD_SUFFIX, MAX_CARD_BYTES, MAX_WEIGHTS_BYTES, WEIGHTS_SUFFIX, ModelCard
from ray_fed.reporting.writing import to_json, write_atomically

FORMAT = 1
ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fault:
    """Something in a library that is not as it should be."""

    id: str
    what: str


class Library:
    """A local library. `create` makes one, `open` takes one that is there."""

    def __init__(self, path: Path | str):
        self.path = Path(path).expanduser()
        self.index = Index(self.path / "index.sqlite")

    def __repr__(self) -> str:
        return f"Library({str(self.path)!r})"

    @classmethod
    def create(cls, path: Path | str) -> "Library":
        """Return the library at `path`, made if there is none; ConfigError when something else is there."""
        library = cls(path)
        if library._header.is_file():
            return cls.open(path)
        if library.path.exists() and (not library.path.is_dir() or any(library.path.iterdir())):
            raise ConfigError(f"{path} is not a library and not empty; give another folder")
        library.path.mkdir(parents=True, exist_ok=True)
        library.index.create()
        write_atomically(library._header, to_json({"format": FORMAT}))
        return library

    @classmethod
    def open(cls, path: Path | str) -> "Library":
        """Return the library at `path`; DataError when there is none, or one of another format."""
        library = cls(path)
        try:
            header = read_json(library._header)
        except DataError as error:
            raise DataError(f"{path} is not a model library: no readable library.json; check --library") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise DataError(f"{path}: library format is not {FORMAT}; use the ray-fed version that wrote it")
        if not library.index.path.is_file():
            library.reindex()
        return library

    @property
    def _header(self) -> Path:
        return self.path / "library.json"

    def __len__(self) -> int:
        return len(self.index.ids())

    def paths(self, model_id: str) -> tuple[Path, Path]:
        """Return (weights, card) of a model by its whole id."""
        if not ID.fullmatch(model_id):
            raise ConfigError(f"{model_id!r} is not a model id: 64 digits 0-9a-f")
        stem = self.path / "models" / model_id[:2] / model_id
        return stem.with_name(model_id + WEIGHTS_SUFFIX), stem.with_name(model_id + CARD_SUFFIX)

    def add(self, models: Iterable[PackedModel], failures: Iterable[Failure] = ()) -> list[str]:
        """Write models and failures; returns the ids of the models. Weights come first: no card without weights."""
        models, failures = list(models), list(failures)
        for model in models:
            weights, card = self.paths(model.id)
            write_atomically(weights, model.weights, durable=False)
            write_atomically(card, model.card, durable=False)
        for failure in failures:
            write_atomically(self.path / "failures" / f"{failure.digest()}.json", to_json(vars(failure)), durable=False)
        with self._locked():
            self.index.add([*(model.row for model in models), *(failure.row() for failure in failures)])
        return [model.id for model in models]

    def resolve(self, start: str) -> str:
        """Return the whole id of the one model whose id starts with `start`; ConfigError when none or several do."""
        if re.fullmatch(r"[0-9a-f]{1,3}", start):
            raise ConfigError(f"model id {start!r} is too short; give 4 digits or more")
        found = self.index.ids(start) if re.fullmatch(r"[0-9a-f]{4,64}", start) else []
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise ConfigError(f"model id {start!r} is the start of {len(found)} ids; give more digits")
        raise ConfigError(f"no model with id {start!r} in {self.path}; see ray-fed library query")

    def load(self, start: str) -> tuple[dict[str, np.ndarray], ModelCard]:
        """Return arrays and card of a model; DataError when a file is missing, damaged or tampered with."""
        model_id = self.resolve(start)
        return unpack(*self.read(model_id), str(self.paths(model_id)[0]), model_id)

    def read(self, model_id: str) -> tuple[bytes, bytes]:
        """Return the bytes of weights and card, unchecked."""
        weights, card = self.paths(model_id)
        return _read(weights), _read(card)

    def packed(self, model_id: str) -> PackedModel:
        """Return a model as bytes, for another process; its hashes are checked where it is unpacked."""
        weights, card = self.read(model_id)
        return PackedModel(model_id, weights, card, {})

    def card(self, start: str) -> ModelCard:
        """Return the card of a model without reading its weights."""
        model_id = self.resolve(start)
        path = self.paths(model_id)[1]
        return read_filed_card(_read(path), str(path), model_id)

    def query(self, text: str = "", columns: Sequence[str] | None = None, failures: bool = False) -> pd.DataFrame:
        """Return the models that answer a query (`ray_fed.model_library.index`) as a table."""
        return self.index.query(text, columns, failures)

    def stored_ids(self) -> list[str]:
        """Return the ids of the cards on disk, sorted, whatever the index says."""
        found = (path.name.removesuffix(CARD_SUFFIX) for path in self.path.glob(f"models/??/*{CARD_SUFFIX}"))
        return sorted(name for name in found if ID.fullmatch(name))

    def reindex(self) -> int:
        """Make the index again from the cards; returns the number of rows. DataError names a card that is damaged."""
        rows = []
        for model_id in self.stored_ids():
            path = self.paths(model_id)[1]
            rows.append(index_row(read_filed_card(_read(path), str(path), model_id)))
        rows += [_read_failure(path).row() for path in sorted(self.path.glob("failures/*.json"))]
        deprecated = self.deprecated()
        with self._locked():
            self.index.path.unlink(missing_ok=True)
            self.index.create()
            self.index.add(rows)
            self.index.mark_deprecated(deprecated)
        return len(rows)

    def verify(self) -> list[Fault]:
        """Read every file and check every hash; returns what is wrong, [] for a sound library."""
        stored, indexed = self.stored_ids(), set(self.index.ids())
        faults = [fault for model_id in stored if (fault := self._fault(model_id))]
        faults += [Fault(model_id, "in the index, its card is missing") for model_id in sorted(indexed - set(stored))]
        unknown = sorted(set(stored) - indexed)
        return faults + [Fault(model_id, "not in the index; run ray-fed library reindex") for model_id in unknown]

    def _fault(self, model_id: str) -> Fault | None:
        weights, _ = self.paths(model_id)
        try:
            unpack(*self.read(model_id), weights.name, model_id)
        except DataError as error:
            return Fault(model_id, str(error))
        return None

    def deprecate(self, start: str) -> None:
        """Mark a model as superseded. The mark is in the index and in deprecated.json; the card is not touched."""
        model_id = self.resolve(start)
        marked = sorted({*self.deprecated(), model_id})
        write_atomically(self.path / "deprecated.json", to_json(marked))
        self.index.mark_deprecated(marked)

    def deprecated(self) -> list[str]:
        """Return the ids marked as superseded."""
        path = self.path / "deprecated.json"
        marked = read_json(path, "remove the file, or restore it from a copy") if path.exists() else []
        if not isinstance(marked, list) or not all(isinstance(each, str) and ID.fullmatch(each) for each in marked):
            raise DataError(f"{path} is not the list of ids it should be; remove the file, or restore it from a copy")
        return marked

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the index for this process: two builds may fill one library."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _read(path: Path) -> bytes:
    return readable(path, "pull the model again", _most_bytes(path.name))


def _most_bytes(name: str) -> int:
    return MAX_WEIGHTS_BYTES if name.endswith(WEIGHTS_SUFFIX) else MAX_CARD_BYTES


def _read_failure(path: Path) -> Failure:
    try:
        failure = Failure(**parse_json(_read(path), path))
        digest = failure.digest()
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the record of a failed model; remove the file") from error
    if digest != path.stem:
        raise DataError(f"{path}: does not have the hash it is filed under; remove the file")
    return failure


BATCH = 200
"""Models held in memory at a time."""


@dataclass(frozen=True)
class Difference:
    """Ids that only one of two libraries has; equal ids are equal models."""

    only_here: list[str]
    only_there: list[str]


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

    def ids(self) -> list[str]:
        """Return the ids of the models there, sorted; [] where there is nothing yet."""
        with _reaching(self.url):
            found = [path.rsplit("/", 1)[-1] for path in self.files.glob(f"{self.root}/models/*/*{CARD_SUFFIX}")]
        return sorted(name for name in (path.removesuffix(CARD_SUFFIX) for path in found) if ID.fullmatch(name))

    def read(self, model_id: str) -> PackedModel:
        """Return a model after checking all its hashes; DataError when it is damaged or missing."""
        weights, card = (self._content(model_id, suffix) for suffix in (WEIGHTS_SUFFIX, CARD_SUFFIX))
        _, read = unpack(weights, card, f"{self.url}, model {model_id[:12]}", model_id)
        return PackedModel(model_id, weights, card, index_row(read))

    def _content(self, model_id: str, suffix: str) -> bytes:
        """Return a file of the place, within the bound for its kind; a link to a device is no file."""
        path, most = self._path(model_id, suffix), _most_bytes(suffix)
        with _reaching(f"{self.url}: model {model_id[:12]}"):
            if self.files.info(path)["type"] != "file":
                raise DataError(f"{self.url}: model {model_id[:12]}: {suffix} is no regular file")
            with self.files.open(path, "rb") as file:
                return read_at_most(file, most)

    def write(self, model_id: str, weights: bytes, card: bytes) -> None:
        """Write a model, weights first: a reader never finds a card without them."""
        self.files.makedirs(f"{self.root}/models/{model_id[:2]}", exist_ok=True)
        self.files.pipe_file(self._path(model_id, WEIGHTS_SUFFIX), weights)
        self.files.pipe_file(self._path(model_id, CARD_SUFFIX), card)

    def _path(self, model_id: str, suffix: str) -> str:
        return f"{self.root}/models/{model_id[:2]}/{model_id}{suffix}"


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


def push(library: Library, url: str, ids: Sequence[str]) -> list[str]:
    """Copy models to `url` that it does not have; returns their ids. A damaged model is not copied: DataError."""
    remote = RemoteFolder(url)
    new = sorted(set(ids) - set(remote.ids()))
    for model_id in new:
        weights, card = library.read(model_id)
        unpack(weights, card, str(library.paths(model_id)[0]), model_id)
        remote.write(model_id, weights, card)
    return new


def pull(library: Library, url: str, prefixes: Sequence[str] = ()) -> list[str]:
    """Copy models from `url`: those whose id starts with one of `prefixes`, or all new ones; returns their ids.

    Every hash is checked before a file is written. ConfigError when nothing starts so.
    """
    remote = RemoteFolder(url)
    there = remote.ids()
    if not there:
        raise DataError(f"{url} holds no models; check the place")
    wanted = there if not prefixes else [_unique(prefix, there, url) for prefix in prefixes]
    new = sorted(set(wanted) if prefixes else set(wanted) - set(library.index.ids()))
    for start in range(0, len(new), BATCH):
        library.add([remote.read(model_id) for model_id in new[start : start + BATCH]])
    return new


def difference(library: Library, url: str) -> Difference:
    """Return which models only one side has; ConfigError where there is no other side."""
    remote = RemoteFolder(url)
    with _reaching(url):
        is_there = remote.files.exists(remote.root)
    if not is_there:
        raise ConfigError(f"{url}: no such place; check the name")
    here, there = set(library.stored_ids()), set(remote.ids())
    return Difference(sorted(here - there), sorted(there - here))


def _unique(prefix: str, ids: Sequence[str], url: str) -> Any:
    found = [model_id for model_id in ids if model_id.startswith(prefix)]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} models of {url} have an id that starts with {prefix!r}; name exactly one")
    return found[0]
