"""Contact sheets that a silo draws for itself: what styles look like on its labels, and what a network finds."""

from collections.abc import Mapping

import numpy as np

from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.reporting.figure_style import TICK_SIZE, TITLE_SIZE, as_label, new_figure, png_bytes

CELL_INCHES = 1.5
OVERLAY = np.array([213, 94, 0], np.uint8)
RIGHT, MISSED, INVENTED = (np.array(colour, np.uint8) for colour in ((60, 60, 60), (0, 114, 178), (213, 94, 0)))


def style_sheet(silo: str, tiles: MicrographSet, painted: Mapping[str, np.ndarray]) -> bytes:
    """Return a PNG: a column per tile; rows: label, real image, image by each generator (the paper's Fig. 5).

    painted: silo whose style it is -> uint8 [n, h, w].
    """
    rows = {"label": 255 * tiles.masks, "real": tiles.images}
    rows |= {f"in the style of {name}": images for name, images in painted.items()}
    return _sheet(f"Labels of {silo} in the styles that arrived", rows)


def prediction_sheet(tiles: MicrographSet, logits: np.ndarray) -> bytes:
    """Return a PNG: a column per tile; rows: image, true boundaries, found boundaries laid over it, error map."""
    found = logits[: len(tiles)] > 0
    rows = {
        "image": tiles.images,
        "true boundary": 255 * tiles.masks,
        "found": np.stack([overlaid(image, mask) for image, mask in zip(tiles.images, found, strict=True)]),
        "blue missed, orange invented": np.stack([error_map(f, t) for f, t in zip(found, tiles.masks, strict=True)]),
    }
    return _sheet("Test tiles", rows)


def overlaid(image: np.ndarray, boundary: np.ndarray) -> np.ndarray:
    """Return uint8 [h, w, 3]: the grey image with the boundary painted over it."""
    coloured = np.repeat(image[..., None], 3, 2)
    coloured[boundary > 0] = OVERLAY
    return coloured


def error_map(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return uint8 [h, w, 3]: white grains, dark boundaries found, blue ones missed, red ones invented."""
    found, true = found > 0, true > 0
    coloured = np.full((*found.shape, 3), 255, np.uint8)
    for where, colour in ((found & true, RIGHT), (~found & true, MISSED), (found & ~true, INVENTED)):
        coloured[where] = colour
    return coloured


def _sheet(title: str, rows: Mapping[str, np.ndarray]) -> bytes:
    count = len(next(iter(rows.values())))
    figure = new_figure(CELL_INCHES * count + 1.2, CELL_INCHES * len(rows) + 0.4, square_axes=True)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(as_label(name, 14, 3), fontsize=TICK_SIZE, rotation=0, ha="right", va="center")
    figure.suptitle(as_label(title, 60), fontsize=TITLE_SIZE)
    return png_bytes(figure)
