"""PatchGAN discriminators (Isola et al. 2017, Sec. 3.2.2), alone or at two scales (pix2pixHD).

They never leave a silo: they are the part that has looked at real images closest.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ray_fed.randomness import derived_seed
from ray_fed.style_transfer.generators import initialised

Features = Sequence[torch.Tensor]
"""Outputs of a discriminator's layers; the last one holds a logit per patch."""


class PatchDiscriminator(nn.Module):
    """(label, image) [n, 2, h, w] -> outputs of all layers, the last a logit per overlapping patch."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        widths = [min(width * 2**level, 8 * width) for level in range(layers + 1)]
        stages = [nn.Sequential(nn.Conv2d(2, widths[0], 4, 2, 1), nn.LeakyReLU(0.2))]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            convolution = nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1)
            stages.append(nn.Sequential(convolution, nn.InstanceNorm2d(widths[level]), nn.LeakyReLU(0.2)))
        self.stages = nn.ModuleList([*stages, nn.Conv2d(widths[-1], 1, 4, 1, 1)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class MultiScaleDiscriminator(nn.Module):
    """Several patch discriminators, each seeing the pair at half the size of the one before (pix2pixHD, Sec. 3.2)."""

    def __init__(self, width: int, layers: int, scales: int):
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(width, layers) for _ in range(scales))
        self.halve = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

    def forward(self, label: torch.Tensor, image: torch.Tensor) -> list[Features]:
        """label, image: [n, 1, h, w]. Returns each scale's features."""
        x, found = torch.cat([label, image], 1), []
        for number, scale in enumerate(self.scales):
            x = self.halve(x) if number else x
            found.append(scale(x))
        return found


def new_discriminator(width: int, layers: int, scales: int, seed: int) -> MultiScaleDiscriminator:
    """Return the discriminator with initial weights that depend on `seed` alone."""
    made = initialised(
        lambda: MultiScaleDiscriminator(width, layers, scales), derived_seed(seed, "discriminator weights")
    )
    assert isinstance(made, MultiScaleDiscriminator)
    return made
