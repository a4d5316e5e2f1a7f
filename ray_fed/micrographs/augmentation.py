"""Flips, quarter turns and random erasing of tiles, on the device that holds them."""

import numpy as np
import torch


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
        [_turned(tile, int(turn), bool(flip)) for tile, turn, flip in zip(both, turns, flips, strict=True)]
    )
    images, masks = both[:, 0].contiguous(), both[:, 1].contiguous()
    for image in images:
        if rng.random() < erasing:
            _erase(image, rng)
    return images, masks


def _turned(tile: torch.Tensor, quarter_turns: int, flip: bool) -> torch.Tensor:
    tile = torch.rot90(tile, quarter_turns, (-2, -1)) if quarter_turns else tile
    return tile.flip(-1) if flip else tile


def _erase(image: torch.Tensor, rng: np.random.Generator) -> None:
    """Paint one rectangle of the image [H, W] in place; its sides differ by at most a factor of 3.3."""
    height, width = image.shape
    area, ratio = rng.uniform(0.02, 0.2) * height * width, np.exp(rng.uniform(-1.2, 1.2))
    rows = min(height, max(1, round(np.sqrt(area * ratio))))
    columns = min(width, max(1, round(np.sqrt(area / ratio))))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    image[top : top + rows, left : left + columns] = int(rng.integers(0, 256))
