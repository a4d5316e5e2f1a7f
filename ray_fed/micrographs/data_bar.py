"""The bar that microscopes write below an image: found, so that it is not taken for grains.

A bar is a band along the lower edge, as wide as the image, of one level behind its text and scale line, which ends at a
sharp horizontal edge. Nothing is read in it: the pixel size comes from elsewhere, see scale.py.
"""

import numpy as np

LEVEL_WITHIN = 4
"""Grey values around the band's own level that JPEG makes of it."""
LEAST_EXACT = 0.3
"""Share of the band that has exactly its level: no dark corner of a specimen is so even."""
LEAST_WRITTEN, CONTRAST = 0.003, 60
"""Share of the band that is text or scale line, and by how many grey values that differs."""
EDGE_ROWS = 3
LEAST_OF_A_ROW = 0.3
"""Share of a row that shows the band's level, also where text or the scale line cross it."""
LEAST_OF_THE_BAND = 0.6
MOST_ABOVE = 0.25
"""Share of the rows above the band that may have its level by chance."""
SMALLEST_SHARE, LARGEST_SHARE = 0.015, 0.25
"""Of the image's height."""
LEAST_ROWS = 6
GAP_ROWS = 2
"""Rows of a frame or separating line that may interrupt it."""


def data_bar_height(grey: np.ndarray) -> int:
    """Return how many rows at the bottom of a grey image uint8 [H, W] are a data bar; 0 where there is none."""
    height = len(grey)
    most = int(LARGEST_SHARE * height)
    if most < LEAST_ROWS:
        return 0
    lower = grey[height - 2 * most :].astype(np.int16)
    shares = _shares_of_level(lower)[::-1]  # from the lowest row up
    rows = _run(shares >= LEAST_OF_A_ROW)
    if not max(LEAST_ROWS, SMALLEST_SHARE * height) <= rows <= most:
        return 0
    above, within = shares[rows : rows + max(rows, LEAST_ROWS)], shares[rows - EDGE_ROWS : rows]
    band = grey[height - rows :].astype(np.int16)
    away = np.abs(band - _level(band))
    is_bar = (
        shares[:rows].mean() >= LEAST_OF_THE_BAND
        and above.mean() <= MOST_ABOVE
        and within.mean() >= LEAST_OF_THE_BAND
        and (away == 0).mean() >= LEAST_EXACT
        and (away >= CONTRAST).mean() >= LEAST_WRITTEN
    )
    return rows if is_bar else 0


def _shares_of_level(lower: np.ndarray) -> np.ndarray:
    """Return the share of each row [rows] that has the usual level of the lowest rows."""
    lowest = lower[-max(LEAST_ROWS, len(lower) // 16) :]
    return (np.abs(lower - _level(lowest)) <= LEVEL_WITHIN).mean(1)


def _level(pixels: np.ndarray) -> int:
    return int(np.bincount(pixels.ravel(), minlength=256).argmax())


def _run(found: np.ndarray) -> int:
    """Return the length of the run of true values at the start, short gaps bridged."""
    length = 0
    for place in np.flatnonzero(found):
        if place - length > GAP_ROWS:
            break
        length = int(place) + 1
    return length
