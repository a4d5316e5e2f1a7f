"""Sizes of grains in a segmented micrograph, and the ASTM grain-size number.

ASTM E112 (planimetric):  N_A = (N_inside + N_intercepted / 2 + 1) / A        grains per mm2, at magnification 1
                          G   = 3.321928 log10(N_A) - 2.954
the + 1 is what the four corner grains of a rectangular field count together (Saltykov); they are not in
N_intercepted. ASTM E930 gives a single grain the G of its own area, N_A = 1 / area.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ray_fed.micrographs.polycrystals import grains_of

SQUARE_UM_PER_SQUARE_MM = 1e6


@dataclass(frozen=True)
class GrainSizes:
    """The grains of one field. Boundary lines have no area: their pixels are shared out to the nearest grain."""

    area_px: np.ndarray
    """Pixels of each grain, int64 [num_grains]."""
    row: np.ndarray
    """Centre of gravity, pixels from the top, float64 [num_grains]."""
    column: np.ndarray
    """Centre of gravity, pixels from the left, float64 [num_grains]."""
    touches_frame: np.ndarray
    """Cut by the frame: its area is a lower bound; bool [num_grains]."""
    is_corner: np.ndarray
    """Covers a corner of the field; bool [num_grains]."""
    labels: np.ndarray
    """Grain number of each pixel, int [H, W]."""

    @property
    def equivalent_diameter_px(self) -> np.ndarray:
        """Diameter of the circle of equal area, [num_grains]."""
        return np.sqrt(4 * self.area_px / np.pi)

    def grains_in_field(self) -> float:
        """Return N_inside + N_intercepted / 2 + 1; 0 for a field without grains."""
        if len(self.area_px) == 0:
            return 0.0
        intercepted = int((self.touches_frame & ~self.is_corner).sum())
        return float((~self.touches_frame).sum() + 0.5 * intercepted + 1)

    def astm_g(self, pixel_size_um: float) -> float:
        """Return the grain-size number of the field (ASTM E112, planimetric); NaN for a field without grains."""
        square_mm = self.labels.size * pixel_size_um**2 / SQUARE_UM_PER_SQUARE_MM
        return float(astm_grain_size_number(self.grains_in_field() / square_mm))

    def astm_g_of_each(self, pixel_size_um: float) -> np.ndarray:
        """Return the number that belongs to each grain's own area (ASTM E930), [num_grains]."""
        return astm_grain_size_number(SQUARE_UM_PER_SQUARE_MM / (self.area_px * pixel_size_um**2))


def astm_grain_size_number(grains_per_square_mm: float | np.ndarray) -> np.ndarray:
    """Return G of a number of grains per mm2 at magnification 1 (ASTM E112); NaN where there are none."""
    density = np.asarray(grains_per_square_mm, np.float64)
    return np.where(density > 0, 3.321928 * np.log10(np.where(density > 0, density, 1.0)) - 2.954, np.nan)


def grain_sizes(mask: np.ndarray, min_pixels: int = 1) -> GrainSizes:
    """Measure the grains of a boundary mask [H, W] (1 = boundary).

    Islands of fewer than `min_pixels` grain pixels are taken for noise: they become boundary and then part of the
    nearest grain.
    """
    labels = grains_of(without_islands(mask, min_pixels)) if (mask == 0).any() else None
    if labels is None:
        none = np.zeros(0)
        return GrainSizes(none.astype(np.int64), none, none, none > 0, none > 0, np.zeros(mask.shape, np.int32))
    count = int(labels.max()) + 1
    area = np.bincount(labels.ravel(), minlength=count)
    rows, columns = np.indices(labels.shape)
    frame = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
    return GrainSizes(
        area,
        np.bincount(labels.ravel(), rows.ravel(), count) / area,
        np.bincount(labels.ravel(), columns.ravel(), count) / area,
        np.isin(np.arange(count), frame),
        np.isin(np.arange(count), corners),
        labels,
    )


def without_islands(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    """Return the mask with grains smaller than `min_pixels` turned into boundary; as it is if that would leave none."""
    labels, count = ndimage.label(mask == 0)  # type: ignore[misc]
    labels = np.asarray(labels, np.int32)
    small = np.bincount(labels.ravel(), minlength=count + 1) < min_pixels
    small[0] = False
    return mask if small[1:].all() else np.where(small[labels], 1, mask).astype(np.uint8)
