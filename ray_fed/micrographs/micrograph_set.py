"""Micrographs with boundary masks, split so that tiles of one micrograph are never on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ray_fed.errors import DataError
from ray_fed.randomness import generator


@dataclass(frozen=True)
class MicrographSet:
    """Tiles of micrographs and where the grain boundaries are in them."""

    name: str
    """Named in every error; the silo's name once a silo holds the set."""
    images: np.ndarray
    """uint8 [N, H, W], grey."""
    masks: np.ndarray
    """uint8 [N, H, W]: 1 = grain boundary, 0 = grain."""
    sources: tuple[str, ...]
    """[N] the micrograph each tile was cut from."""
    pixel_size_um: float | None = None
    """Edge of a pixel, micrometres; None: not known, so sizes are given in pixels only."""
    notes: tuple[str, ...] = ()
    """What was done to the files or left out, for the owner's eyes: they name files."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.masks.dtype != np.uint8:
            raise DataError(
                f"'{self.name}': images and masks must be uint8, got {self.images.dtype}, {self.masks.dtype}"
            )
        if self.images.ndim != 3 or self.images.shape != self.masks.shape:
            raise DataError(f"'{self.name}': images {self.images.shape} and masks {self.masks.shape} must be [N, H, W]")
        if len(self.sources) != len(self.images):
            raise DataError(f"'{self.name}': {len(self.images)} tiles but {len(self.sources)} sources")
        if self.masks.size and self.masks.max() > 1:
            raise DataError(
                f"'{self.name}': a mask holds {self.masks.max()}; only 0 (grain) and 1 (boundary) are known"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a tile, pixels."""
        return self.images.shape[1], self.images.shape[2]

    def subset(self, indices: Sequence[int] | np.ndarray) -> "MicrographSet":
        """Return the tiles at `indices`, in that order; copies, so that the whole set can be freed."""
        rows = np.asarray(indices, np.int64)
        sources = tuple(self.sources[i] for i in rows)
        return replace(self, images=self.images[rows], masks=self.masks[rows], sources=sources)

    def folds(self, k: int, seed: int) -> list[tuple["MicrographSet", "MicrographSet"]]:
        """Return k pairs (rest, held-out fold); every tile is held out once, all tiles of a source together.

        DataError when the set has fewer than k micrographs.
        """
        parts = self._parts([1.0 / k] * k, seed, f"{k} folds")
        everything = np.arange(len(self))
        return [(self.subset(np.setdiff1d(everything, part)), self.subset(part)) for part in parts]

    def train_validation_test(
        self, validation: float = 0.15, test: float = 0.15, seed: int = 0
    ) -> tuple["MicrographSet", "MicrographSet", "MicrographSet"]:
        """Return three sets with about these shares of the tiles, no source in two of them; a share of 0 is empty.

        DataError when there are fewer micrographs than parts to fill, e.g. a silo of one image.
        """
        if min(validation, test) < 0 or validation + test >= 1:
            raise DataError(f"validation={validation} and test={test} must be at least 0 and leave something to train")
        parts = self._parts([1 - validation - test, validation, test], seed, "train, validation and test")
        train, held, tested = (self.subset(part) for part in parts)
        return train, held, tested

    def _parts(self, shares: Sequence[float], seed: int, what: str) -> list[np.ndarray]:
        """Return indices per part: sources, biggest first, each to the part that is furthest below its share."""
        names, inverse, counts = np.unique(np.asarray(self.sources, str), return_inverse=True, return_counts=True)
        wanted = [position for position, share in enumerate(shares) if share > 0]
        if len(names) < len(wanted):
            raise DataError(
                f"silo '{self.name}' has {len(names)} micrograph(s), too few for {what} that share none; "
                f"it needs at least {len(wanted)}: add micrographs or ask for fewer parts"
            )
        order = generator(seed, "micrograph split", *names.tolist()).permutation(len(names))
        order = order[np.argsort(-counts[order], kind="stable")]
        part_of = _dealt(counts, order, shares, wanted)
        return [np.flatnonzero(part_of[inverse] == position) for position in range(len(shares))]


def _dealt(counts: np.ndarray, order: np.ndarray, shares: Sequence[float], wanted: Sequence[int]) -> np.ndarray:
    """Return the part of each source [num_sources]; no wanted part stays empty."""
    part_of = np.full(len(counts), wanted[0])
    held = np.zeros(len(shares))
    for left, source in zip(range(len(order), 0, -1), order, strict=True):
        empty = [part for part in wanted if held[part] == 0]
        candidates = empty if len(empty) >= left else wanted
        part = min(candidates, key=lambda p: (held[p] + counts[source] / 2) / shares[p])
        part_of[source] = part
        held[part] += counts[source]
    return part_of


def joined(name: str, sets: Sequence[MicrographSet]) -> MicrographSet:
    """Return all tiles of `sets` in order, as a pooled (centralised) data set; the sizes must agree."""
    sizes = {each.name: each.size for each in sets}
    if len(set(sizes.values())) > 1:
        raise DataError(f"cannot pool micrographs of different tile sizes: {sizes}; tile them to one size")
    pixel_sizes = {each.pixel_size_um for each in sets}
    return MicrographSet(
        name,
        np.concatenate([each.images for each in sets]),
        np.concatenate([each.masks for each in sets]),
        tuple(f"{each.name}/{source}" for each in sets for source in each.sources),
        pixel_sizes.pop() if len(pixel_sizes) == 1 else None,
    )
