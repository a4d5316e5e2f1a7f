"""How wide the boundary lines of masks are drawn, and masks with their lines redrawn at another width."""

import numpy as np
from scipy import ndimage

CROSS = ndimage.generate_binary_structure(2, 1)[None]
"""Neighbours above, below, left and right, within one label."""


def line_width(masks: np.ndarray) -> float:
    """Return the mean width of boundaries, pixels, of labels uint8 [n, h, w], 1 = boundary: their area over length.

    A line k pixels wide loses its two outermost rows when it is eroded by one pixel on each side, so that its length is
    half the area lost.
    """
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)), mode="edge").astype(bool)
    inner = ndimage.binary_erosion(padded, CROSS)[:, 1:-1, 1:-1]
    area, lost = int(masks.sum()), int(masks.sum()) - int(inner.sum())
    return 2 * area / lost if lost else 0.0


def pixels_to_widen(own_px: float, wanted_px: float) -> int:
    """Return by how many pixels on each side lines must grow to come nearest to `wanted_px`; never so thin that they
    break (below 1 px)."""
    steps = round((wanted_px - own_px) / 2)
    return max(steps, -int((own_px - 1) // 2))


def widened(masks: np.ndarray, pixels: int) -> np.ndarray:
    """Return labels uint8 [n, h, w] whose lines are `pixels` wider on each side, thinner below 0."""
    if pixels == 0:
        return masks
    if pixels > 0:
        return ndimage.binary_dilation(masks.astype(bool), CROSS, iterations=pixels).astype(np.uint8)
    padded = np.pad(masks, ((0, 0), (-pixels, -pixels), (-pixels, -pixels)), mode="edge").astype(bool)
    thin = ndimage.binary_erosion(padded, CROSS, iterations=-pixels)
    return thin[:, -pixels:pixels, -pixels:pixels].astype(np.uint8)
