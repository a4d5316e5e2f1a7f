"""What a generator sees of a label: the boundary map and, if asked for, random quantities that are constant or linear
inside a grain, and white noise.

A label says where grains are, not how bright each is or which way its twins run. Without such inputs a network trained
against an L1 term can only paint the mean of all possibilities.

    input   value in a grain                                     on a boundary
    label   -1                                                   1
    level   one draw of N(0, 1) per grain                        0
    ramp    s + distance along a random direction, in radii      0      (s is one draw of N(0, 1) per grain)
    noise   N(0, 1) per pixel                                    the same
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage


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
        grains = np.stack([_numbered(mask) for mask in masks])
        most = int(grains.max())
        shapes = np.stack([_measured(grain, most) for grain in grains])
        return cls(*(torch.from_numpy(part).to(device) for part in (np.ascontiguousarray(masks), grains, shapes)))

    def __len__(self) -> int:
        return len(self.boundary)

    def inputs(self, index: torch.Tensor, names: Sequence[str], draws: torch.Generator) -> torch.Tensor:
        """Return the generator's input float32 [len(index), channels, h, w] for the labels `index`."""
        grains = self.grains[index].long()
        made = [self._channel(name, index, grains, draws) for name in names]
        return torch.stack(made, 1)

    def label(self, index: torch.Tensor) -> torch.Tensor:
        """Return float32 [len(index), 1, h, w]: 1 on boundaries, -1 in grains."""
        return self.boundary[index].float().mul_(2).sub_(1).unsqueeze(1)

    def _channel(self, name: str, index: torch.Tensor, grains: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        if name == "label":
            return self.label(index)[:, 0]
        if name == "noise":
            return torch.randn(grains.shape, generator=draws, device=grains.device)
        if name == "level":
            return self._of_grains(self._drawn(index, draws), grains)
        return self._ramp(index, grains, draws)

    def _ramp(self, index: torch.Tensor, grains: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        angle, start = self._drawn(index, draws, "uniform") * torch.pi * 2, self._drawn(index, draws)
        row, column, radius = self.shapes[index].unbind(2)
        along_rows, along_columns = torch.sin(angle) / radius, torch.cos(angle) / radius
        offset = start - row * along_rows - column * along_columns
        rows = torch.arange(grains.shape[1], device=grains.device, dtype=torch.float32)[:, None]
        columns = torch.arange(grains.shape[2], device=grains.device, dtype=torch.float32)
        tables = (self._of_grains(table, grains) for table in (along_rows, along_columns, offset))
        a, b, c = tables
        return (a * rows + b * columns + c) * (grains > 0)

    def _drawn(self, index: torch.Tensor, draws: torch.Generator, kind: str = "normal") -> torch.Tensor:
        """Return a draw for every grain of every label [len(index), most grains + 1], 0 for the boundary."""
        shape = (len(index), self.shapes.shape[1])
        draw = torch.rand if kind == "uniform" else torch.randn
        values = draw(shape, generator=draws, device=self.shapes.device)
        values[:, 0] = 0
        return values

    @staticmethod
    def _of_grains(table: torch.Tensor, grains: torch.Tensor) -> torch.Tensor:
        """Spread values per grain [n, grains] over the pixels [n, h, w]."""
        return table.gather(1, grains.flatten(1)).view(grains.shape)


def _numbered(mask: np.ndarray) -> np.ndarray:
    """Return int32 [h, w]: the number of each pixel's grain, 0 on a boundary."""
    grains, _ = ndimage.label(mask == 0)  # type: ignore[misc]
    return grains.astype(np.int32)


def _measured(grains: np.ndarray, most: int) -> np.ndarray:
    """Return float32 [most + 1, 3]: centre row, centre column, radius of each grain; radius 1 where there is none."""
    rows, columns = np.indices(grains.shape)
    area = np.bincount(grains.ravel(), minlength=most + 1)
    safe = np.maximum(area, 1)
    row, column = (np.bincount(grains.ravel(), where.ravel(), most + 1) / safe for where in (rows, columns))
    return np.stack([row, column, np.maximum(np.sqrt(area / np.pi), 1.0)], 1).astype(np.float32)


def turned(x: torch.Tensor, quarter_turns: int, mirrored: bool) -> torch.Tensor:
    """Return [..., h, w] turned by quarters and mirrored: one of the eight symmetries of a square image."""
    x = torch.rot90(x, quarter_turns, (-2, -1)) if quarter_turns % 4 else x
    return x.flip(-1) if mirrored else x
