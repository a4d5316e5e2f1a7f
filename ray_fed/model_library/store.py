"""A library on disk: safetensors and JSON cards, addressed by content; an index that can be made again from them.

LIBRARY/library.json                                {"format": 1}
        models/ab/ab12....safetensors .card.json     `ray_fed.reporting.model_files.load_model` reads them, too
        failures/cd34....json                        models that could not be trained, with their reason
        jobs/....json                                what a build has done (it resumes from there)
        deprecated.json                              ids marked as superseded; the marks travel with push and pull
        damaged/                                     files that failed a check, set aside
        index.sqlite

Models are copied to and from other places by `ray_fed.model_library.places`.
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError, DataError
from ray_fed.model_library.cards import Failure, PackedModel, index_row, read_filed_card, unpack
from ray_fed.model_library.index import Index
from ray_fed.reading import parse_json, read_json, readable
from ray_fed.reporting.model_files import CARD_SUFFIX, MAX_CARD_BYTES, MAX_WEIGHTS_BYTES, WEIGHTS_SUFFIX, ModelCard
from ray_fed.reporting.writing import to_json, write_atomically

FORMAT = 1
ID = re.compile(r"[0-9a-f]{64}")
MOST_BYTES = {WEIGHTS_SUFFIX: MAX_WEIGHTS_BYTES, CARD_SUFFIX: MAX_CARD_BYTES}


@dataclass(frozen=True)
class Fault:
    """Something in a library that is not as it should be."""

    id: str
    what: str
    files: tuple[Path, ...] = ()
    """What can be set aside."""


class Library:
    """A local library. `create` makes one, `open` takes one that is there."""

    def __init__(self, path: Path | str):
        self.path = Path(path).expanduser()
        self.index = Index(self.path / "index.sqlite")
        self._own_index: tempfile.TemporaryDirectory[str] | None = None
        """Where a library that nobody may write to has its index."""

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
        if not library.index.is_current():
            library._renew_index()
        return library

    def _renew_index(self) -> None:
        """Make the index again; for a library where nobody may write, in a temporary file."""
        if os.access(self.path, os.W_OK):
            self.reindex()
            return
        self._own_index = tempfile.TemporaryDirectory(prefix="ray-fed-index-")
        self.index = Index(Path(self._own_index.name) / "index.sqlite")
        self._fill_index(self._readable_rows()[0])

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

    @contextlib.contextmanager
    def filling(self, batch: int) -> Iterator[Callable[[PackedModel], None]]:
        """Yield a function that takes models one by one; what it took is in the library, also after an error."""
        waiting: list[PackedModel] = []

        def take(model: PackedModel) -> None:
            waiting.append(model)
            if len(waiting) >= batch:
                self.add(waiting)
                waiting.clear()

        try:
            yield take
        finally:
            self.add(waiting)

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

    def reindex(self) -> list[Fault]:
        """Make the index again from the cards; returns what was damaged, which is set aside in damaged/."""
        rows, faults = self._readable_rows()
        for fault in faults:
            self._set_aside(fault)
        self._fill_index(rows)
        return faults

    def _readable_rows(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """Return the rows of all sound cards and records of failures, and what is wrong with the others."""
        rows: list[dict[str, Any]] = []
        faults = []
        for model_id in self.stored_ids():
            path = self.paths(model_id)[1]
            try:
                rows.append(index_row(read_filed_card(_read(path), str(path), model_id)))
            except DataError as error:
                faults.append(Fault(model_id, str(error), self.paths(model_id)))
        for path in sorted(self.path.glob("failures/*.json")):
            try:
                rows.append(_read_failure(path).row())
            except DataError as error:
                faults.append(Fault(path.stem, str(error), (path,)))
        return rows, faults

    def _fill_index(self, rows: list[dict[str, Any]]) -> None:
        """Put a whole index in the place of the old one: who asks meanwhile finds one of the two."""
        deprecated = self.deprecated()
        draft = Index(self.index.path.with_name(f".index.{os.getpid()}.part"))
        try:
            draft.create()
            draft.add(rows)
            draft.mark_deprecated(deprecated)
            with self._locked():
                draft.path.replace(self.index.path)
        finally:
            draft.path.unlink(missing_ok=True)

    def _set_aside(self, fault: Fault) -> None:
        """Move the files of a fault to damaged/: a query offers them no more, and a pull brings them anew."""
        folder = self.path / "damaged"
        folder.mkdir(exist_ok=True)
        for path in fault.files:
            if path.exists():
                path.replace(folder / path.name)

    def set_aside(self, faults: Iterable[Fault]) -> int:
        """Move damaged models to damaged/ and out of the index; returns how many files were moved."""
        faults = [fault for fault in faults if fault.files]
        for fault in faults:
            self._set_aside(fault)
        with self._locked():
            self.index.remove([fault.id for fault in faults])
        return sum(len(fault.files) for fault in faults)

    def verify(self) -> list[Fault]:
        """Read every file and check every hash; returns what is wrong, [] for a sound library."""
        stored, indexed = self.stored_ids(), set(self.index.ids())
        faults = [fault for model_id in stored if (fault := self._fault(model_id))]
        faults += [
            Fault(model_id, "in the index, its card is missing", self.paths(model_id))
            for model_id in sorted(indexed - set(stored))
        ]
        unknown = sorted(set(stored) - indexed)
        return faults + [Fault(model_id, "not in the index; run ray-fed library reindex") for model_id in unknown]

    def _fault(self, model_id: str) -> Fault | None:
        weights, _ = self.paths(model_id)
        try:
            unpack(*self.read(model_id), weights.name, model_id)
        except DataError as error:
            return Fault(model_id, str(error), self.paths(model_id))
        return None

    def deprecate(self, start: str) -> None:
        """Mark a model as superseded: queries that do not ask for it leave it out. The card is not touched."""
        self.mark_deprecated([self.resolve(start)])

    def mark_deprecated(self, ids: Iterable[str]) -> None:
        """Add marks of our own or of another place, of models that are here."""
        with self._locked():
            marked = sorted({*self.deprecated(), *ids})
            write_atomically(self.path / "deprecated.json", to_json(marked))
            self.index.mark_deprecated(marked)

    def deprecated(self) -> list[str]:
        """Return the ids marked as superseded."""
        path = self.path / "deprecated.json"
        return marked_ids(read_json(path, "remove the file, or restore it from a copy"), path) if path.exists() else []

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
    return MOST_BYTES[WEIGHTS_SUFFIX if name.endswith(WEIGHTS_SUFFIX) else CARD_SUFFIX]


def _read_failure(path: Path) -> Failure:
    try:
        failure = Failure(**parse_json(_read(path), path))
        digest = failure.digest()
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the record of a failed model; remove the file") from error
    if digest != path.stem:
        raise DataError(f"{path}: does not have the hash it is filed under; remove the file")
    return failure


def marked_ids(marked: Any, where: object) -> list[str]:
    """Return a list of ids as it was read; DataError for anything else."""
    if not isinstance(marked, list) or not all(isinstance(each, str) and ID.fullmatch(each) for each in marked):
        raise DataError(f"{where} is not the list of ids it should be; remove the file, or restore it from a copy")
    return marked
