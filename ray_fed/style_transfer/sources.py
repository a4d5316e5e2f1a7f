"""Where a silo of FedTransfer finds its micrographs, and which of them are for training, validation and test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ray_fed.errors import DataError
from ray_fed.micrographs.folders import MicrographFolder
from ray_fed.micrographs.micrograph_set import MicrographSet, joined
from ray_fed.micrographs.polycrystals import StyleName, polycrystal_set

TEST_INDEX = 1_000_000
"""Test images of the embedded styles have indices from here on: no number of training images reaches them."""


class Parts(NamedTuple):
    """A silo's micrographs; no micrograph has tiles in two of them."""

    train: MicrographSet
    validation: MicrographSet
    test: MicrographSet


class MicrographSource(Protocol):
    """What a SiloSpec of FedTransfer points to."""

    def parts(self, silo: str) -> Parts:
        """Open the micrographs; DataError names the silo."""
        ...


@dataclass(frozen=True)
class Split:
    """Which fold is kept for validation."""

    folds: int = 5
    fold: int = 0
    test_share: float = 0.2
    """Share of the tiles for the test set, where the source does not fix it."""
    seed: int = 0


@dataclass(frozen=True)
class SplitPolycrystalSource:
    """Synthetic micrographs of one style; the test images are the same for every fold."""

    style: StyleName
    num_images: int = 80
    """For training and validation together."""
    num_test: int = 64
    size: int = 128
    spacing: float = 26.0
    """Mean distance of grain centres, pixels."""
    gap: float = 1.0
    """0: both styles alike, 1: fully apart."""
    seed: int = 0
    split: Split = Split()

    def parts(self, silo: str) -> Parts:
        look = {"size": self.size, "gap": self.gap, "spacing": self.spacing, "name": silo}
        everything = polycrystal_set(self.style, self.seed, self.num_images, **look)
        test = polycrystal_set(self.style, self.seed, self.num_test, first=TEST_INDEX, **look)
        train, validation = everything.folds(self.split.folds, self.split.seed)[self.split.fold]
        return Parts(train, validation, test)


@dataclass(frozen=True)
class SplitFolderSource:
    """A silo's own folder of micrographs and masks; no micrograph has tiles in two of the three parts."""

    folder: MicrographFolder
    split: Split = Split()

    def parts(self, silo: str) -> Parts:
        split, everything = self.split, self.folder.read(silo)
        count, needed = len(set(everything.sources)), split.folds + 1
        if count < needed:
            raise DataError(
                f"silo '{silo}' has {count} micrograph(s); a test set and {split.folds} folds that share none need at "
                f"least {needed}: add micrographs or ask for fewer --folds"
            )
        rest, _, test = everything.train_validation_test(0.0, split.test_share, split.seed)
        return Parts(*rest.folds(split.folds, split.seed)[split.fold], test)


@dataclass(frozen=True)
class PooledSource:
    """The micrographs of several silos together: what centralised training would need."""

    members: tuple[tuple[str, MicrographSource], ...]
    """(silo, its source)."""

    def parts(self, silo: str) -> Parts:
        opened = [source.parts(name) for name, source in self.members]
        return Parts(*(joined(silo, part) for part in zip(*opened, strict=True)))


def require_parts(silo: str, parts: Parts, least: Sequence[int] = (2, 1, 1)) -> Parts:
    """Return the parts; DataError when one is too small to be used."""
    for name, part, count in zip(Parts._fields, parts, least, strict=True):
        if len(part) < count:
            raise DataError(f"silo '{silo}': {len(part)} tiles for {name}, at least {count} are needed")
    return parts
