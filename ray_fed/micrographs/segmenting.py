"""A trained network on a micrograph of any size, window by window, and its boundaries drawn over the micrograph."""

import numpy as np
import torch

from ray_fed.micrographs.scale import resampled, scaled_shape
from ray_fed.micrographs.unet import UNet
from ray_fed.reading import require_few_pixels

WINDOWS_AT_ONCE = 8


def boundaries(network: UNet, image: np.ndarray, tile: int, overlap: int, factor: float = 1.0) -> np.ndarray:
    """Return the mask uint8 [H, W] (1 = boundary) of a grey image uint8 [H, W], pixel for pixel.

    factor: by how much the image grows to show its grains at the size that the network knows. ValueError when it
    becomes too large for memory.
    """
    shape = scaled_shape(image.shape, factor)
    require_few_pixels(shape)
    logits = boundary_logits(network, resampled(image, shape), tile, overlap)
    return (resampled(logits, (image.shape[0], image.shape[1])) > 0).astype(np.uint8)


@torch.no_grad()
def boundary_logits(network: UNet, image: np.ndarray, tile: int, overlap: int | None = None) -> np.ndarray:
    """Return logits float32 [H, W] of a grey image uint8 [H, W]; above 0 is boundary.

    Windows of `tile` pixels that overlap by `overlap` (default a quarter) are blended with weights that fall towards
    their edges, where a network knows least. An image smaller than a window is continued by reflection.
    """
    overlap = tile // 4 if overlap is None else overlap
    height, width = image.shape
    padded = _padded(image, tile)
    tops, lefts = _starts(padded.shape[0], tile, overlap), _starts(padded.shape[1], tile, overlap)
    corners = [(top, left) for top in tops for left in lefts]
    total, weight = np.zeros(padded.shape, np.float32), np.zeros(padded.shape, np.float32)
    taper = _taper(tile, overlap)
    network.eval()
    device = next(network.parameters()).device
    for first in range(0, len(corners), WINDOWS_AT_ONCE):
        some = corners[first : first + WINDOWS_AT_ONCE]
        windows = np.stack([padded[top : top + tile, left : left + tile] for top, left in some])
        for (top, left), logits in zip(some, network(torch.from_numpy(windows).to(device)).cpu().numpy(), strict=True):
            total[top : top + tile, left : left + tile] += taper * logits
            weight[top : top + tile, left : left + tile] += taper
    return (total / weight)[:height, :width]


def _padded(image: np.ndarray, tile: int) -> np.ndarray:
    down, right = (max(0, tile - length) for length in image.shape)
    return np.pad(image, ((0, down), (0, right)), mode="symmetric") if down or right else image


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where windows begin so that they cover [0, length) and neighbours share at least `overlap`."""
    count = 1 + max(0, -(-(length - tile) // (tile - overlap)))
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def _taper(tile: int, overlap: int) -> np.ndarray:
    """Return weights [tile, tile] that rise from the edge over `overlap` pixels; never 0, the frame has one window."""
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 1.0
    ramp = np.minimum(distance / (overlap + 1), 1.0)
    return np.outer(ramp, ramp).astype(np.float32)


LINES = (213, 94, 0)
"""Vermilion."""


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the micrograph uint8 [H, W] as RGB [H, W, 3] with the boundaries of `mask` [H, W] drawn as thin lines."""
    from skimage.morphology import skeletonize

    painted = np.repeat(image[..., None], 3, 2)
    painted[skeletonize(mask > 0)] = LINES
    return painted
