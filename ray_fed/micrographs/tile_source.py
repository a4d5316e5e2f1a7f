"""What a silo of a segmentation task holds: own tiles, tiles kept for validation, and synthetic ones beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ray_fed.errors import DataError
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.polycrystals import StyleName, polycrystal_set

Synthesis = Callable[[int], MicrographSet]
"""epoch -> synthetic tiles of that epoch; the same epoch gives the same tiles, and every epoch equally many."""


@dataclass(frozen=True)
class SiloTiles:
    """Opened inside the silo's process; never leaves it."""

    train: MicrographSet
    validation: MicrographSet
    synthetic: MicrographSet | None = None
    """Tiles in other silos' styles on this silo's own labels; mixed into training by `synthetic_weight`."""
    synthesis: Synthesis | None = None
    """Makes the synthetic tiles of every later epoch afresh; None: `synthetic` serves all epochs."""
    test: MicrographSet | None = None
    """Tiles on which the silo itself tests each model it is asked about, with what it keeps local (FedBN: its norms).
    Their metrics stand beside those of the validation tiles as `test_<name>`. None where an evaluator has the test."""


class TileSource(Protocol):
    """`SiloSpec.source` of a segmentation silo: a small picklable description of where the tiles are."""

    def open(self, silo: str) -> SiloTiles:
        """Read or make the tiles; DataError names the silo and the file."""
        ...


@dataclass(frozen=True)
class PolycrystalTileSource:
    """Synthetic polycrystals as a silo's own data: no files, the same on every machine."""

    style: StyleName
    seed: int = 0
    size: int = 128
    gap: float = 1.0
    num_train: int = 64
    num_validation: int = 16
    first: int = 0
    """Index of the first image; ranges that do not overlap are different data."""
    spacing: float = 30.0

    def open(self, silo: str) -> SiloTiles:
        count = self.num_train + self.num_validation
        tiles = polycrystal_set(self.style, self.seed, count, self.size, self.gap, self.first, self.spacing, silo)
        return SiloTiles(tiles.subset(range(self.num_train)), tiles.subset(range(self.num_train, count)))


@dataclass(frozen=True)
class SetSource:
    """Tiles that are at hand already, for tests and for studies in one process; they travel with the SiloSpec."""

    tiles: SiloTiles

    def open(self, silo: str) -> SiloTiles:
        if len(self.tiles.train) == 0:
            raise DataError(f"silo '{silo}': no tiles to train on")
        return self.tiles


def stacked(first: np.ndarray, second: np.ndarray | None) -> np.ndarray:
    """Return both along the first axis; the first alone, uncopied, when there is no second."""
    return first if second is None or len(second) == 0 else np.concatenate([first, second])
