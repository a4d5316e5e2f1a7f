"""What varies smoothly over a micrograph: its light, and how deep its boundary lines are; and its pixel noise.

Like the grains' features (grain_features.py) the two fields are measured in the real image while a generator is
trained and drawn at random afterwards, so that uneven light and fading boundaries are an input and not a riddle.

    field   measured in each cell of a grid                          drawn
    light   mean grey of the grains                                  N(0, 1) per cell, interpolated
    line    mean grey of the boundary less that of the grains        N(0, 1) per cell, interpolated

Both are brought to mean 0 and standard deviation 1 over the silo's images; nothing of them travels.
"""

import numpy as np
import torch
from torch.nn import functional

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
    """Return fields float32 [count, 2, h, w] of images that never were."""
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
