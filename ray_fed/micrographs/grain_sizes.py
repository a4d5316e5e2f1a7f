"""Sizes of grains in a segmented micrograph, and the ASTM grain-size number.

ASTM E112, planimetric:  N_A = (N_inside + N_intercepted / 2 + 1) / A         grains per mm2, at magnification 1
                         G   = 3.321928 log10(N_A) - 2.954
ASTM E112, intercept:    l   = length of test lines / boundaries they cross    mm, at magnification 1
                         G   = -6.643856 log10(l) - 3.288
The + 1 is what the four corner grains of a rectangular field count together (Saltykov); they are not in N_intercepted.
ASTM E930 gives a single grain the G of its own area, N_A = 1 / area. Test lines are all rows and all columns of pixels.

The two agree where l = 0.890 / sqrt(N_A). Grains less even than the standard's are crossed more often: the intercept
number of a Poisson-Voronoi structure (l = 0.785 / sqrt(N_A)) is 0.36 above the planimetric one, whoever counts.

A number is refused where it would say something about the mask rather than about the specimen; see
`GrainSizes.why_no_number`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ray_fed.micrographs.polycrystals import grains_of

SQUARE_UM_PER_SQUARE_MM = 1e6
NOISE_SHARE = 0.02
"""Islands of less than this share of the usual grain's pixels are taken for noise, where no number is asked for."""
MOST_NOISE_PIXELS = 16
LARGEST_LINE_SHARE = 0.8
"""Share of a field under boundary lines above which the smallest grains are hidden by their lines and the planimetric
number comes out too small: at lines of 3 pixels, grains below about 45 pixels."""
LARGEST_LINE_SHARE_INTERCEPT = 0.5
"""The same of the intercept number, which misses the short chords first."""
LEAST_GRAINS = 2
FEW_GRAINS = 50
"""E112 asks for about this many grains in a field that is counted."""
LEAST_G, MOST_G = -6.0, 30.0
"""Grains of 9 mm and of 10 nanometres: outside, the pixel size has another unit."""


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
    line_share: float
    """Share of the field that the mask calls boundary."""
    num_islands: int
    """Islands that were taken for noise."""

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

    def mean_intercept_px(self) -> float:
        """Return the mean length between two boundaries along all rows and columns, pixels; NaN where none is met."""
        crossed = int((self.labels[:, 1:] != self.labels[:, :-1]).sum() + (self.labels[1:] != self.labels[:-1]).sum())
        height, width = self.labels.shape
        length = height * (width - 1) + width * (height - 1)
        return length / crossed if crossed else float("nan")

    def grains_per_square_mm(self, pixel_size_um: float) -> float:
        """Return N_A."""
        return self.grains_in_field() / (self.labels.size * pixel_size_um**2 / SQUARE_UM_PER_SQUARE_MM)

    def astm_g(self, pixel_size_um: float) -> float:
        """Return the grain-size number of the field (ASTM E112, planimetric); NaN where a reason forbids it."""
        refused = self.why_no_number(pixel_size_um)
        return float("nan") if refused else float(astm_grain_size_number(self.grains_per_square_mm(pixel_size_um)))

    def astm_g_of_intercepts(self, pixel_size_um: float) -> float:
        """Return the grain-size number by the mean intercept (ASTM E112); NaN where a reason forbids it."""
        if self.why_no_number(pixel_size_um) or self.line_share > LARGEST_LINE_SHARE_INTERCEPT:
            return float("nan")
        return intercept_grain_size_number(self.mean_intercept_px() * pixel_size_um / 1000)

    def astm_g_of_each(self, pixel_size_um: float) -> np.ndarray:
        """Return the number that belongs to each grain's own area (ASTM E930), [num_grains]."""
        return astm_grain_size_number(SQUARE_UM_PER_SQUARE_MM / (self.area_px * pixel_size_um**2))

    def why_no_number(self, pixel_size_um: float | None) -> str:
        """Return why no grain-size number can be told; empty where one can."""
        if len(self.area_px) < LEAST_GRAINS:
            return "no boundary was found" if len(self.area_px) else "nothing but boundary was found"
        if not pixel_size_um:
            return "the pixel size is not known"
        if self.line_share > LARGEST_LINE_SHARE:
            return (
                f"boundary lines cover {self.line_share:.0%} of the field: its grains are too small for these pixels, "
                "take the image at a higher magnification"
            )
        number = float(astm_grain_size_number(self.grains_per_square_mm(pixel_size_um)))
        if not LEAST_G <= number <= MOST_G:
            return f"G would be {number:.1f}: is the pixel size of {pixel_size_um:g} really in micrometres?"
        return ""


def astm_grain_size_number(grains_per_square_mm: float | np.ndarray) -> np.ndarray:
    """Return G of a number of grains per mm2 at magnification 1 (ASTM E112); NaN where there are none."""
    density = np.asarray(grains_per_square_mm, np.float64)
    return np.where(density > 0, 3.321928 * np.log10(np.where(density > 0, density, 1.0)) - 2.954, np.nan)


def intercept_grain_size_number(mean_intercept_mm: float) -> float:
    """Return G of a mean lineal intercept, mm (ASTM E112)."""
    return -6.643856 * math.log10(mean_intercept_mm) - 3.288


def smallest_resolvable_px(line_px: float) -> float:
    """Return the mean grain area, pixels, below which lines of this width hide too much of a structure.

    Where lines of 3 pixels cover `LARGEST_LINE_SHARE` of Poisson-Voronoi fields; a mean area scales as a width squared.
    """
    return 5 * line_px**2


def grain_sizes(mask: np.ndarray, min_pixels: int | None = None) -> GrainSizes:
    """Measure the grains of a boundary mask [H, W] (1 = boundary).

    Islands of fewer than `min_pixels` grain pixels are taken for noise: they become boundary and then part of the
    nearest grain. None: the share `NOISE_SHARE` of the grain in which the median grain pixel lies, so that the grains
    of a fine structure are not lost; never more than `MOST_NOISE_PIXELS`.
    """
    clean, islands = without_islands(mask, min_pixels)
    line_share = float((mask > 0).mean())
    if not (clean == 0).any():
        none = np.zeros(0)
        empty = np.zeros(mask.shape, np.int32)
        return GrainSizes(none.astype(np.int64), none, none, none > 0, none > 0, empty, line_share, islands)
    labels = grains_of(clean)
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
        line_share,
        islands,
    )


def without_islands(mask: np.ndarray, min_pixels: int | None) -> tuple[np.ndarray, int]:
    """Return the mask with grains smaller than `min_pixels` turned into boundary, and how many these are; as it is if
    none would be left."""
    labels, count = ndimage.label(mask == 0)  # type: ignore[misc]
    labels = np.asarray(labels, np.int32)
    area = np.bincount(labels.ravel(), minlength=count + 1)
    area[0] = 0
    least = _least_of(area) if min_pixels is None else min_pixels
    small = area < least
    small[0] = False
    if not small.any() or small[1:].all():
        return mask, 0
    return np.where(small[labels], 1, mask).astype(np.uint8), int(small.sum())


def _least_of(area: np.ndarray) -> int:
    """Return the least pixels of a grain, by the grain in which the median grain pixel lies: noise hardly moves it."""
    ordered = np.sort(area)
    usual = ordered[np.searchsorted(ordered.cumsum(), ordered.sum() / 2)]
    return max(1, min(MOST_NOISE_PIXELS, round(NOISE_SHARE * float(usual))))


@dataclass(frozen=True)
class MeanOverFields:
    """A quantity over the fields of a specimen, as ASTM E112 reports it."""

    num_fields: int
    mean: float
    spread: float
    """Sample standard deviation between fields; NaN of one field."""
    half_interval: float
    """Half of the 95 % confidence interval of the mean, Student's t; NaN of one field."""

    @property
    def relative_accuracy(self) -> float:
        """%RA, the half interval over the mean, percent; E112 takes 10 for acceptable."""
        return 100 * self.half_interval / self.mean if self.mean else float("nan")


def mean_over_fields(values: Sequence[float]) -> MeanOverFields:
    """Return mean and confidence of a quantity of each field; those that are not numbers are left out."""
    from scipy.stats import t

    known = np.array([value for value in values if np.isfinite(value)])
    n = len(known)
    if n == 0:
        return MeanOverFields(0, float("nan"), float("nan"), float("nan"))
    spread = float(known.std(ddof=1)) if n > 1 else float("nan")
    half = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n) if n > 1 else float("nan")
    return MeanOverFields(n, float(known.mean()), spread, half)
