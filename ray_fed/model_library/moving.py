"""Models between libraries: another folder, or any place that fsspec knows (s3://, gs://, sftp://, memory://).

A remote place holds the same files as a library, without an index: ids are the names of its cards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_fed.errors import ConfigError, DataError
from ray_fed.model_library.cards import PackedModel, index_row, unpack
from ray_fed.model_library.store import ID, Library
from ray_fed.reporting.model_files import CARD_SUFFIX, WEIGHTS_SUFFIX

BATCH = 200
"""Models held in memory at a time."""


@dataclass(frozen=True)
class Difference:
    """Ids that only one of two libraries has; equal ids are equal models."""

    only_here: list[str]
    only_there: list[str]


class Place:
    """Where models lie: a folder or a URL."""

    def __init__(self, url: str):
        import fsspec

        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"{url!r} is no place for models: {' '.join(str(error).split())}") from error
        self.url = url
        if self.files.isfile(self.root):
            raise ConfigError(f"{url} is a file; give a folder, or a URL of one, for models")

    def ids(self) -> list[str]:
        """Return the ids of the models there, sorted; [] where there is nothing yet."""
        found = (path.rsplit("/", 1)[-1] for path in self.files.glob(f"{self.root}/models/*/*{CARD_SUFFIX}"))
        return sorted(name for name in (path.removesuffix(CARD_SUFFIX) for path in found) if ID.fullmatch(name))

    def read(self, model_id: str) -> PackedModel:
        """Return a model after checking all its hashes; DataError when it is damaged or missing."""
        try:
            weights = self.files.cat_file(self._path(model_id, WEIGHTS_SUFFIX))
            card = self.files.cat_file(self._path(model_id, CARD_SUFFIX))
        except OSError as error:
            raise DataError(f"{self.url}: model {model_id[:12]} cannot be read ({type(error).__name__})") from error
        _, read = unpack(weights, card, f"{self.url}, model {model_id[:12]}", model_id)
        return PackedModel(model_id, weights, card, index_row(read))

    def write(self, model_id: str, weights: bytes, card: bytes) -> None:
        """Write a model, weights first: a reader never finds a card without them."""
        self.files.makedirs(f"{self.root}/models/{model_id[:2]}", exist_ok=True)
        self.files.pipe_file(self._path(model_id, WEIGHTS_SUFFIX), weights)
        self.files.pipe_file(self._path(model_id, CARD_SUFFIX), card)

    def _path(self, model_id: str, suffix: str) -> str:
        return f"{self.root}/models/{model_id[:2]}/{model_id}{suffix}"


def push(library: Library, url: str, ids: Sequence[str]) -> list[str]:
    """Copy models to `url` that it does not have; returns their ids. A damaged model is not copied: DataError."""
    place = Place(url)
    new = sorted(set(ids) - set(place.ids()))
    for model_id in new:
        weights, card = library.read(model_id)
        unpack(weights, card, str(library.paths(model_id)[0]), model_id)
        place.write(model_id, weights, card)
    return new


def pull(library: Library, url: str, starts: Sequence[str] = ()) -> list[str]:
    """Copy models from `url`: those whose id starts with one of `starts`, or all new ones; returns their ids.

    Every hash is checked before a file is written. ConfigError when nothing starts so.
    """
    place = Place(url)
    there = place.ids()
    if not there:
        raise DataError(f"{url} holds no models; check the place")
    wanted = there if not starts else [_the_one(start, there, url) for start in starts]
    new = sorted(set(wanted) if starts else set(wanted) - set(library.index.ids()))
    for start in range(0, len(new), BATCH):
        library.add([place.read(model_id) for model_id in new[start : start + BATCH]])
    return new


def difference(library: Library, url: str) -> Difference:
    """Return which models only one side has; ConfigError where there is no other side."""
    place = Place(url)
    if not place.files.exists(place.root):
        raise ConfigError(f"{url}: no such place; check the name")
    here, there = set(library.stored_ids()), set(place.ids())
    return Difference(sorted(here - there), sorted(there - here))


def _the_one(start: str, ids: Sequence[str], url: str) -> Any:
    found = [model_id for model_id in ids if model_id.startswith(start)]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} models of {url} have an id that starts with {start!r}; name exactly one")
    return found[0]
