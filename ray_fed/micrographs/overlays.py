"""Boundaries drawn over a micrograph, and where a prediction errs, in colours that colour-blind readers can tell."""

import numpy as np
from scipy import ndimage

FOUND = (0, 114, 178)
"""Blue: boundary in both."""
MISSED = (213, 94, 0)
"""Vermilion: true boundary that the prediction lacks; grains merge there."""
INVENTED = (240, 228, 66)
"""Yellow: predicted boundary where there is none; a grain is split there."""


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = MISSED) -> np.ndarray:
    """Return the micrograph uint8 [H, W] as RGB [H, W, 3] with the boundaries of `mask` [H, W] drawn as thin lines."""
    painted = np.repeat(image[..., None], 3, 2)
    painted[thinned(mask)] = colour
    return painted


def error_map(image: np.ndarray, predicted: np.ndarray, true: np.ndarray, tolerance: int = 2) -> np.ndarray:
    """Return RGB [H, W, 3]: boundary found, missed and invented over the paled image.

    A line that lies within `tolerance` pixels of one in the other map counts as found.
    """
    near_true, near_predicted = _grown(true, tolerance), _grown(predicted, tolerance)
    painted = np.repeat((128 + image[..., None] // 2).astype(np.uint8), 3, 2)
    lines, true_lines = thinned(predicted), thinned(true)
    for where, colour in (
        (lines & near_true, FOUND),
        (lines & ~near_true, INVENTED),
        (true_lines & ~near_predicted, MISSED),
    ):
        painted[_grown(where, 1)] = colour
    return painted


def thinned(mask: np.ndarray) -> np.ndarray:
    """Return the middle lines of boundaries, bool [H, W]; loose ends stay."""
    from skimage.morphology import skeletonize

    return skeletonize(mask > 0)


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    return ndimage.binary_dilation(mask > 0, np.ones((3, 3), bool), iterations=pixels)
