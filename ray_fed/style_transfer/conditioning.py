"""What a generator sees of a label: the boundary map and, if asked for, what each grain is like, and white noise.

A label says where grains are, not how bright each is or which way its twins run. Without such inputs a network trained
against an L1 term can only paint the mean of all possibilities.

    input   channels  value in a grain                                                on a boundary
    label   1         -1                                                              1
    level   1         grey level of the grain, standardised                           0
    band    3         distance to the nearest edge of the grain's band, -1 (inside)   1, 0, 0
                      to 1 (far outside, or no band); level of the band inside it;
                      1 within EDGE_HALF_WIDTH_PX of an edge
    light   1         light of the image there, standardised                          the same
    line    1         0                                                               depth of the boundary there
    noise   1         N(0, 1) per pixel                                               the same

All but label and noise are those of the real image while a generator is trained, and drawn at random afterwards; see
image_features.py. Every institution draws boundaries at a width of its own, and a generator learns its sender's: a
receiver widens or thins the lines of its labels first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

EDGE_REACH_PX = 3.0
"""Distance from a band's edge at which the band channel reaches its ends."""
EDGE_HALF_WIDTH_PX = 1.0


@dataclass(frozen=True)
class GrainMaps:
    """Labels with their grains counted and measured; everything on one device."""

    boundary: torch.Tensor
    """uint8 [n, h, w], 1 = boundary."""
    grains: torch.Tensor
    """int32 [n, h, w], number of the pixel's grain from 1 on, 0 on a boundary."""
    shapes: torch.Tensor
    """float32 [n, most grains + 1, 3]: row, column of the centre and radius of an equal disc, pixels."""

    @classmethod
    def of(cls, masks: np.ndarray, device: str = "cpu") -> "GrainMaps":
        """Measure labels uint8 [n, h, w], 1 = boundary; grains are 4-connected."""
        grains = np.stack([ndimage.label(mask == 0)[0].astype(np.int32) for mask in masks])  # type: ignore[misc]
        most = int(grains.max())
        shapes = np.stack([_measured(grain, most) for grain in grains])
        return cls(*(torch.from_numpy(part).to(device) for part in (np.ascontiguousarray(masks), grains, shapes)))

    def __len__(self) -> int:
        return len(self.boundary)

    @property
    def num_grains(self) -> int:
        """Most grains that a label has."""
        return self.shapes.shape[1] - 1

    def inputs(
        self,
        index: torch.Tensor,
        names: Sequence[str],
        features: torch.Tensor,
        fields: torch.Tensor,
        draws: torch.Generator,
    ) -> torch.Tensor:
        """Return the generator's input float32 [len(index), channels, h, w] for the labels `index`.

        features: [len(index), num_grains + 1, NUM_FEATURES]; fields: [len(index), 2, h, w], light and line.
        """
        grains = self.grains[index].long()
        parts = []
        for name in names:
            if name == "label":
                parts.append(self.label(index))
            elif name == "level":
                parts.append(_spread(features[..., 0], grains).mul(grains > 0).unsqueeze(1))
            elif name == "band":
                parts.append(self._band(index, grains, features))
            elif name == "light":
                parts.append(fields[:, :1])
            elif name == "line":
                parts.append(fields[:, 1:] * (grains == 0).unsqueeze(1))
            else:
                shape = (len(index), 1, *grains.shape[1:])
                parts.append(torch.randn(shape, generator=draws, device=grains.device))
        return torch.cat(parts, 1)

    def label(self, index: torch.Tensor) -> torch.Tensor:
        """Return float32 [len(index), 1, h, w]: 1 on boundaries, -1 in grains."""
        return self.boundary[index].float().mul_(2).sub_(1).unsqueeze(1)

    def _band(self, index: torch.Tensor, grains: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        row, column, radius = self.shapes[index].unbind(2)
        sine, cosine, offset, half, level = features[..., 1:].unbind(2)
        middle = row * sine + column * cosine + offset * radius
        tables = torch.stack([sine, cosine, middle, half * radius, level], 1)
        sine, cosine, middle, half, level = _spread(tables, grains[:, None].expand(-1, 5, -1, -1)).unbind(1)
        rows = torch.arange(grains.shape[1], device=grains.device, dtype=torch.float32)[:, None]
        columns = torch.arange(grains.shape[2], device=grains.device, dtype=torch.float32)
        outside = (sine * rows + cosine * columns - middle).abs() - half
        has_band = (half > 0) & (grains > 0)
        distance = torch.where(has_band, outside / EDGE_REACH_PX, torch.ones_like(outside)).clamp(-1, 1)
        inner = torch.where(has_band & (outside < 0), level, torch.zeros_like(level))
        # Drawn from the distance alone, thin dark edges come out blurred: the loss hardly sees them.
        edge = (1 - outside.abs() / EDGE_HALF_WIDTH_PX).clamp(0, 1) * has_band
        return torch.stack([distance, inner, edge], 1)


def _spread(tables: torch.Tensor, grains: torch.Tensor) -> torch.Tensor:
    """Spread values per grain [..., grains] over the pixels [..., h, w]."""
    return tables.gather(-1, grains.flatten(-2)).view(grains.shape)


def _measured(grains: np.ndarray, most: int) -> np.ndarray:
    """Return float32 [most + 1, 3]: centre row, centre column, radius of each grain; radius 1 where there is none."""
    rows, columns = np.indices(grains.shape)
    area = np.bincount(grains.ravel(), minlength=most + 1)
    safe = np.maximum(area, 1)
    row, column = (np.bincount(grains.ravel(), where.ravel(), most + 1) / safe for where in (rows, columns))
    return np.stack([row, column, np.maximum(np.sqrt(area / np.pi), 1.0)], 1).astype(np.float32)
