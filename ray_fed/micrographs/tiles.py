"""What a silo of a segmentation task holds: own tiles, validation tiles, synthetic ones; augmentation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ray_fed.micrographs.micrograph_set import MicrographSet


def augmented(
    images: torch.Tensor, masks: torch.Tensor, rng: np.random.Generator, erasing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tiles [n, H, W] and their masks, each turned by its own element of the square's symmetry group.

    Not square: flips and half turns only. With probability `erasing` a rectangle of 2 to 20 % of the image (not of the
    mask) gets one random grey (Zhong et al. 2020). All draws come from `rng`, none depends on the device.
    """
    square = images.shape[1] == images.shape[2]
    turns = rng.integers(0, 4, len(images)) if square else 2 * rng.integers(0, 2, len(images))
    flips = rng.integers(0, 2, len(images))
    both = torch.stack([images, masks], 1)
    both = torch.stack(
        [turned(tile, int(turn), bool(flip)) for tile, turn, flip in zip(both, turns, flips, strict=True)]
    )
    images, masks = both[:, 0].contiguous(), both[:, 1].contiguous()
    for image in images:
        if rng.random() < erasing:
            _erase(image, rng)
    return images, masks


def turned(x: torch.Tensor, quarter_turns: int, mirrored: bool) -> torch.Tensor:
    """Return [..., h, w] turned by quarters and mirrored: one of the eight symmetries of a square image."""
    x = torch.rot90(x, quarter_turns, (-2, -1)) if quarter_turns % 4 else x
    return x.flip(-1) if mirrored else x


def _erase(image: torch.Tensor, rng: np.random.Generator) -> None:
    """Paint one rectangle of the image [H, W] in place; its sides differ by at most a factor of 3.3."""
    height, width = image.shape
    area, ratio = rng.uniform(0.02, 0.2) * height * width, np.exp(rng.uniform(-1.2, 1.2))
    rows = min(height, max(1, round(np.sqrt(area * ratio))))
    columns = min(width, max(1, round(np.sqrt(area / ratio))))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    image[top : top + rows, left : left + columns] = int(rng.integers(0, 256))


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
    Their metrics join those of the validation tiles as `test_<name>`. None where an evaluator has the test."""


class TileSource(Protocol):
    """`SiloSpec.source` of a segmentation silo: a small picklable description of where the tiles are."""

    def open(self, silo: str) -> SiloTiles:
        """Read or make the tiles; DataError names the silo and the file."""
        ...


@dataclass(frozen=True)
class SetSource:
    """Tiles that are at hand already, for tests and for studies in one process; they travel with the SiloSpec."""

    tiles: SiloTiles

    def open(self, silo: str) -> SiloTiles:  # noqa: ARG002
        return self.tiles


def stacked(first: np.ndarray, second: np.ndarray | None) -> np.ndarray:
    """Return both along the first axis; the first alone, uncopied, when there is no second."""
    return first if second is None or len(second) == 0 else np.concatenate([first, second])
