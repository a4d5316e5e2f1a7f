"""A silo with few samples: it opens its own table, receives source models as artifacts, and returns errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_fed.errors import DataError
from ray_fed.model_library.cards import PackedModel, unpack
from ray_fed.model_library.heads import find_head
from ray_fed.model_library.property_catalogue import embedded_tables, shared_tables
from ray_fed.model_library.property_tables import PropertyTable, find_table, user_table
from ray_fed.model_library.selection import Draw, Protocol, SourceFeatures, TransferTarget, one_draw
from ray_fed.model_library.transfer import target_and_sources


@dataclass(frozen=True)
class SiloTarget:
    """Where a silo finds its target: a name, not data."""

    target: str
    """Property, data set or DATASET/PROPERTY; the column of a table of its own."""
    source: str = "embedded"
    """'embedded', a folder of data sets, or a table, on the silo's machine."""
    unit: str | None = None
    """Unit of the column of a table of its own."""
    share_source_errors: bool = False
    """Also disclose the error of every single source. A thousand errors of known models on twenty rows are a thousand
    equations for twenty values: keep them inside where the values are secret."""

    def open(self) -> PropertyTable:
        """Read the table; call this at the silo only."""
        if self.source == "embedded":
            return find_table(embedded_tables(), self.target)
        path = Path(self.source)
        if path.is_dir():
            return find_table(shared_tables(path), self.target)
        if not self.unit:
            raise DataError(f"{self.source}: name the unit of {self.target!r}")
        return user_table(path, self.target, self.unit)


@dataclass(frozen=True)
class SiloErrors:
    """What leaves the silo after a draw: errors and the id of the chosen model, no row and no prediction."""

    cv: dict[str, float]
    held_out: dict[str, float]
    permuted: tuple[float, ...]
    chosen: str
    source_cv: np.ndarray
    """[sources], or [0] where the silo does not disclose them."""
    source_held_out: np.ndarray

    @classmethod
    def of(cls, draw: Draw, per_source: bool) -> "SiloErrors":
        """Return a draw without its rows."""
        count = len(draw.source_cv) if per_source else 0
        each = (draw.source_cv[:count], draw.source_held_out[:count])
        return cls(dict(draw.cv), dict(draw.held_out), draw.permuted, draw.chosen, *each)


class SearchingSilo:
    """The silo's side of a transfer: a plain object, wrapped by `actors.library.LibrarySilo`."""

    def __init__(self, name: str, target: SiloTarget):
        self.name, self._table = name, target.open()
        self.shares_source_errors = target.share_source_errors
        self._prepared: tuple[TransferTarget, SourceFeatures] | None = None

    def __repr__(self) -> str:
        return f"SearchingSilo({self.name!r})"

    def take(self, models: Sequence[PackedModel], layers: str = "last") -> int:
        """Check the hashes of source models and keep their frozen features; returns how many were taken."""
        unpacked = [unpack(model.weights, model.card, f"silo '{self.name}'", model.id) for model in models]
        found = target_and_sources(self._table, unpacked, layers)
        self._prepared = found.target, found.sources
        return len(self._prepared[1].ids)

    @property
    def prepared(self) -> tuple[TransferTarget, SourceFeatures]:
        """Return target and sources for tasks on this node; DataError before `take`."""
        if self._prepared is None:
            raise DataError(f"silo '{self.name}' has no source models yet; give it some")
        return self._prepared


def search(
    prepared: tuple[TransferTarget, SourceFeatures], head: str, protocol: Protocol, number: int, per_source: bool
) -> SiloErrors:
    """Return the errors of one draw."""
    return SiloErrors.of(one_draw(*prepared, find_head(head), protocol, number), per_source)
