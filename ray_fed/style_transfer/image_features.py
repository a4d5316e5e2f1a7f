"""What a generator is told of a real image besides its label: features of single grains, and smooth fields.

pix2pixHD (Wang et al. 2018, Sec. 3.4) gives its generator features of each instance, averaged over the instance: taken
from the real image while training, drawn at random afterwards. Here the instances are grains and the features are
measured, not learnt: a level, and the band that twins and lamellae draw through a grain without being boundaries. A
generator that sees them need not guess them, so its L1 and feature-matching terms no longer punish variety.

    column   feature                                              unit
    0        level of the grain outside its band                  standard deviations over the silo's grains
    1, 2     sine, cosine of the band's normal (rows, columns)
    3        distance of the band's middle from the grain's       radii of the grain
    4        half width of the band; NO_BAND without one          radii of the grain
    5        level of the band less that of the grain             standard deviations over the silo's bands

Only four statistics of these, and the level of noise, (`GrainStatistics`) leave the silo, in the artifact's header.

What varies smoothly over a micrograph is treated alike, so that uneven light and fading boundaries are an input that
the generator need not guess:

    field   measured in each cell of a grid                          drawn
    light   mean grey of the grains                                  N(0, 1) per cell, interpolated
    line    mean grey of the boundary less that of the grains        N(0, 1) per cell, interpolated

Both are brought to mean 0 and standard deviation 1 over the silo's images; nothing of them travels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

NUM_FEATURES = 6
NO_BAND = -9.0
NUM_ANGLES = 16
FINE_ANGLES = np.array([-0.4, -0.2, 0.2, 0.4]) * np.pi / NUM_ANGLES
LEAST_PIXELS = 60
"""Grains with fewer pixels are too small to be searched for a band."""
LEAST_EXPLAINED = 0.3
"""Share of a grain's variance that a band must explain to be one; in pure noise the best of all candidates reaches 0.1
to 0.2 for the smallest grains that are searched."""

LEAST_IN_EACH_HALF = 0.2
"""Share of the variance of each half of a grain, along the band, that the levels of the other half must explain."""


@dataclass(frozen=True)
class GrainStatistics:
    """How a silo's grains vary: what a receiver draws their features from."""

    band_share: float = 0.0
    """Share of the searched grains that carry a band."""
    width_mean: float = 0.25
    """Of the half widths, radii."""
    width_spread: float = 0.0
    """Standard deviation."""
    offset_spread: float = 0.0
    """Standard deviation of the bands' distances from the grains' middles, radii."""
    noise: float = 0.0
    """Standard deviation of the pixel noise that the generator leaves out, grey values in [0, 1]."""

    def __post_init__(self) -> None:
        for name in ("band_share", "width_mean", "width_spread", "offset_spread", "noise"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
            if not number or not 0 <= value <= 10:
                raise ValueError(f"grain statistic {name}={value!r} must be a number from 0 to 10")
        if self.band_share > 1:
            raise ValueError(f"grain statistic band_share={self.band_share} must not be above 1")

    def drawn(self, num_labels: int, num_grains: int, draws: torch.Generator) -> torch.Tensor:
        """Return features [num_labels, num_grains + 1, NUM_FEATURES] for the grains of synthetic images."""
        shape, device = (num_labels, num_grains + 1), draws.device
        level, offset, width, band_level = torch.randn(4, *shape, generator=draws, device=device)
        angle, lot = torch.rand(2, *shape, generator=draws, device=device)
        width = (self.width_mean + self.width_spread * width).clamp_min(0.05)
        width = torch.where(lot < self.band_share, width, torch.full_like(width, NO_BAND))
        normal = torch.sin(np.pi * angle), torch.cos(np.pi * angle)
        return torch.stack([level, *normal, self.offset_spread * offset, width, band_level], 2)


def measured(images: np.ndarray, grains: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, GrainStatistics]:
    """Return the features float32 [n, grains + 1, NUM_FEATURES] of a silo's own images, and their statistics.

    images: [n, h, w], grey values 0..255; grains: int32 [n, h, w]; shapes: float32 [n, grains + 1, 3] as in GrainMaps.
    """
    features = np.zeros((*shapes.shape[:2], NUM_FEATURES), np.float32)
    features[..., 4] = NO_BAND
    searched = 0
    for place, (image, grain, shape) in enumerate(zip(images, grains, shapes, strict=True)):
        order = np.argsort(grain, axis=None, kind="stable")
        bounds = np.searchsorted(grain.ravel()[order], np.arange(shape.shape[0] + 1))
        for number in range(1, shape.shape[0]):
            pixels = order[bounds[number] : bounds[number + 1]]
            if len(pixels):
                is_searched = len(pixels) >= LEAST_PIXELS
                features[place, number] = _of_grain(image, pixels, shape[number], is_searched)
                searched += is_searched
    there = shapes[..., 2] > 1
    there[:, 0] = False
    statistics = _statistics(features[there], searched)
    _standardise(features, there)
    return features, statistics


def _of_grain(image: np.ndarray, pixels: np.ndarray, shape: np.ndarray, search: bool) -> np.ndarray:
    values = image.ravel()[pixels].astype(np.float32) / 255
    plain = np.array([values.mean(), 0, 0, 0, NO_BAND, 0], np.float32)
    if not search:
        return plain
    rows, columns = (part - middle for part, middle in zip(np.divmod(pixels, image.shape[1]), shape[:2], strict=True))
    return _band(without_surface(values, rows, columns, float(shape[2])), rows, columns, float(shape[2]), plain)


def without_surface(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, radius: float) -> np.ndarray:
    """Return what is left of a grain's grey values [n] when the smooth surface that fits them best is taken away.

    Slopes, bowls and dark rims of real grains, and slow texture, look to any three-level profile like a band; a band
    has edges, which no polynomial of low degree follows. Residuals of least squares sum to zero.
    """
    down, right = rows / radius, columns / radius
    square = down**2 + right**2
    terms = [np.ones_like(down), down, right, down**2, down * right, right**2, square**2]
    basis, _ = np.linalg.qr(np.stack(terms, 1))
    return (values - basis @ (basis.T @ values)).astype(np.float32)


def _band(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, radius: float, plain: np.ndarray) -> np.ndarray:
    """Return the features of a grain with the band that explains most of its variance, or `plain` without a band.

    A coarse search over all directions, then a fine one around the best: an edge that is a pixel off at its ends
    teaches a generator blurred edges.
    """
    best, found, at = LEAST_EXPLAINED, plain, 0.0
    coarse = np.arange(NUM_ANGLES) * np.pi / NUM_ANGLES
    for angle in coarse:
        best, found, at = _better(best, found, at, (float(angle), 0.0), (values, rows, columns, radius, plain))
    if best > LEAST_EXPLAINED:
        for angle in at + FINE_ANGLES:
            for phase in (0.0, 0.5):
                best, found, at = _better(
                    best, found, at, (float(angle), phase), (values, rows, columns, radius, plain)
                )
    return found if found is plain or runs_through(values, rows, columns, radius, found) else plain


def runs_through(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, radius: float, found: np.ndarray) -> bool:
    """Whether a band is in both halves of its length: the levels of one half explain the other, too.

    Texture of a few pixels' grain fits a band somewhere in almost any grain, but not twice at one place.
    """
    _, sine, cosine, offset, half, _ = found
    away = np.abs(rows * sine + columns * cosine - offset * radius) - half * radius
    part = np.where(np.abs(away) <= 1, 1, np.where(away < 0, 0, 2))
    along = rows * cosine - columns * sine
    is_first = along < np.median(along)
    levels = [_levels(values[side], part[side]) for side in (is_first, ~is_first)]
    return all(
        _explained(values[side], levels[other][part[side]]) >= LEAST_IN_EACH_HALF
        for other, side in ((1, is_first), (0, ~is_first))
    )


def _levels(values: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return the mean value inside, on the edges and outside a band, [3]."""
    return np.bincount(part, values, 3) / np.maximum(np.bincount(part, minlength=3), 1)


def _explained(values: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of the squares of `values` that a prediction takes away; below 0 where it adds to them."""
    return 1 - float(((values - predicted) ** 2).sum()) / max(float((values**2).sum()), 1e-12)


def _better(best: float, found: np.ndarray, at: float, direction: tuple[float, float], grain: tuple) -> tuple:
    """Return (share explained, features, angle) of the best band along a direction, or what was given if that is more.

    direction: (angle of the normal, where within a pixel the bins begin).
    """
    values, rows, columns, radius, plain = grain
    angle, phase = direction
    normal, total = (np.sin(angle), np.cos(angle)), float((values**2).sum())
    place = rows * normal[0] + columns * normal[1] + phase
    start = np.floor(place.min())
    bins = (place - start).astype(np.int64)
    sums, counts = np.bincount(bins, values), np.bincount(bins)
    if len(counts) < 6 or (sums**2 / np.maximum(counts, 1)).sum() <= best * total:
        return best, found, at  # even a free profile along this direction explains less
    explained, first, last, level, outside = best_band(sums, counts)
    if explained <= best * total:
        return best, found, at
    middle, half = start + (first + last + 1) / 2 - phase, (last - first) / 2
    features = np.array([plain[0] + outside, *normal, middle / radius, half / radius, level], np.float32)
    return explained / total, features, angle


def best_band(sums: np.ndarray, counts: np.ndarray) -> tuple[float, int, int, float, float]:
    """Return (explained sum of squares, first edge bin, last edge bin, band level less outside level, outside level).

    A profile is explained by three values: its two edge bins together, what lies between them, what lies outside.
    sums, counts: [bins] of values and pixels per bin of a profile whose values sum to zero.
    """
    size = len(counts)
    i, j = np.triu_indices(size, 2)
    keep = (i > 0) & (j < size - 1) & (j - i <= 0.7 * size)
    i, j = i[keep], j[keep]
    total_sum, total_count = np.concatenate([[0], sums]).cumsum(), np.concatenate([[0], counts]).cumsum()
    inner = total_sum[j] - total_sum[i + 1], total_count[j] - total_count[i + 1]
    edge = sums[i] + sums[j], counts[i] + counts[j]
    outer = total_sum[-1] - inner[0] - edge[0], total_count[-1] - inner[1] - edge[1]
    if not len(i):
        return 0.0, 0, 0, 0.0, 0.0
    explained = np.sum([part**2 / np.maximum(count, 1) for part, count in (inner, edge, outer)], axis=0)
    best = int(np.argmax(explained))
    inside, outside = (float(part[best] / max(count[best], 1)) for part, count in (inner, outer))
    return float(explained[best]), int(i[best]), int(j[best]), inside - outside, outside


def _statistics(features: np.ndarray, searched: int) -> GrainStatistics:
    """features: [grains, NUM_FEATURES], of all grains of all images."""
    bands = features[features[:, 4] > 0]
    if len(bands) < 3:
        return GrainStatistics()
    return GrainStatistics(
        len(bands) / searched,
        min(float(np.median(bands[:, 4])), 10.0),
        min(_spread_of(bands[:, 4]), 10.0),
        min(_spread_of(bands[:, 3]), 10.0),
    )


def _spread_of(values: np.ndarray) -> float:
    """Return the standard deviation of a normal distribution with the values' quartiles: bands that are none lie far
    out and must not count."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    return float(upper - lower) / 1.349


def _standardise(features: np.ndarray, there: np.ndarray) -> None:
    """Bring levels to mean 0 and both kinds of level to standard deviation 1, in place."""
    levels = features[there][:, 0]
    features[..., 0] = (features[..., 0] - levels.mean()) / max(float(levels.std()), 1e-3)
    bands = features[..., 4] > 0
    if bands.any():
        features[..., 5] /= max(float(features[bands][:, 5].std()), 1e-3)


LIGHT_CELLS = 3
LINE_CELL_PX = 11
"""Edge of a cell of the line field; a boundary's contrast changes over a fraction of a grain."""
MOST_SPREADS = 3.0
"""Fields are cut off at so many standard deviations."""


def num_line_cells(side: int) -> int:
    """Return cells of the line field along an image's side, pixels."""
    return max(2, round(side / LINE_CELL_PX))


def measured_fields(images: np.ndarray, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fields float32 [n, 2, h, w] of uint8 images and masks [n, h, w], and the light float32 [n, h, w] as
    grey values 0..255 less their mean."""
    pixels, boundary = (torch.from_numpy(np.ascontiguousarray(part)).float()[:, None] for part in (images, masks))
    size = images.shape[1:]
    light = _cell_means(pixels, 1 - boundary, LIGHT_CELLS)
    light = torch.where(light.isnan(), pixels.mean(), light) - pixels.mean()
    cells = num_line_cells(min(size))
    depth = _cell_means(pixels, boundary, cells) - _cell_means(pixels, 1 - boundary, cells)
    fields = [_enlarged(_standardised(grid), size) for grid in (light, depth)]
    return torch.cat(fields, 1), _enlarged(light, size)[:, 0]


def drawn_fields(count: int, size: tuple[int, int], draws: torch.Generator) -> torch.Tensor:
    """Return fields float32 [count, 2, h, w] for synthetic images."""
    grids = (LIGHT_CELLS, num_line_cells(min(size)))
    made = [torch.randn(count, 1, cells, cells, generator=draws, device=draws.device) for cells in grids]
    return torch.cat([_enlarged(grid.clamp(-MOST_SPREADS, MOST_SPREADS), size) for grid in made], 1)


def noise_level(images: np.ndarray, masks: np.ndarray) -> float:
    """Return the standard deviation of pixel noise inside grains, grey values 0..255.

    Immerkaer 1996: the difference of two Laplacians is blind to slopes and curvature and sees white noise times 6. The
    median of its size over grain pixels is 0.6745 standard deviations and does not see the few edges among them.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()[:, None]
    kernel = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]
    response = functional.conv2d(pixels, kernel)[:, 0].abs()
    inside = torch.from_numpy(masks[:, 1:-1, 1:-1] == 0)
    return float(response[inside].median() / 0.6745 / 6) if inside.any() else 0.0


def _cell_means(values: torch.Tensor, weights: torch.Tensor, cells: int) -> torch.Tensor:
    """Return the weighted means [n, 1, cells, cells]; NaN where a cell has no weight."""
    total, weight = (functional.adaptive_avg_pool2d(part, cells) for part in (values * weights, weights))
    return torch.where(weight > 0, total / weight.clamp_min(1e-6), torch.nan)


def _standardised(grid: torch.Tensor) -> torch.Tensor:
    there = grid[~grid.isnan()]
    if len(there) < 2:
        return torch.zeros_like(grid)
    scaled = (grid - there.mean()) / there.std().clamp_min(1e-3)
    return scaled.nan_to_num(0).clamp(-MOST_SPREADS, MOST_SPREADS)


def _enlarged(grid: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return functional.interpolate(grid, tuple(size), mode="bicubic", align_corners=False)
